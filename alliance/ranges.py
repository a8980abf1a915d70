"""Numbers of settings: the range of each stands where its field is declared, and is checked in one place.

A dataclass that derives from `Ranged` checks its numbers whenever it is made: by a YAML file, the command line, a file of a
trained network, or a program.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

from alliance.errors import InputError

KEY = "range"  # of a field's metadata
MANY = 2**31 - 1  # of what can be counted
SEEDS = 2**63 - 1  # the largest seed that torch and NumPy both take
LARGE = 1e6  # of factors and rates: far above what trains, far below what overflows in float32


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
        low = f"{'above' if self.above else 'from'} {self.low:g}"
        return f"{low} to {'below ' if self.below else ''}{_short(self.high)}"


def ranged(default: Any, low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    """A field of a dataclass that holds a number, or several, of a range.

    Args:
        default: a number, a tuple of them, or None where the field may be empty.
        above, below: the number `low`, or `high`, itself is not allowed.
    """
    return dataclasses.field(default=default, metadata={KEY: Range(low, high, above, below)})


class OutOfRange(InputError):
    """A number that its field may not hold."""

    owner: type
    field: str

    def named(self, name: str) -> str:
        """The message, with another name for the field."""
        return str(self).replace(f"{self.owner.__name__}.{self.field}", name, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged:
    """A dataclass whose numbers are finite and within the ranges of their fields, or an InputError is raised."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(type(self), field, getattr(self, field.name))


def _check(owner: type, field: "dataclasses.Field[Any]", value: Any) -> None:
    if KEY not in field.metadata or (value is None and "None" in str(field.type)):
        return
    stated: Range = field.metadata[KEY]
    whole = "int" in str(field.type)
    for each in value if isinstance(value, list | tuple) else (value,):
        if not _fits(each, stated, whole=whole):
            error = OutOfRange(f"{owner.__name__}.{field.name} is {each!r}; give a {'whole ' * whole}number {stated}")
            error.owner, error.field = owner, field.name
            raise error


def _fits(value: Any, stated: Range, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return False
    number: Any = value
    return math.isfinite(number) and stated.holds(number)


def stated_ranges(kind: type) -> Iterator[tuple[str, Range]]:
    """Fields of a dataclass that state a range, and it."""
    for field in dataclasses.fields(kind):
        if KEY in field.metadata:
            yield field.name, field.metadata[KEY]


def _short(value: float) -> str:
    named: dict[float, str] = {MANY: "2^31 - 1", SEEDS: "2^63 - 1"}
    return named.get(value, f"{value:g}")
