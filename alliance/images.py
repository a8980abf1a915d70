"""Images as people hold them, NumPy arrays and tensors of any type, as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError


def as_tensor(image: Any, what: str = "image") -> Tensor:
    """A tensor (b, c, h, w) of real numbers from a tensor or an array, copied where byte order or strides ask for it.

    Raises:
        InputError: neither a tensor nor an array, or it holds no real numbers.
    """
    if isinstance(image, Tensor):
        if image.is_complex() or image.is_quantized or image.is_meta or image.layout is not torch.strided:
            held = f"{image.dtype} ({image.layout}) on {image.device}"
            raise InputError(f"{what} holds {held}; give a dense tensor of real numbers that are there")
        return image
    if not isinstance(image, np.ndarray) and hasattr(image, "__array__"):
        image = np.asarray(image)  # xarray, masked arrays of others, pictures
    if isinstance(image, np.ma.MaskedArray):
        image = np.where(np.ma.getmaskarray(image), np.nan, image.data.astype(np.float64))
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf":
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{what} is {kind}; give a tensor or a NumPy array of real numbers, (b, c, h, w)")
    if image.dtype.itemsize > 8:  # long doubles, which torch lacks
        image = image.astype(np.float64)
    return torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["C", "W"]))


def as_float(image: Any, device: torch.device, what: str = "image") -> Tensor:
    """A floating tensor (b, c, h, w) on `device`; floats of single precision or less keep their type."""
    tensor = as_tensor(image, what).to(device)
    return tensor.float() if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor
