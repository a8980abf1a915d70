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
