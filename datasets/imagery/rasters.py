"""Rasters: GeoTIFF, JPEG 2000, PNG, ENVI and whatever else rasterio reads, single-band files of one image included."""

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import RPCTransformer

from alliance.errors import InputError
from alliance.sensors.wavelengths import to_nanometres
from datasets.imagery.claims import refuse_claim, refuse_large
from datasets.imagery.envi import check_lists, check_size, good_bands, header_beside, stored_factor
from datasets.imagery.scenes import (
    COMPLEX,
    CONTROL,
    POLYNOMIALS,
    Damaged,
    Points,
    Read,
    Scene,
    Unreadable,
    Window,
    check_dtype,
    equals,
    find_date,
    readable,
)
from datasets.imagery.vrt import check_sidecars, vrt_files
from datasets.storage.standins import opener_of

DRIVERS = {  # the one driver that may open a file of this suffix, whatever the file holds
    **dict.fromkeys((".tif", ".tiff"), "GTiff"),
    ".jp2": "JP2OpenJPEG",
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
    ".png": "PNG",
    ".vrt": "VRT",
    ".img": "HFA",
}
SUFFIXES = tuple(DRIVERS)
NAMED_UNITS = ("nm", "nanometers", "nanometres", "um", "µm", "micrometers", "micrometres")  # in bands' descriptions
OPENING = threading.Lock()  # warning filters are the whole process's, and training reads in several threads
PROBE = 64  # pixels: side of the windows in which alpha is told from a band
ALPHA_PART = 0.9  # of an alpha band's pixels, at least, are wholly opaque or wholly transparent


@dataclass(frozen=True, kw_only=True)
class RasterScene(Scene):
    """One file with all bands, or one file per band; coarser bands are repeated on the finest grid."""

    alpha: int | None = None  # place of the band that says where pixels are missing: they are where it is 0
    pages: int = 0  # of a TIFF whose pages are the bands; 0: its bands are

    @contextmanager
    def open(self, bands: Sequence[int]) -> Iterator[Read]:
        with ExitStack() as stack:
            if len(self.files) == 1 and not self.pages:
                dataset = stack.enter_context(opened(self.files[0], self.root))
                alpha = self.alpha if self.alpha not in bands else None
                yield _whole_reader(dataset, self.files[0], bands, alpha)
            else:
                files = [(self.files[0], band + 1) if self.pages else (self.files[band], None) for band in bands]
                readers = [
                    _band_reader(stack.enter_context(opened(file, self.root, page)), file, self.shape)
                    for file, page in files
                ]
                yield lambda *window: _stacked([read(*window) for read in readers])


def describe_raster(path: Path, root: Path) -> RasterScene:
    """Read a raster's header.

    Raises:
        Unreadable: no raster, its pixels are complex, or its format is not the one of its suffix.
    """
    with opened(path, root) as dataset, readable(path):
        if any(name.startswith("complex") for name in dataset.dtypes):
            raise Unreadable(COMPLEX.format(dataset.dtypes[0]))
        check_lists(dataset)
        pages = _pages(dataset, path)
        count = pages or dataset.count
        files = vrt_files(path, root) if dataset.driver == "VRT" else (path, path.with_suffix(".ige"))  # ERDAS's own
        refuse_claim((count, dataset.height, dataset.width), np.dtype(dataset.dtypes[0]).itemsize, files)
        alpha = _alpha(dataset)
        scales, offsets = _scales_and_offsets(dataset)
        plain = all(scale == 1 for scale in scales) and not any(offsets)
        return RasterScene(
            root=root,
            files=(path,),
            name=path.relative_to(root).with_suffix("").as_posix(),
            shape=(count, dataset.height, dataset.width),
            dtype=check_dtype(np.result_type(*dataset.dtypes)),
            band_names=None if pages else _band_names(dataset, alpha),
            wavelengths=None if pages else _wavelengths(dataset),
            nodata=_repeated(dataset.nodatavals, count) if any(v is not None for v in dataset.nodatavals) else (),
            masked=alpha is not None or _has_mask(dataset),
            scales=() if plain else _repeated(scales, count),
            offsets=() if plain else _repeated(offsets, count),
            units=tuple(unit or "" for unit in dataset.units) if any(dataset.units) and not pages else (),
            good=good_bands(dataset),
            crs=dataset.crs.to_string() if dataset.crs else None,
            transform=None if dataset.transform.is_identity and not dataset.crs else tuple(dataset.transform)[:6],
            date=find_date(path, dataset.tags()),
            points=_points(dataset),
            palette=_palette(dataset),
            alpha=alpha,
            pages=pages,
        )


@contextmanager
def opened(path: Path, root: Path | None = None, page: int | None = None) -> Iterator[rasterio.DatasetReader]:
    """A raster that is open for reading, with or without georeference.

    Args:
        root: folder below which a virtual raster may read files; None: its own.
        page: of a TIFF, from 1.
    Raises:
        Unreadable: no raster, or its format is not the one of its suffix.
    """
    header = header_beside(path) if path.suffix.lower() not in DRIVERS or path.suffix.lower() == ".img" else None
    driver = "ENVI" if header else DRIVERS.get(path.suffix.lower(), "ENVI")
    with ExitStack() as stack:
        with readable(path):
            check_sidecars(path)
            if header:
                check_size(path, header)
            if driver == "VRT":
                vrt_files(path, root or path.parent)
            name = path
            if page is not None:
                whole = path.absolute()
                if opener_of(path) is not None:  # GDAL finds it by the name of what is open
                    whole = stack.enter_context(open_quietly(path, driver=driver)).name
                name = f"GTIFF_DIR:{page}:{whole}"
            dataset = stack.enter_context(open_quietly(name, driver=driver))
        yield dataset


def open_quietly(name: str | Path, mode: str = "r", **profile: Any) -> Any:
    """`rasterio.open` without the warning that a file has no place; in all threads, one at a time."""
    with OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(name, mode, opener=opener_of(name) if mode == "r" else None, **profile)


def _palette(dataset: rasterio.DatasetReader) -> dict[int, tuple[int, int, int]]:
    """Red, green and blue of every number of a band of colour indices; empty: it is no such band."""
    if dataset.count > 1 or dataset.colorinterp[0] != ColorInterp.palette:
        return {}
    return {number: (red, green, blue) for number, (red, green, blue, _) in dataset.colormap(1).items()}


def _repeated(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """The values of each band; those of a TIFF's first page hold for all."""
    return tuple(values) if len(values) == count else (values[0],) * count


def _pages(dataset: rasterio.DatasetReader, path: Path) -> int:
    """How many pages of a TIFF are its bands; 0 where the bands of one page are. Smaller pages are pictures of it.

    Raises:
        Unreadable: pages of several bands.
    """
    if not dataset.subdatasets or dataset.driver != "GTiff":
        return 0
    shapes = []
    for number in range(1, len(dataset.subdatasets) + 1):
        with opened(path, page=number) as page:
            shapes.append((page.count, page.height, page.width, page.dtypes[0]))
    alike = [shape for shape in shapes if shape[1:] == shapes[0][1:]]
    if len(alike) == 1:
        return 0
    if len(alike) < len(shapes) or shapes[0][0] != 1 or alike != shapes[:1] * len(shapes):
        raise Unreadable(
            f"holds {len(shapes)} pages of {shapes[0][0]} and more bands or of several sizes; write the page that is "
            f"meant: gdal_translate GTIFF_DIR:1:{path.name} PAGE.tif"
        )
    return len(shapes)


def _points(dataset: rasterio.DatasetReader) -> Points | None:
    """What places an image without a transform: its control points, else its corners by its polynomials at their height."""
    if not dataset.transform.is_identity:
        return None
    given, crs = dataset.gcps
    if given:
        places = tuple((point.row, point.col, point.x, point.y) for point in given)
        return Points(CONTROL, places, crs.to_string() if crs else None)
    if not dataset.rpcs:
        return None
    rows, cols = [0, 0, dataset.height, dataset.height], [0, dataset.width, 0, dataset.width]
    with RPCTransformer(dataset.rpcs) as polynomials:
        x, y = polynomials.xy(rows, cols, zs=[dataset.rpcs.height_off] * 4, offset="ul")
    return Points(POLYNOMIALS, tuple(zip(rows, cols, x, y, strict=True)), "EPSG:4326")


def _scales_and_offsets(dataset: rasterio.DatasetReader) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each band: those that GDAL reads, an ENVI header's factor, or tags as netCDF calls them.

    Raises:
        Unreadable: two of them contradict each other, or one is no number.
    """
    plain = (1.0,) * dataset.count, (0.0,) * dataset.count
    factor = stored_factor(dataset)
    told = {
        "as gain or scale": (tuple(dataset.scales), tuple(dataset.offsets)),
        "as reflectance scale factor": plain if factor is None else ((1 / factor,) * dataset.count, plain[1]),
        "in its tags scale_factor and add_offset": (
            _tagged(dataset, "scale_factor", 1.0),
            _tagged(dataset, "add_offset", 0.0),
        ),
    }
    said = {where: line for where, line in told.items() if line != plain}
    first = next(iter(said.values()), plain)
    if any(not np.allclose(line, first, rtol=1e-6, atol=1e-12, equal_nan=True) for line in said.values()):
        lines = [f"{scale[0]:.10g} and {offset[0]:.10g} {where}" for where, (scale, offset) in said.items()]
        raise Unreadable(f"says scale and offset twice: {', but '.join(lines)}; take one away")
    return first


def _tagged(dataset: rasterio.DatasetReader, name: str, default: float) -> tuple[float, ...]:
    """A number of each band by its own tag, else by the file's."""
    whole = {key.lower(): value for key, value in dataset.tags().items()}
    values = []
    for index in dataset.indexes:
        text = {key.lower(): value for key, value in dataset.tags(index).items()}.get(name, whole.get(name, default))
        try:
            values.append(float(text))
        except ValueError as error:
            raise Unreadable(f"its tag {name} is {text!r}, no number; mend it") from error
    if not np.isfinite(values).all() or (name == "scale_factor" and 0 in values):
        raise Unreadable(f"its tag {name} is {values[0]:g}; mend it")
    return tuple(values)


def _has_mask(dataset: rasterio.DatasetReader) -> bool:
    """Whether a mask of its own, inside or in a file beside it, says which pixels are missing."""
    return any(
        not flags or (MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags)
        for flags in dataset.mask_flag_enums
    )


def _alpha(dataset: rasterio.DatasetReader) -> int | None:
    """Place of a band that is flagged alpha and is one: writers flag a fourth band so which is near infrared."""
    flagged = [place for place, colour in enumerate(dataset.colorinterp) if colour == ColorInterp.alpha]
    if len(flagged) != 1 or dataset.count < 2:
        return None
    name = (dataset.descriptions[flagged[0]] or "alpha").lower()
    if name not in ("alpha", "mask", "a") and not re.fullmatch(r"band[ _]?\d+", name):
        return None
    return flagged[0] if dataset.driver == "PNG" or _is_binary(dataset, flagged[0] + 1) else None


def _is_binary(dataset: rasterio.DatasetReader, index: int) -> bool:
    """Whether a band (from 1) is 0 or its largest value nearly everywhere in the middle and in the corners."""
    most = np.iinfo(dataset.dtypes[index - 1]).max if np.dtype(dataset.dtypes[index - 1]).kind in "iu" else 1
    bottom, right = max(dataset.height - PROBE, 0), max(dataset.width - PROBE, 0)
    for row, col in ((bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)):
        rows, cols = min(row + PROBE, dataset.height), min(col + PROBE, dataset.width)
        values = dataset.read(index, window=((row, rows), (col, cols)))
        if np.isin(values, (0, most)).mean() < ALPHA_PART:
            return False
    return True


def _read(
    dataset: rasterio.DatasetReader, path: Path, indexes: Sequence[int], window: Any, alpha: int | None
) -> Window:
    """Bands (from 1) of a window, and what nodata values, masks and alpha say is missing in them."""
    (top, bottom), (left, right) = window
    with readable(path):
        refuse_large(len(indexes) * (bottom - top) * (right - left) * np.dtype(dataset.dtypes[0]).itemsize)
        stored = dataset.read(list(indexes), window=window)
        missing = equals(stored, [dataset.nodatavals[index - 1] for index in indexes])
        if alpha is not None or _has_mask(dataset):
            masked = (
                dataset.read_masks(list(indexes), window=window) == 0
                if alpha is None
                else np.broadcast_to(dataset.read([alpha + 1], window=window) == 0, stored.shape)
            )
            missing = masked if missing is None else masked | missing
    return Window(stored, missing)


def _whole_reader(dataset: rasterio.DatasetReader, path: Path, bands: Sequence[int], alpha: int | None) -> Read:
    indexes = [band + 1 for band in bands]
    return lambda row, col, height, width: _read(
        dataset, path, indexes, ((row, row + height), (col, col + width)), alpha
    )


def _band_reader(dataset: rasterio.DatasetReader, path: Path, shape: tuple[int, int, int]) -> Read:
    """Windows of a band on the scene's grid: each pixel takes the band pixel that holds its centre."""
    _, scene_height, scene_width = shape

    def read(row: int, col: int, height: int, width: int) -> Window:
        rows = (2 * np.arange(row, row + height) + 1) * dataset.height // (2 * scene_height)
        cols = (2 * np.arange(col, col + width) + 1) * dataset.width // (2 * scene_width)
        block = _read(dataset, path, [1], ((rows[0], rows[-1] + 1), (cols[0], cols[-1] + 1)), None)
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


def _band_names(dataset: rasterio.DatasetReader, alpha: int | None) -> tuple[str, ...] | None:
    """Band names from the descriptions, else R, G, B of a colour picture; None where the file tells nothing."""
    names = tuple(str(name or "") for name in dataset.descriptions)
    by_gdal = dataset.driver == "ENVI" and "band_names" not in dataset.tags(ns="ENVI")  # written of the wavelengths
    numbered = all(re.fullmatch(r"band[ _]?\d+", name, re.IGNORECASE) for name in names)
    colours = tuple(ColorInterp(colour).name for colour in dataset.colorinterp)
    coloured = colours[:3] == ("red", "green", "blue") and (len(colours) == 3 or (alpha == 3 and len(colours) == 4))
    if all(names) and not by_gdal and not (numbered and coloured):
        return names
    if coloured:
        return ("R", "G", "B", *colours[3:])
    return colours if colours == ("palette",) else None


def _wavelengths(dataset: rasterio.DatasetReader) -> tuple[float, ...] | None:
    """Centre wavelengths (nm) of the band tags, of an ENVI header, or of descriptions such as "423.00 nm"."""
    tags = [dataset.tags(index) for index in dataset.indexes]
    values, units = [one.get("wavelength") for one in tags], tags[0].get("wavelength_units")
    if not all(values):
        found = [re.fullmatch(r"\s*([\d.]+)\s*([^\d\s]+)\s*", str(name or "")) for name in dataset.descriptions]
        if not all(found) or len({match[2] for match in found if match}) > 1:
            return None
        values, units = [match[1] for match in found if match], next(match[2] for match in found if match)
        if units.lower() not in NAMED_UNITS:
            return None
    try:
        return tuple(to_nanometres([float(str(value)) for value in values], units))
    except (ValueError, InputError) as error:
        raise Unreadable(
            f"its wavelengths, {values[0]} {units or ''} to {values[-1]}, are none: {error}; mend them, or take them out"
        ) from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A file that cannot be used is a user's affair: `Unreadable` as `InputError`, with the path."""
    try:
        yield
    except Damaged as error:
        raise InputError(f"{path} {error}; fetch it again, or take the pair out of the list") from error
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error
