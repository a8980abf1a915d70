"""Wavelengths in whatever unit a file or a person gives them, as nanometres."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from alliance.errors import InputError

RANGE = (200.0, 20_000.0)  # nm: ultraviolet to thermal infrared, where optical instruments measure
SPELLINGS = {  # one unit each: nm per unit, and how it is written, in small letters
    1.0: r"nm|nanomet(er|re)s?",
    1e3: r"[uμ]m|microns?|micromet(er|re)s?",
    1e6: r"mm|millimet(er|re)s?",
    1e9: r"m|met(er|re)s?",
    0.1: r"a|å|ang|[aå]ngstr(o|ö)ms?",
}
UNKNOWN = ("", "unknown", "none", "unitless", "1")  # ENVI headers say Unknown
POWER = r"(?:1e|10\^?|10\*\*)-(\d+) ?m"  # 1e-9 m
WAVENUMBER = r"cm\^?\*{0,2} ?-1|1/cm|per cm|kayser|(wave ?|reciprocal ?|inverse ?)?(number|centimet(er|re))s?"


def to_nanometres(values: Sequence[float], units: str | None = None) -> list[float]:
    """Wavelengths in nm, rounded to 1e-4 nm.

    Args:
        units: nm, um (micrometres), m, Angstrom or cm-1 (wavenumbers), in any of the usual spellings;
            None: nm, um or m, whichever brings all values into the plausible range.
    Raises:
        InputError: the unit is unknown, or a wavelength lies outside 200 to 20,000 nm.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        return []
    if units is not None and units.strip().lower() not in UNKNOWN:
        converted = _in_unit(given, units)
    else:
        fitting = [given * factor for factor in (1.0, 1e3, 1e9) if _plausible(given * factor)]
        converted = fitting[0] if fitting else given
    if not _plausible(converted):
        seen = f"{given.min():g} to {given.max():g} {units or '(no unit given)'}"
        raise InputError(
            f"wavelengths {seen} are not between {RANGE[0]:g} and {RANGE[1]:g} nm; "
            "give them in nm, um, m, Angstrom or cm-1 and say which, and none for bands without one"
        )
    return [round(float(value), 4) for value in converted]


def is_wavelength_unit(units: str) -> bool:
    """Whether a text names a unit of wavelengths or wavenumbers."""
    try:
        _in_unit(np.ones(1), units)
    except InputError:
        return False
    return True


def _in_unit(values: np.ndarray, units: str) -> np.ndarray:
    text = unicodedata.normalize("NFKC", units).lower().replace("_", " ").replace("\N{MINUS SIGN}", "-")
    text = " ".join(re.sub(r"[(\[].*?[)\]]", " ", text).split()) or text.strip("([]) ")  # nanometers (nm), [nm]
    if re.fullmatch(WAVENUMBER, text):
        with np.errstate(divide="ignore"):
            return 1e7 / values
    if power := re.fullmatch(POWER, text):
        return values * 10.0 ** (9 - int(power[1]))
    for factor, spelling in SPELLINGS.items():
        if re.fullmatch(spelling, text):
            return values * factor
    raise InputError(f"wavelengths have the unknown unit {units!r}; give them in nm, um, m, Angstrom or cm-1")


def _plausible(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and values.min() >= RANGE[0] and values.max() <= RANGE[1])
