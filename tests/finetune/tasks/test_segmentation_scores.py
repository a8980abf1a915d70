"""Scores of a segmentation: the numbers of a hand-worked case, of scikit-learn, and PAD's convention for kappa."""

import math

import pytest
import torch
from sklearn import metrics
from torch import Tensor

from alliance.errors import InputError
from finetune.scores import image_confusions, mean_kappa, segmentation_scores


def random_maps(images: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Labels with a quarter ignored, and predictions that are right half of the time."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (images, 9, 7), generator=draw)
    predicted = torch.where(
        torch.rand(truth.shape, generator=draw) < 0.5, truth, torch.randint(classes, truth.shape, generator=draw)
    )
    return truth.masked_fill(torch.rand(truth.shape, generator=draw) < 0.25, 255), predicted


def test_scores_of_a_hand_worked_case():
    truth = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 255]]])
    predicted = torch.tensor([[[0, 0, 1, 1], [1, 0, 1, 2]]])
    scores = segmentation_scores(image_confusions(truth, predicted, 3))
    assert scores.confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.oa == pytest.approx(4 / 6)
    assert scores.iou[:2].tolist() == [2 / 4, 2 / 4]
    assert scores.iou[2].isnan()  # occurs neither in truth nor in prediction
    assert (scores.miou, scores.mf1) == pytest.approx((1 / 2, 2 / 3))
    assert scores.kappa == scores.mkappa == pytest.approx((4 / 6 - 1 / 2) / (1 - 1 / 2))


def test_scores_are_those_of_scikit_learn():
    truth, predicted = random_maps()
    scores = segmentation_scores(image_confusions(truth, predicted, 4))
    valid = truth != 255
    pair = (truth[valid].numpy(), predicted[valid].numpy())
    assert scores.confusion.tolist() == metrics.confusion_matrix(*pair).tolist()
    assert scores.oa == pytest.approx(metrics.accuracy_score(*pair))
    assert scores.kappa == pytest.approx(metrics.cohen_kappa_score(*pair))
    for name, reference in (
        ("iou", metrics.jaccard_score),
        ("f1", metrics.f1_score),
        ("recall", metrics.recall_score),
        ("precision", metrics.precision_score),
    ):
        assert getattr(scores, name).tolist() == pytest.approx(reference(*pair, average=None).tolist())
    assert scores.miou == pytest.approx(metrics.jaccard_score(*pair, average="macro"))
    assert scores.mf1 == pytest.approx(metrics.f1_score(*pair, average="macro"))


def test_mean_kappa_is_that_of_scikit_learn_image_by_image():
    truth, predicted = random_maps()
    kappas = [
        metrics.cohen_kappa_score(labels[labels != 255], guesses[labels != 255])
        for labels, guesses in zip(truth, predicted, strict=True)
    ]
    assert min(kappas) > 0
    scores = segmentation_scores(image_confusions(truth, predicted, 4))
    assert scores.mkappa == scores.mkappa_release == pytest.approx(sum(kappas) / 5)


def test_mean_kappa_takes_negative_ones_as_equation_23_does_and_as_pads_code_does_not():
    """One class in both maps or no labelled pixel: 0 / 0, left out. One true class with an error: scored 0. All wrong: -1."""
    perfect_single, single_with_error = [[4, 0], [0, 0]], [[3, 1], [0, 0]]
    worse_than_chance, empty, half = [[0, 2], [2, 0]], [[0, 0], [0, 0]], [[3, 1], [1, 3]]
    cases = torch.tensor([perfect_single, single_with_error, worse_than_chance, empty, half])
    assert mean_kappa(cases).item() == pytest.approx((0 - 1 + 0.5) / 3)
    assert mean_kappa(cases, negative=False).item() == pytest.approx((0 + 0.5) / 2)
    scores = segmentation_scores(cases)
    assert (scores.mkappa, scores.mkappa_release) == pytest.approx((-1 / 6, 1 / 4))
    assert math.isnan(mean_kappa(cases[:1]).item())


def test_a_class_that_is_never_found_scores_zero():
    scores = segmentation_scores(torch.tensor([[[3, 0], [2, 0]]]))
    assert scores.f1[1] == scores.iou[1] == scores.recall[1] == 0
    assert scores.precision[1].isnan()
    assert (scores.miou, scores.mf1) == pytest.approx((3 / 5 / 2, 6 / 8 / 2))


def test_parts_of_a_test_set_give_the_scores_of_the_whole():
    truth, predicted = random_maps()
    whole = image_confusions(truth, predicted, 4)
    parts = torch.cat([image_confusions(truth[some], predicted[some], 4) for some in (slice(0, 2), slice(2, 5))])
    assert parts.equal(whole)


def test_maps_that_do_not_fit_are_refused():
    truth, predicted = random_maps()
    with pytest.raises(InputError, match=r"labels are \(5, 9, 7\), predictions \(4, 9, 7\)"):
        image_confusions(truth, predicted[:4], 4)
    with pytest.raises(InputError, match="label 3 is none of the classes 0 to 2"):
        image_confusions(truth, predicted.clamp(max=2), 3)
    with pytest.raises(InputError, match="prediction 9 is none of the classes 0 to 3"):
        image_confusions(truth.clamp(max=3), torch.full_like(predicted, 9), 4)
