"""Registered optical and SAR images with their label maps, read one by one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE, read_label
from datasets.imagery.rasters import named, opened
from datasets.imagery.scenes import readable
from datasets.labelled.find import find_pairs
from datasets.labelled.pair_set import ImageSource, PairSet


class Pair(NamedTuple):
    """One pair, or a batch of pairs with a leading dimension. Numbers are as stored, NaN where a pixel is missing."""

    optical: Tensor  # (c, h, w) float32
    sar: Tensor  # (c, h, w) float32
    label: Tensor  # (h, w) int64, class indices, 255 to ignore


class PairTiles(Dataset[Pair]):
    """The pairs of a split, read from their files whenever one is asked for: no state, so any worker reads any pair.

    `keys` are their names; `skipped` are the names that lack a file, with the reason.

    Raises:
        InputError: no such split, folder or list, or no pair is complete.
    """

    def __init__(self, pairs: PairSet, split: str) -> None:
        self.pairs = pairs
        self.split = split
        self.files, self.skipped = find_pairs(pairs, split)
        self.keys = [files.key for files in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        """A pair by its number.

        Raises:
            InputError: a file is damaged, has another dtype or lacks a band, the sizes differ, or a label is no class.
        """
        key, optical, sar, label = self.files[index]
        pair = Pair(
            read_image(optical, self.pairs.optical),
            read_image(sar, self.pairs.sar),
            read_label(label, self.pairs.stored_values),
        )
        sizes = {name: tuple(tensor.shape[-2:]) for name, tensor in pair._asdict().items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
            raise InputError(f"{key}: sizes in pixels differ: {listed}; resample or crop them to one grid")
        return pair


def blank_pair(pairs: PairSet, side: int) -> Pair:
    """A square pair without pixels: it adds nothing to a loss or a score."""
    optical, sar = (torch.full((len(source.bands), side, side), torch.nan) for source in (pairs.optical, pairs.sar))
    return Pair(optical, sar, torch.full((side, side), IGNORE))


def read_image(path: Path, source: ImageSource) -> Tensor:
    """The source's bands of a file, (c, h, w) float32, NaN where missing.

    Raises:
        InputError: the file cannot be read, has another dtype, or lacks a band.
    """
    with named(path), opened(path) as dataset:
        dtypes = sorted(set(dataset.dtypes))
        if dtypes != [source.dtype]:
            raise InputError(
                f"{path} holds {', '.join(dtypes)}, expected is {source.dtype}; convert the files, or set `dtype` in the "
                f"description, with mean and std to match"
            )
        if max(source.bands) > dataset.count:
            raise InputError(f"{path} has {dataset.count} bands, asked for are {list(source.bands)}; mend `bands`")
        with readable(path):
            stored = dataset.read(list(source.bands))
        return to_numbers(stored, source, dataset.nodata)


def to_numbers(stored: np.ndarray, source: ImageSource, declared: float | None) -> Tensor:
    """Stored pixels of any shape as float32, NaN where missing.

    Args:
        declared: what the file calls missing; it counts in files of floats for which the source names no other value.
    """
    nodata = declared if source.nodata is None and stored.dtype.kind == "f" else source.nodata
    image = torch.from_numpy(stored.astype(np.float32))
    return image if nodata is None else image.masked_fill(torch.from_numpy(stored == nodata), torch.nan)
