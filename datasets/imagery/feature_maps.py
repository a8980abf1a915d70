"""Features on a grid as Cloud Optimised GeoTIFFs, one band per feature, written a few rows at a time.

float16: half precision, which GDAL reads as float32; missing pixels are NaN. int8: whole numbers from -127 to 127, times the
scale of the band, which is the largest magnitude there over 127; missing pixels are -128.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from alliance.errors import InputError
from datasets.imagery.maps import BLOCK, Grid, Stored, cloud_optimised, tiff_profile
from datasets.imagery.rasters import open_quietly

Dtype = Literal["float16", "int8"]
TILE = 4 * 2**20  # bytes of a tile, as numbers of four bytes; GDAL holds some of them for every overview
SMALLEST = 16  # pixels of its side
LARGEST = 127  # magnitude of what int8 holds
MISSING = -128


class FeatureRows:
    """An open file that takes features; `largest` is the largest magnitude of every band so far, (f,)."""

    def __init__(self, target: DatasetWriter) -> None:
        self.target = target
        self.half = target.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "16"
        self.largest = np.zeros(target.count, dtype=np.float32)

    def write(self, values: NDArray[np.float32], top: int, left: int) -> None:
        """Write features (f, h, w), NaN where missing, with their first pixel at this row and column.

        Raises:
            InputError: half precision cannot hold them.
        """
        self.largest = np.fmax(self.largest, np.abs(values).max(axis=(1, 2), initial=0, where=~np.isnan(values)))
        if self.half:
            if self.largest.max() > np.finfo(np.float16).max:
                raise InputError(f"a feature of {self.largest.max():.4g} is more than float16 holds; take int8")
            values = values.astype(np.float16).astype(np.float32)  # GDAL would cut digits off, not round
        height, width = values.shape[1:]
        self.target.write(values, window=Window(left, top, width, height))  # pyright: ignore[reportCallIssue]


@contextmanager
def feature_map(
    path: Path, grid: Grid, names: Sequence[str], dtype: Dtype, tags: Mapping[str, str]
) -> Iterator[FeatureRows]:
    """A file of features (f, h, w) that appears, whole, when the block ends.

    Args:
        names: of the bands.
        tags: of the file.
    """
    count = len(names)
    floats = Stored(dtype="float32", nodata=np.nan, block=_block(count), bits=16 if dtype == "float16" else None)
    bytes_ = Stored(dtype="int8", nodata=MISSING, block=floats.block)
    stored = floats if dtype == "float16" else bytes_
    with cloud_optimised(path, grid, count=count, overviews="average", stored=stored) as target:
        target.descriptions = tuple(names)
        target.update_tags(**tags)
        if dtype == "float16":
            yield FeatureRows(target)
        else:
            beside = Path(target.name).with_name("features.tif")
            with open_quietly(beside, "w+", **tiff_profile(grid, count, floats)) as features:
                rows = FeatureRows(features)
                yield rows
                _quantise(features, target, rows.largest)


def read_features(
    source: DatasetReader, bands: Sequence[int] | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Features (f, h, w) of a file, NaN where missing.

    Args:
        bands: from 1; None: all.
        shape: rows and columns to thin them out to.
    """
    bands = list(bands or source.indexes)
    stored = source.read(bands, out_shape=(len(bands), *(shape or source.shape)))
    scale = np.array([source.scales[band - 1] for band in bands], dtype=np.float32)[:, None, None]
    values = stored.astype(np.float32) * scale
    return np.where(stored == source.nodata, np.float32(np.nan), values)


def _quantise(features: DatasetReader, target: DatasetWriter, largest: NDArray[np.float32]) -> None:
    """Write float32 features as int8, tile by tile, with the scale of each band."""
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    target.scales = scale.tolist()
    for _, window in features.block_windows(1):
        values = np.round(features.read(window=window) / scale[:, None, None]).clip(-LARGEST, LARGEST)
        target.write(np.where(np.isnan(values), MISSING, values).astype(np.int8), window=window)


def row_of_blocks(grid: Grid, count: int) -> int:
    """Bytes of a row of the file's tiles, as numbers of four bytes."""
    return 4 * count * _block(count) * grid.width


def _block(count: int) -> int:
    """Side of a tile: smaller for many bands, so that a few tiles fit into memory."""
    block = BLOCK
    while block > SMALLEST and 4 * count * block**2 > TILE:
        block //= 2
    return block
