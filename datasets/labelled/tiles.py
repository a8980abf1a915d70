"""Registered images with their label map, read one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alliance.errors import InputError
from datasets.imagery.grids import compare_grids
from datasets.imagery.images import read_image
from datasets.imagery.labels import IGNORE, read_label
from datasets.imagery.scenes import Scene, Unreadable
from datasets.labelled.description import LABEL, LabelledSet
from datasets.labelled.find import find_samples


class Sample(NamedTuple):
    """Images by role and their label map, or a batch of them with a leading dimension."""

    images: dict[str, Tensor]  # (c, h, w) float32 each, in the unit of its source, NaN where a pixel is missing
    label: Tensor  # (h, w) int64, class indices, 255 to ignore

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """The same done to every image (..., c, h, w) and the label map (..., h, w)."""
        return Sample({role: change(image) for role, image in self.images.items()}, change(self.label))


class Tiles(Dataset[Sample]):
    """The samples of a split, read from their files whenever one is asked for: no state, so any worker reads any sample.

    `keys` are their names; `skipped` are the names that lack a file, with the reason.

    Raises:
        InputError: no such split, folder or list, or no sample is complete.
    """

    def __init__(self, described: LabelledSet, split: str) -> None:
        self.described = described
        self.split = split
        self.files, self.skipped = find_samples(described, split)
        self.keys = [files.key for files in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """A sample by its number.

        Raises:
            InputError: a file is damaged or not what the description says, the images do not lie on one grid, or a
                label is no class.
        """
        key, paths = self.files[index]
        described = self.described
        images = {role: read_image(paths[role], source) for role, source in described.images.items()}
        label = read_label(paths[LABEL], described.label, described.classes, colours=described.coloured)
        check_grids(key, {role: image.header for role, image in images.items()} | {LABEL: label.header})
        return Sample({role: image.numbers for role, image in images.items()}, torch.from_numpy(label.indices))

    def label(self, index: int) -> np.ndarray:
        """The label map of a sample alone, (h, w) int64, see `__getitem__`."""
        path = self.files[index].label
        return read_label(path, self.described.label, self.described.classes, colours=self.described.coloured).indices


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
