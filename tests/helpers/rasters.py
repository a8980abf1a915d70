"""Small files of imagery for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin

S2_NAMES = tuple(f"B{number:02d}" for number in range(1, 9)) + ("B8A", "B09", "B10", "B11", "B12")


def write_tiff(
    path: Path, array: np.ndarray, *, names: tuple[str, ...] = (), pixel: float = 10.0, **profile: Any
) -> np.ndarray:
    """Write (c, h, w) as a georeferenced GeoTIFF and return the array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    place = {"crs": CRS.from_epsg(32633), "transform": from_origin(400_000, 5_000_000, pixel, pixel)}
    form = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.open(path, "w", **(form | place | profile)) as target:
        target.write(array)
        for index, name in enumerate(names, start=1):
            target.set_band_description(index, name)
    return array


def counts(shape: tuple[int, int, int], seed: int = 0, low: int = 1, high: int = 4000) -> np.ndarray:
    """Random uint16 pixels without the nodata value 0."""
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint16)


def write_sentinel2(folder: Path, scenes: int = 2, size: int = 70) -> dict[str, np.ndarray]:
    """Sentinel-2 scenes scene_0.tif, ... of 13 named bands, and their pixels."""
    return {
        f"scene_{index}": write_tiff(folder / f"scene_{index}.tif", counts((13, size, size), index), names=S2_NAMES)
        for index in range(scenes)
    }
