"""JSON from files, checked as it is read: no key stands twice, every number is finite, and nothing is endless."""

import json
import math
from pathlib import Path
from typing import Any

from alliance.errors import InputError
from alliance.yaml_files import MAX_DEPTH, read_text

MAX_BYTES = 2**26


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        InputError: no such file, not a regular one, above 64 MiB, not UTF-8, or `parse_json`.
    """
    return parse_json(read_text(path, limit=MAX_BYTES), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text; `source` begins the messages.

    Raises:
        InputError: not JSON, not UTF-8, a key twice, a number that is not finite, text that cannot be written, or more
            than 64 levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
        if "\\u" in (text if isinstance(text, str) else text.decode()):  # halves of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise InputError(f"{source} cannot be read: it is no UTF-8 text ({error})") from error
    except ValueError as error:
        raise InputError(f"{source} cannot be read: it is no JSON of ours ({error})") from error
    except RecursionError as error:
        raise InputError(f"{source} cannot be read: it has more than {MAX_DEPTH} levels") from error
    if _is_deep(value):
        raise InputError(f"{source} cannot be read: it has more than {MAX_DEPTH} levels")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.80} stands twice")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.80} is not finite")
    return number


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        holders = [each for each in level if isinstance(each, list | dict)]
        level = [part for each in holders for part in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True
