"""Synthetic scenes of one country at two dates, in the layout of the Yellow River Dataset. NOTHING HERE IS MEASURED.

Both years show parcels of the same classes, whose spectra drift from one year to the next: each band is scaled and shifted,
and the classes' own spectra move apart a little, so that what one year teaches fits the other in part.
"""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.synthetic.landscapes import CRS, PIXEL_M, cell_map

VERSION = "1"  # changes whenever the same seed would give other pixels
YEARS = ("2021", "2022")
BANDS, CLASSES = 4, 8
PARCEL = 24.0  # usual width of a parcel, pixels
LEVEL, NOISE = (300.0, 2600.0), 60.0  # stored numbers of spectra, deviation of pixels
GAIN, SHIFT, DRIFT = 0.25, 250.0, 120.0  # from a year to the next: of bands, and of each class in each band
MARGIN = 8  # columns on the left without an image


def write_yellow_river(folder: Path, *, size: int = 256, scenes: int = 1, seed: int = 0) -> None:
    """Folders 2021_1, 2022_1, ... with img.tif (4 bands, uint16, 0 missing) and label.tif (0 to 7, 255 where missing).

    Args:
        size: side of a scene, pixels.
        scenes: of each year.
    Raises:
        InputError: scenes too small for eight classes.
    """
    if size < 64 or scenes < 1:
        raise InputError(f"{scenes} scenes of {size} pixels cannot be made; give one at least of 64 pixels or more")
    rng = np.random.default_rng(seed)
    spectra = rng.uniform(*LEVEL, (CLASSES, BANDS))
    for number, year in enumerate(YEARS):
        drift = np.random.default_rng([seed, number])
        own = spectra if not number else _next_year(spectra, drift)
        for scene in range(1, scenes + 1):
            label = _parcels(size, np.random.default_rng([seed, number, scene]))
            image = own[label] + NOISE * drift.standard_normal((size, size, BANDS))
            stored = np.clip(np.rint(image), 1, 65535).astype(np.uint16)
            stored[:, :MARGIN] = 0
            label[:, :MARGIN] = 255
            home = folder / f"{year}_{scene}"
            _write(home / "img.tif", np.moveaxis(stored, -1, 0), seed)
            _write(home / "label.tif", label[None], seed)
    (folder / "SYNTHETIC.txt").write_text(
        "Nothing in this folder is measured. It was drawn in the layout of the Yellow River Dataset by Alliance\n"
        f"(datasets/synthetic/domains.py, version {VERSION}, seed {seed}). Scores on it say nothing about that set.\n"
    )


def _next_year(spectra: NDArray, rng: Generator) -> NDArray:
    gain, shift = rng.uniform(1 - GAIN, 1 + GAIN, BANDS), rng.uniform(-SHIFT, SHIFT, BANDS)
    return spectra * gain + shift + DRIFT * rng.standard_normal(spectra.shape)


def _parcels(size: int, rng: Generator) -> NDArray[np.uint8]:
    cell, _ = cell_map(size, PARCEL, rng)
    return rng.permutation(np.arange(cell.max() + 1) % CLASSES).astype(np.uint8)[cell]


def _write(path: Path, pixels: NDArray, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    form = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "compress": "deflate"}
    form |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    place = Affine(PIXEL_M, 0, 500_000, 0, -PIXEL_M, 4_000_000)
    with rasterio.open(path, "w", driver="GTiff", crs=CRS, transform=place, **form) as file:
        file.write(pixels)
        file.update_tags(SYNTHETIC="yes", GENERATOR="Alliance datasets/synthetic/domains.py", SEED=seed)
