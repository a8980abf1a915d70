"""The released checkpoint: an mmengine file of 926 tensors, named as its code names them, to our two files."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.export_files import differences
from alliance.foreign import as_mapping, read_checkpoint, read_weights
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import Colour, as_colour, palette_colour
from datasets.releases.facts import DDHR_SK, RELEASED_OPTICAL, RELEASED_SAR, WHU_OPT_SAR
from finetune.backbones.convnext import Size
from finetune.model_files import ImageInput, Inputs, image_input, nameless, refuse_differences
from finetune.pad.checkpoint import save_pad
from finetune.pad.model import Pad, PadConfig

CLASSIFIER = "decode_head.conv_seg.weight"

# What a file may not say: statistics in its authors' code, and classes by their number.
RELEASED: Mapping[str, Mapping[str, Any]] = {"optical": RELEASED_OPTICAL, "sar": RELEASED_SAR}
CLASSES = {len(release.classes): release.classes for release in (WHU_OPT_SAR, DDHR_SK)}
COUNTS = {  # settings that a weight shows by the length of one of its axes
    "classes": (CLASSIFIER, 0),
    "rgb_channels": ("backbone.backbone.downsample_layers.0.0.weight", 1),
    "sar_channels": ("backbone.backbone2.downsample_layers.0.0.weight", 1),
}

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
    refuse_differences(differences(expected, weights), f"{source} is no released PAD checkpoint of size {config.size}")
    return {name: weights[release_name(name)].reshape(value.shape) for name, value in own.items()}


class Converted(NamedTuple):
    """A released network in our files."""

    weights: dict[str, Tensor]  # by our names
    config: PadConfig
    assumed: list[str]  # what the file does not say, and what was taken for it


def convert(path: str | Path, out: str | Path, config: PadConfig) -> dict[str, Tensor]:
    """Write a released checkpoint as `model.safetensors` and `config.json`, which `load_pad` reads.

    Returns:
        The weights by our names.
    Raises:
        InputError: the file cannot be read, or does not fit `config`.
    """
    return convert_file(path, out, size=config.size, classes=config.classes).weights


def convert_file(path: str | Path, out: str | Path, *, size: Size, classes: int | None = None) -> Converted:
    """The same for the classes and channels that the file's weights have.

    Names and colours of classes, and mean and deviation of the bands, are those that the file's own record says; else
    those of the release with as many classes, and of the authors' code.

    Args:
        classes: that it must tell apart; None: whatever it does.
    Raises:
        InputError: the file cannot be read, or is no released network of that size and those classes.
    """
    weights = read_weights(path)
    counts: dict[str, Any] = {
        name: weights[key].shape[axis] for name, (key, axis) in COUNTS.items() if key in weights and weights[key].ndim
    }
    counts |= {"classes": classes} if classes else {}
    config = PadConfig(size=size, **counts)
    state = from_release(weights, config, source=str(path))
    content = read_checkpoint(path)
    meta = as_mapping(content.get("meta") if isinstance(content, Mapping) else None)
    names, assumed = _classes(as_mapping(meta.get("dataset_meta")), config.classes)
    images, more = _images(meta.get("cfg"), config)
    inputs = Inputs(classes=names, images=images)
    save_pad(config, state, out, source=Path(path).name, **inputs.to_record())
    return Converted(state, config, assumed + more)


def _classes(meta: Mapping[str, Any], count: int) -> tuple[Mapping[str, Colour], list[str]]:
    """Names and colours, as far as mmengine's `dataset_meta` has them; and what is assumed."""
    names, palette = meta.get("classes"), meta.get("palette")
    known = CLASSES.get(count) or nameless(count)
    if not isinstance(names, list | tuple) or len(names) != count or len(set(names)) < count:
        return known, [f"the file names no {count} classes; taken: {', '.join(known)}"]
    colours = [palette_colour(index) for index in range(count)]
    if not isinstance(palette, list | tuple) or len(palette) != count:
        return dict(zip(map(str, names), colours, strict=True)), ["the file has no colours of its classes; taken: ours"]
    return {str(name): as_colour(str(name), rgb) for name, rgb in zip(names, palette, strict=True)}, []


def _images(cfg: Any, config: PadConfig) -> tuple[dict[str, ImageInput], list[str]]:
    """The two images with the statistics of mmengine's settings, as text, if they have them; and what is assumed."""
    counts = {"optical": config.rgb_channels, "sar": config.sar_channels}
    mean, std = (_numbers(cfg, name) for name in ("mean", "std"))
    if mean and std and len(mean) == len(std) == sum(counts.values()):
        said, first = [], counts["optical"]
        statistics = {"optical": (mean[:first], std[:first]), "sar": (mean[first:], std[first:])}
    else:
        strange = [
            name for name, count in counts.items() if count > 3 or (count < 3 and len(set(RELEASED[name]["mean"])) > 1)
        ]
        if strange:
            raise InputError(
                f"the file says no mean and std of its {counts[strange[0]]} {strange[0]} bands; give one whose settings "
                f"(data_preprocessor) have them"
            )
        statistics = {
            name: (RELEASED[name]["mean"][:count], RELEASED[name]["std"][:count]) for name, count in counts.items()
        }
        said = ["the file says no mean and std of its bands; taken: those of the authors' code for WHU-OPT-SAR"]
    bands = {
        name: (RELEASED[name]["bands"] if count == 3 else tuple(range(1, count + 1))) for name, count in counts.items()
    }
    said += [f"bands of the {name} files, from 1: {', '.join(map(str, each))}" for name, each in bands.items()]
    images = {
        name: image_input(
            ImageSource(
                bands=bands[name], dtype="uint8", mean=tuple(statistics[name][0]), std=tuple(statistics[name][1])
            )
        )
        for name in counts
    }
    return images, [*said, "files of uint8"]


def _numbers(cfg: Any, name: str) -> list[float]:
    """A list of numbers of `data_preprocessor` in the text of settings; empty: it is not there."""
    preprocessor = re.search(r"data_preprocessor\s*=\s*dict\((.*)", cfg, re.DOTALL) if isinstance(cfg, str) else None
    found = re.search(rf"\b{name}\s*=\s*\[([-+0-9.eE,\s]*)\]", preprocessor[1]) if preprocessor else None
    return [float(text) for text in found[1].split(",") if text.strip()] if found else []
