"""Which axis of an array counts bands, rows and columns: told by the file or the user, never by chance."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from datasets.imagery.scenes import Unreadable

NATURAL = ("hwc", "chw", "hcw")  # rows before columns: pixel-, band- and line-interleaved
WHICH = "say which: --axes ORDER to launch/shards.py, or axes: ORDER in the description of the image"
SLIMMEST = 8  # an image is at least so many pixels wide and high, if another reading of its axes is
NAMES = {
    "h": "y|lat|latitude|row|line|downtrack|down_track|northing|along_track|alongtrack|scanline|height|ydim|j",
    "w": "x|lon|long|longitude|col|column|sample|crosstrack|cross_track|easting|across_track|pixel|width|xdim|i",
    "c": "c|band|wavelength|wl|wvl|channel|spectral|lambda|wavenumber|polari[sz]ation|pol|variable|layer|spectral_band",
    "t": "t|time|timestamp|date|epoch|datetime",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of an array's axes."""

    dims: Sequence[str] = ()  # names of its dimensions
    counts: frozenset[int] = frozenset()  # of bands: lengths of the lists of wavelengths and band names beside it
    grids: frozenset[tuple[int, int]] = frozenset()  # (h, w) of maps and coordinates beside it
    bands: int | None = None  # of the sensor
    grid: tuple[int, ...] | None = None  # (h, w) of the labels


def letter(name: str) -> str:
    """h, w, c or t (time) of a dimension's name; empty where it tells nothing."""
    word = re.sub(r"[\s-]+", "_", name.rpartition("/")[2].strip().lower())
    for key, names in NAMES.items():
        if re.fullmatch(rf"(n_?)?({names})(e?s)?(_?\d+)?(_?(dim|axis))?", word):
            return key
    return ""


def squeezed(shape: Sequence[int], dims: Sequence[str]) -> list[int]:
    """Places of the axes that an image keeps: without a time axis of one date, and others of length 1 beyond three.

    Raises:
        Unreadable: there are several dates.
    """
    letters = [letter(name) for name in dims] or [""] * len(shape)
    for length, key, name in zip(shape, letters, [*dims] or letters, strict=True):
        if key == "t" and length > 1:
            mend = f"ds.isel({name.rpartition('/')[2]}=0).to_netcdf(...)"
            raise Unreadable(f"is a time series of {length} dates; save one date, with xarray for example by {mend}")
    keep = [place for place, key in enumerate(letters) if key != "t"]
    for place in list(keep):
        if len(keep) > 3 and shape[place] == 1:
            keep.remove(place)
    if len(keep) > 3:
        raise Unreadable("is a time series or another stack of images; save one date as a 3-D array")
    return keep


def find_axes(name: str, shape: Sequence[int], evidence: Evidence, declared: str | None = None) -> str:
    """One letter of "chw" per axis, of "hw" without bands.

    Args:
        declared: the order that the user gives; it is taken as it is.
    Raises:
        Unreadable: the order is not to be told, or the declared one is none.
    """
    letters = [letter(dim) for dim in evidence.dims] or [""] * len(shape)
    if len(shape) == 2:
        return "wh" if letters == ["w", "h"] else "hw"
    if declared:
        if sorted(declared) != sorted("chw"):
            raise Unreadable(f"axes {declared!r} are no order of the letters h, w and c; give one such as hwc")
        return declared
    orders = _named(letters)
    for fits in _tests(shape, evidence):
        orders = [order for order in orders if fits(order)] or orders
    if len(orders) > 1 and evidence.bands == 1:
        raise Unreadable(f"{name} {tuple(shape)} has several bands; give a map of one")
    if len(orders) > 1 and evidence.grid and not any(_grid(order, shape) == evidence.grid for order in orders):
        size = " x ".join(map(str, evidence.grid))
        raise Unreadable(f"{name} {tuple(shape)} has not the {size} pixels of its labels; bring both to one grid")
    if len(orders) > 1:
        readings = ", or ".join(f"{_reading(order, shape)} (axes {order})" for order in orders)
        raise Unreadable(f"{name} {tuple(shape)} may hold {readings}; {WHICH}")
    return orders[0]


def _named(letters: Sequence[str]) -> list[str]:
    """Orders that go with the names of the dimensions."""
    every = ["".join(order) for order in permutations("chw")]
    fitting = [order for order in every if all(key in ("", own) for key, own in zip(letters, order, strict=True))]
    natural = [order for order in fitting if order in NATURAL]
    return natural or fitting or list(NATURAL)


def _tests(shape: Sequence[int], evidence: Evidence) -> list[Callable[[str], bool]]:
    """From the strongest to the weakest; one that no order passes says nothing."""

    def bands(order: str) -> int:
        return shape[order.index("c")]

    return [
        lambda order: bands(order) in evidence.counts,
        lambda order: _grid(order, shape) in evidence.grids,
        lambda order: _grid(order, shape) == evidence.grid,
        lambda order: bands(order) == evidence.bands,
        lambda order: min(_grid(order, shape)) >= SLIMMEST,
    ]


def _grid(order: str, shape: Sequence[int]) -> tuple[int, int]:
    return shape[order.index("h")], shape[order.index("w")]


def _reading(order: str, shape: Sequence[int]) -> str:
    size = dict(zip(order, shape, strict=True))
    return f"{size['c']} band{'s' * (size['c'] > 1)} of {size['h']} x {size['w']} pixels"
