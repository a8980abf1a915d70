"""Synthetic optical and SAR pairs whose classes only both together tell apart. NOTHING HERE IS MEASURED.

Every class has one of three colours and one of three backscatters, a combination of its own. Classes of one colour have
optical pixels of one and the same distribution, classes of one backscatter SAR pixels alike: what a single modality can
reach at best is known, see `best_alone`.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.synthetic.landscapes import cell_map

LEVELS = 3
COLOURS = np.array([(60, 90, 140, 30), (70, 130, 60, 190), (170, 140, 110, 120)], dtype=float)  # R, G, B, NIR, 8 bits
BACKSCATTER = np.array([15.0, 60.0, 150.0])  # mean 8-bit amplitude
GRAIN = 8.0  # deviation of optical pixels, grey levels
LOOKS = 6.0  # of the SAR amplitude's speckle
CELL = 16.0  # usual width of a patch of one class, pixels


class SyntheticPair(NamedTuple):
    """8-bit images and class indices on one grid."""

    optical: NDArray[np.uint8]  # (4, h, w)
    sar: NDArray[np.uint8]  # (1, h, w)
    label: NDArray[np.uint8]  # (h, w)


def make_pair(height: int, width: int, classes: int, rng: Generator) -> SyntheticPair:
    """A patchwork of straight-edged cells, each of a random class.

    Raises:
        InputError: fewer than 2 or more than 9 classes.
    """
    if not 2 <= classes <= LEVELS**2:
        raise InputError(f"{classes} classes cannot be made; give 2 to {LEVELS**2}")
    cell, _ = cell_map(max(height, width), CELL, rng)
    label = rng.integers(classes, size=cell.max() + 1)[cell[:height, :width]]
    colour, backscatter = levels(label)
    optical = COLOURS[colour] + GRAIN * rng.standard_normal((height, width, COLOURS.shape[1]))
    speckle = np.sqrt(rng.gamma(LOOKS, 1 / LOOKS, label.shape))
    sar = BACKSCATTER[backscatter] * speckle
    return SyntheticPair(_to_bytes(np.moveaxis(optical, -1, 0)), _to_bytes(sar[None]), label.astype(np.uint8))


def levels(label: NDArray) -> tuple[NDArray, NDArray]:
    """Colour and backscatter of class indices (h, w), 0 to 2 each in the same shape; no two of nine classes share both."""
    return label % LEVELS, (label + label // LEVELS) % LEVELS


def best_alone(label: NDArray, modality: Literal["optical", "sar"]) -> float:
    """Share of the pixels of class indices (h, w) that the best rule on one modality gets right.

    It names one class for all that look alike.
    """
    level = levels(label)[0 if modality == "optical" else 1]
    largest = [np.bincount(label[level == each]).max() for each in range(LEVELS) if (level == each).any()]
    return float(sum(largest) / label.size)


def _to_bytes(image: NDArray) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
