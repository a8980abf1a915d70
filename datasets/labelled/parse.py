"""Descriptions of labelled sets as YAML: read, found by name, written."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alliance.errors import InputError
from alliance.files import replace_file
from alliance.records import as_type, from_record, require_known, shown
from alliance.yaml_files import read_yaml
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE, LabelSource
from datasets.labelled.description import LABEL, MAPS, LabelledSet, Layout, coloured

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "labelled"
SHOWN = f"{FOLDER.parent.name}/{FOLDER.name}"
# Short forms of a description with layouts: bands and channels count those of the passive and of the active image.
SHORT = ("bands", "channels", "log_active", "unlabelled")
CLOSE, SURE = 0.5, 0.75  # alike enough to be meant, also where another meaning is at hand: a mapping may be an image
OWN = ("name", "root", "images", LABEL, "classes", "splits", "layouts", "patches", *SHORT)


def set_names() -> list[str]:
    """Names of the sets that are described, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_set(name: str | Path, root: str | Path | None = None) -> LabelledSet:
    """A set by name, or one from a YAML file by path.

    Args:
        root: folder of the files (or the file of ready patches) instead of the one in the description, which is
            relative to the description.
    Raises:
        InputError: unknown name; no YAML, an unknown or missing key, or values that do not fit; names the file.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists() and path.parent == FOLDER:
        hint = _hint(str(name), set_names())
        raise InputError(f"unknown data set {str(name)!r}{hint} Known: {', '.join(set_names())}, or a YAML file")
    if not path.exists():
        raise InputError(
            f"{path}: there is no such file; give the YAML file of a set, or one of {', '.join(set_names())}"
        )
    record = read_yaml(path)
    try:
        found = parse_set(record, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return dataclasses.replace(found, root=Path(root) if root else path.parent / found.root)


def write_set(described: LabelledSet, path: Path) -> None:
    """Write a description with splits so that `find_set` gives the same."""
    record = {"name": described.name, "root": str(described.root)}
    record |= {role: _plain(source) for role, source in described.images.items()}
    record |= {LABEL: _plain(described.label)}
    record |= {
        "classes": {name: list(rgb) for name, rgb in described.classes.items()},
        "splits": dict(described.splits),
    }
    replace_file(path, yaml.safe_dump(record, sort_keys=False, width=120, default_flow_style=None).encode())


def parse_set(record: Any, name: str) -> LabelledSet:
    """The set of a parsed YAML file.

    Args:
        name: of the set, if the record has none.
    Raises:
        InputError: an unknown or missing key, or values that do not fit.
    """
    record = _mapping("a description", record)
    images = _images(record)
    classes, own_colours = coloured(record.get("classes"))
    label = _label(record)
    layouts = record.get("layouts") or []
    return LabelledSet(
        name=as_type(str, record.get("name", name), "name"),
        root=Path(as_type(str, record.get("root") or ".", "root")),
        images=images,
        label=label,
        classes=classes,
        coloured=own_colours,
        splits=_mapping("splits", record.get("splits") or {}),
        layouts=tuple(_layout(each, images) for each in (layouts if isinstance(layouts, list) else [layouts])),
        patches=as_type(str, record.get("patches") or "", "patches"),
    )


def _images(record: Mapping[str, Any]) -> dict[str, ImageSource]:
    """Images by role: under `images`, or as keys of their own beside the others."""
    beside = {key: value for key, value in record.items() if key not in OWN}
    for key, value in beside.items():
        hint = _hint(str(key), OWN, SURE if isinstance(value, Mapping) else CLOSE)
        if hint:
            raise InputError(f"unknown key {key!r}{hint} Known: {', '.join(OWN)}, and images by their role")
        _mapping(str(key), value)
    given = _mapping("images", record.get("images") or {}) | beside
    if record.get("layouts"):
        usual = {role for each in _listed(record["layouts"]) if isinstance(each, Mapping) for role in each} - {
            *MAPS,
            "origin",
        }
        given |= {role: given.get(role) or {} for role in sorted(usual & {"passive", "active"}, reverse=True)}
        passive, active = ({"count": record.get(key)} if record.get(key) else {} for key in ("bands", "channels"))
        shorts = {"passive": passive, "active": active | ({"log": True} if record.get("log_active") else {})}
        given = {role: shorts.get(role, {}) | dict(value) for role, value in given.items()}
    images = {role: from_record(ImageSource, value, role) for role, value in given.items()}
    if not images and not (record.get("layouts") or record.get("patches")):
        raise InputError(
            f"no images; {SHOWN} has examples: each stands under its role, optical: {{files: optical, ...}}"
        )
    if record.get("splits"):
        images = {role: _of_tiles(role, source) for role, source in images.items()}
    return images


def _of_tiles(role: str, source: ImageSource) -> ImageSource:
    """Tiles without a sensor have named bands of 8-bit numbers, unless the description says another dtype."""
    if source.sensor:
        return source
    if not source.bands:
        raise InputError(f"{role}: 'bands' is missing; name at least one, counted from 1, or give `sensor`")
    return dataclasses.replace(source, dtype=source.dtype or "uint8")


def _label(record: Mapping[str, Any]) -> LabelSource:
    given = _mapping(LABEL, record.get(LABEL) or {})
    if LABEL not in record and record.get("splits"):
        raise InputError(f"{LABEL!r} is missing; it says where the label maps are, such as label: {{files: labels}}")
    if record.get("layouts") or record.get("patches"):
        unlabelled = record.get("unlabelled", 0)
        given = {"unlabelled": unlabelled, "first": None} | given
    numbers = record.get("classes")
    if (
        isinstance(numbers, Mapping)
        and numbers
        and all(isinstance(key, int) for key in numbers)
        and "values" not in given
    ):
        values = {number: index for index, number in enumerate(sorted(numbers))}
        unlabelled = given.get("unlabelled")
        given["values"] = ({} if unlabelled is None else {unlabelled: IGNORE}) | {IGNORE: IGNORE} | values
    return from_record(LabelSource, given, LABEL)


def _layout(record: Any, images: Mapping[str, ImageSource]) -> Layout:
    record = _mapping("a layout", record)
    require_known(record, (*images, *MAPS, "origin"), "a layout")
    maps = {role: value for role, value in record.items() if role not in images}
    return from_record(Layout, maps | {"images": {role: record[role] for role in images if role in record}}, "a layout")


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} holds keys and values, got {shown(value)}")
    return dict(value)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _plain(source: ImageSource | LabelSource) -> dict[str, Any]:
    """Fields that differ from their default, for YAML."""
    values = {
        each.name: getattr(source, each.name)
        for each in dataclasses.fields(source)
        if getattr(source, each.name) not in (each.default, {}, ())
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _hint(name: str, known: Sequence[str], cutoff: float = CLOSE) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
