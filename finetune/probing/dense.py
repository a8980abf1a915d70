"""A dense probe: a linear classifier of patches by their features, scored on the pixels of label maps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.readout import ReadOut, read_map
from alliance.sensors import Sensor
from datasets.imagery.images import ImageSource, SensorSource
from datasets.imagery.labels import IGNORE
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import Tiles
from engine.bootstrap import Weights, bootstrap
from engine.probing import Found, Labelled, fit_linear
from finetune.scores import image_confusions, segmentation_scores

MOST = 20_000  # patches to learn from
KEPT = ("files", "nodata", "axes", "count")  # of the description of images that an encoder's sensor replaces
Describe = Callable[[Tensor], Tensor]  # an image (c, h, w), standardised -> numbers of every patch (n, f)


class MaskSet(NamedTuple):
    """Images of one sensor with label maps, to learn from and to score."""

    sensor: Sensor
    role: str
    classes: tuple[str, ...]
    train: Tiles
    test: Tiles


def open_mask_set(described: LabelledSet, sensor: Sensor, role: str = "") -> MaskSet:
    """The splits train and test of a set, with images read as those of a sensor.

    Args:
        role: which of its images; empty: the first.
    Raises:
        InputError: it has no such images or splits.
    """
    role = role or next(iter(described.images))
    source = of_sensor(described.image(role), sensor)
    if not described.splits:
        raise InputError(f"{described.name} has no splits of images; a dense probe needs train and test")
    own = dataclasses.replace(described, images={**described.images, role: source})
    train, test = (Tiles(own, split) for split in ("train", "test"))
    return MaskSet(sensor, role, tuple(described.classes), train, test)


def of_sensor(source: ImageSource, sensor: Sensor) -> SensorSource:
    """Images read as those of a sensor, whatever their description says of bands and numbers."""
    return SensorSource(known=sensor, **{name: getattr(source, name) for name in KEPT})


def probe_masks(masks: MaskSet, patch: int, describe: Describe, *, seed: int = 0) -> Found:
    """Mean intersection over union of the pixels of the test images, with its interval over images (nan for one image).

    Raises:
        InputError: an image cannot be read, or no two classes are learnt from.
    """
    features, labels = [], []
    for index in range(len(masks.train)):
        image, label = _cut(masks, masks.train, index, patch)
        majority = patch_labels(label, patch, len(masks.classes))
        features.append(describe(image)[majority >= 0])
        labels.append(majority[majority >= 0])
    train = Labelled(torch.cat(features), torch.cat(labels).numpy())
    if len(np.unique(train.labels)) < 2:
        raise InputError(f"{masks.train.described.name}: the training images have one class or none; give others")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train.labels))[:MOST])
    train = Labelled(train.features[chosen], train.labels[chosen])
    learnt, confusions = fit_linear(train, seed=seed), []
    for index in range(len(masks.test)):
        image, label = _cut(masks, masks.test, index, patch)
        rows = label.shape[0] // patch
        answers = torch.from_numpy(learnt.classes(describe(image)))
        predicted = repeat(answers, "(y x) -> (y i) (x j)", y=rows, i=patch, j=patch)
        confusions.append(image_confusions(label[None], predicted[None], len(masks.classes)))
    return mean_iou(torch.cat(confusions), seed=seed)


def mean_iou(confusions: Tensor, *, seed: int = 0) -> Found:
    """Of images (m, k, k), rows truth, with the interval of drawing the images anew; nan for one image."""
    found = segmentation_scores(confusions).miou
    if len(confusions) < 2:
        return Found(found, float("nan"), float("nan"))

    def drawn(weights: Weights) -> float:
        return segmentation_scores(confusions * rearrange(torch.from_numpy(weights), "m -> m 1 1")).miou

    return Found(found, *bootstrap(drawn, len(confusions), seed=seed))


def patch_labels(label: Tensor, patch: int, classes: int) -> Tensor:
    """The class of most pixels of every patch (n,) from a label map (h, w); -1 where less than half have a label."""
    pixels = rearrange(label, "(y i) (x j) -> (y x) (i j)", i=patch, j=patch)
    counts = torch.stack([(pixels == number).sum(1) for number in range(classes)], dim=1)
    known = (pixels != IGNORE).sum(1) * 2 >= patch**2
    return torch.where(known, counts.argmax(1), -1)


def encoder_patches(encoder: AllianceEncoder, sensor: Sensor, readout: ReadOut) -> Describe:
    """Features of the patches of an image; band groups side by side for `groups`, else averaged."""
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def describe(image: Tensor) -> Tensor:
        batch = rearrange(image.to(device), "c h w -> 1 c h w")
        return read_map(encoder(batch, sensor, standardised=True), readout)[0].float().cpu()

    return describe


def raw_patches(patch: int) -> Describe:
    """Mean and deviation of every band in a patch."""

    def describe(image: Tensor) -> Tensor:
        shape: dict[str, Any] = {"i": patch, "j": patch}
        mean = reduce(image, "c (y i) (x j) -> (y x) c", "mean", **shape)
        squares = reduce(image.square(), "c (y i) (x j) -> (y x) c", "mean", **shape)
        return torch.cat([mean, (squares - mean.square()).clamp(min=0).sqrt()], dim=1)

    return describe


def _cut(masks: MaskSet, tiles: Tiles, index: int, patch: int) -> tuple[Tensor, Tensor]:
    """Standardised image (c, h, w) and label map (h, w) of whole patches."""
    sample = tiles[index]
    h, w = (side // patch * patch for side in sample.label.shape)
    if not h or not w:
        raise InputError(f"{tiles.keys[index]} is smaller than a patch of {patch} x {patch} pixels; leave it out")
    image = masks.sensor.standardise(sample.images[masks.role][None, :, :h, :w])[0][0]
    return image, sample.label[:h, :w]
