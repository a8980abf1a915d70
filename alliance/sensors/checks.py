"""What a band or a sensor may say of itself: one set of checks for YAML files, the API, indexes and checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from alliance.errors import InputError
from alliance.sensors.wavelengths import RANGE

BANDWIDTHS = (0.1, 20_000.0)  # nm


def wavelength_mend(value: float) -> str:
    """What to do about a wavelength outside the range, with the number that is meant where it can be told."""
    for factor, unit in ((1e3, "micrometres"), (1e9, "metres")):
        if RANGE[0] <= value * factor <= RANGE[1]:
            return f": give nanometres: {value * factor:g} (this looks like {unit})"
    if RANGE[0] <= value * 0.1 <= RANGE[1]:
        return f": give nanometres: {value * 0.1:g} (this looks like angstroms)"
    return ": give nanometres, and none where a wavelength means nothing (SAR, elevation)"


def bandwidth_mend(value: float) -> str:
    """The same for a full width at half maximum."""
    return ": give nanometres" + (f": {value * 1e3:g}" if 0 < value < BANDWIDTHS[0] else "")


def plain(value: Any) -> Any:
    """A number of any kind as Python's, so that JSON holds it; also of a text that is one. All else stays as it is.

    Lists become tuples.
    """
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, bool) or type(value) is int:
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def check_rising(value: Any, what: str) -> None:
    """Refuse what is not two rising numbers."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"{what} must be two numbers [low, high], got {value!r}")
    if not value[0] < value[1]:
        raise InputError(f"{what} must rise, got {list(value)}")


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
