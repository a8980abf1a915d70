"""Which chips serve for what: as folders and tables say, or drawn; few of those to learn from; copies in two parts."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.chips.chip import Chip
from datasets.imagery.duplicates import find_copies
from datasets.sampling.order import shuffled
from datasets.sampling.splits import tell_shared

STREAM, FEW = 6, 7  # keep these draws apart from others with the same seed
PARTS = ("train", "validation", "test")


def given_splits(chips: Sequence[Chip]) -> dict[str, list[Chip]]:
    """The chips of each split that their source tells; empty where it tells of none."""
    found: dict[str, list[Chip]] = defaultdict(list)
    for chip in chips:
        if chip.split is not None:
            found[chip.split].append(chip)
    return dict(found)


def draw_splits(chips: Sequence[Chip], shares: Sequence[float], seed: int) -> dict[str, list[Chip]]:
    """Deal chips out to train, validation and test, every class alike, copies of one image together.

    A chip with several labels goes by the rarest of them. What rounding keeps from a part in one class, it gets in another.

    Args:
        shares: of the three, which add up to 1.
    Returns:
        The parts that got chips, each in the order of the names.
    """
    first = copies_of(chips)
    groups: dict[int, list[Chip]] = defaultdict(list)
    for number, chip in enumerate(chips):
        groups[first.get(number, number)].append(chip)
    units = list(groups.values())
    dealt: dict[str, list[Chip]] = {part: [] for part in PARTS}
    owed = np.zeros(len(PARTS))  # chips that rounding has kept from a part so far
    for place, numbers in enumerate(_strata([unit[0] for unit in units])):
        counts, owed = _counts(np.array(shares) * len(numbers), owed)
        order = shuffled(len(numbers), STREAM, seed, place)
        for part, own in zip(PARTS, np.split(order, counts.cumsum()[:-1]), strict=True):
            for number in own:
                dealt[part] += units[numbers[number]]
    return {part: sorted(own) for part, own in dealt.items() if own}


def choose_few(chips: Sequence[Chip], seed: int, *, per_class: int | None = None, share: float = 1.0) -> list[Chip]:
    """Some of the chips, in their order: the first ones of every class in a drawn order, so that fewer are a part of more.

    Args:
        per_class: of each class; one with several labels may be among those of several classes, so that a class gets
            at least so many, or all that it has.
        share: of each class, at least one chip; a chip with several labels goes by the rarest of them.
    """
    order = shuffled(len(chips), FEW, seed).tolist()
    kept = set(range(len(chips)))
    if share < 1:
        rank = {number: place for place, number in enumerate(order)}
        strata = [sorted(numbers, key=rank.__getitem__) for numbers in _strata(chips)]
        kept = {number for numbers in strata for number in numbers[: max(round(share * len(numbers)), 1)]}
    if per_class is not None:
        counts: Counter[str] = Counter()
        taken = set()
        for number in order:
            labels = chips[number].labels or ("",)
            if number in kept and any(counts[label] < per_class for label in labels):
                taken.add(number)
            if number in kept:
                counts.update(labels)
        kept = taken
    return [chips[number] for number in sorted(kept)]


def copies_of(chips: Sequence[Chip]) -> dict[int, int]:
    """Numbers of chips whose files hold the same bytes as those of an earlier one, and its number."""
    numbers = [number for number, chip in enumerate(chips) if all(os.access(file, os.R_OK) for file in chip.files)]
    found = find_copies([[chips[number]] for number in numbers])
    return {numbers[copy]: numbers[first] for copy, first in found.items()}


def shared_chips(train: Sequence[Chip], other: Sequence[Chip]) -> list[tuple[str, str]]:
    """Names of chips that stand in both parts, or whose files hold the same bytes: of training, and of the other part."""
    both = [*train, *other]
    first = copies_of(both)
    return [(both[own].name, both[number].name) for number, own in sorted(first.items()) if own < len(train) <= number]


def refuse_shared(parts: Mapping[str, Sequence[Chip]], train: str, others: Iterable[str]) -> None:
    """Refuse parts for evaluation that hold chips of training.

    Raises:
        InputError: one does; the message counts and names them.
    """
    for name in others:
        shared = shared_chips(parts[train], parts[name])
        if shared:
            raise InputError(tell_shared(shared, f"{len(shared)} of {len(parts[name])} images of {name}", train))


def _counts(wanted: NDArray[np.float64], owed: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole numbers of chips for parts that want fractions of some, and what the parts are owed afterwards: three each."""
    counts = np.floor(wanted).astype(np.int64)
    owed = owed + wanted - counts
    for _ in range(round(wanted.sum()) - counts.sum()):
        part = int(owed.argmax())
        counts[part] += 1
        owed[part] -= 1
    return counts, owed


def _strata(chips: Sequence[Chip]) -> list[list[int]]:
    """Numbers of chips by the rarest of their labels, in the order of the labels' names."""
    counts = Counter(label for chip in chips for label in chip.labels)
    found: dict[str, list[int]] = defaultdict(list)
    for number, chip in enumerate(chips):
        found[min(chip.labels, key=lambda label: (counts[label], label), default="")].append(number)
    return [found[label] for label in sorted(found)]
