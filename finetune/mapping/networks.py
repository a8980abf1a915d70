"""Trained networks of any task as the mapping of scenes sees them: windows of stored numbers in, probabilities out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from alliance.errors import InputError
from datasets.labelled.patches import PixelTables, SceneGrid
from finetune.dense import checkpoint as dense
from finetune.mapping.pixels import place_logits
from finetune.model_files import Inputs, read_record
from finetune.pad import checkpoint as pad
from finetune.pad.inputs import MODALITIES, read_pad_inputs
from finetune.pixel_network import SMALLEST
from finetune.s2fin import checkpoint as s2fin

Numbers = Mapping[str, NDArray[np.float32]]  # images (c, h, w) by name, as stored, nan where missing


class SceneNetwork(ABC):
    """A network on its device, and how it goes over a scene.

    Attributes:
        inputs: its classes and images.
        margin: pixels around a window that it wants to see, as far as the scene goes.
        overlap, batch: usual ones; an overlap of None: its windows need none.
        smallest: side of a window, pixels.
    """

    margin: int = 0
    overlap: ClassVar[int | None] = None
    batch: ClassVar[int]
    smallest: ClassVar[int] = 1

    def __init__(self, network: nn.Module | Callable[..., object], inputs: Inputs, device: str = "cpu") -> None:
        self.network, self.inputs, self.device = network, inputs, torch.device(device)

    @abstractmethod
    def missing(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Where there is nothing to go by: (h, w)."""

    @abstractmethod
    def probabilities(self, windows: Sequence[Numbers], batch: int) -> list[Tensor]:
        """Of each class (k, h, w) float32, for windows of one size; any number where missing."""


class SegmentationNetwork(SceneNetwork):
    """A network that labels whole windows, called with images by its own names for them.

    Args:
        roles: of the images, by these names.
        needs_all: it can say nothing of a pixel that one of its images lacks.
    """

    overlap, batch, smallest = 128, 4, SMALLEST

    def __init__(
        self,
        network: nn.Module | Callable[..., object],
        inputs: Inputs,
        device: str = "cpu",
        *,
        roles: Mapping[str, str] = MODALITIES,
        needs_all: bool = False,
    ) -> None:
        super().__init__(network, inputs, device)
        self.roles, self.needs_all = roles, needs_all

    def missing(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Where no image has a pixel, (h, w): where one says so, and the others too or are 0 in all their bands.

        Where `needs_all` holds, where one image has none.
        """
        absent = [np.isnan(image).all(axis=0) for image in numbers.values()]
        if self.needs_all:
            return np.logical_or.reduce(absent)
        empty = [gone | (image == 0).all(axis=0) for gone, image in zip(absent, numbers.values(), strict=True)]
        return np.logical_or.reduce(absent) & np.logical_and.reduce(empty)

    @torch.inference_mode()
    def probabilities(self, windows: Sequence[Numbers], batch: int) -> list[Tensor]:
        """Of every window (k, h, w); one too small for the network is padded with means for it."""
        h, w = next(iter(windows[0].values())).shape[-2:]
        padding = (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h))
        images = {role: torch.stack([self._standardised(role, each[role]) for each in windows]) for role in windows[0]}
        tiles = {
            name: functional.pad(images[role], padding).to(self.device)
            for name, role in self.roles.items()
            if role in images
        }
        output = self.network(**tiles)
        return list(_finite(output.logits[..., :h, :w].float().softmax(dim=1)))  # pyright: ignore[reportAttributeAccessIssue]

    def _standardised(self, name: str, numbers: NDArray) -> Tensor:
        return self.inputs.images[name].described.standardise(torch.from_numpy(numbers))


class PatchNetwork(SceneNetwork):
    """A network that classifies a pixel from the patch around it."""

    network: nn.Module
    batch = 256

    def __init__(self, network: nn.Module, inputs: Inputs, device: str, *, patch: int) -> None:
        super().__init__(network, inputs, device)
        self.patch, self.margin = patch, patch // 2

    def missing(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Where a pixel's own value is missing in some band, (h, w)."""
        return np.logical_or.reduce([np.isnan(image).any(axis=0) for image in numbers.values()])

    def probabilities(self, windows: Sequence[Numbers], batch: int) -> list[Tensor]:
        """Of every window (k, h, w), one patch around each pixel; 0 where a pixel is missing."""
        return [self._of_window(window, batch) for window in windows]

    def _of_window(self, numbers: Numbers, batch: int) -> Tensor:
        present = np.flatnonzero(~self.missing(numbers))
        h, w = next(iter(numbers.values())).shape[-2:]
        found = torch.zeros(h * w, len(self.inputs.classes))
        start = 0
        for logits in place_logits(self.network, self.tables(numbers), present, batch=batch, device=self.device):
            found[present[start : start + len(logits)]] = _finite(logits.float().softmax(dim=1)).cpu()
            start += len(logits)
        return rearrange(found, "(h w) k -> k h w", h=h)

    def tables(self, numbers: Numbers) -> PixelTables:
        """A window's pixels as the network was trained on them; an image that it does not take has no channels."""
        h, w = next(iter(numbers.values())).shape[-2:]
        empty = np.zeros((h * w, 0), dtype=np.float32)
        tables = {"spectral": empty, "passive": empty, "active": empty}
        for name, image in numbers.items():
            preprocessing = self.inputs.images[name].preprocessing
            table = preprocessing.table([image])
            tables |= {"spectral": table} if name == "passive" else {}
            tables[name] = preprocessing.components(table)
        grid = SceneGrid([(h, w)])
        return PixelTables(
            **{name: torch.from_numpy(table) for name, table in tables.items()},
            grid=grid, active_grid=grid, patch=self.patch,
        )  # fmt: skip


def open_pad(folder: Path, device: str) -> SceneNetwork:
    """A PAD network of a folder."""
    inputs = read_pad_inputs(folder)
    return SegmentationNetwork(pad.load_pad(folder, device=device), inputs, device)


def open_s2fin(folder: Path, device: str) -> SceneNetwork:
    """An S2Fin network of a folder."""
    network = s2fin.load_network(folder, device=device)
    inputs = s2fin.read_network_inputs(folder, network)
    return PatchNetwork(network, inputs, device, patch=network.config.patch)


def open_dense(folder: Path, device: str) -> SceneNetwork:
    """A network with an Alliance encoder of a folder; one that compares two dates needs a pixel in both."""
    network = dense.load_dense(folder, device=device)
    inputs = dense.read_dense_inputs(folder, network)
    return SegmentationNetwork(network, inputs, device, roles=network.roles, needs_all=network.joining == "change")


OPENERS = {pad.TASK: open_pad, s2fin.TASK: open_s2fin, dense.TASK: open_dense}


def open_network(folder: Path, device: str) -> SceneNetwork:
    """The network of a folder, whatever its task.

    Raises:
        InputError: nothing to load there, damaged files, or a task that makes no maps.
    """
    task = read_record(folder)["task"]
    if task not in OPENERS:
        raise InputError(f"{folder} holds a network of task {task}; maps are made by {' and '.join(OPENERS)}")
    return OPENERS[task](folder, device)


def _finite(probabilities: Tensor) -> Tensor:
    if not probabilities.isfinite().all():
        raise InputError("the network gives numbers that are not finite; its weights, or mean and std, do not fit")
    return probabilities
