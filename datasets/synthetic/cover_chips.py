"""Small optical images of the synthetic landscapes, in folders of the land cover that most of each has: for probes.

NOTHING IN THEM IS MEASURED. `train` and `test` come from scenes of their own, so no image of one lies beside one of the other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.files import require_empty
from datasets.synthetic.landscapes import CLASSES, PIXEL_M, make_scene, optical_raster, scene_origin, write_raster

PARTS = ("train", "test")  # scenes by turns
MOST = 0.5  # share of an image that its class covers at least


class Cut(NamedTuple):
    """An image out of a scene."""

    name: str  # of its class
    row: int  # pixels
    col: int


def write_cover_chips(
    folder: Path, *, scenes: int = 6, size: int = 384, chip: int = 24, per_class: int = 40, seed: int = 0
) -> None:
    """Write train|test/CLASS/SCENE_ROW_COL.tif; classes that no image of a part is covered by have no folder there.

    Args:
        scenes: landscapes of which the images are cut.
        size: their side, pixels.
        chip: side of the images, pixels.
        per_class: images of a class, at most, from each scene.
        seed: of the landscapes; those of `write_scenes` with another seed are others.
    Raises:
        InputError: other numbers than these can be made with, or a folder that is not empty.
    """
    if scenes < len(PARTS) or not 8 <= chip <= size or size < 32 or per_class < 1 or seed < 0:
        raise InputError(
            f"{scenes} scenes of {size} pixels, images of {chip}, {per_class} of a class, seed {seed}: give 2 scenes at least of "
            f"32 pixels or more, images of 8 pixels or more that fit into them, one of a class at least, and a seed from 0 on"
        )
    require_empty(folder)
    for index in range(scenes):
        scene = make_scene(size, np.random.default_rng([seed, index]), cube=0)
        part = folder / PARTS[index % len(PARTS)]
        for cut in covered(scene.labels, chip, per_class):
            image = optical_raster(scene.optical[:, cut.row : cut.row + chip, cut.col : cut.col + chip])
            east, north = scene_origin(index, size)
            corner = (east + PIXEL_M * cut.col, north - PIXEL_M * cut.row)
            name = f"{index:03d}_{cut.row:04d}_{cut.col:04d}.tif"
            write_raster(part / cut.name / name, image, corner, {"SEED": seed, "SCENE": index})


def covered(labels: NDArray[np.uint8], chip: int, per_class: int) -> Iterator[Cut]:
    """Squares of a label map, side by side, that one class covers enough of; row by row, so many of a class at most."""
    found = dict.fromkeys(CLASSES, 0)
    starts = range(0, len(labels) - chip + 1, chip)
    for row in starts:
        for col in starts:
            share = np.bincount(labels[row : row + chip, col : col + chip].ravel(), minlength=len(CLASSES)) / chip**2
            name = list(CLASSES)[share.argmax()]
            if share.max() >= MOST and found[name] < per_class:
                found[name] += 1
                yield Cut(name, row, col)
