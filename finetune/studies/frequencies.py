"""What a trained S2Fin does to frequencies, patch by patch: its filter, its channel weights, its resonance mask."""

from typing import NamedTuple

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from torch import Tensor

from datasets.labelled import Inputs, PatchSet
from finetune.s2fin.channels import AdaptiveFrequencyChannels, ChannelGains
from finetune.s2fin.network import S2Fin
from finetune.s2fin.resonance import HighFrequencyResonance

Values = NDArray[np.float32]
PER_PATCH = ("threshold", "response", "mask")


class Frequencies(NamedTuple):
    """Of n patches; a part that the network does not have is None. Frequencies in units of Nyquist."""

    label: NDArray[np.int64]  # (n,) class of the centre, 0 .. k - 1
    threshold: Values | None  # (n,) tau of HFSET's filter
    response: Values | None  # (n, bands // 2 + 1) h(f) of that filter
    gains: ChannelGains | None  # of AFCM, each (k, n, d) on the CPU
    cutoffs: dict[str, float]  # of every high-pass: "afcm passive", "afcm active", "hfrm"
    mask: Values | None  # (n, patch, patch // 2 + 1), HFRM's mask in the layout of rfft2, mean over channels


def frequencies(
    model: S2Fin, patches: PatchSet, pixels: NDArray, *, batch: int = 256, device: torch.device | str = "cpu"
) -> Frequencies:
    """Run labelled pixels (n,) through a network on `device` and keep what it does to their frequencies."""
    parts: dict[str, list[Tensor]] = {}
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            inputs, _ = patches.batch(pixels[start : start + batch])
            for name, value in _of_batch(model, Inputs(*(image.to(device) for image in inputs))).items():
                parts.setdefault(name, []).append(value.float().cpu())
    model.train(training)
    arrays = {name: torch.cat(parts[name]).numpy() if name in parts else None for name in PER_PATCH}
    gains = None
    if "structure" in parts:
        gains = ChannelGains(*(torch.cat(parts[name], dim=1) for name in ChannelGains._fields))
    return Frequencies(label=patches.label[pixels], gains=gains, cutoffs=cutoffs(model), **arrays)


def cutoffs(model: S2Fin) -> dict[str, float]:
    """Cut-off of every high-pass of AFCM and HFRM, in units of Nyquist."""
    names = {f"afcm.high_pass.{index}.cutoff": f"afcm {branch}" for index, branch in enumerate(model.branches)}
    names["hfrm.high_pass.cutoff"] = "hfrm"
    readings = model.readings()
    return {name: readings[key] for key, name in names.items() if key in readings}


def by_class(values: NDArray, label: NDArray) -> dict[int, NDArray]:
    """Mean over the patches of each class that occurs: (n, ...) -> class to (...)."""
    return {int(k): values[label == k].mean(axis=0) for k in np.unique(label)}


def _of_batch(model: S2Fin, inputs: Inputs) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if model.hfset is not None and model.hfset.filter is not None:
        found["threshold"], found["response"] = model.hfset.filter.response(inputs.spectral)
    stages = model.stages(inputs._asdict())
    before_afcm, before_hfrm = (stages.deep, stages.shallow) if model.config.swapped else (stages.shallow, stages.deep)
    if isinstance(model.afcm, AdaptiveFrequencyChannels):
        found |= model.afcm.gains(before_afcm)._asdict()
    if isinstance(model.hfrm, HighFrequencyResonance):
        mask = model.hfrm.mask(before_hfrm)
        mask = mask.expand(len(inputs.active), *mask.shape[-2:])  # without the phase term all patches share one
        found["mask"] = reduce(mask, "b (h f) d -> b h f", "mean", h=model.config.patch)
    return found
