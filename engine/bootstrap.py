"""The interval of a score from images that are drawn anew, whatever the score."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]  # (n,) how often each image was drawn
STREAM = 10  # keeps these draws apart from others with the same seed
ENDS = (0.025, 0.975)  # quantiles of an interval of 95 %
DRAWS = 1000  # of the images, usually


class Interval(NamedTuple):
    """Ends of what holds a score in 95 of 100 drawings; nan: there is none."""

    low: float
    high: float


def bootstrap(score: Callable[[Weights], float], count: int, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Interval of a score: as many images as there are, `count`, are drawn with replacement, `draws` times.

    Args:
        score: of the weights of the images; nan where nothing defines it, which is left out.
    """
    if not draws or not count:
        return Interval(np.nan, np.nan)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([STREAM, seed])))
    found = [
        score(np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64))
        for _ in range(draws)
    ]
    return Interval(*(float(end) for end in np.nanquantile(found, ENDS)))
