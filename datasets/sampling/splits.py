"""Splits of labelled pixels with few labels per class, and how far their patches leak from training to test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from alliance.errors import InputError

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """Which labelled pixels serve for what: sorted indices, no pixel twice."""

    train: Indices
    validation: Indices  # for choices that must not be made on test pixels
    test: Indices


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How many pixels a split takes, and in which random order."""

    per_class: int  # for training
    validation: int = 0  # per class, beside those
    cap: bool = False  # a class with fewer gives training what it has; else it is refused
    seed: int = 0
    names: Mapping[int, str] = field(default_factory=dict)  # of the classes, for messages

    def called(self, number: int) -> str:
        """A class as messages name it."""
        name, plain = self.names.get(int(number)), f"class {number}"
        return plain if name in (None, plain) else f"class {number} ({name})"

    def leaving_out(self, number: int) -> str:
        """What leaves a class out, as messages advise it."""
        name = self.names.get(int(number), str(number))
        return f"leave the class out with data.drop_classes '{json.dumps([name], ensure_ascii=False)}'"

    def __post_init__(self) -> None:
        for name, least in (("per_class", 1), ("validation", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")


def tell_shared(shared: Sequence[tuple[str, str]], what: str, train: str) -> str:
    """Why samples that also stand in training are refused for evaluation.

    Args:
        shared: their names in both.
        what: how many of which part they are.
    """
    named = ", ".join(one if one == two else f"{one} = {two}" for one, two in shared[:3])
    return (
        f"{what} also stand in {train} ({named}{', ...' if len(shared) > 3 else ''}): scores on them say nothing; take them "
        f"out of one of the two, or set data.overlap to count"
    )


def random_split(label: NDArray, draw: Draw) -> Split:
    """Draw pixels of every class at random; all others are test pixels, at least one of every class.

    Neighbours of training pixels fall into the test set and flatter the scores: `leakage` says how many.

    Args:
        label: (m,) class of every labelled pixel, integers from 1 on.
    Raises:
        InputError: a label is not such an integer, or a class has too few pixels.
    """
    _check_labels(label)
    generator = np.random.default_rng(draw.seed)
    dealt = [_deal(generator.permutation(np.flatnonzero(label == c)), c, draw, spare=1) for c in np.unique(label)]
    return Split(*(_joined(parts) for parts in zip(*dealt, strict=True)))


def block_split(label: NDArray, block: NDArray, draw: Draw) -> Split:
    """Draw training and validation pixels from about half of the blocks of every class; test on all other blocks.

    Classes choose in turn, those in few blocks first. Blocks that no other class has placed go to training in random
    order (largest first if there would else be too few pixels) until they are half of the class's blocks and hold
    enough pixels; one block with the class always stays for test.

    Args:
        label: (m,) class of every labelled pixel, integers from 1 on.
        block: (m,) number of the spatial block that it lies in.
    Raises:
        InputError: a label is not such an integer, blocks are not as many as labels, a class has no block for either
            side, or too few pixels in its blocks for training.
    """
    _check_labels(label)
    if block.shape != label.shape:
        raise InputError(f"{len(block)} blocks were given for {len(label)} labels; give the block of every pixel")
    generator = np.random.default_rng(draw.seed)
    inside = _place_blocks(label, block, draw.per_class + draw.validation, generator)
    dealt = []
    for c in np.unique(label):
        own = label == c
        if inside[own].all() or not inside[own].any():
            raise InputError(
                f"{draw.called(c)} lies in {len(np.unique(block[own]))} blocks, none left for "
                f"{'test' if inside[own].any() else 'training'}; use smaller blocks (data.protocol.side) or another seed, or "
                f"{draw.leaving_out(c)}"
            )
        pixels = generator.permutation(np.flatnonzero(inside & own))
        dealt.append(_deal(pixels, c, draw, where=", in its blocks for training,"))
    train, validation, _ = (_joined(parts) for parts in zip(*dealt, strict=True))
    return Split(train, validation, np.flatnonzero(~inside))


def pool_split(label: NDArray, train: Indices, test: Indices, draw: Draw) -> Split:
    """Draw training and validation pixels of every class from the training pixels of a given split; its test stays.

    Args:
        label: (m,) class of every labelled pixel, integers from 1 on.
    Raises:
        InputError: a label is not such an integer, or a class has too few of these training pixels.
    """
    _check_labels(label)
    generator = np.random.default_rng(draw.seed)
    dealt = []
    for c in np.unique(label):
        pixels = generator.permutation(train[label[train] == c])
        dealt.append(_deal(pixels, c, draw, where=", in the given training pixels,"))
    drawn, validation, _ = (_joined(parts) for parts in zip(*dealt, strict=True))
    return Split(drawn, validation, test)


def grid_blocks(position: NDArray, side: int) -> Indices:
    """Square tiles as blocks: (m, 2) row and column, or (m, 3) with the image's number -> (m,) number of the tile."""
    if side < 1:
        raise InputError(f"blocks of side {side} were asked for; give at least 1 pixel")
    tile = position // np.array([side, side, 1])[: position.shape[1]]
    return np.unique(tile, axis=0, return_inverse=True)[1].reshape(-1)


def overlapping(train: NDArray, test: NDArray, patch: int) -> NDArray[np.bool_]:
    """Which test pixels have a patch that shares pixels with the patch of a training pixel.

    Args:
        train, test: (count, 2) row and column of the centres; a third column numbers the images that they lie in.
        patch: side of the patches, odd.
    Returns:
        (count of test,) True where rows and columns of some pair, in one image, differ by less than `patch`.
    Raises:
        InputError: patches have no centre, or positions are not of such a shape.
    """
    if patch < 1 or patch % 2 == 0:
        raise InputError(f"patch {patch} has no centre pixel; use an odd side, such as {max(patch, 0) + 1}")
    for name, position in (("train", train), ("test", test)):
        if position.ndim != 2 or position.shape[1] not in (2, 3) or position.shape[1] != train.shape[1]:
            raise InputError(f"{name} positions are of shape {position.shape}; give row and column, (count, 2)")
    if not len(train):
        return np.zeros(len(test), dtype=bool)
    scale = np.array([1, 1, patch])[: train.shape[1]]  # other images are at least a patch away
    distance, _ = KDTree(train * scale).query(test * scale, p=np.inf)
    return distance < patch


def leakage(split: Split, position: NDArray, patch: int) -> float:
    """Share of the test pixels, 0 to 1, whose patch overlaps one of training; positions (m, 2) as in `overlapping`."""
    if not len(split.test):
        raise InputError("the split has 0 test pixels; leave some for test")
    return float(overlapping(position[split.train], position[split.test], patch).mean())


def _check_labels(label: NDArray) -> None:
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"labels are {label.dtype} of shape {label.shape}; give one integer per labelled pixel")
    if not len(label) or label.min() < 1:
        found = f"labels start at {label.min()}" if len(label) else "0 labels were given"
        raise InputError(f"{found}; give those of the labelled pixels alone, classes from 1 on")


def _joined(parts: Sequence[Indices]) -> Indices:
    return np.sort(np.concatenate(parts))


def _deal(pixels: Indices, number: int, draw: Draw, *, spare: int = 0, where: str = "") -> list[Indices]:
    """Part shuffled pixels into training, validation and the rest, at least `spare`; if capped, training comes first."""
    wanted = draw.per_class + draw.validation + spare
    if len(pixels) < (1 + spare if draw.cap else wanted):
        fewer = len(pixels) - spare - draw.validation
        mends = [draw.leaving_out(number)]
        if len(pixels) > spare and not draw.cap:
            mends.insert(0, "take what it has with data.protocol.cap true")
        if fewer > 0:
            mends.insert(0, f"ask for {fewer} with data.protocol.per_class")
        raise InputError(
            f"{draw.called(number)}{where} has {len(pixels)} pixels of the {wanted} that the split needs "
            f"({draw.per_class} for training, {draw.validation} for validation, {spare} for test); {', or '.join(mends)}"
        )
    ends = np.minimum([draw.per_class, draw.per_class + draw.validation], len(pixels) - spare)
    return np.split(pixels, ends)


def _place_blocks(label: NDArray, block: NDArray, wanted: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which pixels lie in blocks for training: (m,)."""
    rows, columns = (np.unique(values, return_inverse=True)[1] for values in (label, block))
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)  # pixels of each class in each block
    np.add.at(table, (rows, columns), 1)
    side = np.zeros(table.shape[1], dtype=np.int64)  # of each block: 1 training, -1 test, 0 not yet placed
    for counts in table[np.argsort((table > 0).sum(axis=1), kind="stable")]:
        free = generator.permutation(np.flatnonzero((counts > 0) & (side == 0)))
        _place_class(counts, side, free, wanted)
    return side[columns] > 0


def _place_class(counts: NDArray, side: NDArray, free: NDArray, wanted: int) -> None:
    """Place the free blocks of one class, given its pixels in every block; `side` is changed in place."""
    placed = side > 0
    pixels, blocks = counts[placed].sum(), (counts[placed] > 0).sum()
    most = max(len(free) - (not counts[side < 0].any()), 0)
    if pixels + counts[free[:most]].sum() < wanted:
        free = free[np.argsort(-counts[free], kind="stable")]
    pixels = pixels + np.append(0, counts[free].cumsum())
    blocks = blocks + np.arange(len(free) + 1)
    enough = np.flatnonzero((pixels >= wanted) & (blocks >= max((counts > 0).sum() // 2, 1)))
    count = min(enough[0] if len(enough) else len(free), most)
    side[free[:count]], side[free[count:]] = 1, -1
