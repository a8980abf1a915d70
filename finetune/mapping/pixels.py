"""Classification of whole scenes: the class of every pixel, as arrays and as GeoTIFF.

Ready patches have no scene. Their blocks are laid side by side instead; where the blocks lie to each other is not known.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from alliance.errors import InputError
from datasets.labelled import Footprint, PatchSet, SceneGrid
from datasets.sampling.splits import Indices, Split

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

PALETTE: tuple[Colour, ...] = (  # of classes 1, 2, ...; they repeat after 20 classes; black is unlabelled
    *((46, 139, 61), (166, 217, 106), (0, 184, 169), (20, 90, 36), (169, 113, 75)),
    *((47, 111, 214), (230, 51, 42), (245, 152, 196), (140, 140, 140), (242, 142, 28)),
    *((123, 63, 160), (247, 224, 60), (201, 180, 88), (111, 211, 255), (138, 28, 44)),
    *((210, 166, 255), (255, 208, 166), (91, 108, 255), (212, 51, 212), (217, 242, 224)),
)
ROLES = ("none", *Split._fields)  # what a pixel serves for: none, train, validation, test


class ClassMap(NamedTuple):
    """Classes (h, w) uint8, numbered as in the files; 0 where a pixel is not classified, or has no label."""

    footprint: Footprint
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    role: NDArray[np.uint8] | None  # (h, w) index into ROLES; None: no split is known


def predict_places(
    model: nn.Module,
    patches: PatchSet,
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
    if batch < 1:
        raise InputError(f"a batch of {batch} pixels was asked for; give at least 1")
    training = model.training
    model.eval()
    found = torch.empty(len(place), dtype=torch.int64)
    try:
        with (
            torch.inference_mode(),
            tqdm(total=len(place), desc=progress, unit="px", disable=None if progress else True) as bar,
        ):
            for start in range(0, len(place), batch):
                inputs = patches.around(place[start : start + batch])
                logits = model(*(image.to(device) for image in inputs)).logits
                found[start : start + batch] = logits.argmax(dim=1).cpu()
                bar.update(len(logits))
    finally:
        model.train(training)
    return found


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
        labelled_only: leave the other pixels at 0.
    Raises:
        InputError: class numbers above 255.
    """
    if max(patches.numbers) > 255:
        raise InputError(f"class number {max(patches.numbers)} does not fit into a map of 8 bits; number from 1 to 255")
    canvas = _Canvas.of(patches, split)
    for image, footprint in enumerate(canvas.footprints):
        inside = np.arange(*canvas.span(image))
        wanted = canvas.truth[inside] > 0
        if not labelled_only and canvas.whole:
            wanted = ~np.isin(inside, patches.missing)
        at = inside[wanted]
        title = f"classify {footprint.name}"
        found = predict_places(model, patches, canvas.source[at], batch=batch, device=device, progress=title)
        predicted = np.zeros(len(inside), dtype=np.uint8)
        predicted[wanted] = np.array(patches.numbers)[found.numpy()]
        shape = canvas.shapes[image]
        role = None if canvas.role is None else canvas.role[inside].reshape(shape)
        yield ClassMap(footprint, predicted.reshape(shape), canvas.truth[inside].reshape(shape), role)


def write_geotiff(path: Path, found: ClassMap, patches: PatchSet) -> None:
    """Write the predicted classes of a georeferenced scene: uint8 numbers of the files, 0 nodata, colours, names.

    The names are tags `CLASS_<number>`.

    Raises:
        InputError: the scene's files do not say where it lies.
    """
    if not is_placed(found):
        raise InputError(f"scene {found.footprint.name} has no coordinates; its map can be a PNG, not a GeoTIFF")
    height, width = found.predicted.shape
    shape = {"count": 1, "height": height, "width": width, "dtype": "uint8", "nodata": 0, "compress": "deflate"}
    grid = {"crs": found.footprint.crs, "transform": Affine(*(found.footprint.transform or ()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", **shape, **grid) as file:
        file.write(found.predicted, 1)
        file.write_colormap(1, {0: (0, 0, 0, 255)} | {number: (*colour(number), 255) for number in patches.numbers})
        names = zip(patches.numbers, patches.classes, strict=True)
        file.update_tags(**{f"CLASS_{number}": name for number, name in names})
        file.set_band_description(1, "predicted class")


def is_placed(found: ClassMap) -> bool:
    """Whether the scene's files say where on Earth it lies."""
    return found.footprint.crs is not None and found.footprint.transform is not None


def colour(number: int) -> Colour:
    """Colour of a class by its number in the files, the same in all maps."""
    return PALETTE[(number - 1) % len(PALETTE)]


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
        truth = np.zeros(len(source), dtype=np.uint8)
        truth[pixel] = np.array(patches.numbers)[patches.label]
        role = None
        if split is not None:
            role = np.zeros(len(source), dtype=np.uint8)
            for index, part in enumerate(split, start=1):
                role[pixel[part]] = index
        return cls(footprints, shapes, source, truth, role, isinstance(patches.grid, SceneGrid))
