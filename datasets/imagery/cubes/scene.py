"""An image out of the arrays of a file, described by its header and read window by window."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from datasets.imagery.cubes.arrays import Arrays, open_arrays
from datasets.imagery.cubes.axes import SLIMMEST, Evidence, find_axes, squeezed
from datasets.imagery.cubes.bands import BandFacts, band_counts, band_facts
from datasets.imagery.cubes.choice import choose
from datasets.imagery.cubes.packing import Packing, find_packing
from datasets.imagery.cubes.places import coordinate_grids, georeference
from datasets.imagery.cubes.told import swath_points
from datasets.imagery.scenes import Read, Scene, Unreadable, Window, check_dtype, find_date, readable


@dataclass(frozen=True, kw_only=True)
class CubeOptions:
    """How arrays are to be understood where the file does not tell."""

    key: str | None = None  # name of the array, or of a group; None: the only one that can be an image
    axes: str | None = None  # order of the stored axes, such as "hwc"; None: told by the file or the numbers below
    bands: int | None = None  # the sensor's band count, if known
    grid: tuple[int, ...] | None = None  # rows and columns, if known
    any_rank: bool = False  # a 2-D array is an image too, and one array is the image: several are not joined


@dataclass(frozen=True, kw_only=True)
class Part:
    """One array that holds bands of an image."""

    key: str
    axes: str  # one letter of "chw" per stored axis, 1 for an axis of length 1 that is none of them
    packing: Packing


@dataclass(frozen=True, kw_only=True)
class CubeScene(Scene):
    """One array of a file, or several whose bands lie on one grid."""

    parts: tuple[Part, ...]
    places: tuple[tuple[int, int], ...]  # of each band: which part, and which band of it

    @contextmanager
    def open(self, bands: Sequence[int]) -> Iterator[Read]:
        wanted = [self.places[band] for band in bands]
        own = {part: [band for place, band in wanted if place == part] for part, _ in wanted}
        with open_arrays(self.files[0]) as arrays:

            def read(row: int, col: int, height: int, width: int) -> Window:
                area = {"h": slice(row, row + height), "w": slice(col, col + width)}
                with readable(self.files[0]):
                    windows = {part: _read(arrays, self.parts[part], bands, area) for part, bands in own.items()}
                return _joined(windows, [part for part, _ in wanted])

            yield read


def describe_cube(path: Path, root: Path, options: CubeOptions) -> CubeScene:
    """Find the image in a file of arrays.

    Raises:
        Unreadable: no array fits, or several do and no key is given, or its axes are not to be told.
    """
    with open_arrays(path) as arrays, readable(path):
        names = choose(arrays, path.stem, options.key, any_rank=options.any_rank)
        found = [_describe(arrays, name, options) for name in names]
        return _scene(path, root, arrays, found)


@dataclass(frozen=True, kw_only=True)
class _Described:
    part: Part
    size: tuple[int, int, int]  # (c, h, w)
    dtype: str
    facts: BandFacts


def _describe(arrays: Arrays, name: str, options: CubeOptions) -> _Described:
    array = arrays[name]
    check_dtype(array.dtype)
    if array.refusal:
        raise Unreadable(array.refusal)
    axes = _stored_axes(arrays, name, options)
    size = dict(zip(axes, array.shape, strict=True))
    packing = find_packing(name, array, arrays.attributes)
    return _Described(
        part=Part(key=name, axes=axes, packing=packing),
        size=(size.get("c", 1), size["h"], size["w"]),
        dtype=packing.dtype or array.dtype.name,
        facts=band_facts(arrays, name, size.get("c", 1)),
    )


def _stored_axes(arrays: Arrays, name: str, options: CubeOptions) -> str:
    array = arrays[name]
    dims = array.dims[::-1] if array.flipped else array.dims
    try:
        keep = squeezed(array.seen, dims)
    except Unreadable as error:
        raise Unreadable(f"{name} {array.seen} {error}") from error
    shape = [array.seen[place] for place in keep]
    if len(shape) < 2:
        raise Unreadable(f"{name} {array.seen} is no image")
    evidence = Evidence(
        dims=[dims[place] for place in keep] if dims else (),
        counts=band_counts(arrays, name),
        grids=coordinate_grids(arrays) | _maps_beside(arrays, name),
        bands=options.bands,
        grid=options.grid,
    )
    letters = dict(zip(keep, find_axes(name, shape, evidence, options.axes), strict=True))
    axes = "".join(letters.get(place, "1") for place in range(array.ndim))
    return axes[::-1] if array.flipped else axes


def _maps_beside(arrays: Arrays, name: str) -> frozenset[tuple[int, int]]:
    """Rows and columns of the two-dimensional arrays beside an image: labels, masks, coordinates."""
    others = (array for key, array in arrays.items() if key != name and array.ndim in (2, 3))
    sizes = (tuple(length for length in array.seen if length > 1) for array in others)
    return frozenset((size[0], size[1]) for size in sizes if len(size) == 2 and min(size) >= SLIMMEST)


def _scene(path: Path, root: Path, arrays: Arrays, found: Sequence[_Described]) -> CubeScene:
    _, height, width = found[0].size
    places = _places(found)
    first = found[0].part
    crs, transform = georeference(arrays, first.key, first.axes, (height, width))
    wavelengths = [found[part].facts.wavelengths[band] for part, band in places if found[part].facts.wavelengths]
    return CubeScene(
        root=root,
        files=(path,),
        name=path.relative_to(root).with_suffix("").as_posix(),
        shape=(len(places), height, width),
        dtype=np.result_type(*(one.dtype for one in found)).name,
        band_names=_band_names(found, places),
        wavelengths=tuple(wavelengths) if len(wavelengths) == len(places) else None,
        good=_good(found, places),
        crs=crs,
        transform=transform,
        points=None if transform else swath_points(arrays, first.key, first.axes, (height, width)),
        date=find_date(path),
        parts=tuple(one.part for one in found),
        places=places,
        **_measures(found, places),
    )


def _places(found: Sequence[_Described]) -> tuple[tuple[int, int], ...]:
    """Bands of all arrays, without those that have no wavelength where others have; of several detectors by it."""
    every = [(part, band) for part, one in enumerate(found) for band in range(one.size[0])]
    told = {(part, band): value for part, one in enumerate(found) for band, value in enumerate(one.facts.wavelengths)}
    used = [place for place in every if told.get(place, 1) > 0]
    if len(found) > 1 and len(told) == len(every):
        used.sort(key=lambda place: told[place])
    return tuple(used)


def _band_names(found: Sequence[_Described], places: Sequence[tuple[int, int]]) -> tuple[str, ...] | None:
    if len(found) == 1:
        names = found[0].facts.names
        return tuple(names[band] for _, band in places) if names else None
    if any(one.size[0] > 1 for one in found):
        return None
    names = tuple(found[part].part.key.rpartition("/")[2] for part, _ in places)
    return None if all(re.fullmatch(r"(?i)band[ _]?\d+", name) for name in names) else names


def _good(found: Sequence[_Described], places: Sequence[tuple[int, int]]) -> tuple[bool, ...]:
    if not any(one.facts.good for one in found):
        return ()
    return tuple(found[part].facts.good[band] if found[part].facts.good else True for part, band in places)


def _measures(found: Sequence[_Described], places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Nodata, scale, offset and unit of each band, as fields of a scene."""
    packings = [one.part.packing for one in found]
    fields: dict[str, Any] = {"masked": any(packing.is_masking for packing in packings)}
    if any(packing.fills for packing in packings):
        fields["nodata"] = tuple(next(iter(packings[part].fills), None) for part, _ in places)
    if any(packing.scale for packing in packings):
        fields["scales"] = tuple(_of_band(found, place, "scale", 1.0) for place in places)
        fields["offsets"] = tuple(_of_band(found, place, "offset", 0.0) for place in places)
    if any(packing.unit for packing in packings):
        fields["units"] = tuple(packings[part].unit for part, _ in places)
    return fields


def _of_band(found: Sequence[_Described], place: tuple[int, int], field: str, default: float) -> float:
    one, band = found[place[0]], place[1]
    values = getattr(one.part.packing, field) or (default,)
    if len(values) not in (1, one.size[0]):
        raise Unreadable(
            f"{one.part.key} has {one.size[0]} bands and {len(values)} numbers of {field}; give one of each"
        )
    return values[band if len(values) > 1 else 0]


def _read(arrays: Arrays, part: Part, bands: Sequence[int], area: dict[str, slice]) -> Window:
    """Bands of one array, in this order."""
    first = min(bands)
    spans = {**area, "c": slice(first, max(bands) + 1), "1": slice(None)}
    block = part.packing.unpacked(arrays[part.key][tuple(spans[axis] for axis in part.axes)])
    order = f"{' '.join(part.axes)} -> {'c h w' if 'c' in part.axes else '1 h w'}"
    stored = rearrange(block, order)[[band - first for band in bands]]
    return Window(stored, part.packing.missing(stored))


def _joined(windows: dict[int, Window], order: Sequence[int]) -> Window:
    """Windows of several arrays as one; `order` says whose next band comes."""
    if len(windows) == 1:
        return next(iter(windows.values()))
    stored = {part: iter(window.stored) for part, window in windows.items()}
    absent = {
        part: iter(np.zeros(window.stored.shape, dtype=bool) if window.missing is None else window.missing)
        for part, window in windows.items()
    }
    marked = any(window.missing is not None for window in windows.values())
    return Window(
        np.stack([next(stored[part]) for part in order]),
        np.stack([next(absent[part]) for part in order]) if marked else None,
    )
