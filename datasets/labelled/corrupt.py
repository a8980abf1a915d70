"""What optical sensors suffer, for tests of robustness: a missing image, and clouds."""

import math

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.labelled.tiles import Sample
from datasets.synthetic.landscapes import correlated_field

STREAM = 3  # keeps these draws apart from those of other modules with the same seed


def without(sample: Sample, role: str) -> Sample:
    """The sample with every pixel of one image missing, which standardises to 0."""
    return sample._replace(images=sample.images | {role: torch.full_like(sample.images[role], math.nan)})


def cloud_mask(shape: tuple[int, int], share: float, *, seed: int, index: int) -> Tensor:
    """Synthetic clouds over a share of an image: the highest part of a random field of power ~ frequency ** -3.

    With one seed and index, larger shares hold smaller ones.

    Args:
        shape: (h, w).
        index: number of the image, so that every image has clouds of its own.
    Returns:
        (h, w) bool; round(share * h * w) pixels are true.
    Raises:
        InputError: the share is not within 0 to 1.
    """
    if not 0 <= share <= 1:
        raise InputError(f"clouds over a share of {share}; give 0 to 1")
    height, width = shape
    field = correlated_field(max(shape), np.random.default_rng([STREAM, seed, index]), slope=-3.0)[:height, :width]
    highest = np.argsort(-field, axis=None, kind="stable")[: round(share * field.size)]
    mask = np.zeros(field.size, dtype=bool)
    mask[highest] = True
    return torch.from_numpy(mask.reshape(shape))


def cover(sample: Sample, role: str, mask: Tensor, value: float = math.nan) -> Sample:
    """The sample one of whose images is `value` where the mask (h, w) is true.

    Args:
        value: stored number of an opaque cloud, such as 255 in 8 bits; NaN: missing, as after masking clouds out.
    """
    return sample._replace(images=sample.images | {role: sample.images[role].masked_fill(mask, value)})
