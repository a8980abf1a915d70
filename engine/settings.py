"""Settings of a run: a dataclass tree filled from its defaults, a YAML file and the command line, in that order.

A file of settings is data: it can neither import nor build anything, whoever wrote it.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from alliance.errors import InputError
from alliance.ranges import OutOfRange
from alliance.yaml_files import check_yaml, read_yaml
from engine.settings_tree import (
    dataclasses_of,
    find,
    groups,
    keys,
    moved_settings,
    place_of,
    range_of,
    refuse_not_finite,
    refuse_unknown,
    unknown_setting,
)

Settings = TypeVar("Settings")

CODE_KEYS = ("class_path", "init_args", "dict_kwargs")  # by which jsonargparse imports and builds objects
OWN_OPTIONS = ("config", "help", "print_config", "local_rank")
MODE = "settings"
LONGEST_MESSAGE = 500  # characters


def parse_settings(kind: type[Settings], description: str | None, arguments: Sequence[str] | None = None) -> Settings:
    """Build `kind` from the command line (`--config FILE`, `--group.key value`; `--help`, `--print_config` stop here).

    Names of other trees and of earlier times may stand in `kind.MOVED`, with what does it in this one.

    Raises:
        InputError: an unknown key, a missing one, a value of another type, a number that is not finite, a file that
            cannot be read, or a key that names code; in one line with the mend.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = list(keys(kind))
    with moved_settings(getattr(kind, "MOVED", {})):
        for name, text in _options(arguments):
            _check_option(kind, name, text, known)
    parser = settings_parser(kind, description)
    try:
        values = parser.parse_args(arguments)
        refuse_not_finite(values)
        built = parser.instantiate(values)
    except (argparse.ArgumentError, ValueError) as error:  # ValueError: of a group that may also be null
        raise InputError(_one_line(error, kind, [name for name, _ in _options(arguments)])) from error
    return kind(**{key: value for key, value in built.items() if key not in OWN_OPTIONS})


def settings_parser(kind: type, description: str | None) -> jsonargparse.ArgumentParser:
    """The parser of a settings tree; `--help` explains every key with the docstring below its field."""
    jsonargparse.set_loader(MODE, _load_checked, exceptions=(yaml.YAMLError,))
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=sorted({one.__module__.partition(".")[0] for one in dataclasses_of(kind)}),
    )
    return _made_parser(kind, description)


@functools.cache
def _made_parser(kind: type, description: str | None) -> jsonargparse.ArgumentParser:
    usage = "%(prog)s [--config FILE] [--GROUP.KEY VALUE ...]"
    parser = jsonargparse.ArgumentParser(description=description, usage=usage, exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--config", action="config", help="YAML file of settings; of several, the later ones win.")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the DeepSpeed launcher adds it
    parser.add_class_arguments(kind, None)
    for action in parser._actions:
        if any(groups(hint) == [hint] for hint in find(kind, action.dest)):
            action.help = argparse.SUPPRESS  # a whole group as one mapping: its keys are listed below its title
        elif stated := range_of(kind, action.dest):
            action.help = f"{action.help} Range: {stated}."
    return parser


def to_record(settings: Any) -> dict[str, Any]:
    """Settings as plain values for YAML and JSON; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Name and text of every `--name text` and `--name=text`; None where no text follows."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument.startswith("--"):
            name, given, text = argument[2:].partition("=")
            follows = following is not None and not following.startswith("--")
            yield name.removesuffix("+"), text if given else following if follows else None


def _check_option(kind: type, name: str, text: str | None, known: Sequence[str]) -> None:
    """Refuse a name that is no setting, and text that names code, grows without end, or holds unknown keys."""
    if any(key in name.split(".") for key in CODE_KEYS):
        raise InputError(f"--{name} would import code by name, which no setting may; leave it out")
    if name in OWN_OPTIONS:
        if name == "config" and text is not None:
            refuse_unknown(_read_file(text), kind, "", known)
        return
    hints = find(kind, name.removesuffix(".help"))
    if not hints:
        raise unknown_setting(name, known)
    if text is None:
        return
    for hint in hints:
        refuse_unknown(_read_value(name, text), hint, name, known)


def _read_file(text: str) -> dict[str, Any]:
    if not os.path.exists(text):  # Path.exists raises for names that are too long
        raise InputError(f"there is no settings file {text!r} (--help lists all settings)")
    record = read_yaml(Path(text), forbidden=CODE_KEYS)
    if not record:
        raise InputError(f"{text} holds no settings; write some into it, or leave --config out")
    return record


def _read_value(name: str, text: str) -> Any:
    """The value of an option for a look at its keys; text that is no YAML is a plain string."""
    try:
        check_yaml(text, f"--{name}", forbidden=CODE_KEYS)
        return yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError):  # ValueError: a date or number that there cannot be
        return text


def _load_checked(text: str) -> Any:
    """What the parser reads: any text of a file or an option, also of files that files name."""
    check_yaml(text, "settings", forbidden=CODE_KEYS)
    return jsonargparse.get_loader("yaml")(text)


def _one_line(error: BaseException, kind: type, given: Sequence[str]) -> str:
    """The parser's message in one line; our own error where it was the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfRange):
            return cause.named(place_of(kind, cause.owner, given) + cause.field)
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if "class_path" not in line]
    message = textwrap.shorten(" ".join(lines), LONGEST_MESSAGE)
    for builtin in (int, float, str, bool, list, dict):
        message = message.replace(str(builtin), builtin.__name__)
    message = message.replace("Expected a list.", "Expected a list in brackets, such as '[A, B]' or '[{KEY: VALUE}]'.")
    return message if "--help" in message else f"{message} (--help lists all settings)"
