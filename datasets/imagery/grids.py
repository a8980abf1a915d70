"""Where images lie: their corners, the size of their pixels, and whether several lie on one grid."""

from collections.abc import Sequence

import numpy as np

from datasets.imagery.scenes import Scene


def corners(scene: Scene) -> np.ndarray:
    """Map coordinates of the image's corners, (4, 2); of the unit square without a transform."""
    _, height, width = scene.shape
    a, b, c, d, e, f = scene.transform or (1 / width, 0, 0, 0, 1 / height, 0)
    ends = [(col, row) for row in (0, height) for col in (0, width)]
    return np.array([(a * col + b * row + c, d * col + e * row + f) for col, row in ends])


def pixel_size(scene: Scene) -> float:
    """Length of a pixel's shorter side in map units."""
    a, b, _, d, e, _ = scene.transform or (1, 0, 0, 0, 1, 0)
    return min(float(np.hypot(a, d)), float(np.hypot(b, e)))


def one_footprint(scenes: Sequence[Scene]) -> bool:
    first = scenes[0]
    tolerance = min(map(pixel_size, scenes)) / 2
    return all(
        scene.crs == first.crs
        and (scene.transform is None) == (first.transform is None)
        and np.abs(corners(scene) - corners(first)).max() <= tolerance
        for scene in scenes
    )
