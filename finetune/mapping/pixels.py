"""Classification of whole scenes: the class of every pixel, as arrays and as GeoTIFF.

Ready patches have no scene. Their blocks are laid side by side instead; where the blocks lie to each other is not known.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE, Colour, palette_colour
from datasets.imagery.maps import write_class_map
from datasets.labelled import Footprint, PatchSet, SceneGrid
from datasets.labelled.patches import PixelTables
from datasets.sampling.splits import Indices, Split
from engine.probing import evaluating
from finetune.mapping.images import grid_of

ROLES = ("none", *Split._fields)  # what a pixel serves for: none, train, validation, test


class ClassMap(NamedTuple):
    """Class indices (h, w) uint8 from 0; 255 where a pixel is not classified, or has no label."""

    footprint: Footprint
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    role: NDArray[np.uint8] | None  # (h, w) index into ROLES; None: no split is known


def predict_places(
    model: nn.Module,
    patches: PixelTables,
    place: Indices,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Tensor:
    """Classes 0 .. k - 1 of any places (n,): (n,) int64 on the CPU. Only one batch of patches is in memory at a time.

    Args:
        model: called with the three images of `Inputs`, on `device` already; gives a tuple with `logits` (b, k). It is
            put into evaluation mode, and back into its own afterwards.
        place: pixels of all scenes, labelled or not; those of labelled pixels are `patches.place`.
        progress: title of a progress bar, shown in a terminal only; None: silent.
    """
    found = [torch.empty(0, dtype=torch.int64)]
    with tqdm(total=len(place), desc=progress, unit="px", disable=None if progress else True) as bar:
        for logits in place_logits(model, patches, place, batch=batch, device=device):
            found.append(logits.argmax(dim=1).cpu())
            bar.update(len(logits))
    return torch.cat(found)


def place_logits(
    model: nn.Module, tables: PixelTables, place: Indices, *, batch: int, device: torch.device | str
) -> Iterator[Tensor]:
    """Logits (b, k) of places, batch by batch, in evaluation mode; see `predict_places`."""
    if batch < 1:
        raise InputError(f"a batch of {batch} pixels was asked for; give at least 1")
    for start in range(0, len(place), batch):
        inputs = tables.around(place[start : start + batch])
        # Not around the yield: who takes the logits has modes of its own.
        with evaluating(model), torch.inference_mode():
            logits = model(*(image.to(device) for image in inputs)).logits
        yield logits


def classify_scenes(
    model: nn.Module,
    patches: PatchSet,
    *,
    split: Split | None = None,
    labelled_only: bool = False,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[ClassMap]:
    """The class of every pixel of every scene, scene after scene; pixels without a value in some band have none.

    Ready patches give one map, their blocks side by side (see `mosaic`), and have no other pixels than labelled ones.

    Args:
        split: remembered in the map, so that pixels of training are not counted as test.
        labelled_only: leave the other pixels unknown.
    """
    canvas = _Canvas.of(patches, split)
    for image, footprint in enumerate(canvas.footprints):
        inside = np.arange(*canvas.span(image))
        wanted = canvas.truth[inside] != IGNORE
        if not labelled_only and canvas.whole:
            wanted = ~np.isin(inside, patches.missing)
        at = inside[wanted]
        title = f"classify {footprint.name}"
        found = predict_places(model, patches, canvas.source[at], batch=batch, device=device, progress=title)
        predicted = np.full(len(inside), IGNORE, dtype=np.uint8)
        predicted[wanted] = found.numpy()
        shape = canvas.shapes[image]
        role = None if canvas.role is None else canvas.role[inside].reshape(shape)
        yield ClassMap(footprint, predicted.reshape(shape), canvas.truth[inside].reshape(shape), role)


def class_colours(patches: PatchSet) -> dict[str, Colour]:
    """Colours of the classes that occur, by the numbers that they have in the files."""
    return {name: palette_colour(number - 1) for name, number in zip(patches.classes, patches.numbers, strict=True)}


def write_geotiff(path: Path, found: ClassMap, patches: PatchSet) -> None:
    """Write the predicted classes of a georeferenced scene, as `finetune/predict.py` writes maps.

    Raises:
        InputError: the scene's files do not say where it lies.
    """
    if not is_placed(found):
        raise InputError(f"scene {found.footprint.name} has no coordinates; its map can be a PNG, not a GeoTIFF")
    grid = grid_of(found.predicted.shape, found.footprint.crs, found.footprint.transform)
    write_class_map(path, grid, class_colours(patches), found.predicted)


def is_placed(found: ClassMap) -> bool:
    """Whether the scene's files say where on Earth it lies."""
    return found.footprint.crs is not None and found.footprint.transform is not None


def mosaic(position: Indices, group: Indices) -> tuple[Indices, tuple[int, int]]:
    """Lay blocks side by side, in shelves, every group from a new shelf on; inside a block all stays as it is.

    Args:
        position: (m, 3) row, column, number of the block.
        group: (m,) such as classes; a block belongs to that of its first pixel.
    Returns:
        (m, 2) row and column on the canvas, and the canvas's height and width; one pixel lies between blocks.
    """
    blocks, first, block = np.unique(position[:, 2], return_index=True, return_inverse=True)
    low, high = np.full((len(blocks), 2), np.iinfo(np.int64).max), np.zeros((len(blocks), 2), dtype=np.int64)
    np.minimum.at(low, block, position[:, :2])
    np.maximum.at(high, block, position[:, :2])
    sizes = high - low + 2
    width = max(int(np.sqrt(1.5 * sizes.prod(axis=1).sum())), sizes[:, 1].max())
    corner = np.zeros_like(low)
    row = col = shelf = 0
    last = None
    for index in np.lexsort((-sizes[:, 0], group[first])):
        if last is not None and (group[first[index]] != last or col + sizes[index, 1] > width):
            row, col, shelf = row + shelf, 0, 0
        corner[index] = row, col
        col, shelf, last = col + sizes[index, 1], max(shelf, sizes[index, 0]), group[first[index]]
    return corner[block] + position[:, :2] - low[block], (int(row + shelf - 1), int(width - 1))


class _Canvas(NamedTuple):
    """All maps in a row: (pixels,) arrays, map after map, each row by row."""

    footprints: tuple[Footprint, ...]
    shapes: list[tuple[int, int]]
    source: Indices  # place of the set that each pixel shows
    truth: NDArray[np.uint8]
    role: NDArray[np.uint8] | None
    whole: bool  # all pixels can be classified, not labelled ones alone

    def span(self, image: int) -> tuple[int, int]:
        ends = np.append(0, np.prod(self.shapes, axis=1).cumsum())
        return int(ends[image]), int(ends[image + 1])

    @classmethod
    def of(cls, patches: PatchSet, split: Split | None) -> "_Canvas":
        if isinstance(patches.grid, SceneGrid):
            footprints, shapes = patches.footprints, [(int(h), int(w)) for h, w in patches.grid.shapes]
            pixel, source = patches.place, np.arange(len(patches.grid))
        else:
            spot, shape = mosaic(patches.position, patches.label)
            footprints, shapes = (Footprint("blocks", None, None),), [shape]
            pixel, source = spot[:, 0] * shape[1] + spot[:, 1], np.zeros(shape[0] * shape[1], dtype=np.int64)
            source[pixel] = patches.place
        truth = np.full(len(source), IGNORE, dtype=np.uint8)
        truth[pixel] = patches.label
        role = None
        if split is not None:
            role = np.zeros(len(source), dtype=np.uint8)
            for index, part in enumerate(split, start=1):
                role[pixel[part]] = index
        return cls(footprints, shapes, source, truth, role, isinstance(patches.grid, SceneGrid))
