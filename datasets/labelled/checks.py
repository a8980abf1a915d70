"""What is looked at before training on tiles: every label map once, and whether test tiles also serve for training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from alliance.errors import InputError
from alliance.files import regular
from datasets.imagery.labels import IGNORE, stored_values
from datasets.labelled.description import LabelledSet
from datasets.labelled.find import SampleFiles
from datasets.labelled.tiles import Tiles
from datasets.sampling.splits import tell_shared

THREADS = 4
HEAD = 1 << 16  # bytes that are compared first
STRAY = (
    1e-3  # largest share of all pixels whose value is no class and is yet taken for damage, not for another numbering
)

MARKS = (2**16 - 1, 2**31 - 1, 2**32 - 1)  # largest numbers of a kind, as tools write them where there is no label


@dataclass
class LabelCounts:
    """Pixels of every stored value of some label maps."""

    pixels: Counter[int] = field(default_factory=Counter)
    coloured: Counter[int] = field(default_factory=Counter)  # of every class index of maps of colours
    unreadable: int = 0  # files; training and evaluation name them one by one
    reason: str = ""  # why the first of them is

    def add(self, other: "LabelCounts") -> None:
        self.pixels.update(other.pixels)
        self.coloured.update(other.coloured)
        self.unreadable += other.unreadable
        self.reason = self.reason or other.reason

    def by_class(self, table: Mapping[int, int]) -> Counter[int]:
        """Pixels of every class index, given that of every stored value; those of 255 have no label."""
        found = Counter(self.coloured)
        for value, count in self.pixels.items():
            found[table.get(value, IGNORE)] += count
        return found


def count_labels(
    tiles: Tiles, numbers: Sequence[int] | None = None, described: LabelledSet | None = None
) -> LabelCounts:
    """Read the label maps of some tiles (None: all), a few at a time.

    Args:
        described: what their values mean; None: as the tiles are described.
    """
    total = LabelCounts()
    chosen = range(len(tiles)) if numbers is None else numbers
    with ThreadPoolExecutor(THREADS, "labels") as threads:
        for found in threads.map(lambda number: _count(tiles, number, described or tiles.described), chosen):
            total.add(found)
    return total


def check_values(described: LabelledSet, counts: Mapping[str, LabelCounts], left_out: Sequence[str] = ()) -> list[str]:
    """What the stored values of all splits say of the description: lines worth saying.

    Args:
        counts: by split, the training split first.
        left_out: classes of the description that are not to be learnt.
    Raises:
        InputError: the values are numbered otherwise than the description says; the message proposes a numbering.
    """
    table = described.label.table(len(described.classes))
    total = Counter[int]()
    for each in counts.values():
        total.update(each.pixels)
    found = sorted(total)
    strange = [value for value in found if value not in table]
    share = sum(total[value] for value in strange) / max(total.total(), 1)
    names = list(described.classes)
    numbered_from_1 = set(range(1, len(names) + 1)) <= set(found) <= {*range(len(names) + 1), IGNORE}
    if strange and (share > STRAY or numbered_from_1) and described.label.unknown == "refuse":
        raise InputError(
            f"{described.name}: label maps hold {strange[:8]}, which are no class ({share:.1%} of all pixels); they hold "
            f"{found[:12]} in all, known are {sorted(table)[:12]}; say what they mean, such as label: "
            f"{{values: {_proposal(found, len(names))}}}"
        )
    _refuse_mask(described, found)
    split, first = next(iter(counts.items()))
    pixels = {
        each: dict(zip(names, map(counts[each].by_class(table).get, range(len(names))), strict=True)) for each in counts
    }
    if first.unreadable and not (first.pixels or first.coloured):
        raise InputError(f"{described.name}: no label map of {split} can be read: {first.reason}")
    if not any(pixels[split][name] for name in names if name not in left_out):
        others = " but of classes that are left out" if any(pixels[split].values()) else ""
        binary = set(first.pixels) == {IGNORE} and len(names) == 2
        meant = f"{{0: 0, {IGNORE}: 1}}" if binary else _proposal(sorted(first.pixels), len(names))
        raise InputError(
            f"{described.name}: no pixel of {split} has a label{others}; it holds {sorted(first.pixels)[:12]}, where {IGNORE} and "
            f"what files call nodata means no label; say what values mean, such as label: {{values: {meant}}}"
        )
    absent = [name for name in names if not pixels[split][name] and name not in left_out]
    lines = [f"no pixel of {split} is labelled {', '.join(absent)}: that cannot be learnt"] if absent else []
    for name in left_out:
        lost = ", ".join(f"{pixels[each][name] or 0} of {each}" for each in counts)
        lines.append(f"{name} is left out; its pixels have no label: {lost}")
    return lines


def check_masks(described: LabelledSet, tiles: Sequence[Tiles], indices: Collection[int]) -> None:
    """Refuse masks of 0 and 255 of which nobody has said which is the class; only where indices leave it open they are read.

    Args:
        indices: class indices, or 255, that were read of the tiles.
    Raises:
        InputError: they are such masks.
    """
    if set(indices) == {0, IGNORE} and len(described.classes) <= 2 and not described.label.values:
        _refuse_mask(described, sorted({value for each in tiles for value in count_labels(each).pixels}))


def _refuse_mask(described: LabelledSet, found: Sequence[int]) -> None:
    names = list(described.classes)
    if described.label.values or described.label.one_hot or list(found) != [0, IGNORE] or len(names) > 2:
        return
    said = f"{described.name}: label maps hold 0 and {IGNORE} alone, and {IGNORE} means no label, so "
    if len(names) == 2:
        raise InputError(
            f"{said}{names[1]} has no pixel; if {IGNORE} is {names[1]}, say so: label: {{values: {{0: 0, {IGNORE}: 1}}}}; if not, "
            f"{{0: 0, 1: 1, {IGNORE}: {IGNORE}}}"
        )
    raise InputError(
        f"{said}0 would be {names[0]}; if {IGNORE} is, say so: label: {{values: {{0: {IGNORE}, {IGNORE}: 0}}}}; if 0 is, "
        f"{{0: 0, {IGNORE}: {IGNORE}}}"
    )


def shared_samples(first: Tiles, second: Tiles) -> list[tuple[str, str]]:
    """Samples that stand in both splits: the same file, or files of the same bytes; their names in each."""
    role = next(iter(first.described.images))
    own, others = first.images, second.images
    by_path = {files.paths[role].resolve(): files.key for files in own}
    shared = [(by_path[path], files.key) for files in others if (path := files.paths[role].resolve()) in by_path]
    known = {key for _, key in shared}
    return shared + _same_content(own, [files for files in others if files.key not in known], role)


def refuse_shared(train: Tiles, other: Tiles) -> None:
    """Refuse a split for evaluation that holds samples of training.

    Raises:
        InputError: it does; the message counts and names them.
    """
    if other.split == train.split:
        return
    shared = shared_samples(train, other)
    if shared:
        told = f"{train.described.name}: {len(shared)} of {len(other.images)} samples of {other.split}"
        raise InputError(tell_shared(shared, told, train.split))


def _count(tiles: Tiles, number: int, described: LabelledSet) -> LabelCounts:
    try:
        stored = stored_values(
            tiles.files[number].label,
            described.label,
            described.classes,
            colours=described.coloured,
            box=tiles.boxes[number],
        )
    except InputError as error:
        return LabelCounts(unreadable=1, reason=str(error))
    values, count = np.unique(stored.values, return_counts=True)
    pixels = Counter(dict(zip(values.tolist(), count.tolist(), strict=True)))
    return LabelCounts(coloured=pixels) if stored.are_classes else LabelCounts(pixels)


def _proposal(found: Sequence[int], classes: int) -> str:
    """Values that would give each class one of the stored ones, if they are as many; else a start."""
    marks = [value for value in found if value < 0 or value in MARKS]
    for more in (marks, []):
        for left_out in ([*more, 0, IGNORE], [*more, 0], [*more, IGNORE], more):
            own = [value for value in found if value not in left_out]
            if len(own) == classes:
                pairs = [f"{value}: {IGNORE}" for value in left_out if value in found]
                return f"{{{', '.join(pairs + [f'{value}: {index}' for index, value in enumerate(own)])}}}"
    return f"{{{', '.join(f'{value}: ...' for value in found[:12])}}}"


def _same_content(first: Sequence[SampleFiles], second: Sequence[SampleFiles], role: str) -> list[tuple[str, str]]:
    """Names of samples all of whose files have the same bytes: of one image, sizes are compared, then beginnings."""
    by_size: dict[int, list[SampleFiles]] = defaultdict(list)
    for files in first:
        by_size[_size(files.paths[role])].append(files)
    head = lru_cache(maxsize=None)(lambda path: _digest(path, HEAD))
    found = []
    for files in second:
        path = files.paths[role]
        alike = [other for other in by_size.get(_size(path), ()) if head(other.paths[role]) == head(path)]
        same = [
            other.key for other in alike if all(_digest(other.paths[r]) == _digest(files.paths[r]) for r in files.paths)
        ]
        found += [(key, files.key) for key in same[:1]]
    return found


def _digest(path: Path, length: int = -1) -> bytes:
    try:
        with regular(path).open("rb") as file:
            return hashlib.sha256(file.read(length)).digest()
    except OSError:
        return str(path).encode()  # like no other


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
