"""Scores of classifications and segmentations from their confusion matrices, and their records in scores.json.

In scores.json they are percent with two decimals, named as the papers name them; null where nothing defines a score.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from engine.runs import write_whole

OVERALL = ("oa", "miou", "mf1", "mkappa", "mkappa_release", "kappa")  # of a segmentation


class Scores(NamedTuple):
    """Shares from 0 to 1; nan where nothing defines them."""

    oa: float  # overall accuracy
    aa: float  # average accuracy: mean of the classes that occur
    kappa: float  # Cohen's kappa: agreement beyond chance
    per_class: Tensor  # (k,) float64, share of each class that was found
    confusion: Tensor  # (k, k) int64, rows truth, columns prediction


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each: integers (m,) in 0 .. k - 1 -> (k, k) int64, rows truth.

    Matrices of parts add up to that of the whole.

    Raises:
        InputError: shapes differ, or a class lies outside.
    """
    if truth.shape != predicted.shape:
        raise InputError(f"{predicted.numel()} predictions were given for {truth.numel()} labels; give one for each")
    for name, values in (("label", truth), ("prediction", predicted)):
        outside = values[(values < 0) | (values >= classes)]
        if len(outside):
            raise InputError(f"{name} {outside[0].item()} is none of the classes 0 to {classes - 1}; leave it out")
    return torch.bincount(truth.long() * classes + predicted.long(), minlength=classes**2).unflatten(0, (classes, -1))


def classification_scores(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix (k, k), rows truth."""
    counts = confusion.double().cpu()
    found = counts.diagonal()
    per_class = found / counts.sum(dim=1)
    accuracy = found.sum() / counts.sum()
    kappa = cohen_kappa(counts).item()
    return Scores(accuracy.item(), per_class.nanmean().item(), kappa, per_class, confusion.cpu())


def cohen_kappa(confusion: Tensor) -> Tensor:
    """Agreement beyond chance (..., k, k) -> (...); nan where chance alone agrees on everything."""
    pixels = confusion.sum(dim=(-2, -1))
    agreed = confusion.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / pixels
    chance = (confusion.sum(dim=-1) * confusion.sum(dim=-2)).sum(dim=-1) / pixels.square()
    return torch.where(chance < 1, (agreed - chance) / (1 - chance), torch.nan)


class SegmentationScores(NamedTuple):
    """Shares from 0 to 1, from the pixels of all images together unless said otherwise; nan where nothing defines them.

    A class that occurs neither in truth nor in prediction is nan and not part of a mean.
    """

    oa: float  # overall accuracy
    miou: float
    mf1: float
    mkappa: float  # mean over images of Cohen's kappa of each, as PAD's paper defines it
    mkappa_release: float  # the same as PAD's public code computes it, without images whose kappa is negative
    kappa: float  # Cohen's kappa of all pixels together
    iou: Tensor  # (k,) float64, intersection over union
    f1: Tensor  # (k,)
    recall: Tensor  # (k,) share of the true pixels that was found
    precision: Tensor  # (k,) share of the predicted pixels that is true
    confusion: Tensor  # (k, k) int64, rows truth, columns prediction


def image_confusions(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each, image by image; pixels of truth 255 do not count.

    Args:
        truth: (b, h, w), integers 0 .. k - 1, or 255.
        predicted: (b, h, w), integers 0 .. k - 1; anything where truth is 255.
    Returns:
        (b, k, k) int64, rows truth, columns prediction.
    Raises:
        InputError: shapes differ, or a class lies outside.
    """
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise InputError(f"labels are {tuple(truth.shape)}, predictions {tuple(predicted.shape)}; give (b, h, w) twice")
    valid = truth != IGNORE
    for name, values in (("label", truth), ("prediction", predicted)):
        outside = valid & ((values < 0) | (values >= classes))
        if outside.any():
            raise InputError(f"{name} {values[outside][0].item()} is none of the classes 0 to {classes - 1}")
    ignored = classes**2  # one cell more, for pixels that do not count
    cell = torch.where(valid, truth.long() * classes + predicted, ignored)
    counts = [torch.bincount(image.flatten(), minlength=ignored + 1)[:ignored] for image in cell]
    return torch.stack(counts).unflatten(1, (classes, classes))


def segmentation_scores(confusions: Tensor) -> SegmentationScores:
    """Scores of the confusion matrices (n, k, k) of all images, rows truth; of ranks or batches, concatenate them."""
    counts = confusions.double().cpu()
    total = counts.sum(dim=0)
    found, true, claimed = total.diagonal(), total.sum(dim=1), total.sum(dim=0)
    iou, f1 = found / (true + claimed - found), 2 * found / (true + claimed)
    return SegmentationScores(
        oa=(found.sum() / total.sum()).item(),
        miou=iou.nanmean().item(),
        mf1=f1.nanmean().item(),
        mkappa=mean_kappa(counts).item(),
        mkappa_release=mean_kappa(counts, negative=False).item(),
        kappa=cohen_kappa(total).item(),
        iou=iou,
        f1=f1,
        recall=found / true,
        precision=found / claimed,
        confusion=confusions.sum(dim=0).cpu(),
    )


def mean_kappa(confusions: Tensor, *, negative: bool = True) -> Tensor:
    """Mean of each image's kappa (equation 23 of PAD) over (n, k, k); nan where no image has one.

    Left out are images whose kappa is 0 / 0: those without labelled pixels, and those where truth and prediction are one and
    the same class.

    Args:
        negative: take images with a negative kappa, which the equation does and PAD's public code does not.
    """
    kappas = cohen_kappa(confusions.double())
    return kappas[~kappas.isnan() if negative else kappas >= 0].mean()


def segmentation_record(scores: SegmentationScores, classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent; per class by name; null where nothing defines a score."""
    record: dict[str, Any] = {name: percent(getattr(scores, name)) for name in OVERALL}
    for name in ("iou", "f1", "recall", "precision"):
        record[name] = per_class(getattr(scores, name), classes)
    return record | {"confusion": scores.confusion.tolist(), "classes": list(classes)}


def change_record(scores: SegmentationScores, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of the second of two classes, which is change, in percent; null where nothing defines a score."""
    names = ("f1", "precision", "recall", "iou")
    record: dict[str, Any] = {name: percent(getattr(scores, name)[1].item()) for name in names}
    record |= {name: percent(getattr(scores, name)) for name in ("oa", "kappa")}
    record["iou_by_class"] = per_class(scores.iou, classes)
    return record | {"confusion": scores.confusion.tolist(), "classes": list(classes)}


def classification_record(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent; per class by name; null where nothing defines a score."""
    record: dict[str, Any] = {name: percent(getattr(scores, name)) for name in ("oa", "aa", "kappa")}
    return record | {"per_class": per_class(scores.per_class, classes), "confusion": scores.confusion.tolist()}


def per_class(values: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Shares (k,) in percent by the name of the class; None where nothing defines one."""
    return {name: percent(value) for name, value in zip(classes, values.tolist(), strict=True)}


def percent(share: float) -> float | None:
    return round(100 * share, 2) if math.isfinite(share) else None


def shown(score: float | None) -> str:
    """A score of a record as it is said."""
    return "not defined" if score is None else f"{score:.2f}"


def write_scores(path: Path, record: Mapping[str, Any]) -> None:
    """Write scores.json whole or not at all; what is not defined must be None, not nan."""
    write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
