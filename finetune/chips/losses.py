"""Losses of labels of whole images, with a weight for every image."""

from torch import Tensor
from torch.nn import functional


def scene_loss(logits: Tensor, target: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted mean () of the cross-entropy with one label each; 0 where nothing has weight.

    Args:
        logits: (b, k).
        target: (b, k), shares of the classes, which add up to 1.
        weight: (b,).
        smoothing: share of the target that is dealt out to all classes alike.
    """
    each = functional.cross_entropy(logits.float(), target, label_smoothing=smoothing, reduction="none")
    return _mean(each, weight)


def multilabel_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean () of the binary cross-entropy, over the classes of an image alike; arguments as of `scene_loss`."""
    each = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)
    return _mean(each, weight)


def _mean(each: Tensor, weight: Tensor) -> Tensor:
    return (each * weight).sum() / weight.sum().clamp(min=1)
