"""Rasters: GeoTIFF, JPEG 2000, PNG and whatever else rasterio reads, single-band files of one image included."""

import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from alliance.errors import InputError
from alliance.sensors.catalog import to_nanometres
from datasets.imagery.grids import one_footprint
from datasets.imagery.scenes import Read, Scene, Unreadable, check_dtype, find_date, readable

SUFFIXES = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png", ".vrt", ".img")
OPENING = threading.Lock()  # warning filters are the whole process's, and training reads in several threads


@dataclass(frozen=True, kw_only=True)
class RasterScene(Scene):
    """One file with all bands, or one file per band; coarser bands are repeated on the finest grid."""

    @contextmanager
    def open(self, bands: Sequence[int]) -> Iterator[Read]:
        with ExitStack() as stack:
            if len(self.files) == 1:
                yield _whole_reader(stack.enter_context(opened(self.files[0])), self.files[0], bands)
            else:
                files = [self.files[band] for band in bands]
                readers = [_band_reader(stack.enter_context(opened(file)), file, self.shape) for file in files]
                yield lambda *window: np.stack([read(*window) for read in readers])


def describe_raster(path: Path, root: Path) -> RasterScene:
    """Read a raster's header.

    Raises:
        Unreadable: no raster, or its pixels are complex.
    """
    with opened(path) as dataset, readable(path):
        return RasterScene(
            root=root,
            files=(path,),
            name=path.relative_to(root).with_suffix("").as_posix(),
            shape=(dataset.count, dataset.height, dataset.width),
            dtype=check_dtype(np.result_type(*dataset.dtypes)),
            band_names=_band_names(dataset),
            wavelengths=_wavelengths(dataset),
            nodata=dataset.nodata,
            crs=dataset.crs.to_string() if dataset.crs else None,
            transform=None if dataset.transform.is_identity and not dataset.crs else tuple(dataset.transform)[:6],
            date=find_date(path, dataset.tags()),
        )


def join_bands(scenes: Sequence[RasterScene], is_band: Callable[[str], bool]) -> tuple[list[RasterScene], list[Scene]]:
    """Join single-band files of one folder that differ only in a band suffix (`X_B02.tif`, `X_B03.tif`).

    Args:
        is_band: whether a suffix names a band; files with other suffixes stay as they are.
    Returns:
        The scenes, and those left out because they do not lie on one footprint.
    """
    groups: dict[tuple[Path, str], list[RasterScene]] = defaultdict(list)
    for scene in scenes:
        prefix, _, suffix = scene.files[0].stem.rpartition("_")
        single = scene.shape[0] == 1 and prefix and is_band(suffix)
        groups[scene.files[0].parent, prefix if single else scene.files[0].name].append(scene)
    joined, refused = [], []
    for (_, prefix), members in groups.items():
        if len(members) == 1:
            joined.append(members[0])
        elif one_footprint(members):
            joined.append(_join(members, prefix))
        else:
            refused.extend(members)
    return joined, refused


def _join(members: Sequence[RasterScene], prefix: str) -> RasterScene:
    finest = max(members, key=lambda scene: scene.shape[1] * scene.shape[2])
    nodata = {scene.nodata for scene in members}
    return replace(
        finest,
        files=tuple(scene.files[0] for scene in members),
        name=Path(finest.name).with_name(prefix).as_posix(),
        shape=(len(members), *finest.shape[1:]),
        dtype=np.result_type(*(scene.dtype for scene in members)).name,
        band_names=tuple(scene.files[0].stem.rpartition("_")[2] for scene in members),
        nodata=nodata.pop() if len(nodata) == 1 else None,
    )


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster that is open for reading, with or without georeference.

    Raises:
        Unreadable: no raster.
    """
    with readable(path), OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    with dataset:
        yield dataset


def _whole_reader(dataset: rasterio.DatasetReader, path: Path, bands: Sequence[int]) -> Read:
    indexes = [band + 1 for band in bands]

    def read(row: int, col: int, height: int, width: int) -> np.ndarray:
        with readable(path):
            return dataset.read(indexes, window=((row, row + height), (col, col + width)))

    return read


def _band_reader(dataset: rasterio.DatasetReader, path: Path, shape: tuple[int, int, int]) -> Read:
    """Windows (height, width) of a band on the scene's grid: each pixel takes the band pixel that holds its centre."""
    _, scene_height, scene_width = shape

    def read(row: int, col: int, height: int, width: int) -> np.ndarray:
        rows = (2 * np.arange(row, row + height) + 1) * dataset.height // (2 * scene_height)
        cols = (2 * np.arange(col, col + width) + 1) * dataset.width // (2 * scene_width)
        spans = ((rows[0], rows[-1] + 1), (cols[0], cols[-1] + 1))
        with readable(path):
            block = dataset.read(1, window=spans)
        return block[np.ix_(rows - rows[0], cols - cols[0])]

    return read


def _band_names(dataset: rasterio.DatasetReader) -> tuple[str, ...] | None:
    """Band names from the descriptions, else R, G, B of a colour picture; None where the file tells nothing."""
    names = tuple(str(name or "") for name in dataset.descriptions)
    numbered = all(re.fullmatch(r"band[ _]?\d+", name, re.IGNORECASE) for name in names)
    colours = tuple(ColorInterp(colour).name for colour in dataset.colorinterp)
    coloured = colours[:3] == ("red", "green", "blue") and (len(colours) == 3 or dataset.driver == "PNG")
    if all(names) and not (numbered and coloured):
        return names
    if coloured:
        return ("R", "G", "B", *colours[3:])
    return colours if colours == ("palette",) else None


def _wavelengths(dataset: rasterio.DatasetReader) -> tuple[float, ...] | None:
    """Centre wavelengths (nm) that an ENVI header or the band tags give."""
    values = [dataset.tags(index).get("wavelength") for index in dataset.indexes]
    if not all(values):
        return None
    try:
        return tuple(to_nanometres([float(str(value)) for value in values]))
    except ValueError as error:
        raise Unreadable(f"its wavelengths are not numbers: {values[0]!r}") from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A damaged file is a user's affair: `Unreadable` as `InputError`, with the path."""
    try:
        yield
    except Unreadable as error:
        raise InputError(f"{path} {error}; fetch it again, or take the pair out of the list") from error
