"""Where an array lies: by a file's grid mapping and coordinates (CF, chapters 4, 5), else as its product tells it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from datasets.imagery.cubes.arrays import Arrays
from datasets.imagery.cubes.axes import letter
from datasets.imagery.cubes.told import told_place

EVENNESS = 0.05  # of a step: coordinates in float32 are that uneven
TEXTS = ("crs_wkt", "spatial_ref", "proj4", "proj4text", "epsg_code", "epsg", "crs")
METRES = {"km": 1000.0, "kilometer": 1000.0, "kilometre": 1000.0}


def georeference(
    arrays: Arrays, key: str, axes: str, shape: tuple[int, int]
) -> tuple[str | None, tuple[float, ...] | None]:
    """CRS, and transform of the pixels' corners (a b c d e f), of an array; None where the file does not tell.

    Args:
        axes: one letter per stored axis.
        shape: (h, w).
    """
    mapping = _grid_mapping(arrays, key)
    rows, cols = (_coordinates(arrays, key, axes, side, count) for side, count in zip("hw", shape, strict=True))
    crs = _crs([mapping, arrays[key].attributes, arrays.attributes])
    if rows is not None and cols is not None:
        (top, down), (left, right) = rows, cols
        transform = (right, 0.0, left - right / 2, 0.0, down, top - down / 2)
        return crs or _geographic(arrays, key, axes), transform
    transform = _transform(mapping) if crs else None
    if transform is not None:
        return crs, transform
    told, transform = told_place(arrays, key, shape)
    return told or crs, transform


def coordinate_grids(arrays: Arrays) -> frozenset[tuple[int, int]]:
    """Rows and columns that one-dimensional coordinates tell."""
    sizes: dict[str, set[int]] = {"h": set(), "w": set()}
    for name, array in arrays.items():
        if array.ndim == 1 and letter(name) in sizes:
            sizes[letter(name)].add(array.size)
    return frozenset((h, w) for h in sizes["h"] for w in sizes["w"])


def _grid_mapping(arrays: Arrays, key: str) -> Mapping[str, Any]:
    """Attributes of the variable that says the projection: the one that the array names, else the only one."""
    named = str(arrays[key].attributes.get("grid_mapping", "")).split(":")[0].strip()
    own = [array.attributes for name, array in arrays.items() if named and name.rpartition("/")[2] == named]
    any_one = [
        array.attributes
        for array in arrays.values()
        if {"crs_wkt", "spatial_ref", "grid_mapping_name"} & {*array.attributes}
    ]
    return next(iter(own or any_one), {})


def _crs(sources: list[Mapping[str, Any]]) -> str | None:
    for text in _crs_texts(sources):
        try:
            return CRS.from_user_input(text).to_string()
        except (CRSError, ValueError):
            continue
    return None


def _crs_texts(sources: list[Mapping[str, Any]]) -> Iterator[Any]:
    for source in sources:
        told = {name.lower(): value for name, value in source.items()}
        for name in TEXTS:
            value = told.get(name)
            if name.startswith("epsg") and value is not None:
                value = str(value).upper().removeprefix("EPSG:")
                value = int(float(value)) if value.replace(".", "", 1).isdigit() else None
            if isinstance(value, str | int) and value:
                yield value
        if source.get("grid_mapping_name") == "latitude_longitude":
            yield "EPSG:4326"


def _coordinates(arrays: Arrays, key: str, axes: str, side: str, count: int) -> tuple[float, float] | None:
    """First value and step of the even coordinates along an axis."""
    name = _coordinate_name(arrays, key, axes, side, count)
    if name is None or count < 2:
        return None
    values = np.ravel(arrays[name][()]).astype(np.float64)
    step = (values[-1] - values[0]) / (count - 1)
    even = np.isfinite(step) and step != 0 and np.abs(np.diff(values) - step).max() <= EVENNESS * abs(step)
    units = str(arrays[name].attributes.get("units", "")).strip().lower()
    if not even or units.startswith("rad"):
        return None
    scale = METRES.get(units.removesuffix("s"), 1.0)
    return float(values[0]) * scale, float(step) * scale


def _coordinate_name(arrays: Arrays, key: str, axes: str, side: str, count: int) -> str | None:
    """The array of an axis' coordinates: the one that its dimension is called by, else the one that is named x or y."""
    dims = arrays[key].dims
    dim = dims[axes.index(side)] if dims else ""
    fitting = [name for name, array in arrays.items() if array.ndim == 1 and array.size == count and not array.refusal]
    if dim:
        own = [name for name in fitting if name == dim or name.rpartition("/")[2] == dim.rpartition("/")[2]]
        return own[0] if own else None
    named = [name for name in fitting if letter(name) == side]
    return named[0] if len(named) == 1 else None


def _geographic(arrays: Arrays, key: str, axes: str) -> str | None:
    """Latitudes and longitudes without a projection are those of WGS 84."""
    words = []
    for side in "hw":
        array = arrays[key]
        name = next((name for name in arrays if array.dims and name == array.dims[axes.index(side)]), "")
        units = str(arrays[name].attributes.get("units", "")) if name else ""
        words.append(units.lower().startswith("degree") or name.rpartition("/")[2].lower().startswith(("lat", "lon")))
    return "EPSG:4326" if all(words) else None


def _transform(mapping: Mapping[str, Any]) -> tuple[float, ...] | None:
    """GDAL's GeoTransform (left, a, b, top, d, e) as a b c d e f."""
    given = mapping.get("GeoTransform", "")
    try:
        left, a, b, top, d, e = map(float, given.split() if isinstance(given, str) else np.ravel(given))
    except (TypeError, ValueError):
        return None
    return a, b, left, d, e, top
