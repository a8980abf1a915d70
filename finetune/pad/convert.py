"""The released checkpoint: an mmengine file of 926 tensors, named as its code names them, to our two files."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from alliance.checkpoint import differences
from alliance.errors import InputError
from alliance.foreign import read_weights
from datasets.imagery.images import ImageSource
from datasets.releases.facts import DDHR_SK, RELEASED_OPTICAL, RELEASED_SAR, WHU_OPT_SAR
from finetune.pad.checkpoint import save_pad
from finetune.pad.inputs import Inputs, nameless
from finetune.pad.model import Pad, PadConfig

CLASSIFIER = "decode_head.conv_seg.weight"
SHOWN = 40  # rows of the table of differences

# What the file itself does not say: statistics in its authors' code, and classes by their number.
SOURCES = {"rgb": ImageSource(dtype="uint8", **RELEASED_OPTICAL), "sar": ImageSource(dtype="uint8", **RELEASED_SAR)}
CLASSES = {len(release.classes): release.classes for release in (WHU_OPT_SAR, DDHR_SK)}

# From our names to the release's, applied one after the other.
RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^encoders\.rgb\.", "backbone.backbone."),
    (r"^encoders\.sar\.", "backbone.backbone2."),
    (r"^fusions\.(\d)\.", lambda match: f"backbone.FFMs.{int(match[1]) - 1}.0."),
    (r"^decoder\.", "decode_head."),
    (r"^auxiliary\.", "auxiliary_head."),
    (r"\.stem\.", ".downsample_layers.0."),
    (r"\.stages\.(\d)\.downsample\.", r".downsample_layers.\1."),
    (r"\.stages\.(\d)\.blocks\.", r".stages.\1."),
    (r"\.norms\.(\d)\.", r".norm\1."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"\.0\.gate\.", ".0.fc."),
    (r"\.0\.merge\.", ".0.catconv1."),
    (r"\.0\.asf\.radius$", ".0.radius"),
    (r"\.0\.asf\.mix\.", ".0.mix_conv."),
)


def release_name(name: str) -> str:
    """Name in a released file of the weight that has this name in `Pad`."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def from_release(weights: Mapping[str, Tensor], config: PadConfig, *, source: str = "weights") -> dict[str, Tensor]:
    """State dict of `Pad(config)` out of released weights; every name and shape must fit.

    Raises:
        InputError: another count of classes, or a table of what is missing, unexpected or reshaped.
    """
    found = weights[CLASSIFIER].shape[0] if CLASSIFIER in weights and weights[CLASSIFIER].ndim else config.classes
    if found != config.classes:
        raise InputError(f"{source} tells {found} classes apart, not {config.classes}; pass --classes {found}")
    with torch.device("meta"):
        own = Pad(config).state_dict()
    scalars = {name for name in own if name.endswith(".asf.radius")}  # ours have one dimension: DeepSpeed needs it
    expected = {release_name(name): value.squeeze() if name in scalars else value for name, value in own.items()}
    rows = differences(expected, weights)
    if rows:
        rest = [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        table = "\n".join([*rows[:SHOWN], *rest])
        raise InputError(f"{source} is no released PAD checkpoint of size {config.size}:\n{table}")
    return {name: weights[release_name(name)].reshape(value.shape) for name, value in own.items()}


def convert(path: str | Path, out: str | Path, config: PadConfig) -> dict[str, Tensor]:
    """Write a released checkpoint as `model.safetensors` and `config.json`, which `load_pad` reads.

    Returns:
        The weights by our names.
    Raises:
        InputError: the file cannot be read, or does not fit `config`.
    """
    state = from_release(read_weights(path), config, source=str(path))
    inputs = Inputs(classes=CLASSES.get(config.classes) or nameless(config.classes), sources=SOURCES)
    save_pad(config, state, out, source=Path(path).name, **inputs.notes())
    return state
