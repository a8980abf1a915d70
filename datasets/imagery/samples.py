"""A cheap look at the pixels of a scene: a few small windows, spread over it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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


def sample_pixels(scene: Scene, bands: Sequence[int]) -> Tensor:
    """Stored numbers of some pixels, NaN where the file calls them missing: (c, n, 1) float64.

    Raises:
        Unreadable: the file cannot be read there.
    """
    _, height, width = scene.shape
    found: list[np.ndarray] = []
    with scene.open(bands) as read:
        for row, col in SPREAD if min(height, width) > SIDE else SPREAD[:1]:
            top, left = (int(part * max(size - SIDE, 0)) for part, size in ((row, height), (col, width)))
            window = read(top, left, min(SIDE, height), min(SIDE, width))
            values = window.stored.astype(np.float64)
            if window.missing is not None:
                values[window.missing] = np.nan
            found.append(values.reshape(len(values), -1))
            if sum(bool(np.isfinite(one).any()) for one in found) == ENOUGH:
                break
    return torch.from_numpy(np.concatenate(found, axis=1)[..., None])
