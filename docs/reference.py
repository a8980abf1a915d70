"""The pages of settings, a page per trainer, with every key as `--help` explains it:  python docs/reference.py OUT"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import docstring_parser
import yaml

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

from alliance.ranges import stated_ranges
from alliance.sensors.catalog import find_sensor, sensor_names
from engine.settings import to_record
from engine.settings_tree import fields, groups, options
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.chips_config import MultilabelConfig, SceneConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig

TREES: Mapping[str, type] = {
    "launch/pretrain.py": PretrainConfig,
    "finetune/segment.py": SegmentConfig,
    "finetune/change.py": ChangeConfig,
    "finetune/crossdomain.py": CrossDomainConfig,
    "finetune/classify.py": ClassifyConfig,
    "finetune/scene.py": SceneConfig,
    "finetune/multilabel.py": MultilabelConfig,
}
NEEDED = dataclasses.MISSING  # in place of a default


class Row(NamedTuple):
    """One setting."""

    name: str  # dotted; [] stands for a member of a list, {} for one of a mapping
    kind: str
    default: Any
    text: str


class Group(NamedTuple):
    """Settings that stand together."""

    name: str
    text: str


def page_name(command: str) -> str:
    """File name of the page of a command's settings."""
    return f"settings-{Path(command).stem}.md"


def page(command: str) -> str:
    """All settings of a command as Markdown."""
    lines = [f"# Settings of `{command}`", "", f"What `python {command} --help` says, in one table per group.", ""]
    lines += ["`needed`: there is no default. `[]` stands for each member of a list, `{}` for each name of a mapping."]
    head = ["", "| Setting | Type | Default | |", "|---|---|---|---|"]
    rows = list(settings(TREES[command]))
    alone = [row for row in rows if isinstance(row, Row) and "." not in row.name]
    lines += [*head, *map(line, alone)]
    begun = False
    for row in (row for row in rows if row not in alone):
        if isinstance(row, Group):
            lines += ["", f"## {row.name}", "", row.text]
            begun = False
        else:
            lines += [] if begun else head
            lines.append(line(row))
            begun = True
    return "\n".join(lines) + "\n"


def line(row: Row) -> str:
    """A row of a table."""
    default = "needed" if row.default is NEEDED else f"`{shown(row.default)}`"
    cells = (f"`{row.name}`", row.kind, default, row.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def settings(kind: type, prefix: str = "", given: Any = None) -> Iterator[Row | Group]:
    """Every setting and group of a tree, groups behind the settings of their parent.

    Args:
        given: an instance whose values are the defaults; None: those of the class.
    """
    texts, ranges, inner = docstrings(kind), dict(stated_ranges(kind)), []
    for field in dataclasses.fields(kind):
        hint, name, value = fields(kind)[field.name], prefix + field.name, _default(field, given)
        text = texts[field.name] + (f" Range: {ranges[field.name]}." if field.name in ranges else "")
        if groups(hint) == [hint]:
            inner.append((Group(name, text), hint, f"{name}.", None if value is NEEDED else value))
            continue
        yield Row(name, worded(hint), value, text)
        inner += [(None, each, place, None) for each, place in members(hint, name)]
    for group, each, place, value in inner:
        yield group or Group(place.removesuffix("."), f"What `{place.rstrip('.[]{}')}` may hold.")
        yield from settings(each, place, value)


def members(hint: Any, name: str) -> Iterator[tuple[type, str]]:
    """Settings classes that a value may be or hold, with what stands before their fields."""
    yield from ((group, f"{name}.") for group in groups(hint))
    for one in options(hint):
        origin, arguments = typing.get_origin(one), typing.get_args(one)
        if origin in (list, tuple):
            yield from ((group, f"{name}[].") for argument in arguments for group in groups(argument))
        elif origin is dict:
            yield from ((group, f"{name}.{{}}.") for group in groups(arguments[1]))


@cache
def docstrings(kind: type) -> dict[str, str]:
    """The sentence below every field of a dataclass, those of its parents included."""
    found: dict[str, str] = {}
    for one in reversed([each for each in kind.__mro__ if dataclasses.is_dataclass(each)]):
        parsed = docstring_parser.parse_from_object(one).params
        found |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed}
    return found


def worded(hint: Any) -> str:
    """A type as people write it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{shown(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(worded, arguments))
    if origin in (list, tuple):
        inner = dict.fromkeys(worded(each) for each in arguments if each is not ...)
        return f"list of {' and '.join(inner)}"
    if origin is dict:
        return f"mapping to {worded(arguments[1])}"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null"}
    return words.get(hint, "settings" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """A default as YAML in one line."""
    plain = to_record(value) if dataclasses.is_dataclass(value) else value
    plain = list(plain) if isinstance(plain, tuple) else plain
    if isinstance(plain, float):
        return f"{plain:g}"
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip().removesuffix("...").strip() or "''"


def _default(field: "dataclasses.Field[Any]", given: Any) -> Any:
    if given is not None:
        return getattr(given, field.name)
    return field.default if field.default_factory is NEEDED else field.default_factory()


def sensors() -> str:
    """Table of the shipped sensors."""
    lines = ["| Name | What it is | Bands | Unit | Pixel, m | Stored as |", "|---|---|---|---|---|---|"]
    for name in sensor_names():
        sensor = find_sensor(name)
        units = ", ".join(dict.fromkeys(band.unit for band in sensor.bands))
        size = "" if sensor.gsd_m is None else f"{sensor.gsd_m:g}"
        stored = ", ".join(sensor.dtypes) or "any"
        about = sensor.description.replace("|", "\\|")
        lines.append(f"| `{name}` | {about} | {len(sensor.bands)} | {units} | {size} | {stored} |")
    return "\n".join(lines)


def main() -> None:
    """Write all pages into a folder."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/reference.py OUT")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for command in TREES:
        (out / page_name(command)).write_text(page(command))


if __name__ == "__main__":
    main()
