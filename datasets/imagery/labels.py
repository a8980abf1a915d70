"""Label maps: read from files, turned into class indices; the colours of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.rasters import named, opened
from datasets.imagery.scenes import readable

IGNORE = 255  # class index of a pixel that is left out of losses and scores
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
LABEL_DTYPES = ("uint8", "int8", "uint16", "int16")


def read_label(path: Path, values: dict[int, int]) -> Tensor:
    """A label map as class indices, (h, w) int64.

    Args:
        values: class index of every stored value.
    Raises:
        InputError: the file cannot be read, is no label map, or holds other values.
    """
    with named(path), opened(path) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] not in LABEL_DTYPES:
            raise InputError(
                f"{path} has {dataset.count} bands of {dataset.dtypes[0]}; a label map has one band of small integers: "
                f"is this the folder of the labels?"
            )
        with readable(path):
            stored = dataset.read(1)
    indices = to_indices(stored, values)
    unknown = np.unique(stored[indices < 0])
    if unknown.size:
        raise InputError(
            f"{path} holds {_brief(unknown)}, which {'is' if unknown.size == 1 else 'are'} no class; known values are "
            f"{_brief(np.array(sorted(values)))}: mend `label.values`, or take the folder of the labels"
        )
    return torch.from_numpy(indices)


def to_indices(stored: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """Class indices int64 of stored small integers of any shape; -1 where a value is not among `values`."""
    limits = np.iinfo(stored.dtype)
    table = np.full(limits.max - limits.min + 1, -1, dtype=np.int64)
    for value, index in values.items():
        if limits.min <= value <= limits.max:
            table[value - limits.min] = index
    return table[stored.astype(np.int64) - limits.min]


def as_colour(name: str, rgb: Sequence[int]) -> Colour:
    """The colour of a class as read from a file.

    Raises:
        InputError: not three numbers from 0 to 255.
    """
    values = tuple(int(value) for value in rgb)
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise InputError(f"colour of class {name} is {list(values)}; give red, green and blue, 0 to 255")
    return values


def _brief(values: np.ndarray, limit: int = 8) -> str:
    return ", ".join(map(str, values[:limit].tolist())) + (f", ... ({values.size})" if values.size > limit else "")
