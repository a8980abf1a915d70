"""Augmentation that is a pure function of (seed, step, position in the global batch): the same for any layout of ranks."""

from typing import NamedTuple

import numpy as np

DRAWS = 3  # random numbers per sample
STREAM = 1  # keeps these draws apart from those that order the samples


class Placement(NamedTuple):
    """What is done to one sample: a crop, then one of the eight symmetries of the square."""

    top: int
    left: int
    height: int
    width: int
    turns: int  # quarter turns, anticlockwise
    flip: bool  # left to right, before turning

    @classmethod
    def of_whole(cls, shape: tuple[int, ...]) -> "Placement":
        """The one that leaves images of this shape (..., h, w) as they are."""
        height, width = shape[-2:]
        return cls(0, 0, height, width, 0, False)

    def apply(self, image: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (c, h, w) and its mask (..., h, w), if there is one, as views."""
        return self._place(image), None if mask is None else self._place(mask)

    def _place(self, array: np.ndarray) -> np.ndarray:
        array = array[..., self.top : self.top + self.height, self.left : self.left + self.width]
        if self.flip:
            array = array[..., ::-1]
        if self.turns % 2:
            array = array.swapaxes(-2, -1)
        down, right = ((1, 1), (-1, 1), (-1, -1), (1, -1))[self.turns]  # np.rot90 takes twenty times as long
        return array[..., ::down, ::right]


def size_of_crop(shape: tuple[int, int], crop: int | None) -> tuple[int, int]:
    """(h, w) of what is cut out of a tile of `shape`: a square, or the whole tile where it is smaller than that."""
    return (crop, crop) if crop and crop <= min(shape) else shape


def draw_placements(
    seed: int, step: int, positions: np.ndarray, shape: tuple[int, int], *, crop: int | None = None, flips: bool = True
) -> list[Placement]:
    """The placement of each sample of a step.

    Args:
        positions: places of the samples in the global batch.
        shape: (h, w) of the stored tiles.
        crop: side of the square that is cut out, anywhere in the tile, see `size_of_crop`.
        flips: mirror and turn; images that are not square stay in their shape.
    """
    height, width = size_of_crop(shape, crop)
    if not flips and (height, width) == shape:
        return [Placement.of_whole(shape)] * len(positions)
    bits = np.random.Philox(np.random.SeedSequence([STREAM, seed, step]))
    draws = bits.random_raw(DRAWS * (int(positions.max()) + 1)).reshape(-1, DRAWS)[positions]
    placements = []
    for symmetry, down, right in draws.tolist():
        quarter = symmetry >> 1 & 3 if height == width else symmetry & 2
        top, left = down % (shape[0] - height + 1), right % (shape[1] - width + 1)
        turns, flip = (quarter, bool(symmetry & 1)) if flips else (0, False)
        placements.append(Placement(top, left, height, width, turns, flip))
    return placements
