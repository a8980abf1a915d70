"""The one way in which numbers become standardised ones."""

import torch
from torch import Tensor


def standardise(image: Tensor, mean: Tensor, std: Tensor, *, clamp: float | None = None) -> tuple[Tensor, Tensor]:
    """(value - mean) / std per channel; a pixel that misses a channel is 0 in all of them.

    Args:
        image: (..., c, h, w), any real dtype, not finite where a value is missing.
        mean, std: (c,) or (c, 1, 1), on the image's device.
        clamp: largest magnitude of a result, standard deviations; None: any.
    Returns:
        (..., c, h, w) float32, and the pixels where every channel is present, (..., 1, h, w) bool.
    """
    mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    value = (image.float() - mean) / std
    present = torch.isfinite(value).all(dim=-3, keepdim=True)
    value = torch.where(present, value, 0.0)
    return (value if clamp is None else value.clamp(-clamp, clamp)), present
