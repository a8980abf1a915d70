"""Scores of labels of whole images, with an interval of the first one from resampled images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from sklearn.metrics import confusion_matrix as confusion_matrix_of

from engine.bootstrap import Weights, bootstrap
from finetune.scores import classification_record, classification_scores, confusion_matrix, per_class, percent

Numbers = NDArray[np.float64]
Chances = Sequence[float] | NDArray[np.floating]  # (k,) probabilities of one image
THRESHOLD = 0.5  # probability from which a class is taken to be there


class Labelled(NamedTuple):
    """What a network said of images, and the truth."""

    probabilities: Numbers  # (n, k)
    truth: NDArray[np.bool_]  # (n, k)


def scene_record(found: Labelled, classes: Sequence[str], *, resamples: int) -> dict[str, Any]:
    """Scores of one label each, in percent: overall accuracy with its interval, mean accuracy of classes, kappa, confusion."""
    truth, predicted = (torch.from_numpy(each.argmax(axis=1)) for each in (found.truth, found.probabilities))
    scores = classification_scores(confusion_matrix(truth, predicted, len(classes)))
    right = (truth == predicted).numpy().astype(np.float64)
    interval = percents(lambda weights: float(weights @ right / weights.sum()), len(right), resamples)
    return {**classification_record(scores, classes), "oa_interval": interval, "classes": list(classes)}


def multilabel_record(found: Labelled, classes: Sequence[str], *, resamples: int) -> dict[str, Any]:
    """Scores of several labels, in percent.

    map_micro is the average precision over all pairs of image and class together, map_macro the mean of that of each class
    that occurs; f1_micro and f1_macro are of classes with a probability of 0.5 or more, the latter over the classes that
    occur or are predicted; positives counts the images with a class, and
    confusion has a matrix for each class, rows truth (no, yes). What nothing defines is null.
    """
    truth, chances = found.truth, found.probabilities
    predicted, occurs = chances >= THRESHOLD, truth.any(axis=0)
    ap = np.full(len(classes), np.nan)
    undefined: Any = {"zero_division": np.nan}
    for number in np.flatnonzero(occurs):
        ap[number] = average_precision_score(truth[:, number], chances[:, number])
    columns = list(zip(truth.T, predicted.T, strict=True))
    f1 = np.array([f1_score(*column, **undefined) for column in columns])
    micro = average_precision_score(truth.ravel(), chances.ravel()) if occurs.any() else np.nan
    one = RankedPairs.of(truth, chances)
    return {
        "map_micro": percent(float(micro)),
        "map_macro": percent(_mean(ap)),
        "f1_micro": percent(float(f1_score(truth.ravel(), predicted.ravel(), **undefined))),
        "f1_macro": percent(_mean(f1)),
        "map_micro_interval": percents(one.average_precision, len(truth), resamples) if occurs.any() else None,
        "ap": per_class(torch.from_numpy(ap), classes),
        "f1": per_class(torch.from_numpy(f1), classes),
        "positives": {name: int(count) for name, count in zip(classes, truth.sum(axis=0), strict=True)},
        "confusion": [confusion_matrix_of(*column, labels=[False, True]).tolist() for column in columns],
        "classes": list(classes),
    }


class RankedPairs(NamedTuple):
    """Pairs of image and class by falling probability, so that one more weighting of the images needs no sorting."""

    image: NDArray[np.int64]  # (n * k,) number of the image
    truth: NDArray[np.bool_]  # (n * k,)
    ends: NDArray[np.int64]  # places of the last pair of every probability that occurs

    @classmethod
    def of(cls, truth: NDArray[np.bool_], chances: Numbers) -> "RankedPairs":
        """From truth and probabilities (n, k)."""
        order = np.argsort(-chances, axis=None, kind="stable")
        ranked = chances.ravel()[order]
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        return cls(order // truth.shape[1], truth.ravel()[order], ends)

    def average_precision(self, weights: Numbers) -> float:
        """Micro average precision with a weight for every image (n,); nan where no pair is true."""
        weight = weights[self.image]
        true, all_ = (np.cumsum(each)[self.ends] for each in (weight * self.truth, weight))
        if not true[-1]:
            return float("nan")
        precision = true / np.maximum(all_, 1e-300)
        return float(np.diff(true, prepend=0) @ precision / true[-1])


def percents(score: Callable[[Weights], float], count: int, resamples: int) -> list[float | None] | None:
    """Ends of a score's 95 % interval, percent, as `bootstrap` finds it; None without resamples or images."""
    return [percent(end) for end in bootstrap(score, count, draws=resamples)] if resamples and count else None


def label_names(row: Chances, classes: Sequence[str], *, several: bool) -> list[str]:
    """Labels that probabilities (k,) mean."""
    chances = np.asarray(row)
    if not several:
        return [classes[int(chances.argmax())]]
    return [name for name, chance in zip(classes, chances, strict=True) if chance >= THRESHOLD]


def probability_row(row: Chances, classes: Sequence[str]) -> Mapping[str, str]:
    """Probabilities (k,) by class, as tables hold them."""
    return {name: f"{float(chance):.6f}" for name, chance in zip(classes, row, strict=True)}


def _mean(values: Numbers) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
