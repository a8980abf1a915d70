"""Numbers of settings: the range of each stands where its field is declared, and is checked in one place.

A dataclass that derives from `Ranged` checks its numbers whenever it is made: by a YAML file, the command line, a file of a
trained network, or a program.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alliance.errors import InputError

NESTS = re.compile(r"\b(?:tuple|list|dict|Sequence|Mapping|ndarray)\[")  # of a type's text, each a level
KEY, KEYS, MEND = "range", "keys", "mend"  # of a field's metadata
REQUIRED: Any = dataclasses.MISSING  # as a default: the field must be given
MANY = 2**31 - 1  # of what can be counted
SEEDS = 2**63 - 1  # the largest seed that torch and NumPy both take
LARGE = 1e6  # of factors and rates: far above what trains, far below what overflows in float32
SMALLEST, GREATEST = 1e-30, 1e30  # of what is measured: far within float32, squared pixel by pixel in float64


class Range(NamedTuple):
    """The numbers that a field may hold."""

    low: float
    high: float
    above: bool = False  # `low` itself is none of them
    below: bool = False  # `high` itself is none of them

    def holds(self, value: float) -> bool:
        least = self.low < value if self.above else self.low <= value
        return least and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "that is finite"
        low = f"{'above' if self.above else 'from'} {self.low:g}"
        return f"{low} to {'below ' if self.below else ''}{_short(self.high)}"


def ranged(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    keys: Range | None = None,
    mend: Callable[[float], str] | None = None,
) -> Any:
    """A field of a dataclass that holds a number, or several, of a range; without limits, any that is finite.

    Args:
        default: a number, a tuple of them, a function that makes a mapping of them, None where the field may be empty,
            or REQUIRED.
        above, below: the number `low`, or `high`, itself is not allowed.
        keys: the whole numbers that the keys of a mapping may be.
        mend: what else to do about a number outside, for the message.
    """
    stated = Range(low, high, above or low == -math.inf, below or high == math.inf)
    metadata = {KEY: stated} | ({KEYS: keys} if keys else {}) | ({MEND: mend} if mend else {})
    if default is not REQUIRED and callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class OutOfRange(InputError):
    """A number that its field may not hold."""

    owner: type
    field: str
    place: str  # what the message calls the field

    def named(self, name: str) -> str:
        """The message, with another name for the field."""
        return str(self).replace(self.place, name, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged:
    """A dataclass whose numbers are finite and within the ranges of their fields, or an InputError is raised."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if KEY in field.metadata:
                _check(self, field, getattr(self, field.name))

    def _place(self, field: str) -> str:
        """What messages call a field."""
        return f"{type(self).__name__}.{field}"


def _check(owner: Ranged, field: "dataclasses.Field[Any]", value: Any) -> None:
    hint, stated = str(field.type), field.metadata[KEY]
    if value is None and "None" in hint:
        return
    whole = "int" in hint and "ndarray" not in hint  # whose text may name the type of its shape
    depth = len(NESTS.findall(hint))
    others = tuple(kind for kind in (str, Path) if kind.__name__ in hint)
    numbers = [(each, stated) for each in _numbers(value, depth) if not isinstance(each, others)]
    if KEYS in field.metadata and isinstance(value, Mapping):
        numbers += [(key, field.metadata[KEYS]) for key in value]
    for each, allowed in numbers:
        if not _fits(each, allowed, whole=whole):
            place = owner._place(field.name)
            mend = field.metadata[MEND](each) if MEND in field.metadata and _is_finite(each, whole=whole) else ""
            error = OutOfRange(f"{place} is {each!r:.80}; give a {'whole ' * whole}number {allowed}{mend}")
            error.owner, error.field, error.place = type(owner), field.name, place
            raise error


def _numbers(value: Any, depth: int) -> Iterator[Any]:
    """The single values of what a field holds; what lies deeper than `depth` is one, and no number."""
    if isinstance(value, np.ndarray):
        yield from value.ravel().tolist()
    elif depth and isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each, depth - 1)
    else:
        yield value


def _fits(value: Any, stated: Range, *, whole: bool) -> bool:
    return _is_finite(value, whole=whole) and stated.holds(value)


def _is_finite(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return False
    try:
        return math.isfinite(value)  # pyright: ignore[reportArgumentType] - a real number
    except OverflowError:  # a whole number without end
        return whole


def stated_ranges(kind: type) -> Iterator[tuple[str, Range]]:
    """Fields of a dataclass that state a range, and it."""
    for field in dataclasses.fields(kind):
        if KEY in field.metadata:
            yield field.name, field.metadata[KEY]


def _short(value: float) -> str:
    named: dict[float, str] = {MANY: "2^31 - 1", SEEDS: "2^63 - 1"}
    return named.get(value, f"{value:g}")
