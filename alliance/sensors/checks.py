"""What a band or a sensor may say of itself: one set of checks for YAML files, the API, indexes and checkpoints."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alliance.errors import InputError
from alliance.sensors.wavelengths import RANGE

BANDWIDTHS = (0.1, 20_000.0)  # nm


def check_wavelength(value: Any, band: str) -> float:
    """A centre wavelength in nm."""
    number = as_number(value, f"band {band}: wavelength")
    if not RANGE[0] <= number <= RANGE[1]:
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
        if RANGE[0] <= value * factor <= RANGE[1]:
            return f"give nanometres: {value * factor:g} (this looks like {unit})"
    if RANGE[0] <= value * 0.1 <= RANGE[1]:
        return f"give nanometres: {value * 0.1:g} (this looks like angstroms)"
    return "give nanometres, and none where a wavelength means nothing (SAR, elevation)"


def as_number(value: Any, what: str) -> float:
    """A finite number. YAML reads `1e-4` as a text: texts that are numbers count as numbers, booleans do not."""
    try:
        number = value if type(value) is int else float("none" if isinstance(value, bool) else value)
        finite = math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} must be a number, got {value!r:.80}") from error
    if not finite:
        raise InputError(f"{what} must be finite, got {value}")
    return number


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
