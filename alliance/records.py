"""Records that were read from files, such as JSON and YAML give them, as the dataclass or named tuple they describe.

The type hints of the class are the description: no second list of keys and kinds can forget a field.
"""

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from alliance.errors import InputError
from alliance.ranges import OutOfRange

T = TypeVar("T")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60
NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", NoneType: "null"}


def from_record(cls: type[T], record: Any, where: str) -> T:
    """An instance of a dataclass or named tuple from a mapping, every value of the type of its field.

    Args:
        where: what the record is, said first in messages.
    Raises:
        InputError: not a mapping; an unknown key, with the nearest known one; a missing key; a value of another type,
            where neither a boolean nor a text is a number; or what the class itself refuses.
    """
    hints, needed = _fields(cls)
    if isinstance(record, list | tuple) and issubclass(cls, tuple) and len(record) == len(hints):
        record = dict(zip(hints, record, strict=True))  # a named tuple as JSON keeps it
    if not isinstance(record, Mapping):
        raise InputError(f"{where} holds keys and values, got {shown(record)}")
    require_known(record, hints, where)
    require_present(record, needed, where)
    values = {name: as_type(hints[name], value, f"{where}: {name}") for name, value in record.items()}
    try:
        return cls(**values)
    except OutOfRange as error:
        raise InputError(f"{where}: {error.named(error.field)}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def require_known(keys: Collection[Any], known: Collection[str], where: str) -> None:
    """Refuse a key that is not known, naming the nearest one.

    Raises:
        InputError: there is one.
    """
    for unknown in (key for key in keys if not isinstance(key, str) or key not in known):
        close = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise InputError(f"{where}: unknown key {shown(unknown)}{hint} Known: {', '.join(known)}")


def require_present(record: Collection[str], needed: Sequence[str], where: str) -> None:
    """Refuse a record without one of the keys that it must have.

    Raises:
        InputError: one is missing.
    """
    missing = next((name for name in needed if name not in record), None)
    if missing is not None:
        raise InputError(f"{where}: {missing!r} is missing; needed are {', '.join(needed)}")


def as_type(hint: Any, value: Any, where: str) -> Any:
    """A value as its type hint says, lists turned to tuples and mappings to instances.

    Raises:
        InputError: it is of another type.
    """
    origin = get_origin(hint) or hint
    if origin is Any:
        return value
    if origin in (Union, UnionType):
        return _of_some(get_args(hint), value, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(hint)):
            raise InputError(f"{where} is {shown(value)}, not one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin in NAMES:
        return _plain(origin, value, where)
    if _is_record(origin):
        return from_record(origin, value, where)
    if origin is np.ndarray:
        return _array(value, where)
    return _MANY[origin](get_args(hint), value, where)


def shown(value: Any) -> str:
    """A value of any size in a few words, for messages."""
    return SHORT.repr(value)


def _of_some(hints: Sequence[Any], value: Any, where: str) -> Any:
    """The first of several types that fits; of one type or none, its own message."""
    hints = [hint for hint in hints if hint is not NoneType or value is None]
    refused = []
    for hint in hints:
        try:
            return as_type(hint, value, where)
        except InputError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    names = " or ".join(NAMES.get(hint, str(hint)) for hint in hints)
    raise InputError(f"{where} must be {names}, got {shown(value)}")


def _plain(kind: type, value: Any, where: str) -> Any:
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if not fits:
        raise InputError(f"{where} must be {NAMES[kind]}, got {shown(value)}{_mend(kind, value)}")
    if kind is float and not (abs(value) < math.inf and _is_float(value)):
        raise InputError(f"{where} must be finite, got {shown(value)}")
    return value


def _mend(kind: type, value: Any) -> str:
    if kind is str:
        return "; put it into quotation marks" if isinstance(value, int | float) else ""
    return "; write it without quotation marks" if isinstance(value, str) and _is_float(value) else ""


def _is_float(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _array(value: Any, where: str) -> np.ndarray:
    """float64 of one axis or two."""
    rows = _listed(value, where)
    try:
        if all(isinstance(row, list | tuple) for row in rows):
            return np.array([_numbers(row, where) for row in rows], dtype=np.float64)
        return np.array(_numbers(rows, where), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{where} has rows of different lengths") from error


def _numbers(values: Sequence[Any], where: str) -> list[float]:
    return [_plain(float, value, where) for value in values]


def _listed(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a list, got {shown(value)}")
    return value


def _tuple(hints: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    values = _listed(value, where)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = [hints[0]] * len(values)
    if len(values) != len(hints):
        raise InputError(f"{where} must be {len(hints)} values, got {shown(value)}")
    return tuple(as_type(hint, each, where) for hint, each in zip(hints, values, strict=True))


def _list(hints: Sequence[Any], value: Any, where: str) -> list[Any]:
    return [as_type(hints[0], each, where) for each in _listed(value, where)]


def _mapping(hints: Sequence[Any], value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} holds keys and values, got {shown(value)}")
    key, content = hints or (Any, Any)
    return {as_type(key, name, where): as_type(content, each, f"{where}: {name}") for name, each in value.items()}


_MANY: dict[Any, Callable[[Sequence[Any], Any, str], Any]] = {
    tuple: _tuple,
    list: _list,
    dict: _mapping,
    Mapping: _mapping,
}


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


@cache
def _fields(cls: type) -> tuple[dict[str, Any], list[str]]:
    """Type hint of every field, and the fields without a default."""
    hints = get_type_hints(cls)
    if dataclasses.is_dataclass(cls):
        fields = [each for each in dataclasses.fields(cls) if each.init]
        nothing = dataclasses.MISSING
        needed = [each.name for each in fields if each.default is nothing and each.default_factory is nothing]
        return {each.name: hints[each.name] for each in fields}, needed
    return hints, [name for name in hints if name not in cls._field_defaults]  # pyright: ignore[reportAttributeAccessIssue]
