"""Losses of segmentations: cross-entropy over the labelled pixels, with weights of classes, and the Dice loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged

IGNORE = 255
SOFTENING = 1.02  # of the logarithm, as in ENet


@dataclass(frozen=True, kw_only=True)
class DenseLossConfig(Ranged):
    """What is minimised over labelled pixels."""

    dice: float = ranged(0.0, 0, LARGE)
    """Weight of the Dice loss beside the 1 of the cross-entropy."""
    balance: Literal["none", "log"] = "none"
    """Weights of the classes in the cross-entropy: none, or log: 1 / log(1.02 + share of the training pixels)."""
    class_weights: tuple[float, ...] = ranged((), 0, LARGE)
    """Weight of each class in the cross-entropy, in their order; empty: as `balance` says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "class_weights", tuple(self.class_weights))
        if self.class_weights and (self.balance != "none" or not sum(self.class_weights)):
            raise InputError(
                f"loss.class_weights are {list(self.class_weights)} and loss.balance is {self.balance}; give one of the "
                f"two, and not 0 for all"
            )

    def weights(self, pixels: Mapping[int, int], classes: int) -> Tensor | None:
        """Of every class (k,) float32; None: all alike.

        Args:
            pixels: of every class index in training.
        Raises:
            InputError: `class_weights` are not as many as classes.
        """
        if self.class_weights:
            if len(self.class_weights) != classes:
                raise InputError(f"loss.class_weights has {len(self.class_weights)} numbers for {classes} classes")
            return torch.tensor(self.class_weights)
        if self.balance == "none":
            return None
        counts = [pixels.get(index, 0) for index in range(classes)]
        total = max(sum(counts), 1)
        return torch.tensor([1 / math.log(SOFTENING + count / total) for count in counts])


def dense_loss(logits: Tensor, labels: Tensor, config: DenseLossConfig, weights: Tensor | None) -> dict[str, Tensor]:
    """`loss` and its parts, scalars () float32.

    Args:
        logits: (b, k, h, w).
        labels: (b, h, w), integers 0 .. k - 1, or 255 to leave a pixel out.
        weights: (k,), see `DenseLossConfig.weights`.
    """
    entropy = mean_cross_entropy(logits, labels, weights)
    if not config.dice:
        return {"loss": entropy}
    dice = dice_loss(logits, labels)
    return {"loss": entropy + config.dice * dice, "loss_entropy": entropy, "loss_dice": dice}


def mean_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean () of -log p(true class) over the labelled pixels, each with the weight of its class; 0 where there are none.

    Args:
        logits: (b, k, h, w).
        labels: (b, h, w), 255 where a pixel has no label.
        weights: (k,); None: all 1.
    """
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise InputError(f"labels are {tuple(labels.shape)}, logits {tuple(logits.shape)}; crop both alike")
    labels, known = labels.long(), labels != IGNORE
    weights = None if weights is None else weights.to(logits.device)
    total = functional.cross_entropy(logits.float(), labels, weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        return total / known.sum().clamp(min=1)
    return total / weights[labels[known]].sum().clamp(min=torch.finfo(torch.float32).tiny)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean () over the classes that occur of 1 - 2 sum(p t) / (sum(p) + sum(t)), sums over labelled pixels of the batch.

    Args:
        logits: (b, k, h, w).
        labels: (b, h, w), 255 where a pixel has no label; 0 where no pixel has one.
    """
    known = labels != IGNORE
    chances = rearrange(logits.float().softmax(dim=1), "b k h w -> b h w k")[known]  # (m, k)
    truth = functional.one_hot(labels[known].long(), chances.shape[1]).float()
    occurs = truth.sum(dim=0) > 0
    overlap, area = (chances * truth).sum(dim=0), chances.sum(dim=0) + truth.sum(dim=0)
    dice = 1 - 2 * overlap / area.clamp(min=1e-6)
    return (dice * occurs).sum() / occurs.sum().clamp(min=1)
