"""What is told of a task: the score of every row, its interval, and what it is above another row on the same images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from engine.bootstrap import ENDS
from finetune.scores import percent, segmentation_scores

RAW, PIXELS, UNTRAINED, TRAINED, RELEASED = (
    "raw",
    "pixels",
    "untrained",
    "pretrained",
    "released",
)  # rows, in their order
DRAWS = 400  # of the scored images, for an interval
LEAST = 4  # images, below which there is none
Measure = Callable[[Tensor], float]  # outcomes of some images, an entry each -> share


class Interval(NamedTuple):
    """A share, and the ends between which it lies for 95 in 100 drawings of the scored images and of the seeds; nan for too few images."""

    value: float
    low: float
    high: float

    def record(self) -> list[float | None]:
        """In percent."""
        return [percent(each) for each in self]


class Answers(NamedTuple):
    """What the rows said of the scored images of one task."""

    task: str
    measured: str
    measure: Measure
    classes: int
    learnt: str
    scored: str
    rows: dict[
        str, list[Tensor]
    ]  # outcomes (n, ...) of the n images for each seed, over the same draws of labels in all rows

    def record(self, others: Sequence[str] = (RAW, UNTRAINED)) -> dict[str, Any]:
        """What is written of it; see `summarise`."""
        told = {"task": self.task, "measure": self.measured, "classes": self.classes}
        told |= {"learnt": self.learnt, "scored": self.scored}
        return told | {"rows": summarise(self.rows, self.measure, others)}


def draws_of(seed: int, count: int) -> range:
    """Numbers of so many draws of labels of a seed; no two seeds share one."""
    return range(seed * count, (seed + 1) * count)


def summarise(
    rows: Mapping[str, Sequence[Tensor]], measure: Measure, others: Sequence[str], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Of every row its mean score over the seeds, and how much that is above other rows, in percent.

    For an interval images and seeds are drawn anew, the same for all rows: where every seed has a pretraining of its own, the interval
    counts how much these differ, as far as so few can tell.

    Args:
        rows: as of `Answers`.
        others: those rows.
    """
    first = next(iter(rows.values()))
    count, generator = len(first[0]), np.random.default_rng(seed)
    picks = torch.from_numpy(generator.integers(count, size=(DRAWS if count >= LEAST else 0, count)))
    among = generator.integers(len(first), size=(len(first), len(picks)))  # draws that stand for each of the draws
    own = {row: [measure(outcome) for outcome in draws] for row, draws in rows.items()}
    drawn = {row: np.array([[measure(each[pick]) for pick in picks] for each in draws]) for row, draws in rows.items()}
    value = {row: float(np.mean(each)) for row, each in own.items()}
    resampled = {row: np.take_along_axis(each, among, 0).mean(0) for row, each in drawn.items()}
    found = {}
    for row in rows:
        found[row] = {
            "score": interval(value[row], resampled[row]).record(),
            "draws": [percent(each) for each in own[row]],
        }
        for other in others:
            if other in rows and row != other:
                gain = interval(value[row] - value[other], resampled[row] - resampled[other])
                found[row][f"above {other}"] = gain.record()
    return found


def interval(value: float, drawn: np.ndarray) -> Interval:
    """A value with the quantiles of what it is in other drawings (m,)."""
    if not len(drawn):
        return Interval(value, math.nan, math.nan)
    low, high = np.nanquantile(drawn, ENDS)
    return Interval(value, float(low), float(high))


def share_right(outcomes: Tensor) -> float:
    """Of images (n,), 1 where the answer is right."""
    return outcomes.mean().item()


def average_precision(outcomes: Tensor) -> float:
    """Micro average precision of images (n, 2, k), truth and probabilities; nan where nothing is true."""
    truth, chances = (each.flatten().numpy() for each in outcomes.unbind(1))
    return float(average_precision_score(truth, chances)) if truth.any() else math.nan


def mean_iou(outcomes: Tensor) -> float:
    """Of confusion matrices (n, k, k), rows truth."""
    return segmentation_scores(outcomes).miou


def change_f1(outcomes: Tensor) -> float:
    """F1 of the second class of confusion matrices (n, 2, 2); 0 where it occurs nowhere."""
    return float(segmentation_scores(outcomes).f1[1].nan_to_num())


def pixel_accuracy(outcomes: Tensor) -> float:
    """Share of right pixels of confusion matrices (n, k, k)."""
    return segmentation_scores(outcomes).oa


MEASURES: Mapping[str, Measure] = {"mIoU": mean_iou, "F1 of change": change_f1, "OA": pixel_accuracy}  # of pixels
