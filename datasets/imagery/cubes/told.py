"""Where an array lies as its product tells it, not as CF does: PRISMA's corners, NEON's map info, latitudes of every pixel."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datasets.imagery.cubes.arrays import Arrays, Stored
from datasets.imagery.scenes import SWATH, Points

PLACES = 3  # along each side of an image, whose latitude and longitude are taken
CORNERS = ("ulcorner_easting", "lrcorner_easting", "ulcorner_northing", "lrcorner_northing")
Transform = tuple[float, ...]


def told_place(arrays: Arrays, key: str, shape: tuple[int, int]) -> tuple[str | None, Transform | None]:
    """CRS, and transform of the pixels' corners, by the product's own words; None where it has none.

    Args:
        shape: (h, w).
    """
    crs, transform = _by_corners(arrays.attributes, shape)
    return (crs, transform) if transform else _by_map_info(arrays, key)


def swath_points(arrays: Arrays, key: str, axes: str, shape: tuple[int, int]) -> Points | None:
    """Some pixels' places by two-dimensional latitudes and longitudes beside an array; None without them."""
    if axes.index("h") > axes.index("w"):
        return None
    found = [_closest(arrays, key, shape, words) for words in ("lat(itude)?", "lon(gitude)?")]
    if any(one is None for one in found):
        return None
    rows, cols = (np.unique(np.linspace(0, side - 1, PLACES).astype(int)) for side in shape)
    lat, lon = (np.reshape(one[()], shape)[np.ix_(rows, cols)].astype(np.float64) for one in found if one is not None)
    if not (np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90) & (np.abs(lon) <= 360)).all():
        return None
    places = [
        (float(row) + 0.5, float(col) + 0.5, float(lon[i, j]), float(lat[i, j]))
        for i, row in enumerate(rows)
        for j, col in enumerate(cols)
    ]
    return Points(SWATH, tuple(places), "EPSG:4326")


def _by_corners(attributes: Mapping[str, Any], shape: tuple[int, int]) -> tuple[str | None, Transform | None]:
    """PRISMA level 2D: the centres of the pixels in the corners."""
    told = {name.lower(): value for name, value in attributes.items()}
    try:
        left, right, top, bottom = (float(told[f"product_{name}"]) for name in CORNERS)
        epsg = int(told["epsg_code"])
    except (KeyError, TypeError, ValueError):
        return None, None
    across, down = (right - left) / max(shape[1] - 1, 1), (bottom - top) / max(shape[0] - 1, 1)
    if not across > 0 > down:
        return None, None
    return f"EPSG:{epsg}", (across, 0.0, left - across / 2, 0.0, down, top - down / 2)


def _by_map_info(arrays: Arrays, key: str) -> tuple[str | None, Transform | None]:
    """NEON's datasets beside the reflectance: an ENVI map info, and an EPSG code."""
    info, code = (_note(arrays, key, name) for name in ("map_info", "epsg_code"))
    words = [word.strip() for word in info.strip("{}[] ").split(",")] if info else []
    try:
        col, row, x, y, across, down = map(float, words[1:7])
    except ValueError:
        return None, None
    turned = any(re.fullmatch(r"rotation\s*=\s*0*[1-9.].*", word, re.IGNORECASE) for word in words[7:])
    if across <= 0 or down <= 0 or turned:
        return None, None
    transform = (across, 0.0, x - (col - 1) * across, 0.0, -down, y + (row - 1) * down)
    return (f"EPSG:{int(code)}" if code.isdigit() else None), transform


def _note(arrays: Arrays, key: str, wanted: str) -> str:
    """A text of one value by its name, from the group that is closest to an array."""
    group = key.rpartition("/")[0]
    fitting = [name for name in arrays.notes if re.sub(r"[ -]+", "_", name.rpartition("/")[2]).lower() == wanted]
    near = [name for name in fitting if name.startswith(group)]
    return arrays.notes[(near or fitting)[0]].strip() if len(near or fitting) == 1 else ""


def _closest(arrays: Arrays, key: str, shape: Sequence[int], words: str) -> Stored | None:
    fitting = [
        array
        for name, array in arrays.items()
        if name != key
        and not array.refusal
        and not array.flipped
        and tuple(side for side in array.shape if side > 1) == tuple(shape)
        and re.fullmatch(f"({words})(_.*)?", name.rpartition("/")[2].lower())
    ]
    return fitting[0] if fitting else None
