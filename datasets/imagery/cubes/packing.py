"""How the stored numbers of an array become physical ones, and which of them mean that there is none.

Attributes as in the CF conventions, section 8.1 (packed data) and 2.5.1 (missing data), and as HDF-EOS files spell them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.imagery.cubes.arrays import Stored
from datasets.imagery.scenes import SCALE, Unreadable

CF_SCALE = "scale_factor"  # a factor whatever its size; other spellings above 1 are divisors, as NEON's 10000
SCALES = ("scalefactor", "reflectancescalefactor", "scale", "slope", "gain")
OFFSETS = ("addoffset", "offset", "intercept")
FILLS = ("fillvalue", "missingvalue", "dataignorevalue", "nodata", "nodatavalue", "ignorevalue")
UNITS = ("units", "unit")
PRISMA_STEPS = 65535  # of the 16-bit numbers of a PRISMA product of level 2


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Of one array. Numbers per band where the file gives one per band, else one for all."""

    scale: tuple[float, ...] = ()  # physical = stored * scale + offset; (): the file says nothing
    offset: tuple[float, ...] = ()
    unit: str = ""
    fills: tuple[float, ...] = ()  # stored numbers of missing pixels
    valid: tuple[float, float] = (-np.inf, np.inf)  # stored numbers beyond are missing
    dtype: str = ""  # as which the stored bytes are to be read, if not as the file's type

    @property
    def is_masking(self) -> bool:
        """Whether more is missing than pixels of the first fill value."""
        return len(self.fills) > 1 or bool(np.isfinite(self.valid).any())

    def unpacked(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers (...,) of any shape, in the type they are meant to have."""
        return stored.view(np.dtype(self.dtype).newbyteorder(stored.dtype.byteorder)) if self.dtype else stored

    def missing(self, stored: np.ndarray) -> np.ndarray | None:
        """Where there is no measurement, in the shape of the numbers; None if the file says nothing of that."""
        if not self.fills and not self.is_masking:
            return None
        absent = np.zeros(stored.shape, dtype=bool)
        for fill in self.fills:
            absent |= np.isnan(stored) if np.isnan(fill) else stored == fill
        low, high = self.valid
        return absent | (stored < low) | (stored > high)


def find_packing(name: str, array: Stored, root: Mapping[str, Any]) -> Packing:
    """What the attributes of an array, and of its file `root`, say.

    Raises:
        Unreadable: an attribute that must be a number is none.
    """
    own = {_plain_name(key): value for key, value in array.attributes.items()}
    dtype = _meant_dtype(array.dtype, str(own.get("unsigned", "")))
    scale = _numbers(own, SCALES)
    if array.attributes.get(CF_SCALE) is None:
        scale = tuple(1 / value if value > 1 else value for value in scale)
    offset = _numbers(own, OFFSETS)
    scale, offset = (scale, offset) if scale or offset else _prisma(name, root)
    if not all(map(SCALE.holds, scale)):
        raise Unreadable(f"{name} has the scale {scale[0]:g}; mend its attribute scale_factor")
    if set(scale) <= {1.0} and set(offset) <= {0.0}:
        scale, offset = (), ()
    fills = tuple(dict.fromkeys(_meant(value, dtype) for value in _every_number(own, FILLS)))
    return Packing(
        scale=scale or (1.0,) * bool(offset),
        offset=offset or (0.0,) * bool(scale),
        unit=next((str(own[key]).strip() for key in UNITS if key in own), ""),
        fills=fills,
        valid=_valid(own, array.dtype, dtype, scale, offset),
        dtype=dtype,
    )


def _plain_name(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _floats(value: Any) -> tuple[float, ...]:
    """Numbers of an attribute; () where it is no number."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    try:
        return tuple(float(item) for item in np.ravel(np.asarray(value)))
    except (TypeError, ValueError):
        return ()


def _numbers(attributes: Mapping[str, Any], names: tuple[str, ...]) -> tuple[float, ...]:
    """Numbers of the first attribute of these names that has some."""
    return next((found for name in names if (found := _floats(attributes.get(name, "")))), ())


def _every_number(attributes: Mapping[str, Any], names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(value for name in names for value in _floats(attributes.get(name, "")))


def _meant_dtype(dtype: np.dtype, unsigned: str) -> str:
    """netCDF-3 has no unsigned integers: `_Unsigned = "true"` says that they are meant."""
    if unsigned.lower() == "true" and dtype.kind == "i":
        return f"uint{8 * dtype.itemsize}"
    if unsigned.lower() == "false" and dtype.kind == "u":
        return f"int{8 * dtype.itemsize}"
    return ""


def _meant(value: float, dtype: str) -> float:
    """A number given in the signed type of the file, in the unsigned one that is meant: -1 is 255."""
    if dtype.startswith("u") and value < 0 and float(value).is_integer():
        return float(int(value) % 2 ** (8 * np.dtype(dtype).itemsize))
    return value


def _valid(
    attributes: Mapping[str, Any], stored: np.dtype, meant: str, scale: tuple[float, ...], offset: tuple[float, ...]
) -> tuple[float, float]:
    """The valid range in stored numbers; one of fractions for packed integers is of physical numbers (CF 2.5.1)."""
    both = _floats(attributes.get("validrange", ""))
    low, high = both if len(both) == 2 else (-np.inf, np.inf)
    low = next(iter(_floats(attributes.get("validmin", ""))), low)
    high = next(iter(_floats(attributes.get("validmax", ""))), high)
    given = [attributes[name] for name in ("validrange", "validmin", "validmax") if name in attributes]
    physical = stored.kind in "iu" and any(np.asarray(value).dtype.kind == "f" for value in given)
    if physical and len(scale) == 1:
        shift = offset[0] if offset else 0.0
        low, high = sorted(((low - shift) / scale[0], (high - shift) / scale[0]))
        slack = 1e-6 * max(1.0, *(abs(end) for end in (low, high) if np.isfinite(end)))  # of fractions in binary
        return low - slack, high + slack
    ends = [_meant(end, meant) if np.isfinite(end) else end for end in (low, high)]
    return (ends[0], ends[1]) if ends[0] < ends[1] else (-np.inf, np.inf)


def _prisma(name: str, root: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of a PRISMA cube, which stand at the root of its file (PRISMA Products Specification Document)."""
    for detector in ("Vnir", "Swir", "Pan"):
        if detector.lower() not in name.rpartition("/")[2].lower():
            continue
        ends = [_floats(root.get(f"L2Scale{detector}{end}", "")) for end in ("Min", "Max")]
        if all(ends):
            return ((ends[1][0] - ends[0][0]) / PRISMA_STEPS,), ends[0]
        divisor, shift = (_floats(root.get(f"{word}_{detector}", "")) for word in ("ScaleFactor", "Offset"))
        if divisor and divisor[0]:  # level 1: radiance = number / factor - offset
            return (1 / divisor[0],), (-shift[0] if shift else 0.0,)
    return (), ()
