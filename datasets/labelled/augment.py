"""Training augmentation of tiles, as PAD's: a pure function of (seed, step, position in the global batch).

Random resize, random crop that is drawn again while one class fills it, flips, padding; in this order, as released.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.imagery.labels import IGNORE
from datasets.labelled.tiles import Sample

STREAM = 2  # keeps these draws apart from those of other modules with the same seed
REDRAWS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Ranged):
    """What may happen to a training tile. The defaults are those of PAD for tiles of 512 pixels."""

    resize: tuple[float, float] = ranged((0.5, 2.0), 0, 64, above=True)
    """Smallest and largest factor on both sides, uniform between these."""
    crop: int = ranged(512, 1, 65536)
    """Side of what is cut out, or padded to, pixels."""
    cat_max_ratio: float = ranged(0.75, 0, 1, above=True)
    """A crop is drawn again while one class holds this share of its labelled pixels; 1: never."""
    flip: float = ranged(0.5, 0, 1)
    """Probability of a left-right, and of an up-down flip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "resize", tuple(self.resize))
        if len(self.resize) != 2 or not 0 < self.resize[0] <= self.resize[1]:
            raise InputError(f"resize is {self.resize}; give the smallest and the largest factor, above 0")


class Draw(NamedTuple):
    """Random numbers of one sample, uniform in [0, 1)."""

    resize: float
    crops: np.ndarray  # (11, 2) place down and right, of the first crop and ten more
    left_right: float
    up_down: float


def draw_augmentations(seed: int, step: int, positions: np.ndarray) -> list[Draw]:
    """The draw of each sample of a step; `positions` (b,) are their places in the global batch."""
    count = 3 + 2 * (1 + REDRAWS)
    bits = np.random.Philox(np.random.SeedSequence([STREAM, seed, step]))
    raw = bits.random_raw(count * (int(positions.max()) + 1)).reshape(-1, count)[positions]
    return [Draw(row[0], row[3:].reshape(-1, 2), row[1], row[2]) for row in (raw >> 11) * 2.0**-53]


def augment(sample: Sample, draw: Draw, config: AugmentConfig) -> Sample:
    """The augmented sample (c, crop, crop): what pads it on the right and below is missing (NaN) and ignored."""
    low, high = config.resize
    sample = resize(sample, low + (high - low) * draw.resize)
    sample = _crop(sample, *place_crop(sample.label, draw.crops, config), config.crop)
    axes = [axis for axis, number in ((-1, draw.left_right), (-2, draw.up_down)) if number < config.flip]
    return _pad(sample.map(lambda tensor: tensor.flip(axes)), config.crop)


def resize(sample: Sample, factor: float) -> Sample:
    """Images by bilinear interpolation, the label map by nearest; sides are rounded down."""
    height, width = sample.label.shape
    size = (max(math.floor(height * factor), 1), max(math.floor(width * factor), 1))
    if size == (height, width):
        return sample
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, (height, width), strict=True))
    images = {role: _bilinear(image, size) for role, image in sample.images.items()}
    return Sample(images, sample.label[rows][:, columns])


def place_crop(label: Tensor, places: np.ndarray, config: AugmentConfig) -> tuple[int, int]:
    """Row and column of the first of the drawn crops that holds two classes, none too much; else of the last.

    Args:
        label: (h, w).
        places: (n, 2) in [0, 1).
    """
    room = [max(side - config.crop, 0) + 1 for side in label.shape]
    corners = [(int(down * room[0]), int(right * room[1])) for down, right in places]
    for top, left in corners[:-1]:
        if is_mixed(label[top : top + config.crop, left : left + config.crop], config.cat_max_ratio):
            return top, left
    return corners[-1]


def is_mixed(label: Tensor, cat_max_ratio: float) -> bool:
    """Whether two classes or more occur in a label map (h, w), and none holds `cat_max_ratio` of the labelled pixels.

    Always true for 1.
    """
    if cat_max_ratio >= 1:
        return True
    counts = torch.bincount(label[label != IGNORE])
    return int((counts > 0).sum()) > 1 and bool(counts.max() < cat_max_ratio * counts.sum())


def _bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    batch = rearrange(image, "c h w -> 1 c h w")
    return functional.interpolate(batch, size, mode="bilinear", align_corners=False)[0]


def _crop(sample: Sample, top: int, left: int, side: int) -> Sample:
    return sample.map(lambda tensor: tensor[..., top : top + side, left : left + side])


def _pad(sample: Sample, side: int) -> Sample:
    height, width = sample.label.shape
    margins = (0, side - width, 0, side - height)
    images = {role: functional.pad(image, margins, value=math.nan) for role, image in sample.images.items()}
    return Sample(images, functional.pad(sample.label, margins, value=IGNORE))
