"""Class maps and class probabilities as Cloud Optimised GeoTIFFs, written window by window.

A map holds class indices as uint8, 255 where nothing is known, with a colour table. Class names are band tags `CLASS_0`,
`CLASS_1`, ... in the file, and GDAL's category names in a small file beside it (`.aux.xml`): GeoTIFF has no place for them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.shutil import copy
from rasterio.transform import Affine

from alliance.files import replace_file, sync
from datasets.descriptors import clear_scratch, scratch_folder
from datasets.imagery.labels import IGNORE, Colour
from datasets.imagery.rasters import open_quietly
from datasets.memory import zeroed

FULL = 250  # stored value of probability 1
BLOCK = 512  # pixels


class Grid(NamedTuple):
    """Size of an image in pixels, and where it lies, if that is known."""

    height: int
    width: int
    crs: CRS | None = None
    transform: Affine | None = None


class Stored(NamedTuple):
    """How the pixels of a file are stored."""

    dtype: str = "uint8"
    nodata: float = IGNORE
    block: int = BLOCK  # side of a tile of the file, pixels
    bits: int | None = None  # of a float, where GDAL stores fewer than its dtype has


BYTES = Stored()


@contextmanager
def class_map(path: Path, grid: Grid, classes: Mapping[str, Colour]) -> Iterator[DatasetWriter]:
    """A file for class indices (h, w) uint8 that appears, whole, when the block ends."""
    with cloud_optimised(path, grid, count=1, overviews="mode", beside=_categories(list(classes))) as target:
        colours = {index: (*colour, 255) for index, colour in enumerate(classes.values())}
        target.write_colormap(1, {**colours, IGNORE: (0, 0, 0, 0)})
        target.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(classes)})
        target.set_band_description(1, "class")
        yield target


def write_class_map(path: Path, grid: Grid, classes: Mapping[str, Colour], indices: NDArray[np.uint8]) -> None:
    """Write a whole class map (h, w) at once."""
    with class_map(path, grid, classes) as target:
        target.write(indices, 1)


@contextmanager
def probability_map(path: Path, grid: Grid, classes: Mapping[str, Colour]) -> Iterator[DatasetWriter]:
    """A file for probabilities, one band (h, w) per class that has its name; appears, whole, when the block ends.

    Numbers are uint8, the probability times 250 and rounded (the bands' scale is 0.004), 255 where nothing is known.
    """
    with cloud_optimised(path, grid, count=len(classes), overviews="average") as target:
        target.descriptions = tuple(classes)
        target.scales = [1 / FULL] * len(classes)
        yield target


def tiff_profile(grid: Grid, count: int, stored: Stored) -> dict[str, Any]:
    """What rasterio creates a tiled GeoTIFF by."""
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": stored.dtype, "nodata": stored.nodata, "count": count}
    profile |= {"photometric": "MINISBLACK", "interleave": "pixel", "bigtiff": "IF_SAFER", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": stored.block, "blockysize": stored.block, "zlevel": 1, **_bits(stored)}
    return profile | {name: value for name, value in grid._asdict().items() if value is not None}


@contextmanager
def cloud_optimised(
    path: Path, grid: Grid, *, count: int, overviews: str, stored: Stored = BYTES, beside: bytes | None = None
) -> Iterator[DatasetWriter]:
    """A cloud optimised file has its overviews first, so it is copied at the end from the one that is written here.

    That one lies in a folder of its own, in which the writer may keep other files until then.

    Args:
        beside: content of its `.aux.xml`; None: it has none, and that of an older file of this name goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch(path)
    with scratch_folder(path) as folder:
        windows, whole = folder / "windows.tif", folder / path.name
        with open_quietly(windows, "w", **tiff_profile(grid, count, stored)) as target:
            yield target
        form = {
            "compress": "deflate",
            "blocksize": stored.block,
            "bigtiff": "IF_SAFER",
            "overview_resampling": overviews,
        }
        form |= _bits(stored)
        if not _copied(windows, whole, form):
            raise OSError(f"{path} cannot be written whole; make room, then give the same command again")
        sync(whole)
        sidecar = _sidecar(path)
        if beside is not None:
            replace_file(folder / sidecar.name, beside)
        sidecar.unlink(missing_ok=True)  # of an older map: this one may not have its names for a moment
        os.replace(whole, path)
        if beside is not None:
            os.replace(folder / sidecar.name, sidecar)


def _copied(source: Path, target: Path, form: Mapping[str, Any]) -> bool:
    """Copy a file as a cloud optimised one and read it back: GDAL does not always tell that a disk is full."""
    try:
        with zeroed():
            copy(source, target, driver="COG", **form)
        with open_quietly(source) as first, open_quietly(target) as second:
            return all(
                np.array_equal(first.read(window=window), second.read(window=window), equal_nan=True)
                for _, window in first.block_windows(1)
            )
    except (RasterioError, CPLE_BaseError, SystemError):
        return False


def _categories(names: Sequence[str]) -> bytes:
    """Names of classes as GDAL keeps them beside a file."""
    root = ElementTree.Element("PAMDataset")
    categories = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ElementTree.SubElement(categories, "Category").text = name
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")


def _bits(stored: Stored) -> dict[str, int]:
    return {} if stored.bits is None else {"nbits": stored.bits}


def _sidecar(path: Path) -> Path:
    """Where GDAL looks for what does not fit into the file."""
    return path.with_name(f"{path.name}.aux.xml")
