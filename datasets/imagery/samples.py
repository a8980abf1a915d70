"""A cheap look at the pixels of a scene: a few small windows, spread over it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.imagery.images import OpenImage
from datasets.imagery.scenes import Scene

SIDE = 32  # pixels of a window
ENOUGH = 3  # windows with pixels
# Where the windows lie, as parts of rows and columns; more are read only where the first ones are empty.
SPREAD = (
    (0.5, 0.5),
    (0.2, 0.25),
    (0.8, 0.75),
    (0.25, 0.8),
    (0.75, 0.2),
    (0.05, 0.5),
    (0.95, 0.5),
    (0.5, 0.05),
    (0.5, 0.95),
)


def places(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of windows that are spread over an image."""
    for row, col in SPREAD if min(height, width) > SIDE else SPREAD[:1]:
        top, left = (int(part * max(size - SIDE, 0)) for part, size in ((row, height), (col, width)))
        yield top, left, min(SIDE, height), min(SIDE, width)


def sample_numbers(image: OpenImage) -> Tensor:
    """Some pixels in the unit of the image's source, NaN where missing: (c, n, 1) float64.

    Raises:
        InputError: the file cannot be read there.
    """
    found: list[Tensor] = []
    for place in places(*image.header.shape[1:]):
        found.append(image.window(*place).double().flatten(1))
        if sum(bool(one.isfinite().any()) for one in found) == ENOUGH:
            break
    return torch.cat(found, dim=1)[..., None]


def sample_pixels(scene: Scene, bands: Sequence[int]) -> Tensor:
    """Stored numbers of some pixels, NaN where the file calls them missing: (c, n, 1) float64.

    Raises:
        Unreadable: the file cannot be read there.
    """
    _, height, width = scene.shape
    found: list[np.ndarray] = []
    with scene.open(bands) as read:
        for place in places(height, width):
            window = read(*place)
            values = window.stored.astype(np.float64)
            if window.missing is not None:
                values[window.missing] = np.nan
            found.append(values.reshape(len(values), -1))
            if sum(bool(np.isfinite(one).any()) for one in found) == ENOUGH:
                break
    return torch.from_numpy(np.concatenate(found, axis=1)[..., None])
