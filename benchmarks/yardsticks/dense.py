"""Tasks whose labels are of pixels: segmentation, change, and the classes of single pixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from alliance.encoder import AllianceEncoder
from alliance.sensors import Sensor
from benchmarks.yardsticks.describing import Places, all_places
from benchmarks.yardsticks.scoring import MEASURES, Answers, draws_of
from datasets.imagery.labels import IGNORE
from datasets.labelled.tiles import Sample
from engine.probing import Labelled, LinearProbe, fit_linear
from finetune.scores import image_confusions

KEPT = 256  # labelled pixels of a piece that may be learnt from
MOST = 2000  # labelled pixels of a draw
STRENGTHS = (1e-3, 1e-2, 1e-1)  # as of `engine.probing`: with weaker penalties many features take minutes to fit

Features = Mapping[str, Tensor]  # by the role of the image, (places, f)


class Pieces(NamedTuple):
    """Pieces of images with label maps, read one by one."""

    number: int
    read: Callable[[int], Sample]  # images in physical units, and labels
    units: Sequence[str]  # of every piece the image that it is of: what is drawn anew for an interval


class Question(NamedTuple):
    """What is asked of the pieces."""

    title: str
    roles: tuple[str, ...]  # of the images that tell it
    change: bool = False  # features of two dates also by their difference
    measured: str = "mIoU"


class Parts(NamedTuple):
    """What is learnt from and what is scored."""

    train: Pieces
    test: Pieces
    classes: int


@dataclass(frozen=True, kw_only=True)
class DenseTask:
    """Questions about one set of pieces, which are read once for all."""

    questions: tuple[Question, ...]
    sensors: Mapping[str, str]  # of the images, by role
    open: Callable[[Path, Mapping[str, Sensor]], Parts]
    patch: int  # pixels, of raw statistics
    per_class: int | None = None  # labelled pixels of a draw; None: of half the pieces, `MOST` in all
    draws: int = 5  # of labels for each seed, whose outcomes are added up

    def answers(
        self, folder: Path, encoders: Mapping[str, AllianceEncoder], sensors: Mapping[str, Sensor], seeds: Sequence[int]
    ) -> list[Answers]:
        """Of every question; see `benchmarks.yardsticks.imagery`."""
        own = {role: sensors[name] for role, name in self.sensors.items()}
        parts = self.open(folder, own)
        makers = all_places(encoders, own, self.patch)
        seen = [_learnt(parts.train, piece, makers) for piece in range(parts.train.number)]
        owner = np.repeat(np.arange(len(seen)), [len(each.labels) for each in seen])
        labels = np.concatenate([each.labels for each in seen])
        draws = [
            {draw: draw_pixels(owner, labels, draw, self.per_class) for draw in draws_of(seed, self.draws)}
            for seed in seeds
        ]
        probes = {}
        for question, row in product(self.questions, makers):
            features = joined(question, _stacked(seen, row))
            probes[question, row] = [
                [
                    fit_linear(Labelled(features[few], labels[few]), seed=draw, strengths=STRENGTHS)
                    for draw, few in each.items()
                ]
                for each in draws
            ]
        outcomes = _scored(parts, makers, probes)
        learnt = max(map(len, draws[-1].values()))
        size = (parts.classes, f"{learnt} pixels", f"{len(set(parts.test.units))} images")
        return [
            Answers(
                question.title,
                question.measured,
                MEASURES[question.measured],
                *size,
                {row: outcomes[question, row] for row in makers},
            )
            for question in self.questions
        ]


class Learnt(NamedTuple):
    """Labelled pixels of a piece."""

    features: Mapping[str, Features]  # by row, of these pixels
    labels: np.ndarray  # (n,)


def draw_pixels(owner: np.ndarray, labels: np.ndarray, seed: int, per_class: int | None) -> np.ndarray:
    """Places among labelled pixels (n,) that are learnt from, by the piece that each is of: so many of each class, or
    those of half of the pieces, `MOST` at most.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    if per_class is not None:
        return np.sort(np.concatenate([order[labels[order] == each][:per_class] for each in np.unique(labels)]))
    pieces = np.unique(owner)
    half = generator.permutation(pieces)[: math.ceil(len(pieces) / 2)]
    return np.sort(order[np.isin(owner[order], half)][:MOST])


def joined(question: Question, features: Features) -> Tensor:
    """The features of the images side by side; of two dates with equally many also their absolute difference: (n, f)."""
    parts = [features[role] for role in question.roles]
    if question.change and parts[0].shape == parts[1].shape:
        parts.append((parts[1] - parts[0]).abs())
    return torch.cat(parts, dim=1)


def _learnt(pieces: Pieces, number: int, makers: Mapping[str, Places]) -> Learnt:
    """Some labelled pixels of a piece, drawn by its number; the same for all rows."""
    sample = _whole(pieces.read(number), makers)
    known = np.flatnonzero(sample.label.numpy() != IGNORE)
    chosen = np.sort(np.random.default_rng(number).permutation(known)[:KEPT])
    y, x = np.divmod(chosen, sample.label.shape[1])
    features = {}
    for row, maker in makers.items():
        place = torch.from_numpy(y // maker.patch * (sample.label.shape[1] // maker.patch) + x // maker.patch)
        features[row] = {role: describe(sample.images[role])[place] for role, describe in maker.of.items()}
    return Learnt(features, sample.label.flatten().numpy()[chosen])


def _stacked(seen: Sequence[Learnt], row: str) -> Features:
    return {role: torch.cat([each.features[row][role] for each in seen]) for role in seen[0].features[row]}


def _scored(
    parts: Parts, makers: Mapping[str, Places], probes: Mapping[tuple[Question, str], Sequence[Sequence[LinearProbe]]]
) -> dict[tuple[Question, str], list[Tensor]]:
    """Confusion matrices of every image that is scored (n, k, k), for each seed those of its probes together."""
    k, names = parts.classes, list(dict.fromkeys(parts.test.units))
    found = {key: [torch.zeros(len(names), k, k) for _ in each] for key, each in probes.items()}
    for number in range(parts.test.number):
        sample, unit = _whole(parts.test.read(number), makers), names.index(parts.test.units[number])
        for row, maker in makers.items():
            features = {role: describe(sample.images[role]) for role, describe in maker.of.items()}
            for question in dict.fromkeys(question for question, _ in probes):
                queries = joined(question, features)
                for outcome, learnt in zip(found[question, row], probes[question, row], strict=True):
                    for probe in learnt:
                        answers = torch.from_numpy(probe.classes(queries))
                        outcome[unit] += _confusion(sample.label, answers, maker.patch, k)
    return found


def _confusion(label: Tensor, answers: Tensor, patch: int, classes: int) -> Tensor:
    predicted = repeat(answers, "(y x) -> (y i) (x j)", y=label.shape[0] // patch, i=patch, j=patch)
    return image_confusions(label[None], predicted[None], classes)[0]


def _whole(sample: Sample, makers: Mapping[str, Places]) -> Sample:
    """The sample cut to whole patches of all rows."""
    step = math.lcm(*(maker.patch for maker in makers.values()))
    h, w = (side // step * step for side in sample.label.shape)
    return sample.map(lambda image: image[..., :h, :w])
