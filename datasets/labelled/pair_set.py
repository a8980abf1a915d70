"""What a set of registered optical, SAR and label images is: where its files lie and what their numbers mean.

A description is one small YAML file; `configs/pairs/` has examples. Three ways of naming files:

* a pattern such as `opt/{key}.tif`: `{key}` is the name of a pair, `{split}`, if used, that of the split;
* a folder such as `GF2`: files of any image format in it and below, a pair's name is the path without suffix;
* nothing for all three: every line of a split's list holds the optical, SAR and label path of one pair.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alliance.errors import InputError
from alliance.files import replace_file
from datasets.imagery.labels import IGNORE, Colour, as_colour

ROLES = ("optical", "sar", "label")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The files of one modality. Numbers are as stored; means and deviations too."""

    files: str | None = None
    bands: tuple[int, ...]  # of the file, counted from 1, in the order in which a network gets them; may repeat
    dtype: str = "uint8"  # that every file must have
    nodata: float | None = None  # stored value of a missing pixel; NaN is always missing
    mean: tuple[float, ...] = ()  # per entry of `bands`
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(int(band) for band in self.bands))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) not in (0, len(self.bands)):
                raise InputError(f"{name} has {len(getattr(self, name))} numbers for {len(self.bands)} bands")
        if not self.bands or min(self.bands) < 1:
            raise InputError(f"bands are {list(self.bands)}; name at least one, counted from 1")
        if any(value <= 0 for value in self.std):
            raise InputError(f"std is {list(self.std)}; deviations are positive")

    def standardise(self, image: Tensor) -> Tensor:
        """Stored numbers (..., c, h, w), not finite where missing -> (value - mean) / std float32, 0 where missing.

        Raises:
            InputError: mean and std are not known, or are for another number of channels.
        """
        if not (self.mean and self.std):
            raise InputError("mean and std of the bands are not given; `launch/prepare.py check` measures them")
        if image.shape[-3] != len(self.mean):
            raise InputError(f"image has {image.shape[-3]} channels, mean and std are for {len(self.mean)}")
        mean, std = (torch.tensor(column, device=image.device)[:, None, None] for column in (self.mean, self.std))
        return ((image.float() - mean) / std).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """The label maps: one band of integers."""

    files: str | None = None
    values: Mapping[int, int] = field(default_factory=dict)  # stored -> class index or 255; empty: stored as indices

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {int(stored): int(index) for stored, index in self.values.items()})


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A set of registered pairs. All paths are below the root, or absolute."""

    name: str
    root: Path
    optical: ImageSource
    sar: ImageSource
    label: LabelSource
    classes: Mapping[str, Colour]  # in the order of their indices
    splits: Mapping[str, str | Sequence[str] | None]  # name -> list file, a pair per line, or pairs; None: all found

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "classes", {str(name): as_colour(name, rgb) for name, rgb in self.classes.items()})
        if not 1 <= len(self.classes) < IGNORE:
            raise InputError(f"{self.name}: {len(self.classes)} classes; give 1 to {IGNORE - 1}")
        wrong = set(self.stored_values.values()) - {*range(len(self.classes)), IGNORE}
        if wrong:
            raise InputError(
                f"{self.name}: label.values leads to class {min(wrong)}; there are 0 to {len(self.classes) - 1}, "
                f"and {IGNORE} for pixels to ignore"
            )
        if not self.splits:
            raise InputError(f"{self.name}: no splits; `splits: {{all: null}}` takes every pair that is found")
        self._check_splits()
        self._check_files()

    @property
    def patterns(self) -> dict[str, str | None]:
        """How the files of each role are named."""
        return {"optical": self.optical.files, "sar": self.sar.files, "label": self.label.files}

    @property
    def stored_values(self) -> dict[int, int]:
        """Class index, or 255, of every value that may stand in a label file."""
        indices = {index: index for index in (*range(len(self.classes)), IGNORE)}
        return dict(self.label.values) or indices

    def _check_splits(self) -> None:
        for split, given in self.splits.items():
            if given is not None and not isinstance(given, str | list | tuple):
                raise InputError(
                    f"{self.name}: split {split} is {given!r}; give a list file, names of pairs, or null for all"
                )
            names = given if isinstance(given, list | tuple) else ()
            wrong = [name for name in names if not isinstance(name, str)]  # YAML reads 1_3 as 13 and 007 as 7
            if wrong:
                raise InputError(f"{self.name}: split {split} lists {wrong[0]!r}, not a name; put it in quotes")

    def _check_files(self) -> None:
        given = [role for role, pattern in self.patterns.items() if pattern is not None]
        if given and len(given) < len(ROLES):
            raise InputError(f"{self.name}: files of {', '.join(given)} only; name those of all three or of none")
        if not given and None in self.splits.values():
            raise InputError(f"{self.name}: neither files nor a list of every split are given; give one of them")


def read_pair_set(path: Path, root: Path | None = None) -> PairSet:
    """Read a description.

    Args:
        root: folder of the files instead of the one in the description, which is relative to the description.
    Raises:
        InputError: no such file, no YAML, an unknown or missing key, or values that do not fit; names the file.
    """
    try:
        record = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the YAML file of a set of pairs") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        pairs = _pair_set(record)
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return dataclasses.replace(pairs, root=Path(root) if root else path.parent / pairs.root)


def write_pair_set(pairs: PairSet, path: Path) -> None:
    """Write a description so that `read_pair_set` gives the same."""
    record = {"name": pairs.name, "root": str(pairs.root)}
    record |= {role: _plain(getattr(pairs, role)) for role in ROLES}
    record |= {"classes": {name: list(rgb) for name, rgb in pairs.classes.items()}, "splits": dict(pairs.splits)}
    replace_file(path, yaml.safe_dump(record, sort_keys=False, width=120, default_flow_style=None).encode())


def _pair_set(record: Any) -> PairSet:
    parts = _known(PairSet, {"root": "."} | _mapping("a description", record))
    for role, kind in zip(ROLES, (ImageSource, ImageSource, LabelSource), strict=True):
        try:
            parts[role] = kind(**_known(kind, _mapping(role, parts[role])))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"{role}: {error}") from error
    return PairSet(**parts)


def _known(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, if it has all keys that `kind` needs and no other."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in record:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            raise InputError(
                f"unknown key {key!r}; {f'did you mean {near[0]!r}? ' if near else ''}known: {_listed(fields)}"
            )
    for name, each in fields.items():
        if name not in record and each.default is each.default_factory is dataclasses.MISSING:
            raise InputError(f"{name!r} is missing; needed or possible are {_listed(fields)}")
    return dict(record)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} holds keys and values, got {value!r}")
    return dict(value)


def _plain(source: ImageSource | LabelSource) -> dict[str, Any]:
    """Fields that differ from their default, for YAML."""
    values = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    kept = {name: value for name, value in values.items() if value not in (None, (), {})}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names)
