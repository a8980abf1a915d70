"""Registered images with their label map, read one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alliance.errors import InputError
from datasets.imagery.grids import compare_grids
from datasets.imagery.images import describe, read_image
from datasets.imagery.labels import IGNORE, Label, read_label
from datasets.imagery.scenes import Box, Scene, Unreadable
from datasets.labelled.description import LABEL, LabelledSet
from datasets.labelled.find import SampleFiles, find_samples
from datasets.sampling.order import shuffled

STREAM = 5  # keeps the choice of images apart from other draws with the same seed


class Sample(NamedTuple):
    """Images by role and their label map, or a batch of them with a leading dimension."""

    images: dict[str, Tensor]  # (c, h, w) float32 each, in the unit of its source, NaN where a pixel is missing
    label: Tensor  # (h, w) int64, class indices, 255 to ignore

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """The same done to every image (..., c, h, w) and the label map (..., h, w)."""
        return Sample({role: change(image) for role, image in self.images.items()}, change(self.label))


class Cut(NamedTuple):
    """How large images are cut into windows."""

    side: int  # pixels
    stride: int | None = (
        None  # at most so many pixels from one window to the next; None: disjoint windows of about a size
    )

    def boxes(self, height: int, width: int) -> list[Box]:
        """The windows of an image, row by row, which hold every pixel of it; with `stride` each of the whole side if it fits."""
        rows, cols = self._spans(height), self._spans(width)
        return [Box(top, left, high, wide) for top, high in rows for left, wide in cols]

    def _spans(self, length: int) -> list[tuple[int, int]]:
        if self.stride is None:
            count = math.ceil(length / self.side)
            ends = [length * number // count for number in range(count + 1)]
            return [(start, stop - start) for start, stop in pairwise(ends)]
        room = max(length - self.side, 0)
        count = math.ceil(room / self.stride)
        return [(room * number // max(count, 1), min(self.side, length)) for number in range(count + 1)]


class Tiles(Dataset[Sample]):
    """The samples of a split, read from their files whenever one is asked for: no state, so any worker reads any sample.

    `keys` are their names; `skipped` are the names that lack a file, with the reason. A sample may be a window of an image:
    `boxes` says of which place, None: all of it.

    Args:
        cut: how images are cut into windows; None: they are taken whole.
        labelled: False: label maps are not read; pixels that an image has are of class 0, the others without a label.
        share: of the images that are taken, at least one; a smaller share is a part of a larger one.
        seed: which images these are.

    Raises:
        InputError: no such split, folder or list, or no sample is complete.
    """

    def __init__(
        self,
        described: LabelledSet,
        split: str,
        *,
        cut: Cut | None = None,
        labelled: bool = True,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.described = described
        self.split = split
        found, self.skipped = find_samples(described, split, labelled=labelled)
        kept = sorted(shuffled(len(found), STREAM, seed)[: max(round(share * len(found)), 1)]) if share < 1 else None
        self.images = found if kept is None else [found[number] for number in kept]
        self.files: list[SampleFiles] = []
        self.boxes: list[Box | None] = []
        self.keys: list[str] = []
        for files in self.images:
            boxes = self._boxes(files, cut)
            self.files += [files] * len(boxes)
            self.boxes += boxes
            self.keys += [files.key if box is None else f"{files.key}@{box.row},{box.col}" for box in boxes]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """A sample by its number.

        Raises:
            InputError: a file is damaged or not what the description says, the images do not lie on one grid, or a
                label is no class.
        """
        (key, paths), box = self.files[index], self.boxes[index]
        read = {role: read_image(paths[role], source, box=box) for role, source in self.described.images.items()}
        images, headers = (
            {role: image.numbers for role, image in read.items()},
            {role: image.header for role, image in read.items()},
        )
        if LABEL not in paths:
            check_grids(key, headers)
            missing = torch.stack([image.isnan().all(dim=0) for image in images.values()]).all(dim=0)
            return Sample(images, torch.where(missing, IGNORE, 0))
        label = self._label(index)
        check_grids(key, headers | {LABEL: label.header})
        return Sample(images, torch.from_numpy(label.indices))

    def label(self, index: int) -> np.ndarray:
        """The label map of a sample alone, (h, w) int64, see `__getitem__`."""
        return self._label(index).indices

    def _label(self, index: int) -> Label:
        path, known = self.files[index].label, self.described
        return read_label(path, known.label, known.classes, colours=known.coloured, box=self.boxes[index])

    def _boxes(self, files: SampleFiles, cut: Cut | None) -> Sequence[Box | None]:
        """The windows of an image; one whose header cannot be read stays whole, so that it is named where it is read."""
        if cut is None:
            return [None]
        role, source = next(iter(self.described.images.items()))
        try:
            boxes = cut.boxes(*describe(files.paths[role], bands=source.count, axes=source.axes).shape[1:])
        except InputError:
            return [None]
        return boxes if len(boxes) > 1 else [None]


def stacked(samples: Sequence[Sample]) -> Sample:
    """Samples of one size as a batch."""
    roles = samples[0].images
    images = {role: torch.stack([sample.images[role] for sample in samples]) for role in roles}
    return Sample(images, torch.stack([sample.label for sample in samples]))


def blank_sample(described: LabelledSet, side: int) -> Sample:
    """A square sample without pixels: it adds nothing to a loss or a score."""
    images = {role: torch.full((channels(role, described), side, side), torch.nan) for role in described.images}
    return Sample(images, torch.full((side, side), IGNORE))


def channels(role: str, described: LabelledSet) -> int:
    """How many channels the images of a role have.

    Raises:
        InputError: the description does not tell.
    """
    source = described.image(role)
    sensor = source.description
    count = len(source.bands) or (len(sensor.bands) if sensor else source.count)
    if not count:
        raise InputError(f"{described.name}: {role} names no bands; give `bands` or `sensor`")
    return count


def check_grids(key: str, headers: Mapping[str, Scene]) -> None:
    """Refuse images and maps of one sample that differ in size or place; those without a place are not compared.

    Raises:
        InputError: they do not lie on one grid.
    """
    sizes = {role: header.shape[1:] for role, header in headers.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role} {height} x {width}" for role, (height, width) in sizes.items())
        raise InputError(f"{key}: sizes in pixels differ: {listed}; resample or crop them to one grid")
    placed = [(role, header) for role, header in headers.items() if header.transform or header.points]
    for role, header in placed[1:]:
        try:
            compare_grids(placed[0][1], header)
        except Unreadable as error:
            raise InputError(f"{key}: {placed[0][0]} and {role} lie in different places: {error}") from error
