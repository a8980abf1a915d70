"""Scores of a segmentation, from the confusion matrices of its images."""

from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from finetune.scores import cohen_kappa


class SegmentationScores(NamedTuple):
    """Shares from 0 to 1, from the pixels of all images together unless said otherwise; nan where nothing defines them.

    A class that occurs neither in truth nor in prediction is nan and not part of a mean.
    """

    oa: float  # overall accuracy
    miou: float
    mf1: float
    mkappa: float  # mean over images of Cohen's kappa of each, as PAD publishes it
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
        kappa=cohen_kappa(total).item(),
        iou=iou,
        f1=f1,
        recall=found / true,
        precision=found / claimed,
        confusion=confusions.sum(dim=0).cpu(),
    )


def mean_kappa(confusions: Tensor) -> Tensor:
    """Mean of each image's kappa (equation 23 of PAD) over (n, k, k), with the exceptions of PAD's public code.

    Left out are images without labelled pixels, those where truth and prediction are one and the same class, and those
    with a negative kappa.
    """
    kappas = cohen_kappa(confusions.double())
    return kappas[kappas >= 0].mean()
