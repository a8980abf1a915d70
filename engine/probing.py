"""Probes: how well features of images, taken as they are, tell classes apart. Nothing of the encoder learns.

Every function is deterministic and takes its randomness as a seed, so that a run that probes itself is not disturbed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.bootstrap import DRAWS, bootstrap

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes of neighbours, as in DINO
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse ones of the penalty of a linear probe
USUAL = 1.0  # where there is too little to choose on
FOLDS = 5  # of the training features, on each of which in turn one of these is tried
MANY = 1000  # training features, from which on a single such part tells enough
ITERATIONS = 10_000  # at most; the optimum of standardised features takes some hundreds
CHUNK = 1024  # features that are compared at once

Kind = Literal["knn", "linear"]
Labels = NDArray[np.int64]


class Labelled(NamedTuple):
    """Features with their classes."""

    features: Tensor  # (n, f) float32
    labels: Labels  # (n,), from 0


class Found(NamedTuple):
    """Share of right answers, and the interval that holds it for 95 in 100 drawings of the test images."""

    accuracy: float
    low: float
    high: float


def probe(kind: Kind, train: Labelled, test: Labelled, *, seed: int = 0) -> Found:
    """Learn from some features and score on others."""
    answers = nearest(train, test.features) if kind == "knn" else linear(train, test.features, seed=seed)
    return interval(answers == test.labels, seed=seed)


def nearest(train: Labelled, queries: Tensor, neighbours: int = NEIGHBOURS) -> Labels:
    """Classes of queries (m, f) by the nearest training features: (m,).

    Of the `neighbours` with the largest cosine each votes for its class with exp(cosine / 0.07).
    """
    own = nn.functional.normalize(train.features.double(), dim=1)
    labels = torch.from_numpy(train.labels)
    answers = []
    for chunk in queries.double().split(CHUNK):
        cosines = nn.functional.normalize(chunk, dim=1) @ own.T
        top = cosines.topk(min(neighbours, len(own)), dim=1)
        votes = torch.zeros(len(chunk), int(labels.max()) + 1, dtype=torch.float64)
        votes.scatter_add_(1, labels[top.indices], ((top.values - 1) / TEMPERATURE).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers).numpy()


class LinearProbe(NamedTuple):
    """Logistic regression on standardised features, as `fit_linear` learns it."""

    mean: NDArray[np.float64]  # (f,), of the training features
    std: NDArray[np.float64]
    model: "LogisticRegression"

    def classes(self, queries: Tensor) -> Labels:
        """Of features (m, f): (m,)."""
        return np.asarray(self.model.predict(self._standardised(queries)))

    def chances(self, queries: Tensor) -> NDArray[np.float64]:
        """Probabilities of the classes that occur in training, rising: (m, f) -> (m, k)."""
        return np.asarray(self.model.predict_proba(self._standardised(queries)))

    def _standardised(self, queries: Tensor) -> NDArray[np.float64]:
        return (queries.double().numpy() - self.mean) / self.std


def fit_linear(train: Labelled, *, seed: int = 0, strengths: Sequence[float] = STRENGTHS) -> LinearProbe:
    """Logistic regression of features of two classes at least.

    Args:
        train: features (n, f) and their classes.
        strengths: inverse ones of the penalty; the one is taken that is best in cross-validation on the training features, of
            equals the strongest penalty.
    """
    features = train.features.double().numpy()
    mean, std = features.mean(0), features.std(0)
    std[std <= 1e-6 * np.abs(mean)] = 1.0
    features = (features - mean) / std
    strength = _best_strength(features, train.labels, seed, strengths)
    return LinearProbe(mean, std, regression(strength).fit(features, train.labels))


def linear(train: Labelled, queries: Tensor, *, seed: int = 0) -> Labels:
    """Classes of queries (m, f) by `fit_linear`: (m,)."""
    return fit_linear(train, seed=seed).classes(queries)


def interval(right: NDArray[np.bool_], *, seed: int = 0, draws: int = DRAWS) -> Found:
    """The share of right answers (m,) with its bootstrap interval."""
    ends = bootstrap(lambda weights: float(weights @ right / len(right)), len(right), draws=draws, seed=seed)
    return Found(float(right.mean()), *ends)


def raw_statistics(images: Tensor) -> Tensor:
    """Mean and deviation of every band, (b, c, h, w) -> (b, 2 * c): what features must beat."""
    pixels = images.flatten(2).float()
    return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards every part has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def regression(strength: float) -> "LogisticRegression":
    """A linear probe of one strength, for standardised features; it is fitted to its optimum."""
    from sklearn.linear_model import LogisticRegression  # a second of imports, which runs without such a probe save

    return LogisticRegression(C=strength, max_iter=ITERATIONS)


def _best_strength(features: NDArray[np.float64], labels: Labels, seed: int, strengths: Sequence[float]) -> float:
    """The best in cross-validation, every class alike in all folds; the usual one where a class has too few features for it."""
    counts = np.bincount(labels)
    fewest = int(counts[counts > 0].min())
    if fewest < 2:
        return USUAL
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit

    if len(labels) < MANY:
        folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    else:
        held = max(round(len(labels) / FOLDS), int((counts > 0).sum()))
        folds = StratifiedShuffleSplit(1, test_size=held, random_state=seed)
    search = GridSearchCV(regression(USUAL), {"C": sorted(strengths)}, cv=folds, refit=False)
    return float(search.fit(features, labels).best_params_["C"])
