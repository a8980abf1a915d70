"""Pictures of a segmentation: the images of samples, their labels, what the network made of them, and where it is wrong."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from alliance.errors import InputError
from alliance.sensors.display import display_bands
from datasets.figures import save_figure
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE, Colour
from datasets.labelled.tiles import Sample

COLUMNS = ("truth", "prediction", "wrong pixels")  # behind the images
TITLES = {"sar": "SAR"}  # of images that are not called by their role
STRETCH = (0.02, 0.98)  # quantiles that become black and white
LOOKED_AT = 1_000_000  # values, about, of which these are taken
MISSING: Colour = (255, 255, 255)  # also pixels that are ignored
LEGEND_COLUMNS = 8
CORRECT, WRONG = (170, 170, 170), (214, 39, 40)


def colour_channels(source: ImageSource) -> list[int]:
    """Channels to show as red, green, blue: of a sensor those of its colours; else bands 1, 2, 3 of the files, or the first."""
    if source.description is not None:
        return display_bands(source.description)
    if {1, 2, 3} <= set(source.bands):
        return [source.bands.index(band) for band in (1, 2, 3)]
    return [0, 0, 0] if len(source.bands) < 3 else [0, 1, 2]


def draw_segmentation(
    path: Path,
    sample: Sample,
    predicted: Tensor,
    classes: Mapping[str, Colour],
    *,
    title: str,
    channels: Mapping[str, Sequence[int]] = MappingProxyType({}),
    rows: int = 4,
) -> None:
    """Write a PNG with a row per sample: its images, truth, prediction, wrong pixels; below, the classes' colours.

    Images are stretched between two percentiles of all that are shown of a role. In the last panel, wrong pixels are red and
    ignored ones white; the share of correct ones among those with a label stands above it.

    Args:
        sample: a batch, stored or standardised numbers.
        predicted: (b, h, w), class indices.
        channels: of the images to show as red, green and blue, by role: see `colour_channels`; else the first of each.
        rows: at most so many samples, from the first.
    Raises:
        InputError: predictions of another shape than the labels.
    """
    if predicted.shape != sample.label.shape:
        raise InputError(f"predictions are {tuple(predicted.shape)}, labels {tuple(sample.label.shape)}")
    rows = min(rows, len(predicted))
    legend = 0.25 * math.ceil((len(classes) + 3) / LEGEND_COLUMNS)  # inches
    height = 2.3 * rows + 0.5 + legend
    columns = [*(TITLES.get(role, role) for role in sample.images), *COLUMNS]
    figure, axes = plt.subplots(rows, len(columns), figsize=(2.2 * len(columns), height), squeeze=False)
    shown = [image[:, list(channels.get(role, _usual(image)))] for role, image in sample.images.items()]
    drawn = [each[:rows].detach().cpu() for each in (*shown, sample.label, predicted)]
    limits = [stretch_limits(list(images)) for images in drawn[: len(shown)]]
    for row, (*images, truth, guess) in enumerate(zip(*drawn, strict=True)):
        maps = [coloured(indices, classes, MISSING) for indices in (truth, guess)]
        panels = [*map(stretched, images, limits), *maps, _error(truth, guess)]
        for axis, image in zip(axes[row], panels, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, -1].set_title(correctness(truth, guess), fontsize=9)
    for axis, name in zip(axes[0], columns[:-1], strict=False):
        axis.set_title(name, fontsize=10)
    _draw_legends(figure, classes)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, legend / height, 1, 1))
    save_figure(figure, path)


def legend_patches(colours: Mapping[str, Colour]) -> list[Patch]:
    """A patch of colour per name, for a legend."""
    return [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor="0.6", linewidth=0.5, label=name)
        for name, colour in colours.items()
    ]


def coloured(classes: NDArray[np.integer] | Tensor, colours: Mapping[str, Colour], other: Colour) -> NDArray[np.uint8]:
    """Class indices (h, w) -> their colours (h, w, 3) uint8; what is no class gets the `other` one."""
    palette = np.full((IGNORE + 1, 3), other, dtype=np.uint8)
    palette[: len(colours)] = list(colours.values())
    return palette[classes]


def _usual(image: Tensor) -> Sequence[int]:
    """Three channels of images (b, c, h, w), or the only one."""
    return (0, 1, 2) if image.shape[1] > 2 else (0,)


def stretch_limits(images: Sequence[Tensor]) -> tuple[float, float]:
    """Percentiles of all values of some images: what is shown as black and as white.

    Those of an image alone would make the darkest channel of an even one black and the brightest white: forest cyan.
    """
    flat = [image.float().flatten() for image in images]
    values = torch.cat([each[:: max(1, len(each) * len(flat) // LOOKED_AT)] for each in flat])
    known = values[values.isfinite()]
    if not len(known):
        return 0.0, 1.0
    low, high = torch.quantile(known, torch.tensor(STRETCH)).tolist()
    return low, high


def stretched(image: Tensor, limits: tuple[float, float]) -> np.ndarray:
    """One or three channels (c, h, w) between the limits -> (h, w, 3), 0 to 1, white where missing."""
    low, high = limits
    scaled = ((image.float() - low) / max(high - low, 1e-6)).clamp(0, 1).nan_to_num(nan=1.0)
    return rearrange(scaled.expand(3, -1, -1), "c h w -> h w c").numpy()


def _error(truth: Tensor, guess: Tensor) -> np.ndarray:
    """Colours (h, w, 3) uint8."""
    kind = torch.where(truth == IGNORE, 2, (truth != guess).long())
    return np.array([CORRECT, WRONG, MISSING], dtype=np.uint8)[kind]


def correctness(truth: Tensor, guess: Tensor) -> str:
    """What stands above wrong pixels: how many of those with a label are right."""
    known = truth != IGNORE
    share = 100 * (truth == guess)[known].double().mean()
    return f"wrong pixels; {share:.1f} % correct" if known.any() else "wrong pixels; no labels"


def _draw_legends(figure: Figure, classes: Mapping[str, Colour]) -> None:
    """A line of patches below all rows."""
    colours = {**classes, "correct": CORRECT, "wrong": WRONG, "ignored, missing": MISSING}
    patches = legend_patches(colours)
    figure.legend(
        handles=patches, loc="lower center", ncols=min(len(patches), LEGEND_COLUMNS), fontsize=8, frameon=False
    )
