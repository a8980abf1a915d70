"""Labelled pixels to training, validation and test: the official split, one from a file, blocks, or random pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from datasets.imagery.cubes import open_arrays
from datasets.labelled.patches import PatchSet
from datasets.labelled.stored_patches import read_arrays
from datasets.sampling.splits import Draw, Indices, Split, block_split, grid_blocks, leakage, pool_split, random_split

POSITION, NUMBER = "position", "number"  # arrays of a split file beside the indices
EXCLUDED = -2  # index of a pixel whose class is left out


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Ranged):
    """How labelled pixels are split. Indices count the labelled pixels, row by row, scene after scene."""

    kind: Literal["auto", "official", "blocks", "random"] = "auto"
    """auto: the official split where there is one, else blocks; random pixels leak neighbours into the test."""
    per_class: int | None = ranged(20, 1, MANY)
    """Training pixels of each class; null: all official ones, none for validation."""
    validation: int | None = ranged(None, 0, MANY)
    """Validation pixels of each class, beside those; null: half as many."""
    side: int = ranged(32, 1, 65536)
    """Side of square blocks, pixels, where the data set brings no blocks of its own."""
    cap: bool = False
    """A class with too few pixels gives what it has; else it is refused."""

    @property
    def validation_count(self) -> int:
        return (self.per_class or 0) // 2 if self.validation is None else self.validation

    def draw(self, seed: int, names: Mapping[int, str] | None = None) -> Draw:
        if self.per_class is None:
            raise InputError(
                "protocol.per_class is null, all pixels; only an official split has them, so give a number"
            )
        return Draw(
            per_class=self.per_class, validation=self.validation_count, cap=self.cap, seed=seed, names=names or {}
        )


def make_split(patches: PatchSet, config: SplitConfig, seed: int, *, file: str = "") -> Split:
    """Split the labelled pixels of a set.

    Args:
        file: FILE.npz or FILE.npz:PREFIX of arrays train, test, perhaps validation, which goes before `kind`; {seed} is
            replaced.
    Raises:
        InputError: there is no such split, or a class has too few pixels for it.
    """
    number = np.array(patches.numbers)[patches.label]
    names = dict(zip(patches.numbers, patches.classes, strict=True))
    if file:
        return _read_split(file, config, patches, number, seed)
    if config.kind == "random":
        return random_split(number, config.draw(seed, names))
    official = patches.train is not None and patches.test is not None
    if config.kind == "blocks" or (config.kind == "auto" and not official):
        block = grid_blocks(patches.position, config.side) if patches.block is None else patches.block
        return block_split(number, block, config.draw(seed, names))
    if patches.train is None or patches.test is None:
        raise InputError("the data set has no official split; set protocol.kind to blocks")
    if config.per_class is None:
        return Split(patches.train, np.zeros(0, dtype=np.int64), patches.test)
    return pool_split(number, patches.train, patches.test, config.draw(seed, names))


def split_report(patches: PatchSet, split: Split) -> dict[str, Any]:
    """Pixels of every part by class name, and the share of test pixels whose patch overlaps one of training."""
    counts = (np.bincount(patches.label[part], minlength=len(patches.classes)).tolist() for part in split)
    report: dict[str, Any] = {
        part: dict(zip(patches.classes, row, strict=True)) for part, row in zip(Split._fields, counts, strict=True)
    }
    report |= {"dropped": dict(patches.dropped)} if patches.dropped else {}
    report |= {"excluded": dict(patches.excluded.classes)} if patches.excluded else {}
    return report | {"leakage": leakage(split, patches.position, patches.patch)}


def write_split(file: Path, split: Split, patches: PatchSet) -> None:
    """Save a split so that `make_split` reads it, also for a description with other labelled pixels of the scenes.

    Beside the indices the file holds row, column (and image) and the class number of every labelled pixel.
    """
    known = {POSITION: patches.position, NUMBER: np.array(patches.numbers)[patches.label]}
    np.savez_compressed(file, allow_pickle=False, **split._asdict(), **known)


def _read_split(given: str, config: SplitConfig, patches: PatchSet, number: Indices, seed: int) -> Split:
    """The split of a file; without validation pixels in it, they are drawn from those that it leaves over."""
    name, _, prefix = given.replace("{seed}", str(seed)).partition(":")
    file, keys = Path(name), [prefix + part for part in ("train", "test")]
    found = read_arrays(file, tuple(keys))
    with open_arrays(file) as arrays:
        more = [prefix + key for key in ("validation", POSITION, NUMBER)]
        kept, position, classes = (np.asarray(arrays[key]) if key in arrays else None for key in more)
    found |= {} if kept is None else {prefix + "validation": kept}
    place = None if position is None else _same_pixels(file, position, classes, patches, number)
    if place is None and patches.excluded is not None:
        place = np.where(patches.excluded.kept < 0, EXCLUDED, patches.excluded.kept)
    count = len(number) if place is None else len(place)
    parts = {key: _checked(file, key, array, count) for key, array in found.items()}
    if place is not None:
        parts = {key: _placed(file, key, place[pixels]) for key, pixels in parts.items()}
    train, test = (parts[key] for key in keys)
    if kept is not None:
        validation = parts[prefix + "validation"]
    else:
        rest = np.setdiff1d(np.arange(len(number)), np.concatenate([train, test]))
        shuffled = np.random.default_rng(seed).permutation(rest)
        drawn = [shuffled[number[shuffled] == c][: config.validation_count] for c in np.unique(number)]
        validation = np.sort(np.concatenate(drawn))
    together = np.concatenate([train, validation, test])
    if len(np.unique(together)) < len(together):
        raise InputError(f"{file}: a pixel stands twice in {', '.join(keys)}; every pixel may serve once")
    return Split(train, validation, test)


def _same_pixels(
    file: Path, position: np.ndarray, classes: np.ndarray | None, patches: PatchSet, number: Indices
) -> Indices:
    """Index of every pixel of the file among the labelled pixels here, -1 where it has none, -2 where its class is left out.

    Raises:
        InputError: pixels of one place have other classes.
    """
    if position.ndim != 2 or position.shape[1] != patches.position.shape[1]:
        raise InputError(
            f"{file} was made for another kind of scenes (positions {position.shape}); draw the split again"
        )
    here = {tuple(row): index for index, row in enumerate(patches.position.tolist())}
    if patches.excluded is not None:
        here |= {tuple(row): EXCLUDED for row in patches.excluded.position.tolist()}
    place = np.array([here.get(tuple(row), -1) for row in position.tolist()], dtype=np.int64)
    known = place >= 0
    if classes is not None and (classes[known] != number[place[known]]).any():
        wrong = int((classes[known] != number[place[known]]).sum())
        raise InputError(
            f"{file}: {wrong} of its pixels have another class here; it belongs to other labels: draw a split anew"
        )
    return place


def _placed(file: Path, key: str, place: Indices) -> Indices:
    place = place[place != EXCLUDED]
    lost = int((place < 0).sum())
    if lost:
        raise InputError(
            f"{file}: {lost} of {len(place)} pixels of {key} have no label here (an image misses a value there, or labels "
            f"differ); draw the split with the description that has fewer labelled pixels"
        )
    return np.sort(place)


def _checked(file: Path, key: str, array: np.ndarray, count: int) -> Indices:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{file}: {key} is {array.dtype} of shape {array.shape}; give indices of labelled pixels, (n,)"
        )
    outside = array[(array < 0) | (array >= count)]
    if len(outside):
        raise InputError(f"{file}: {key} holds index {outside[0]}, there are {count} labelled pixels; count from 0")
    return np.sort(array.astype(np.int64))
