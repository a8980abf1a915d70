"""Chips read one by one, their labels as numbers, and micro-batches of them without augmentation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from datasets.chips.chip import Chip
from datasets.chips.files import ImageFiles, describe_image
from datasets.imagery.grids import compare_grids
from datasets.imagery.images import Image, ImageSource, opened_scene
from datasets.imagery.scenes import Unreadable
from datasets.sampling.faults import Fault
from datasets.sampling.moments import Moments
from datasets.sampling.order import shuffled

STREAM = 8  # keeps the choice of images apart from other draws with the same seed
Fit = Literal["resize", "crop"]  # how an image gets the size of a network
EMPTY = "no pixel has a value in every band"
MEASURED = 2000  # chips, at most, of which means and deviations are taken


class ChipBatch(NamedTuple):
    """Chips as a network gets them."""

    image: Tensor  # (b, c, h, w) float32, standardised, 0 where missing
    target: Tensor  # (b, k) float32, from 0 to 1 for each class
    weight: Tensor  # (b,) float32, 0 for a chip that could not be read
    keys: Sequence[str]
    faults: Sequence[Fault] = ()


class Chips:
    """The chips of one part of the data, read from their files whenever one is asked for.

    Args:
        part: its name.
        classes: in the order of their indices.
        source: what the images are.
        beside: what second images of the chips are; None: there are none.
    """

    def __init__(
        self,
        part: str,
        chips: Sequence[Chip],
        classes: Sequence[str],
        source: ImageSource,
        beside: ImageSource | None = None,
    ) -> None:
        self.part, self.chips, self.classes, self.source = part, list(chips), tuple(classes), source
        self.keys = [chip.name for chip in self.chips]
        others = [chip._replace(files=chip.beside, beside=()) for chip in self.chips]
        self.second = None if beside is None else Chips(part, others, classes, beside)

    @property
    def channels(self) -> int:
        """Of both images together."""
        return len(self.source.moments[0]) + (self.second.channels if self.second else 0)

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, number: int) -> Image:
        """An image (c, h, w) in the unit of its source, NaN where missing, and what its header says.

        Raises:
            InputError: a file is damaged, or not what the source says.
        """
        chip = self.chips[number]
        with opened_scene(describe_image(ImageFiles(chip.name, chip.files), self.source), self.source) as image:
            return Image(image.window(*(chip.parts or (0, 0, *image.header.shape[1:]))), image.header)

    def target(self, number: int) -> Tensor:
        """(k,) float32, 1 for the classes of a chip."""
        labels = self.chips[number].labels
        return torch.tensor([float(name in labels) for name in self.classes])

    @property
    def targets(self) -> Tensor:
        """Of all chips, (n, k) float32."""
        return torch.stack([self.target(number) for number in range(len(self))])

    def images(self, number: int) -> list[Image]:
        """The image of a chip as `read` gives it, and the second one if there is one.

        Raises:
            InputError: a file is damaged or not what its source says, or the two do not cover the same ground.
        """
        first = self.read(number)
        if self.second is None:
            return [first]
        other = self.second.read(number)
        try:
            compare_grids(first.header, other.header)
        except Unreadable as error:
            raise InputError(f"it and {self.second.chips[number].files[0].parent}, beside it: {error}") from error
        return [first, other]

    def standardise(self, images: Sequence[Image]) -> Tensor | None:
        """What `images` gives as (c, h, w), 0 where missing, a second one behind the first and of its size; None: one is empty."""
        if any(image.numbers.isnan().any(dim=0).all() for image in images):
            return None
        sources = [self.source, *([self.second.source] if self.second else [])]
        parts = [source.standardise(image.numbers) for source, image in zip(sources, images, strict=True)]
        return torch.cat([resized(part, *parts[0].shape[-2:]) for part in parts])

    def standardised(self, number: int) -> Tensor | Fault:
        """Image and second image of a chip as `standardise` gives them; or why there are none."""
        try:
            image = self.standardise(self.images(number))
        except InputError as error:
            return Fault("pair", self.part, self.keys[number], str(error))
        return Fault("empty", self.part, self.keys[number], EMPTY) if image is None else image


def batch_of(
    chips: Chips,
    numbers: Sequence[int],
    size: int,
    change: Callable[[int, Tensor], Tensor] | None = None,
    *,
    fit: Fit = "resize",
) -> ChipBatch:
    """Chips by their numbers, as squares.

    Args:
        size: pixels.
        change: an image (c, h, w) and its place in the batch -> (c, size, size); None: as `fit` says.
    """
    images, weights, faults = [], [], []
    for place, number in enumerate(numbers):
        found = chips.standardised(number)
        fine = isinstance(found, Tensor)
        if not fine:
            faults.append(found)
        image = found if isinstance(found, Tensor) else torch.zeros(chips.channels, size, size)
        images.append(change(place, image) if change and fine else fitted(image, size, size, fit))
        weights.append(float(fine))
    target = torch.stack([chips.target(number) for number in numbers])
    return ChipBatch(
        torch.stack(images), target, torch.tensor(weights), [chips.keys[number] for number in numbers], faults
    )


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """(c, h, w) -> (c, height, width), bilinear, smoothed before it is made smaller."""
    if image.shape[-2:] == (height, width):
        return image
    batch = rearrange(image, "c h w -> 1 c h w")
    return functional.interpolate(batch, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def fitted(image: Tensor, height: int, width: int, fit: Fit) -> Tensor:
    """An image (c, h, w) of a network's size (c, height, width): resized whole, or its middle; smaller ones are resized."""
    spare = image.shape[-2] - height, image.shape[-1] - width
    if fit == "resize" or min(spare) < 0:
        return resized(image, height, width)
    top, left = (each // 2 for each in spare)
    return image[..., top : top + height, left : left + width]


def fitting_size(height: int, width: int, patch: int, fit: Fit) -> int:
    """Side of squares for images of a size: the multiple of the patch that is nearest to the longer side, or that the shorter holds."""
    count = round(max(height, width) / patch) if fit == "resize" else min(height, width) // patch
    return max(count, 1) * patch


def with_statistics(source: ImageSource, chips: Chips) -> ImageSource:
    """The source with mean and deviation of every band: given, of the sensor, or measured on some of the chips.

    Raises:
        InputError: they are not known, or none of the chips can be read.
    """
    if source.statistics != "dataset" or source.mean:
        source.moments  # noqa: B018 - refused where they are not known
        return source
    chosen = sorted(shuffled(len(chips), STREAM, 0)[:MEASURED].tolist())
    total: Moments | None = None
    refused: list[InputError] = []
    for number in chosen:
        try:
            own = Moments.of(chips.read(number).numbers)
            total = own if total is None else total.merge(own)
        except InputError as error:
            refused.append(error)
    if total is None:
        raise InputError(f"none of {len(chosen)} images of {chips.part} can be read: {refused[0]}")
    if not total.count.all():
        raise InputError(f"band {int(total.count.argmin()) + 1} has no value in {len(chosen)} images; leave it out")
    std = tuple(value if value > 0 else 1.0 for value in total.std.tolist())
    return dataclasses.replace(source, mean=tuple(total.mean.tolist()), std=std)
