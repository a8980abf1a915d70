"""Training augmentation of chips: a pure function of (seed, step, position in the global batch), for any layout of ranks.

A random part is resized to the network's size, mirrored, turned and partly erased; then another chip of the data may be
mixed in: blended (mixup, arXiv 1710.09412) or as a rectangle (cutmix, arXiv 1905.04899).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.chips.reading import resized

STREAM = 9  # keeps these draws apart from those of other modules with the same seed
VIEW, MIX = 11, 5  # random numbers for a view of a chip, and for a mixture of two
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # share of the area and ratio of the sides, as in timm


@dataclass(frozen=True, kw_only=True)
class ChipAugmentConfig(Ranged):
    """What may happen to a training chip."""

    crop: tuple[float, float] = ranged((0.6, 1.0), 0, 1, above=True)
    """Smallest and largest share of the area that is cut out and resized, uniform between these."""
    ratio: tuple[float, float] = ranged((0.75, 4 / 3), 0, 64, above=True)
    """Smallest and largest ratio of the sides of what is cut out."""
    flip: float = ranged(0.5, 0, 1)
    """Probability of a left-right flip."""
    turn: bool = True
    """Turn by any number of quarters: images from above have no upright."""
    erase: float = ranged(0.0, 0, 1)
    """Probability that a random rectangle is set to the mean."""
    mixup: float = ranged(0.0, 0, 64)
    """Chips are blended with another one by a share from Beta(this, this); 0: never. With cutmix too, either at random."""
    cutmix: float = ranged(0.0, 0, 64)
    """A rectangle of another chip stands in each, of a share of the area from Beta(this, this); 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "ratio"):
            pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if len(pair) != 2 or pair[0] > pair[1]:
                raise InputError(f"augment.{name} is {list(pair)}; give the smallest and the largest value")

    @property
    def mixes(self) -> bool:
        """Whether two chips are made one."""
        return bool(self.mixup or self.cutmix)


class Draw(NamedTuple):
    """Random numbers of one sample, uniform in [0, 1)."""

    view: NDArray[np.float64]  # (11,)
    partner: NDArray[np.float64]  # (11,) of the view of the other chip
    mix: NDArray[np.float64]  # (5,) which other chip, kind, share, place down and right


class Mixture(NamedTuple):
    """How another image gets into one, both (c, h, w)."""

    share: float  # of the first
    box: tuple[slice, slice] | None  # rows and columns that are the other's; None: they are blended

    def of(self, image: Tensor, other: Tensor) -> Tensor:
        """The mixture, (c, h, w)."""
        if self.box is None:
            return self.share * image + (1 - self.share) * other
        mixed = image.clone()
        mixed[:, *self.box] = other[:, *self.box]
        return mixed


def draw_augmentations(seed: int, step: int, positions: NDArray[np.int64]) -> list[Draw]:
    """The draw of each sample of a step; `positions` (b,) are their places in the global batch."""
    count = 2 * VIEW + MIX
    bits = np.random.Philox(np.random.SeedSequence([STREAM, seed, step]))
    raw = bits.random_raw(count * (int(positions.max()) + 1)).reshape(-1, count)[positions]
    return [Draw(row[:VIEW], row[VIEW : 2 * VIEW], row[2 * VIEW :]) for row in (raw >> 11) * 2.0**-53]


def view_of(
    image: Tensor, numbers: Sequence[float] | NDArray[np.float64], size: int, config: ChipAugmentConfig
) -> Tensor:
    """A random view (c, size, size) of an image (c, h, w), given eleven numbers."""
    area, ratio, down, right, flip, turn, erase, *hole = (float(number) for number in numbers)
    rows, cols = _part(image.shape[-2:], _between(config.crop, area), _ratio(config.ratio, ratio), down, right)
    view = resized(image[:, rows, cols], size, size)
    if flip < config.flip:
        view = view.flip(-1)
    if config.turn:
        view = torch.rot90(view, int(4 * turn), (-2, -1))
    if erase < config.erase:
        rows, cols = _part((size, size), _between(ERASED, hole[0]), _ratio(ERASED_RATIO, hole[1]), *hole[2:])
        view = view.clone()
        view[:, rows, cols] = 0
    return view


def mixture(numbers: Sequence[float] | NDArray[np.float64], size: int, config: ChipAugmentConfig) -> Mixture:
    """How two chips of `size` pixels are mixed, given five numbers; the share of a rectangle is that of whole pixels."""
    _, kind, share, down, right = (float(number) for number in numbers)
    blend = bool(config.mixup) and (not config.cutmix or kind < 0.5)
    alpha = config.mixup if blend else config.cutmix
    own = float(betaincinv(alpha, alpha, share))
    if blend:
        return Mixture(own, None)
    half = math.sqrt(1 - own) / 2
    spans = [
        slice(max(round(size * (middle - half)), 0), min(round(size * (middle + half)), size))
        for middle in (down, right)
    ]
    rows, cols = spans
    return Mixture(1 - (rows.stop - rows.start) * (cols.stop - cols.start) / size**2, (rows, cols))


def _between(ends: tuple[float, float], number: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * number


def _ratio(ends: tuple[float, float], number: float) -> float:
    """Between two ratios, a ratio and its inverse alike."""
    return math.exp(_between((math.log(ends[0]), math.log(ends[1])), number))


def _part(shape: Sequence[int], share: float, ratio: float, down: float, right: float) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of a share of an image's area and of a ratio of sides, cut off where it is larger."""
    height, width = shape
    area = share * height * width
    high, wide = (
        min(max(round(math.sqrt(each)), 1), side) for each, side in ((area / ratio, height), (area * ratio, width))
    )
    top, left = int(down * (height - high + 1)), int(right * (width - wide + 1))
    return slice(top, top + high), slice(left, left + wide)
