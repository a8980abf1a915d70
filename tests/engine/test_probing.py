"""Probes of features: against another library, against theory, and without a trace in what is probed."""

from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from engine.log import mirrored
from engine.probing import (
    STRENGTHS,
    Labelled,
    evaluating,
    fit_linear,
    interval,
    linear,
    nearest,
    probe,
    raw_statistics,
    regression,
)


def clouds(count: int, *, apart: float = 1.5, seed: int = 0) -> Labelled:
    """Features of three classes around three axes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = draw.standard_normal((count, 5)) + apart * np.eye(5)[labels]
    return Labelled(torch.from_numpy(features).float(), labels)


def test_the_nearest_vote_as_those_of_another_library():
    train, test = clouds(90), clouds(300, seed=1)
    votes: Any = lambda distance: np.exp(-distance / 0.07)  # noqa: E731
    other = KNeighborsClassifier(20, metric="cosine", weights=votes)
    expected = other.fit(train.features.numpy(), train.labels).predict(test.features.numpy())
    assert (nearest(train, test.features) == expected).mean() > 0.995  # float32 and float64 may part a tie
    assert 0.5 < (expected == test.labels).mean() < 0.9


def test_fewer_images_than_neighbours_are_enough():
    train = Labelled(torch.eye(3), np.arange(3))
    assert nearest(train, torch.eye(3) + 0.1).tolist() == [0, 1, 2]


def test_a_linear_probe_is_logistic_regression_with_one_of_the_strengths():
    train, test = clouds(120), clouds(200, seed=1)
    mean, std = train.features.double().mean(0), train.features.double().std(0, correction=0)
    ready = [((each.features - mean) / std).numpy() for each in (train, test)]
    expected = [
        LogisticRegression(C=strength, max_iter=300).fit(ready[0], train.labels).predict(ready[1])
        for strength in STRENGTHS
    ]
    found = linear(train, test.features)
    assert any(np.array_equal(found, each) for each in expected)


def test_the_strength_is_the_one_that_tells_most_where_it_was_not_fitted():
    """By hand: each fifth of every class in turn is told by the others; of equals the strongest penalty. Of a thousand one fifth is enough."""
    for count in (60, 1200):
        train = clouds(count, apart=0.8)
        features = (train.features - train.features.mean(0)) / train.features.std(0, correction=0)
        folds = StratifiedKFold(5, shuffle=True, random_state=3).split(features, train.labels)
        if count > 1000:
            folds = [next(StratifiedShuffleSplit(1, test_size=0.2, random_state=3).split(features, train.labels))]
        folds = [(torch.from_numpy(own), torch.from_numpy(other)) for own, other in folds]
        right = [
            sum(
                (
                    regression(strength).fit(features[own], train.labels[own]).predict(features[other])
                    == train.labels[other]
                ).mean()
                for own, other in folds
            )
            for strength in STRENGTHS
        ]
        best = STRENGTHS[int(np.argmax(np.round(right, 9)))]
        found = fit_linear(train, seed=3).model
        assert best == found.C
        assert len(set(np.round(right, 9))) > 1


def test_the_optimum_is_reached_where_features_are_many_and_alike():
    """The slope of the objective, C sum of -log p + |w|^2 / 2, by hand; classes that any plane parts take longest."""
    draw = np.random.default_rng(0)
    labels = np.arange(400) % 4
    hidden = draw.standard_normal((400, 12)) + 2.0 * np.eye(12)[labels]
    features = hidden @ draw.standard_normal((12, 150)) + 0.05 * draw.standard_normal((400, 150))
    features = (features - features.mean(0)) / features.std(0)
    for strength in STRENGTHS:
        model = regression(strength).fit(features, labels)  # a warning of sklearn's would be an error here
        wrong = model.predict_proba(features) - np.eye(4)[labels]
        slope = wrong.T @ features + model.coef_ / strength
        assert np.abs(slope).max() / len(features) < 2e-4


def test_features_that_do_not_vary_and_classes_of_one_image_do_no_harm():
    features = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
    assert linear(Labelled(features, np.array([0, 1])), features).tolist() == [0, 1]


def test_an_interval_is_that_of_the_binomial_distribution():
    right = np.arange(400) < 300
    found = interval(right, draws=20_000)
    assert found.accuracy == 0.75
    expected = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert np.abs(np.array(found[1:]) - expected).max() <= 1.001 / 400
    assert interval(right, seed=3) == interval(right, seed=3)


def test_classes_far_apart_are_told_and_shuffled_labels_are_not():
    train, test = clouds(90, apart=50.0), clouds(90, apart=50.0, seed=1)
    noise = test._replace(labels=np.random.default_rng(0).permutation(test.labels))
    for kind in ("knn", "linear"):
        assert probe(kind, train, test).accuracy == 1.0
        assert probe(kind, train, noise).accuracy < 0.55


def test_raw_statistics_are_mean_and_deviation_of_every_band():
    image = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])
    assert raw_statistics(image).tolist() == [[2.0, 2.0, 1.0, 0.0]]


def test_a_model_is_given_back_in_the_modes_it_had():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before, state = [module.training for module in model.modules()], torch.get_rng_state()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 2)).requires_grad
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mirror_shows_steps_the_numbers_of_probes_and_the_files_of_pictures():
    assert mirrored({"step": 3, "loss": 1.0}) == {"loss": 1.0}
    told = {"event": "probe", "step": 3, "data": "eurosat", "kind": "knn", "accuracy": 61.0}
    assert mirrored(told) == {"probe/eurosat/knn/accuracy": 61.0}
    assert mirrored({"event": "picture", "step": 3, "sensor": "s2", "path": "a.png"}) == {"picture/s2": "a.png"}
    assert mirrored({"event": "checkpoint", "step": 3, "path": "x"}) == {}
