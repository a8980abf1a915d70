"""What a band or a sensor may say of itself: one set of checks for YAML files, the API, indexes and checkpoints."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from alliance.errors import InputError

WAVELENGTHS = (200.0, 20_000.0)  # nm: ultraviolet to thermal infrared
BANDWIDTHS = (0.1, 20_000.0)  # nm
# Nanometres of one unit, by the ways in which files and people write it (UDUNITS, CF, ENVI, EMIT, PRISMA).
LENGTHS = {
    1.0: ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    1e3: ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
    0.1: ("a", "å", "angstrom", "angstroms", "ångström", "ångströms"),
    1e6: ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    1e9: ("m", "meter", "meters", "metre", "metres"),
}
WAVENUMBERS = ("cm-1", "cm^-1", "1/cm", "cm**-1", "wavenumber", "wavenumbers")
FACTORS = {name: factor for factor, names in LENGTHS.items() for name in names}


def to_nanometres(wavelengths: Sequence[float], unit: str | None = None, *, what: str = "wavelengths") -> list[float]:
    """Wavelengths in nm, each between 200 and 20,000.

    Args:
        unit: as the file writes it, such as "nm", "Micrometers", "m", "Angstrom", "cm-1"; None or an empty text:
            nanometres, or micrometres where all values are below 100.
        what: whose wavelengths they are, for messages.
    Raises:
        InputError: the unit is unknown, or a value is not finite or out of range.
    """
    values = [as_number(value, what) for value in wavelengths]
    said = (unit or "").strip().casefold()
    if said in WAVENUMBERS:
        found = [1e7 / value if value else math.inf for value in values]
    elif said and said not in ("unknown", "index"):
        if said not in FACTORS:
            raise InputError(f"{what} are in {unit!r}, which is no unit of length we know; give them in nm")
        found = [value * FACTORS[said] for value in values]
    else:
        found = [value * (1e3 if max(values, default=0) < 100 else 1.0) for value in values]
    for value, nanometres in zip(values, found, strict=True):
        if not WAVELENGTHS[0] <= nanometres <= WAVELENGTHS[1]:
            given = f"{value:g} {unit}" if said else f"{value:g}"
            raise InputError(f"{what}: {given} is not between 200 and 20,000 nm; {_in_nanometres(value)}")
    return [round(value, 4) for value in found]


def check_wavelength(value: Any, band: str) -> float:
    """A centre wavelength in nm."""
    number = as_number(value, f"band {band}: wavelength")
    if not WAVELENGTHS[0] <= number <= WAVELENGTHS[1]:
        raise InputError(
            f"band {band}: wavelength {number:g} is not between 200 and 20,000 nm; {_in_nanometres(number)}"
        )
    return number


def check_bandwidth(value: Any, band: str) -> float:
    """A full width at half maximum in nm."""
    number = as_number(value, f"band {band}: bandwidth")
    if not BANDWIDTHS[0] <= number <= BANDWIDTHS[1]:
        raise InputError(
            f"band {band}: bandwidth must be positive, 0.1 to 20,000 nm, got {number:g}; give nanometres"
            + (f": {number * 1e3:g}" if 0 < number < BANDWIDTHS[0] else "")
        )
    return number


def _in_nanometres(value: float) -> str:
    """The mend, with the number that is meant where it can be told."""
    for factor, unit in ((1e3, "micrometres"), (1e9, "metres")):
        if WAVELENGTHS[0] <= value * factor <= WAVELENGTHS[1]:
            return f"give nanometres: {value * factor:g} (this looks like {unit})"
    if WAVELENGTHS[0] <= value * 0.1 <= WAVELENGTHS[1]:
        return f"give nanometres: {value * 0.1:g} (this looks like angstroms)"
    return "give nanometres, and none where a wavelength means nothing (SAR, elevation)"


def as_number(value: Any, what: str) -> float:
    """A finite number. YAML reads `1e-4` as a text: texts that are numbers count as numbers, booleans do not."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) and not hasattr(value, "__float__"):
        raise InputError(f"{what} must be a number, got {value!r}")
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} must be a number, got {value!r}") from error
    if not finite:
        raise InputError(f"{what} must be finite, got {value}")
    return value if type(value) in (int, float) else float(value)


def as_text(value: Any, what: str) -> str:
    """A text; YAML reads `no` and `7` as a boolean and a number."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} must be a text, got {value!r}; put it into quotation marks")
    return value


def as_texts(value: Any, what: str) -> tuple[str, ...]:
    """Several texts."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise InputError(f"{what} must be a list of texts, got {value!r}")
    return tuple(as_text(entry, what) for entry in value)


def as_range(value: Any, what: str) -> tuple[float, float]:
    """Two rising numbers."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise InputError(f"{what} must be two numbers [low, high], got {value!r}")
    low, high = (as_number(entry, what) for entry in value)
    if not low < high:
        raise InputError(f"{what} must rise, got {list(value)}")
    return low, high


def as_numbers(value: Any, what: str) -> tuple[float, ...]:
    """Several finite numbers."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise InputError(f"{what} must be a list of numbers, got {value!r}")
    return tuple(as_number(entry, what) for entry in value)
