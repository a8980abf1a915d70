"""The composite loss."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from alliance.ranges import LARGE, Ranged, ranged
from finetune.dense.losses import mean_cross_entropy
from finetune.pad.model import PadOutput


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
    """L = L_seg + auxiliary L_aux + amplitude L_amp (equation 22); the first two are equations 19 and 20.

    Args:
        labels: (b, h, w), integers 0 .. classes - 1, or 255 to leave a pixel out.
    Raises:
        InputError: labels of another size than the logits.
    """
    segmentation, auxiliary = (mean_cross_entropy(logits, labels) for logits in (output.logits, output.auxiliary))
    total = segmentation + config.auxiliary * auxiliary + config.amplitude * output.penalty
    return Losses(total, segmentation, auxiliary, output.penalty)
