"""Settings of a run: a dataclass tree filled from its defaults, a YAML file and the command line, in that order."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jsonargparse

from alliance.errors import InputError

Settings = TypeVar("Settings")


def parse_settings(kind: type[Settings], description: str | None, arguments: Sequence[str] | None = None) -> Settings:
    """Build `kind` from the command line (`--config FILE`, `--group.key value`; `--help`, `--print_config` stop here).

    Raises:
        InputError: an unknown key, a missing one, or a value of another type, in one line with the mend.
    """
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the DeepSpeed launcher adds it
    parser.add_class_arguments(kind, None)
    try:
        values = parser.parse_args(arguments)
        built = parser.instantiate(values)
    except argparse.ArgumentError as error:
        raise InputError(_one_line(str(error), parser)) from error
    return kind(**{key: value for key, value in built.items() if key not in ("config", "local_rank")})


def to_record(settings: Any) -> dict[str, Any]:
    """Settings as plain values for YAML and JSON; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """The parser's message in one line, with the nearest known key where one was misspelt."""
    message = re.sub(r"\s+", " ", message).strip()
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"Problem with given class_path '[\w.]*\.(\w+)':", r"\1:", message)
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    wrong = f"{unknown[1]}.{unknown[2]}" if unknown else None
    flag = re.search(r"unrecognized arguments: --([\w.]+)", message)
    wrong = flag[1] if flag else wrong
    if wrong:
        known = [action.dest for action in parser._actions if action.dest != "local_rank"]
        near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "--help lists all settings"
        return f"unknown setting {wrong!r}; {hint}"
    return message if "--help" in message else f"{message} (--help lists all settings)"
