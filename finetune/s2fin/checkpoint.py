"""An S2Fin network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.records import as_type, from_record, require_present
from finetune.model_files import Inputs, described_network, fill_model, read_inputs, read_record, write_model
from finetune.s2fin.network import S2Fin, S2FinConfig

TASK = "s2fin"  # in config.json


class _Sizes(NamedTuple):
    """Bands, principal components and channels that a network takes."""

    bands: int
    components: int
    channels: int


def save_network(model: S2Fin, weights: Mapping[str, Tensor], folder: str | Path, inputs: Inputs) -> Path:
    """Write a network so that `load_network` gives the same one.

    Args:
        weights: its state dict (sharded training gathers it elsewhere).
        inputs: classes in the order of the logits; of the images `passive` and `active` those that there are.
    """
    sizes = {"bands": model.sizes["spectral"], "components": model.sizes["passive"], "channels": model.sizes["active"]}
    record = {"task": TASK, "model": dataclasses.asdict(model.config), "sizes": sizes}
    record["encoder"] = None if model.encoder is None else model.encoder.record()
    return write_model(folder, record | inputs.to_record(), weights)


def load_network(folder: str | Path, *, device: str | torch.device = "cpu") -> S2Fin:
    """Load a network that `save_network` wrote, in evaluation mode.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    record = read_record(folder, TASK)
    with described_network(folder, "an S2Fin network"):
        require_present(record, ("model", "sizes", "classes", "encoder"), "it")
        config = from_record(S2FinConfig, record["model"], "model")
        sizes = from_record(_Sizes, record["sizes"], "sizes")
        classes = len(as_type(dict[str, Any], record["classes"], "classes"))
        model = S2Fin(config, **sizes._asdict(), classes=classes, record=record["encoder"])
    return fill_model(model, folder).to(device).eval()


def read_network_inputs(folder: Path, model: S2Fin) -> Inputs:
    """What a loaded network needs to know of new images: those that it reads.

    Raises:
        InputError: as `read_inputs`.
    """
    used = {role: model.sizes["spectral" if role == "passive" else role] for role in model.branches}
    return read_inputs(folder, used, model.head.out_features)
