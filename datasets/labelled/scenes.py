"""Labelled scenes from files: two images, a map of classes, and the official training and test pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.imagery.images import describe, read_image
from datasets.imagery.labels import IGNORE, to_indices, whole_numbers
from datasets.imagery.rasters import named
from datasets.imagery.scenes import Scene
from datasets.labelled.description import LabelledSet, Layout
from datasets.labelled.find import find_scenes
from datasets.labelled.normalise import check_bands
from datasets.labelled.tiles import check_grids

Image = NDArray[np.float32]
Map = NDArray[np.int64]
Mask = NDArray[np.bool_]
Grid = tuple[int, ...]  # (h, w)
IMAGES = ("passive", "active")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledScene:
    """Two images of one place on one grid, and the classes of some pixels. An image that is not there has no bands."""

    name: str
    passive: Image  # (bands, h, w), HSI or MSI; nan where missing
    active: Image  # (channels, h, w), LiDAR or SAR; nan where missing
    labels: Map  # (h, w), 0 unlabelled
    train: Mask | None = None  # (h, w), official training pixels
    test: Mask | None = None
    blocks: Map | None = None  # (h, w), places that a split must not tear apart
    classes: tuple[str, ...] = ()  # names of classes 1, 2, ...; empty: not known
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # a b c d e f: x = a col + b row + c, y = d col + e row + f
    dropped: Mapping[int, int] = field(default_factory=dict)  # class -> labelled pixels left out, as a value is missing

    def __post_init__(self) -> None:
        for role in ("active", "labels", "train", "test", "blocks"):
            if (array := getattr(self, role)) is not None:
                _check_size(self.name, role, array.shape[-2:], self.passive.shape[1:])
        for role in IMAGES:
            check_bands(getattr(self, role), f"{role} of scene {self.name}")
        if not (self.labels > 0).any():
            lost = f", {sum(self.dropped.values())} lie where a value is missing" if self.dropped else ""
            raise InputError(f"scene {self.name} has 0 labelled pixels{lost}; give a map with classes from 1 on")


class _Map(NamedTuple):
    """A map of whole numbers, or a list of pixels (n, 2), as it stands in a file; what is missing is 0."""

    values: Map
    missing: Mask
    header: Scene


def read_scenes(described: LabelledSet) -> list[LabelledScene]:
    """All scenes of a set, in the order of their names.

    Raises:
        InputError: a file or key is missing, sizes differ, or labels are not those of the data set.
    """
    return [_read_scene(name, layout, described) for name, layout in find_scenes(described)]


def _read_scene(name: str, layout: Layout, described: LabelledSet) -> LabelledScene:
    sources = {role: (described.root / file, key) for role, (file, key) in layout.sources().items()}
    maps = {role: _read_map(*source, role) for role, source in sources.items() if role not in layout.images}
    size = maps["labels" if layout.labels else "train"].values.shape
    read = {
        role: read_image(sources[role][0], described.image(role), sources[role][1], grid=size) for role in layout.images
    }
    headers = {role: image.header for role, image in read.items()}
    grid = next(iter(headers.values())).shape[1:]
    for role, header in headers.items():
        _check_size(name, role, header.shape[1:], grid)
    for role in set(maps) - {"train", "test"}:
        _check_size(name, role, maps[role].values.shape, grid)
    on_grid = {role: found.header for role, found in maps.items() if found.values.shape == grid}
    check_grids(f"scene {name}", headers | on_grid)
    empty = np.zeros((0, *grid), dtype=np.float32)
    images = {role: read[role].numbers.numpy() if role in read else empty for role in IMAGES}
    labels, masks = _labels(name, maps, grid, described, layout)
    missing = np.isnan(images["passive"]).any(axis=0) | np.isnan(images["active"]).any(axis=0)
    lost, count = np.unique(labels[missing & (labels > 0)], return_counts=True)
    placed = next((header for header in (headers | on_grid).values() if header.crs), None)
    return LabelledScene(
        name=name,
        passive=images["passive"],
        active=images["active"],
        labels=np.where(missing, 0, labels),
        train=masks["train"] & ~missing if "train" in masks else None,
        test=masks["test"] & ~missing if "test" in masks else None,
        blocks=maps["blocks"].values if "blocks" in maps else None,
        classes=tuple(described.classes),
        crs=placed.crs if placed else None,
        transform=placed.transform if placed else None,
        dropped=dict(zip(lost.tolist(), count.tolist(), strict=True)),
    )


def _read_map(path: Path, key: str | None, role: str) -> _Map:
    if not path.is_file():
        raise InputError(f"{path} is missing; give the folder of the data set, or another file name")
    header = describe(path, key, bands=1)
    if header.shape[0] != 1:
        raise InputError(f"{path}: {role} has {header.shape[0]} bands; give a map of one")
    with named(path), header.open([0]) as read:
        window = read(0, 0, *header.shape[1:])
    missing = ~np.isfinite(window.stored[0])
    if window.missing is not None:
        missing |= window.missing[0]
    values = np.where(missing, 0, whole_numbers(path, window.stored[0], missing))
    return _Map(values, missing, header)


def _check_size(name: str, role: str, found: Grid, wanted: Grid) -> None:
    if found != wanted:
        sizes = [" x ".join(map(str, grid)) for grid in (found, wanted)]
        raise InputError(f"scene {name}: {role} has {sizes[0]} pixels, its image {sizes[1]}; bring both to one grid")


def _labels(
    name: str, maps: Mapping[str, _Map], grid: Grid, described: LabelledSet, layout: Layout
) -> tuple[Map, dict[str, Mask]]:
    """The map of classes and the official pixels; without a map of classes the official maps make one."""
    official = [role for role in ("train", "test") if role in maps]
    listed = {role for role in official if maps[role].values.shape[1] == 2 and maps[role].values.shape != grid}
    for role in set(official) - listed:
        _check_size(name, role, maps[role].values.shape, grid)
    numbered = {role: maps[role] for role in ("labels", *official) if role in maps and role not in listed}
    if "labels" not in maps and listed:
        raise InputError(f"scene {name}: {min(listed)} is a list of pixels without classes; give a map as labels too")
    classes = _class_maps(numbered, described)
    masks = {role: classes[role] > 0 for role in official if role in classes}
    if listed:
        masks |= _listed_pixels({role: maps[role].values for role in listed}, classes["labels"], layout.origin)
    if len(masks) == 2 and (masks["train"] & masks["test"]).any():
        both = (masks["train"] & masks["test"]).sum()
        raise InputError(f"scene {name}: {both} pixels are official for training and for test; take them out of one")
    labels = classes["labels"] if "labels" in classes else classes["train"] + classes["test"]
    for role in masks:
        known = labels == classes[role] if role in classes and classes[role].max() > 1 else labels > 0
        strange = (masks[role] & ~known).sum()
        if strange:
            raise InputError(f"scene {name}: {strange} pixels of {role} have no or another class in labels; mend one")
    return labels, masks


def _listed_pixels(lists: Mapping[str, Map], labels: Map, origin: int | None) -> dict[str, Mask]:
    """Pixels of lists (n, 2) of rows and columns, all counted from 0 or all from 1: so that every one has a label."""
    fitting = {start: _pixels_from(lists, labels, start) for start in ((0, 1) if origin is None else (origin,))}
    found = [masks for masks in fitting.values() if masks is not None]
    if not found:
        raise InputError(
            f"{' and '.join(sorted(lists))} list pixels that lie outside or have no label; give rows and columns of "
            f"labelled pixels, counted from 0 or both from 1"
        )
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(sorted(lists))} list rows and columns that fit the labels counted from 0 as well as from 1; "
            f"say which in the layout: origin: 1 (as MATLAB counts) or origin: 0"
        )
    return found[0]


def _pixels_from(lists: Mapping[str, Map], labels: Map, origin: int) -> dict[str, Mask] | None:
    masks = {}
    for role, place in lists.items():
        row, col = (place - origin).T
        inside = (row >= 0) & (row < labels.shape[0]) & (col >= 0) & (col < labels.shape[1])
        if not inside.all() or not (labels[row, col] > 0).all():
            return None
        masks[role] = np.zeros(labels.shape, dtype=bool)
        masks[role][row, col] = True
    return masks


def _class_maps(maps: Mapping[str, _Map], described: LabelledSet) -> dict[str, Map]:
    """Classes 1, 2, ... of maps of one scene, 0 where there is no label."""
    if not described.classes and not described.label.values:
        return {role: _plain_map(role, found, described) for role, found in maps.items()}
    table = _table(maps, described)
    return {role: _by_table(role, found, table, described) for role, found in maps.items()}


def _plain_map(role: str, found: _Map, described: LabelledSet) -> Map:
    """Without names, numbers are classes as they stand."""
    labels = np.where(found.missing | (found.values == described.label.unlabelled), 0, found.values)
    if (labels < 0).any():
        raise InputError(
            f"{role} holds the value {labels[labels < 0][0]}, the data set has classes from 1 on and 0 for unlabelled; mend it"
        )
    return labels


def _table(maps: Mapping[str, _Map], described: LabelledSet) -> dict[int, int]:
    """Class index of every stored value. Where the mark of unlabelled pixels is not 0, the values tell the first class.

    Raises:
        InputError: they do not.
    """
    label, count = described.label, len(described.classes)
    if label.values or label.first is not None:
        return label.table(count)
    stored = set(np.unique(np.concatenate([one.values[~one.missing].ravel() for one in maps.values()])).tolist())
    found = stored - {label.unlabelled, IGNORE}
    names = list(described.classes)
    if label.unlabelled == 0 and stored - {IGNORE} == set(range(count)) and count > 1:
        raise InputError(
            f"labels hold {sorted(stored)}: either 0 is unlabelled and no pixel is {names[-1]}, or 0 is {names[0]}; say which "
            f"in the description: label: {{first: 1}}, or unlabelled: {IGNORE}"
        )
    fits = [first for first in (0, 1) if found <= set(range(first, first + count))]
    if label.unlabelled != 0 and fits == [0, 1] and 0 not in found and count not in found:
        raise InputError(
            f"labels hold {sorted(found)}, which may be classes counted from 0 or from 1; say it in the description: "
            f"label: {{first: 1}} or label: {{first: 0}}"
        )
    first = 0 if 0 in found else 1
    return {IGNORE: IGNORE, label.unlabelled: IGNORE} | {first + index: index for index in range(count)}


def _by_table(role: str, found: _Map, table: Mapping[int, int], described: LabelledSet) -> Map:
    indices = to_indices(found.values, table)
    indices[found.missing & ~np.isin(found.values, list(described.label.values))] = IGNORE
    unknown = indices < 0
    if unknown.any() and described.label.unknown == "refuse":
        known = sorted(value for value, index in table.items() if index != IGNORE)
        raise InputError(
            f"{role} holds the value {found.values[unknown][0]}, the data set has classes {known[0]} to {known[-1]} and "
            f"{described.label.unlabelled} for unlabelled; mend it, or say what values mean: label: {{values: ...}}"
        )
    return np.where(unknown | (indices == IGNORE), 0, indices + 1)
