"""Numbers that stand for missing pixels in files that do not say so."""

import numpy as np
from numpy.typing import NDArray

from datasets.imagery.scenes import Unreadable

# What writers of rasters, netCDF, LiDAR and radar products put where there is no measurement.
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
MARKS = (-999.0, -9999.0, -99999.0, -32767.0, -32768.0, -(2.0**31), -1e20, 1e20, 9.969209968386869e36, LOWEST, HIGHEST)
LEAST, MOST = -900.0, 1e19  # all of these lie outside
PART = 0.01  # of the pixels that have 0 dB, or the largest number of integers, in all bands: more is no measurement


def refuse_undeclared(
    stored: NDArray[np.generic], missing: NDArray[np.bool_] | None, *, decibels: bool = False
) -> None:
    """See that what a file calls measured holds no usual mark of missing pixels: one that is far from all other numbers.

    Args:
        stored: (c, h, w), as they lie in the file.
        missing: of the same shape, where the file or its description says that there is nothing; None: nowhere.
        decibels: they are backscatter in dB, which is nowhere exactly 0 in all bands.
    Raises:
        Unreadable: it holds one.
    """
    mark = undeclared(stored, missing, decibels=decibels)
    if mark is not None:
        count = int((stored == stored.dtype.type(mark)).sum())
        value = _written(mark)
        raise Unreadable(
            f"holds {value} in {count} places, far from all its other numbers, and says nowhere that these are missing; "
            f"say `nodata: {value}` in the description (or the sensor), or in the file: gdal_edit.py -a_nodata {value} FILE"
        )


def undeclared(
    stored: NDArray[np.generic], missing: NDArray[np.bool_] | None, *, decibels: bool = False
) -> float | None:
    """The mark of missing pixels that stands among measurements (c, h, w), if there is one; see `refuse_undeclared`."""
    if not stored.size:
        return None
    low, high = _ends(stored)
    if low <= LEAST or high >= MOST:
        present = np.isfinite(stored) if missing is None else np.isfinite(stored) & ~missing
        for mark in MARKS:
            if _holds(stored.dtype, mark) and _is_far(stored[present], mark):
                return mark
    return _filled(stored, missing, decibels, high)


def _ends(stored: NDArray[np.generic]) -> tuple[float, float]:
    """The least and the largest number, without NaN; of unsigned integers 0 serves as the least."""
    if stored.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            return float(np.fmin.reduce(stored, axis=None)), float(np.fmax.reduce(stored, axis=None))
    return 0 if stored.dtype.kind == "u" else float(stored.min()), float(stored.max())


def _is_far(values: NDArray[np.generic], mark: float) -> bool:
    """Whether some numbers are this one, and all others differ from it by more than half of it."""
    at = values == values.dtype.type(mark)
    others = values[~at].astype(np.float64)
    return bool(at.any()) and (not others.size or np.abs(others - mark).min() > abs(mark) / 2)


def _filled(
    stored: NDArray[np.generic], missing: NDArray[np.bool_] | None, decibels: bool, high: float
) -> float | None:
    """A number that may be measured, but not in all bands of so many pixels and far from all others."""
    integers = stored.dtype.kind in "iu" and stored.dtype.itemsize > 1
    if not (integers or decibels):
        return None
    mark = 0 if decibels else int(np.iinfo(str(stored.dtype)).max)
    if high < mark:
        return None
    at = stored == mark
    if missing is not None:
        at &= ~missing
    full = at.all(axis=0)
    if full.mean() < PART:
        return None
    others = stored[~at if missing is None else ~at & ~missing]
    return None if integers and not decibels and others.size and others.max() > mark / 2 else float(mark)


def _holds(dtype: np.dtype, mark: float) -> bool:
    if dtype.kind == "f":
        return abs(mark) <= float(np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    return float(mark).is_integer() and limits.min <= mark <= limits.max


def _written(mark: float) -> str:
    """A number as YAML and GDAL read it, to the last digit."""
    if mark.is_integer() and abs(mark) < 1e16:
        return str(int(mark))
    digits, _, power = repr(mark).partition("e")
    return f"{digits if '.' in digits else f'{digits}.0'}e{power}"
