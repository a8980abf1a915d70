"""YAML written by people, checked before it is read: it cannot grow without end, and no key stands twice."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from alliance.errors import InputError

MAX_BYTES = 2**20
MAX_NODES = 100_000  # with every alias written out
MAX_DEPTH = 64
NO_VALUE = (
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    OverflowError,
)  # of PyYAML: `!!bool 7`, 2020-13-40

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Safe, and with YAML 1.2 for numbers: `1e-4` is one, not a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, *, forbidden: Collection[str] = ()) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds no keys.

    Raises:
        InputError: no such file, not a regular one, above 1 MiB, not UTF-8, not YAML, not a mapping, or `check_yaml`.
    """
    text = read_text(path)
    try:
        check_yaml(text, str(path), forbidden=forbidden)
        record = yaml.load(text, Loader=_Loader)
    except InputError:
        raise
    except (yaml.YAMLError, *NO_VALUE) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; correct it there") from error
    if record is None:
        return {}
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        raise InputError(
            f"{path} holds {type(record).__name__}, not keys with values; write lines such as `key: value`"
        )
    return record


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """A small text file, UTF-8.

    Args:
        limit: bytes that it may have.
    Raises:
        InputError: no such file, not a regular one (a pipe would never end), above the limit, or not UTF-8.
    """
    try:
        if not path.exists():
            raise InputError(f"there is no file {str(path)!r}; check the name")
        if not path.is_file():
            raise InputError(f"{path} is no regular file; give a text file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InputError(f"{path} is larger than {limit} bytes; what belongs there is far smaller")
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as such") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the name and its permissions") from error


def check_yaml(text: str, source: str, *, forbidden: Collection[str] = ()) -> None:
    """Refuse text that would grow without end, a key that stands twice in a mapping, and `forbidden` keys at any depth.

    Raises:
        InputError: one of these; the message begins with `source`.
        yaml.YAMLError: the text is not YAML.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{source}: {len(text)} characters are too many, at most {MAX_BYTES}; write less")
    _refuse_growth(text, source)
    for keys in _mappings(text):
        wrong = next((key for key in keys if key in forbidden), None)
        if wrong:
            raise InputError(f"{source}: the key {wrong!r} would import code by name, which no setting may; remove it")
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice:
            raise InputError(f"{source}: the key {twice!r} stands twice in one mapping; keep one of them")


def _refuse_growth(text: str, source: str) -> None:
    """Count the nodes that aliases stand for without writing them out."""
    sizes: dict[str, int] = {}
    levels: list[tuple[str | None, int]] = [(None, 0)]  # anchor and nodes so far of every open collection
    for event in yaml.parse(text, Loader=_Loader):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise InputError(f"{source}: *{anchor} stands inside or before its own &{anchor}; write the value out")
            size = sizes[anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            levels.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = levels.pop()
        if anchor and size:
            sizes[anchor] = size
        levels[-1] = (levels[-1][0], levels[-1][1] + size)
        if levels[-1][1] > MAX_NODES or len(levels) > MAX_DEPTH:
            raise InputError(
                f"{source} holds more than {MAX_NODES} values with its aliases written out, or more than {MAX_DEPTH} "
                f"levels; write less"
            )


def _mappings(text: str) -> Iterator[list[str]]:
    """Keys of every mapping of a YAML text."""
    todo = [yaml.compose(text, Loader=_Loader)]
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            yield [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value
