"""The composite loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from finetune.dense.losses import mean_cross_entropy
from finetune.pad.fusion import STAGES
from finetune.pad.model import PadOutput


@dataclass(frozen=True, kw_only=True)
class LossConfig(Ranged):
    """Weights beside the 1 of the segmentation loss, as released."""

    auxiliary: float = ranged(0.4, 0, LARGE)
    """Weight of the auxiliary head's segmentation loss."""
    amplitude: float = ranged(0.1, 0, LARGE)
    """Weight of the amplitude penalty, summed over the stages."""
    amplitude_stages: tuple[float, ...] = ranged((1.0, 1.0, 1.0, 1.0), 0, LARGE)
    """Weights of the stages 1 to 4 in that sum (equation 21): alike in the release; rising with depth in the paper, by values
    that are not known to us, such as 0.5,0.67,0.83,1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "amplitude_stages", tuple(self.amplitude_stages))
        if len(self.amplitude_stages) != len(STAGES):
            raise InputError(
                f"loss.amplitude_stages has {len(self.amplitude_stages)} weights; give one for each of the stages 1 to {len(STAGES)}"
            )


class Losses(NamedTuple):
    """Scalars () float32; total is the weighted sum of the others."""

    total: Tensor
    segmentation: Tensor
    auxiliary: Tensor
    amplitude: Tensor


def composite_loss(output: PadOutput, labels: Tensor, config: LossConfig) -> Losses:
    """L = L_seg + auxiliary L_aux + amplitude L_amp (equation 22); they are equations 19, 20 and 21.

    Args:
        labels: (b, h, w), integers 0 .. classes - 1, or 255 to leave a pixel out.
    Raises:
        InputError: labels of another size than the logits.
    """
    segmentation, auxiliary = (mean_cross_entropy(logits, labels) for logits in (output.logits, output.auxiliary))
    amplitude = torch.zeros((), device=output.penalty.device)
    for weight, penalty in zip(config.amplitude_stages, output.penalty, strict=True):
        amplitude = amplitude + weight * penalty
    total = segmentation + config.auxiliary * auxiliary + config.amplitude * amplitude
    return Losses(total, segmentation, auxiliary, amplitude)
