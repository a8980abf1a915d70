"""Tables with a row per image: its file, its labels, and perhaps its split."""

import csv
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alliance.errors import InputError

NAMES = {  # of columns, as others call them
    "file": (
        "file",
        "filename",
        "file_name",
        "filepath",
        "path",
        "image",
        "image_path",
        "name",
        "patch_id",
        "patch",
        "chip",
    ),
    "label": ("label", "labels", "class", "classes", "classname", "class_name", "category", "categories"),
    "split": ("split", "set", "subset", "partition"),
}
SUFFIXES = (".csv", ".tsv", ".parquet")
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


class Row(NamedTuple):
    """One image of a table."""

    file: str
    labels: tuple[str, ...]
    split: str | None


def find_table(folder: Path, name: str) -> Path:
    """The table of a folder: the one that is named, or the only one.

    Raises:
        InputError: it is not there, or there are several.
    """
    if name:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is no file; mend data.table, which is looked for below data.path")
        return path
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; mend data.path")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        listed = ", ".join(path.name for path in found[:5]) or "none"
        raise InputError(f"{folder} has {len(found)} tables ({listed}); name the one with the labels: data.table FILE")
    return found[0]


def read_rows(path: Path, columns: Mapping[str, str], classes: Sequence[str], cover: float) -> list[Row]:
    """The rows of a table of labels.

    Args:
        columns: names of the columns of file, label and split, where they are not known by usual ones.
        classes: where there is no column of labels, the columns that are classes; empty: all others.
        cover: least number in such a column that makes the class a label.
    Raises:
        InputError: it cannot be read, lacks a column, or a value is no label.
    """
    rows = _read(path)
    if not rows:
        raise InputError(f"{path} has no rows; write one per image below a line of column names")
    header = list(rows[0])
    place = {kind: _column(path, header, kind, columns) for kind in NAMES}
    if place["file"] is None:
        raise InputError(
            f"{path} has the columns {', '.join(header)}, none of which is known to hold the files; name it: "
            f"data.columns '{{file: {header[0]}}}'"
        )
    marks = [] if place["label"] else _class_columns(path, header, place, classes)
    found = []
    for number, row in enumerate(rows, start=2):
        text = str(row[place["file"]] or "").strip()
        if not text:
            raise InputError(f"{path}, line {number} names no file; mend it")
        labels = (
            split_labels(row[place["label"]])
            if place["label"]
            else tuple(name for name in marks if _share(path, number, name, row[name]) >= cover)
        )
        split = str(row[place["split"]] or "").strip() or None if place["split"] else None
        found.append(Row(text, labels, split))
    return found


def split_labels(value: Any) -> tuple[str, ...]:
    """The labels of a cell, each once: a list, the text of one (['a' 'b']), or names between ; or |."""
    if isinstance(value, list | tuple):
        names = [str(each) for each in value]
    else:
        text = "" if value is None else str(value).strip()
        if text.startswith("[") and text.endswith("]"):
            quoted = [one or other for one, other in QUOTED.findall(text)]
            names = quoted or text[1:-1].split(",")
        else:
            names = re.split(r"[;|]", text)
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max("\t,;", key=first.count)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); save it as CSV, UTF-8") from error
    header = list(reader.fieldnames or ())
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice: {', '.join(header)}; rename one")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(
                f"{path}, line {number} does not have the {len(header)} values of the first line; mend it, or put texts with "
                f"{delimiter!r} into quotation marks"
            )
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{path} needs the package pyarrow, which is not installed; install it, or save the table as .csv"
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise InputError(f"{path} cannot be read as a table ({error}); save it as .csv") from error


def _column(path: Path, header: Sequence[str], kind: str, columns: Mapping[str, str]) -> str | None:
    """The column that holds something; None: there is none that is known by name."""
    if kind in columns:
        if columns[kind] not in header:
            raise InputError(f"{path} has no column {columns[kind]!r}; it has {', '.join(header)}: mend data.columns")
        return columns[kind]
    found = [name for name in header if name and name.strip().lower() in NAMES[kind]]
    if len(found) > 1:
        raise InputError(
            f"{path}: the columns {' and '.join(found)} may both hold the {kind}; say which: data.columns "
            f"'{{{kind}: {found[0]}}}'"
        )
    return found[0] if found else None


def _class_columns(
    path: Path, header: Sequence[str], place: Mapping[str, str | None], classes: Sequence[str]
) -> list[str]:
    others = [name for name in header if name not in place.values()]
    missing = [name for name in classes if name not in others]
    if missing or not others:
        raise InputError(
            f"{path} has neither a column of labels nor one for {missing[0] if missing else 'a class'}; it has "
            f"{', '.join(header)}: mend data.columns or data.classes"
        )
    return list(classes) or others


def _share(path: Path, line: int, name: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise InputError(
            f"{path}, line {line}: column {name} holds {value!r}, where classes have 0, 1 or a share between; name the columns "
            f"that are classes with data.classes, or the one of labels with data.columns"
        )
    return share
