"""Scores of a classification, from its confusion matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError


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
    found, true, claimed = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    per_class = found / true
    accuracy = found.sum() / counts.sum()
    chance = (true * claimed).sum() / counts.sum().square()
    kappa = (accuracy - chance) / (1 - chance)
    return Scores(accuracy.item(), per_class.nanmean().item(), kappa.item(), per_class, confusion.cpu())
