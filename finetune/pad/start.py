"""Weights that a PAD network begins with: a whole network, or the ConvNeXt V2 of both encoders."""

from dataclasses import dataclass
from pathlib import Path

from einops import rearrange
from timm.models import adapt_input_conv
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor

from alliance.errors import InputError
from alliance.export_files import WEIGHTS, differences, read_tensors
from alliance.foreign import read_weights
from datasets.contents import digest_files
from engine.log import logger
from finetune.backbones.convnext import ConvNeXtV2
from finetune.model_files import find_network, refuse_differences
from finetune.pad.checkpoint import start_from
from finetune.pad.model import Pad

STEM, RGB = "stem.0.weight", 3


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Weights to begin with; without any, the network begins at random."""

    network: str | None = None
    """Folder of a converted release or of another run's `model`; null: none."""
    convnext: str | None = None
    """File of timm's convnextv2_<size> weights (.safetensors, .pth), for both encoders; null: none."""


def load_start(model: Pad, start: StartConfig) -> None:
    """Put the weights of `start` into a network.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    if start.convnext:
        given = _read(Path(start.convnext))
        for name, encoder in model.encoders.items():
            if not isinstance(encoder, ConvNeXtV2):
                raise InputError(f"start.convnext is for ConvNeXt V2, the {name} encoder is another one; leave it out")
            own = {k: v for k, v in encoder.state_dict().items() if not k.startswith("norms.")}
            released = any(name.startswith("downsample_layers.") for name in given)  # names of the authors' files
            weights = checkpoint_filter_fn(given, encoder) if released else given
            kept = {k: _adapted(k, v, own[k]) for k, v in weights.items() if k in own}  # the rest is the classifier's
            refuse_differences(differences(own, kept), f"{start.convnext} does not fit the network")
            encoder.load_state_dict(kept, strict=False)
    if start.network:
        for name in start_from(model, find_network(start.network)):
            logger.info("start.network has %s for other classes or channels; here it begins at random", name)


def start_digests(start: StartConfig) -> dict[str, str]:
    """Checksums of the files that a network begins with, by setting.

    Raises:
        InputError: `network` names no network.
    """
    files = {"start.convnext": Path(start.convnext)} if start.convnext else {}
    if start.network:
        files["start.network"] = find_network(start.network) / WEIGHTS
    return {name: digest_files({"weights": path}) for name, path in files.items() if path.is_file()}


def _read(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, "give a file of weights") if path.suffix == ".safetensors" else read_weights(path)


def _adapted(name: str, given: Tensor, own: Tensor) -> Tensor:
    """timm's small sizes write linear layers as convolutions of one pixel; a stem for RGB is summed or repeated."""
    if name == STEM and given.shape[1] == RGB and own.shape[1] != RGB:
        return adapt_input_conv(own.shape[1], given)
    return rearrange(given, "o i 1 1 -> o i") if own.ndim == 2 and given.shape[2:] == (1, 1) else given
