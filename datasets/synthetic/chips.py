"""Synthetic labelled images: patches of invented land cover, each with a class of its own and others beside it.

NOTHING IN THEM IS MEASURED. The folder of an image is the class that covers most of it; `labels.csv` names all classes that
cover a tenth or more. Images are GeoTIFFs that lie side by side.
"""

import csv
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.files import require_empty
from datasets.synthetic.landscapes import CRS, PIXEL_M, cell_map, correlated_field

VERSION = "1"  # changes whenever the same seed would give other pixels
LOOKS = {  # name: red, green, blue of 255, and the deviation of its texture
    "water": ((25, 55, 100), 2.0),
    "forest": ((40, 75, 45), 10.0),
    "cropland": ((160, 150, 70), 6.0),
    "built-up": ((150, 130, 125), 34.0),
    "bare soil": ((175, 125, 85), 8.0),
    "grass": ((90, 140, 70), 6.0),
}
CELL = 3.5  # cells along a side
OWN, LEAST = 0.55, 0.1  # share of its own class, at least; and share from which a class is a label


def write_chips(folder: Path, *, chips: int = 120, size: int = 64, classes: int = 5, seed: int = 0) -> None:
    """Write images CLASS/NNNN.tif and labels.csv; classes take turns.

    Raises:
        InputError: other numbers than these can be made with, or a folder that is not empty.
    """
    if not 2 <= classes <= len(LOOKS) or chips < classes or size < 16 or seed < 0:
        raise InputError(
            f"{chips} images of {classes} classes and {size} pixels, seed {seed}, cannot be made; give 2 to {len(LOOKS)} classes, "
            f"an image of each at least, 16 pixels or more and a seed from 0 on"
        )
    require_empty(folder)
    names = list(LOOKS)[:classes]
    rows = []
    for number in range(chips):
        cover = make_cover(size, classes, number % classes, np.random.default_rng([seed, number]))
        name = f"{names[number % classes]}/{number:04d}.tif"
        _write(folder / name, paint(cover, np.random.default_rng([seed, number, 1])), number, seed)
        share = np.bincount(cover.ravel(), minlength=classes) / cover.size
        rows.append((name, ";".join(one for one, part in zip(names, share, strict=True) if part >= LEAST)))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "labels"), *rows])
    (folder / "SYNTHETIC.txt").write_text(
        f"Nothing in this folder is measured. It was drawn by Alliance (datasets/synthetic/chips.py, version {VERSION},\n"
        f"seed {seed}). Scores on it say nothing about real imagery.\n"
    )


def make_cover(size: int, classes: int, own: int, rng: Generator) -> NDArray[np.intp]:
    """Class of every pixel (size, size): of cells in random order as many are `own` as cover enough, others are of any class."""
    cell = cell_map(size, size / CELL, rng)[0]
    area = np.bincount(cell.ravel())
    order = rng.permutation(np.flatnonzero(area))
    before = np.concatenate([[0], area[order].cumsum()[:-1]])
    land = np.zeros(len(area), dtype=np.intp)
    land[order] = np.where(before < OWN * size**2, own, rng.integers(classes, size=len(order)))
    return land[cell]


def paint(cover: NDArray[np.intp], rng: Generator) -> NDArray[np.uint8]:
    """Red, green and blue (3, h, w) of class numbers (h, w), under one light."""
    colours = np.array([colour for colour, _ in LOOKS.values()], dtype=float)[cover]
    texture = np.array([deviation for _, deviation in LOOKS.values()])[cover] * rng.standard_normal(cover.shape)
    light = np.exp(0.12 * correlated_field(len(cover), rng) + 0.1 * rng.standard_normal())
    painted = colours * light[..., None] + texture[..., None] + 3 * rng.standard_normal((*cover.shape, 3))
    return np.clip(np.rint(np.moveaxis(painted, -1, 0)), 0, 255).astype(np.uint8)


def _write(path: Path, pixels: NDArray[np.uint8], number: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    place = Affine(PIXEL_M, 0, 500_000 + number * width * PIXEL_M, 0, -PIXEL_M, 5_000_000)
    form = {"count": count, "height": height, "width": width, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=CRS, transform=place, photometric="RGB", **form) as file:
        file.write(pixels)
        file.update_tags(
            SYNTHETIC="yes", GENERATOR="Alliance datasets/synthetic/chips.py", GENERATOR_VERSION=VERSION, SEED=seed
        )
