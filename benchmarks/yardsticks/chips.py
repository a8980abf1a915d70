"""Tasks whose labels are of whole images: one label, or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alliance.encoder import AllianceEncoder
from alliance.readout import ReadOut
from alliance.sensors import Sensor
from benchmarks.yardsticks.describing import Describe, whole_images
from benchmarks.yardsticks.scoring import Answers, average_precision, draws_of, share_right
from datasets.chips.chip import Chip, ChipSet
from datasets.chips.labels import find_chips
from datasets.chips.reading import Chips, resized
from datasets.chips.splits import choose_few, draw_splits, given_splits
from datasets.imagery.images import ImageSource, SensorSource
from engine.probing import Kind, Labelled, fit_linear, linear, nearest

BATCH = 32
SPLIT_SEED = 0  # of what is scored, where nothing tells: the same for all draws of labels


@dataclass(frozen=True, kw_only=True)
class ChipTask:
    """Labels of whole images, as `data` of finetune/scene.py and multilabel.py describes them."""

    title: str
    sensor: str
    data: ChipSet
    size: int  # pixels, to which images are resized
    per_class: tuple[int, ...] = ()  # labelled images of a draw, one question for each number; none: all of the share
    share: float = 1.0  # the same, of those to learn from
    draws: int = 1  # of labels for each seed, whose outcomes are averaged
    several: bool = False
    readouts: tuple[ReadOut, ...] = ("groups",)  # the first makes the row of an encoder, others further rows
    probes: tuple[Kind, ...] = ("linear",)  # of one label; each asks for itself

    def parts(self, folder: Path) -> dict[str, list[Chip]]:
        """Images to learn from and to score: as their source tells, else halves drawn once."""
        found = find_chips(replace(self.data, path=str(folder)), several=self.several).chips
        given = given_splits(found) or draw_splits(found, (0.5, 0.0, 0.5), SPLIT_SEED)
        return {part: given[part] for part in ("train", "test")}

    def answers(
        self, folder: Path, encoders: Mapping[str, AllianceEncoder], sensors: Mapping[str, Sensor], seeds: Sequence[int]
    ) -> list[Answers]:
        """Of this task, for each number of labels and kind of probe; see `benchmarks.yardsticks.imagery`."""
        sensor, parts = sensors[self.sensor], self.parts(folder)
        classes = tuple(sorted({label for chips in parts.values() for chip in chips for label in chip.labels}))
        source = SensorSource(known=sensor, sensor=self.data.image.sensor)
        made = {}
        for part, chips in parts.items():
            opened = Chips(part, chips, classes, source)
            features = _described(opened, self.size, whole_images(encoders, sensor, self.readouts))
            made[part] = Described(features, opened.targets)
        found = []
        for count, kind in product(self.per_class or (None,), self.probes):
            chosen = [self._chosen(parts["train"], count, seed) for seed in seeds]
            rows = {row: self._row(made, row, chosen, kind) for row in made["train"].features}
            learnt = max(map(len, chosen[-1].values()))
            size = (len(classes), f"{learnt} images", f"{len(parts['test'])} images")
            few = "" if count == max(self.per_class, default=None) else f", {count} labels a class"
            how = ", nearest neighbours" if kind == "knn" else ""
            measured, measure = ("mAP micro", average_precision) if self.several else ("OA", share_right)
            found.append(Answers(f"{self.title}{few}{how}", measured, measure, *size, rows))
        return found

    def _chosen(self, chips: Sequence[Chip], count: int | None, seed: int) -> dict[int, list[int]]:
        """Places of the chips that are learnt from, for each draw of labels of a seed."""
        place = {chip.name: at for at, chip in enumerate(chips)}
        draws = draws_of(seed, self.draws)
        few = {draw: choose_few(chips, draw, per_class=count, share=self.share) for draw in draws}
        return {draw: [place[chip.name] for chip in each] for draw, each in few.items()}

    def _row(
        self, made: Mapping[str, "Described"], row: str, chosen: Sequence[Mapping[int, Sequence[int]]], kind: Kind
    ) -> list[Tensor]:
        """Outcomes of one row, for each seed."""
        answer = several_labels if self.several else partial(one_label, kind=kind)
        train, test = made["train"], made["test"]

        def outcome(few: Sequence[int], draw: int) -> Tensor:
            return answer(train.features[row][few], train.targets[few], test.features[row], test.targets, draw)

        return [torch.stack([outcome(few, draw) for draw, few in each.items()]).mean(0) for each in chosen]


class Described(NamedTuple):
    """Images as numbers, with their labels."""

    features: Mapping[str, Tensor]  # (n, f), by row
    targets: Tensor  # (n, k)


def image_of(sensor: str) -> ImageSource:
    """Images of a shipped sensor, to find them by."""
    return ImageSource(sensor=sensor, statistics="dataset")


def one_label(train: Tensor, targets: Tensor, test: Tensor, truth: Tensor, seed: int, kind: Kind = "linear") -> Tensor:
    """Where a probe of features (n, f) with targets (n, k) is right on others: (m,)."""
    learnt = Labelled(train, targets.argmax(1).numpy())
    answers = nearest(learnt, test) if kind == "knn" else linear(learnt, test, seed=seed)
    return torch.from_numpy(answers == truth.argmax(1).numpy()).double()


def several_labels(train: Tensor, targets: Tensor, test: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Truth and probabilities (m, 2, k) by a linear probe of every class; one that varies not in training has its share."""
    chances = torch.zeros(truth.shape, dtype=torch.float64)
    for place, column in enumerate(targets.T):
        chances[:, place] = column.mean()
        if 0 < column.mean() < 1:
            learnt = fit_linear(Labelled(train, column.numpy().astype(np.int64)), seed=seed)
            chances[:, place] = torch.from_numpy(learnt.chances(test)[:, 1])
    return torch.stack([truth.double(), chances], dim=1)


def _described(chips: Chips, size: int, makers: Mapping[str, Describe]) -> dict[str, Tensor]:
    """Numbers of every image (n, f), by row."""
    found: dict[str, list[Tensor]] = {row: [] for row in makers}
    for first in range(0, len(chips), BATCH):
        numbers = range(first, min(first + BATCH, len(chips)))
        images = torch.stack([resized(chips.read(number).numbers, size, size) for number in numbers])
        for row, describe in makers.items():
            found[row].append(describe(images))
    return {row: torch.cat(parts) for row, parts in found.items()}
