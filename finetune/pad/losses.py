"""The composite loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from finetune.pad.model import PadOutput

IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class LossConfig(Ranged):
    """Weights beside the 1 of the segmentation loss, as released."""

    auxiliary: float = ranged(0.4, 0, LARGE)
    """Weight of the auxiliary head's segmentation loss."""
    amplitude: float = ranged(0.1, 0, LARGE)
    """Weight of the amplitude penalty, summed over the stages."""


class Losses(NamedTuple):
    """Scalars () float32; total is the weighted sum, the others are unweighted."""

    total: Tensor
    segmentation: Tensor
    auxiliary: Tensor
    amplitude: Tensor


def composite_loss(output: PadOutput, labels: Tensor, config: LossConfig) -> Losses:
    """L = L_seg + auxiliary L_aux + amplitude L_amp (equation 22).

    Args:
        labels: (b, h, w), integers 0 .. classes - 1, or 255 to leave a pixel out.
    Raises:
        InputError: labels of another size than the logits.
    """
    segmentation, auxiliary = (mean_cross_entropy(logits, labels) for logits in (output.logits, output.auxiliary))
    total = segmentation + config.auxiliary * auxiliary + config.amplitude * output.penalty
    return Losses(total, segmentation, auxiliary, output.penalty)


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean () of -log p(true class) over the labelled pixels (equations 19 and 20); 0 where there are none.

    Args:
        logits: (b, k, h, w).
        labels: (b, h, w).
    """
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise InputError(f"labels are {tuple(labels.shape)}, logits {tuple(logits.shape)}; crop both alike")
    total = torch.nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)
