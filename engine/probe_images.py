"""Labelled images for probes: read once, standardised as the encoder wants them, and their features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alliance.encoder import AllianceEncoder, Features
from alliance.errors import InputError
from alliance.readout import ReadOut, read_out
from alliance.sensors import Sensor
from alliance.sensors.plausible import drift, faults, look
from datasets.chips.chip import Chip, ChipSet
from datasets.chips.labels import find_chips
from datasets.chips.reading import Chips, Fit, fitted, fitting_size
from datasets.chips.splits import choose_few, draw_splits, given_splits
from datasets.imagery.images import SensorSource
from engine.probing import Labelled, Labels, raw_statistics

LOOKED_AT = 64  # images whose numbers are compared with the sensor's


class ProbePart(NamedTuple):
    """Images of one split."""

    images: Tensor  # (n, c, h, w) float32, standardised, 0 where missing
    labels: Labels  # (n,)

    def statistics(self) -> Labelled:
        """Mean and deviation of every band in place of features: (n, 2 * c)."""
        return Labelled(raw_statistics(self.images), self.labels)


@dataclass(frozen=True, kw_only=True)
class ProbeSet:
    """Images to learn from and to score, all of one size."""

    name: str
    sensor: Sensor
    classes: tuple[str, ...]
    train: ProbePart
    test: ProbePart
    skipped: int  # files that are none of them

    @torch.no_grad()
    def features(self, encoder: AllianceEncoder, readout: ReadOut, batch: int) -> tuple[Labelled, Labelled]:
        """Read-outs of an encoder on its device: to learn from, and to score."""
        return tuple(
            Labelled(
                torch.cat(
                    [read_out(each, readout).float().cpu() for each in encoded(encoder, part, self.sensor, batch)]
                ),
                part.labels,
            )
            for part in (self.train, self.test)
        )  # pyright: ignore[reportReturnType]


def encoded(encoder: AllianceEncoder, part: ProbePart, sensor: Sensor, batch: int) -> Iterator[Features]:
    """Features of images, some at a time."""
    device = next(encoder.parameters()).device
    for images in part.images.split(batch):
        yield encoder(images.to(device), sensor, standardised=True)


def open_probe_set(
    path: Path,
    sensor: Sensor,
    patch: int,
    *,
    name: str = "",
    most: int = 1000,
    share: float = 0.5,
    seed: int = 0,
    fit: Fit = "resize",
) -> ProbeSet:
    """Read a folder of classes: class/file, or train and test above the classes.

    Images get one size, a multiple of the patch: resized to about that of the first one, or cut out of their middles to what
    all of them have.

    Args:
        sensor: of the images, with statistics.
        patch: of the encoder, pixels.
        most: images to learn from at most, and as many to score, every class alike.
        share: of the images that is scored where no folders tell; drawn by the seed, every class alike.
    Raises:
        InputError: no such folder, no two classes, images that are not of the sensor or too small, or broken ones.
    """
    name = name or path.name
    found = find_chips(ChipSet(path=str(path), image=SensorSource(known=sensor)), several=False)
    if len(found.classes) < 2:
        raise InputError(f"{path} has the class {', '.join(found.classes)} alone; a probe tells two at least apart")
    parts = given_splits(found.chips) or draw_splits(found.chips, (1 - share, 0.0, share), seed)
    held = {part: parts.get(part) or parts.get("validation") for part in ("train", "test")}
    if missing := next((part for part, chips in held.items() if not chips), None):
        raise InputError(f"{path}: no images of split {missing}; give folders train and test, or classes alone")
    chosen = {
        part: Chips(part, _few(chips or [], most, len(found.classes), seed), found.classes, found.source)
        for part, chips in held.items()
    }
    numbers = {part: [chips.read(index).numbers for index in range(len(chips))] for part, chips in chosen.items()}
    every = [image for images in numbers.values() for image in images]
    _refuse_other_numbers(path, sensor, every)
    side = _common_size(path, every, patch, fit)
    ready = {
        part: ProbePart(_standardised(images, sensor, side, fit), chosen[part].targets.argmax(1).numpy())
        for part, images in numbers.items()
    }
    return ProbeSet(
        name=name, sensor=sensor, classes=found.classes, train=ready["train"], test=ready["test"],
        skipped=len(found.skipped),
    )  # fmt: skip


def _few(chips: Sequence[Chip], most: int, classes: int, seed: int) -> list[Chip]:
    return list(chips) if len(chips) <= most else choose_few(chips, seed, per_class=max(most // classes, 1))


def _refuse_other_numbers(path: Path, sensor: Sensor, images: Sequence[Tensor]) -> None:
    """Refuse images whose numbers cannot be the sensor's.

    Raises:
        InputError: they cannot; the message says the likely cause.
    """
    spread = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)
    pixels = torch.cat([images[index].flatten(1) for index in spread], dim=1)
    seen = look(sensor, pixels)
    if wrong := faults(sensor, seen) + drift(sensor, seen):
        raise InputError(
            f"{path}: its images are not what sensor {sensor.name} measures: {wrong[0]}; give their sensor"
        )


def _common_size(path: Path, images: Sequence[Tensor], patch: int, fit: Fit) -> tuple[int, int]:
    if fit == "resize":
        h, w = images[0].shape[-2:]
        side = fitting_size(h, w, patch, fit)
        return side, side
    height, width = (min(image.shape[axis] for image in images) // patch * patch for axis in (-2, -1))
    if not height or not width:
        raise InputError(f"{path} holds images smaller than a patch of {patch} x {patch} pixels; give larger ones")
    return height, width


def _standardised(images: Sequence[Tensor], sensor: Sensor, side: tuple[int, int], fit: Fit) -> Tensor:
    """Standardised before they are resized, as the tasks do it: a missing pixel then counts as the mean."""
    return torch.stack([fitted(sensor.standardise(image[None])[0][0], *side, fit) for image in images])


def class_counts(part: ProbePart, classes: Sequence[str]) -> Mapping[str, int]:
    """How many images of every class a split has."""
    counts = np.bincount(part.labels, minlength=len(classes))
    return dict(zip(classes, counts.tolist(), strict=True))
