"""Learning from images without labels: entropy of predictions, and labels by a running mean of the network."""

import copy
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from finetune.dense.losses import IGNORE, mean_cross_entropy
from finetune.dense.model import DenseNetwork, DenseOutput


def entropy_loss(logits: Tensor, seen: Tensor) -> Tensor:
    """Mean () over seen pixels of -sum(p log p) / log(k), 0 to 1 (MinEnt: Vu et al., arXiv 1811.12833); 0 where none is.

    Args:
        logits: (b, k, h, w).
        seen: (b, h, w) bool.
    """
    logs = rearrange(logits.float().log_softmax(dim=1), "b k h w -> b h w k")[seen]
    entropy = -(logs.exp() * logs).sum(dim=-1) / torch.tensor(float(logits.shape[1])).log()
    return entropy.sum() / seen.sum().clamp(min=1)


class Guess(NamedTuple):
    """Labels that nobody gave."""

    label: Tensor  # (b, h, w) int64, class indices, 255 where the teacher is not sure or nothing is seen
    share: Tensor  # () float32, of the seen pixels, that have one


def guess_labels(logits: Tensor, seen: Tensor, confidence: float) -> Guess:
    """The classes (b, h, w) that logits (b, k, h, w) give at least this probability, where a pixel is seen."""
    chance, label = logits.float().softmax(dim=1).max(dim=1)
    sure = seen & (chance >= confidence)
    return Guess(torch.where(sure, label, IGNORE), sure.sum() / seen.sum().clamp(min=1))


def guessed_loss(logits: Tensor, guess: Guess) -> Tensor:
    """Mean () over all seen pixels of -log p(guessed class), 0 where there is no guess: few sure pixels weigh little."""
    return mean_cross_entropy(logits, guess.label) * guess.share


class Taught(nn.Module):
    """A network and its teacher, the running mean of its weights (Tarvainen and Valpola, arXiv 1703.01780).

    Called, it is the network. The teacher learns nothing by itself and stays in evaluation mode.
    """

    def __init__(self, student: DenseNetwork) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.requires_grad_(False)
        self.train()

    def forward(self, **images: Tensor) -> DenseOutput:
        """As the network: images (b, c, h, w) by role -> logits (b, classes, h, w)."""
        return self.student(**images)

    def train(self, mode: bool = True) -> "Taught":
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student; running statistics are the student's."""
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)
        for own, other in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            own.copy_(other)
