"""The keys of a settings tree: what stands behind a name, and values that no setting may have."""

import dataclasses
import difflib
import functools
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jsonargparse

from alliance.errors import InputError
from alliance.ranges import Range, stated_ranges


@functools.cache
def fields(kind: type) -> dict[str, Any]:
    """Names and type hints of the fields of a settings dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def options(hint: Any) -> tuple[Any, ...]:
    """The kinds of value that a type hint allows: the members of a union, else itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def groups(hint: Any) -> list[type]:
    """The settings dataclasses among the kinds of value that a hint allows."""
    return [one for one in options(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)]


def children(hint: Any, key: str) -> list[Any]:
    """Hints of what a key may stand for inside a value of this hint; none if there is no such key."""
    found = [fields(group)[key] for group in groups(hint) if key in fields(group)]
    for one in options(hint):
        if typing.get_origin(one) is dict:
            found.append(typing.get_args(one)[1])
        elif one in (Any, dict):
            found.append(Any)
    return found


def find(kind: type, name: str) -> list[Any]:
    """Hints of the setting with a dotted name; none if there is no such setting."""
    hints: list[Any] = [kind]
    for key in name.split("."):
        hints = [child for hint in hints for child in children(hint, key)]
    return hints


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings and groups of a tree."""
    for name, hint in fields(kind).items():
        yield prefix + name
        for group in groups(hint):
            yield from keys(group, f"{prefix}{name}.")


def dataclasses_of(hint: Any) -> Iterator[type]:
    """Every settings dataclass below a hint, the members of lists and mappings included."""
    for group in groups(hint):
        yield group
        yield from (one for field in fields(group).values() for one in dataclasses_of(field))
    for one in options(hint):
        yield from (inner for argument in typing.get_args(one) for inner in dataclasses_of(argument))


class UnknownSetting(InputError):
    """A name that is no setting."""

    name: str


def unknown_setting(name: str, known: Sequence[str]) -> UnknownSetting:
    """The error for a name that is no setting, with the nearest one of those that are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    error = UnknownSetting(
        f"unknown setting {name!r}; " + (f"did you mean {near[0]!r}?" if near else "--help lists all settings")
    )
    error.name = name
    return error


@contextmanager
def moved_settings(moved: Mapping[str, str]) -> Iterator[None]:
    """Name the setting that does what an unknown one did, or does in other trees.

    Args:
        moved: names of settings or groups that there are not, and what does it here.
    """
    try:
        yield
    except UnknownSetting as error:
        for old, new in moved.items():
            if error.name == old or error.name.startswith(f"{old}."):
                raise InputError(
                    f"unknown setting {error.name!r}; here {new} does it (--{new} on the command line)"
                ) from error
        raise


def refuse_unknown(value: Any, hint: Any, name: str, known: Sequence[str]) -> None:
    """Walk plain values beside the hints of their settings.

    Args:
        name: of the setting that holds the value; empty for the whole tree.
        known: names to suggest.
    Raises:
        InputError: a key is no setting (the message gives its whole name and the nearest one), or a group holds no keys.
    """
    if groups(hint) and not isinstance(value, Mapping) and not _allows_single(hint, value):
        some = next(iter(fields(groups(hint)[0])))
        raise InputError(
            f"{name or 'the file'} is {reprlib.repr(value)}, a group of settings; give its keys, such as {name + '.' if name else ''}{some}"
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below, hints = f"{name}.{key}".lstrip("."), children(hint, str(key))
            if not hints and groups(hint):
                near = [f"{name}.{one}".lstrip(".") for group in groups(hint) for one in fields(group)]
                raise unknown_setting(below, [*near, *known])
            for one in hints:
                refuse_unknown(inner, one, below, known)
    elif isinstance(value, list):
        elements = [one for option in options(hint) for one in typing.get_args(option)]
        for number, inner in enumerate(value):
            for one in elements:
                refuse_unknown(inner, one, f"{name}[{number}]", known)


def _allows_single(hint: Any, value: Any) -> bool:
    """Whether something else than a group of settings may stand here."""
    others = [one for one in options(hint) if one not in groups(hint)]
    return types.NoneType in others if value is None else any(one is not types.NoneType for one in others)


def place_of(kind: type, group: type, given: Sequence[str] = ()) -> str:
    """What stands before the settings of a group: its dotted name and a dot; nothing for those of the tree itself, the
    name of the class for a group of a list or mapping.

    Args:
        given: dotted names of settings; a group that stands in several places is meant where one of these lies.
    """
    if group is kind:
        return ""
    found = [name for name in keys(kind) if any(group in groups(hint) for hint in find(kind, name))]
    meant = [name for name in found if any(f"{one}.".startswith(f"{name}.") for one in given)]
    return f"{(meant or found or [group.__name__])[0]}."


def range_of(kind: type, name: str) -> Range | None:
    """What a number with a dotted name may be; None where no range is stated."""
    *path, last = name.split(".")
    owners = [group for hint in (find(kind, ".".join(path)) if path else [kind]) for group in groups(hint)]
    return next((stated for owner in owners for field, stated in stated_ranges(owner) if field == last), None)


def refuse_not_finite(value: Any, name: str = "") -> None:
    """Raise InputError with the whole name of the first number that is nan or infinite, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; give a finite number")
    if isinstance(value, jsonargparse.Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_not_finite(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            refuse_not_finite(inner, f"{name}[{number}]")
