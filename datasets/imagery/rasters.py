"""Rasters: GeoTIFF, JPEG 2000, PNG and whatever else rasterio reads, single-band files of one image included."""

import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from alliance.errors import InputError
from alliance.sensors.catalog import to_nanometres
from datasets.imagery.grids import one_footprint
from datasets.imagery.scenes import Read, Scene, Unreadable, Window, check_dtype, equals, find_date, readable

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
                yield lambda *window: _stacked([read(*window) for read in readers])


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
            nodata=tuple(dataset.nodatavals) if any(value is not None for value in dataset.nodatavals) else (),
            masked=_has_mask(dataset),
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
    return replace(
        finest,
        files=tuple(scene.files[0] for scene in members),
        name=Path(finest.name).with_name(prefix).as_posix(),
        shape=(len(members), *finest.shape[1:]),
        dtype=np.result_type(*(scene.dtype for scene in members)).name,
        band_names=tuple(scene.files[0].stem.rpartition("_")[2] for scene in members),
        nodata=tuple(value for scene in members for value in scene.nodata or (None,))
        if any(scene.nodata for scene in members)
        else (),
        masked=any(scene.masked for scene in members),
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


def _has_mask(dataset: rasterio.DatasetReader) -> bool:
    """Whether a mask of its own, inside or in a file beside it, says which pixels are missing."""
    return any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums)


def _read(dataset: rasterio.DatasetReader, path: Path, indexes: Sequence[int], window: Any) -> Window:
    """Bands (from 1) of a window, and what nodata values and masks say is missing in them."""
    with readable(path):
        stored = dataset.read(list(indexes), window=window)
        missing = equals(stored, [dataset.nodatavals[index - 1] for index in indexes])
        if _has_mask(dataset):
            masked = dataset.read_masks(list(indexes), window=window) == 0
            missing = masked if missing is None else masked | missing
    return Window(stored, missing)


def _whole_reader(dataset: rasterio.DatasetReader, path: Path, bands: Sequence[int]) -> Read:
    indexes = [band + 1 for band in bands]
    return lambda row, col, height, width: _read(dataset, path, indexes, ((row, row + height), (col, col + width)))


def _band_reader(dataset: rasterio.DatasetReader, path: Path, shape: tuple[int, int, int]) -> Read:
    """Windows of a band on the scene's grid: each pixel takes the band pixel that holds its centre."""
    _, scene_height, scene_width = shape

    def read(row: int, col: int, height: int, width: int) -> Window:
        rows = (2 * np.arange(row, row + height) + 1) * dataset.height // (2 * scene_height)
        cols = (2 * np.arange(col, col + width) + 1) * dataset.width // (2 * scene_width)
        block = _read(dataset, path, [1], ((rows[0], rows[-1] + 1), (cols[0], cols[-1] + 1)))
        pick = np.ix_([0], rows - rows[0], cols - cols[0])
        return Window(block.stored[pick], None if block.missing is None else block.missing[pick])

    return read


def _stacked(windows: Sequence[Window]) -> Window:
    """Windows of one band each as one of all."""
    stored = np.concatenate([window.stored for window in windows])
    if all(window.missing is None for window in windows):
        return Window(stored)
    absent = [np.zeros(one.stored.shape, dtype=bool) if one.missing is None else one.missing for one in windows]
    return Window(stored, np.concatenate(absent))


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
