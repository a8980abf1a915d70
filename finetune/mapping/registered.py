"""The registered images of a scene, checked against what a network was trained on, and read window by window."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.grids import corners, pixel_size
from datasets.imagery.maps import Grid
from datasets.imagery.rasters import RasterScene, describe_raster, opened
from datasets.imagery.scenes import Unreadable, readable
from datasets.labelled.pair_set import ImageSource
from datasets.labelled.tiles import to_numbers
from finetune.pad.inputs import Inputs

TOLERANCE = 0.5  # pixels between the corners of registered images


class Image(NamedTuple):
    """One of the images, open."""

    path: Path
    dataset: DatasetReader
    source: ImageSource

    def read(self, window: Window) -> tuple[Tensor, Tensor]:
        """Standardised bands (c, h, w) float32, 0 where missing, and where all of them are missing (h, w)."""
        with _named(self.path), readable(self.path):
            stored = self.dataset.read(list(self.source.bands), window=window)
        numbers = to_numbers(stored, self.source, self.dataset.nodata)
        numbers = numbers.masked_fill(numbers.isinf(), torch.nan)  # one alone would spoil the spectrum of its window
        missing = numbers.isnan()
        if self.dataset.nodata is not None:
            missing |= torch.from_numpy(stored == self.dataset.nodata)
        return self.source.standardise(numbers), missing.all(dim=0)


class RegisteredImages(NamedTuple):
    """The images that a network takes, by modality ("rgb", "sar"), and their common grid."""

    images: Mapping[str, Image]
    grid: Grid

    def read(self, window: Window) -> tuple[dict[str, Tensor], Tensor]:
        """Standardised images (c, h, w) by modality, and where none of them has a pixel (h, w)."""
        read = {modality: image.read(window) for modality, image in self.images.items()}
        missing = torch.stack([missing for _, missing in read.values()]).all(dim=0)
        return {modality: image for modality, (image, _) in read.items()}, missing


@contextmanager
def opened_images(files: Mapping[str, Path], inputs: Inputs) -> Iterator[RegisteredImages]:
    """Open images by modality for reading.

    Raises:
        InputError: one too many or too few, no image, another dtype, too few bands, or not on one grid.
    """
    if set(files) != set(inputs.sources):
        raise InputError(f"the network takes {_listed(inputs.sources)}, given are {_listed(files)}")
    with ExitStack() as stack:
        images, described = {}, {}
        for modality, source in inputs.sources.items():
            path = files[modality]
            with _named(path):
                images[modality] = Image(path, stack.enter_context(opened(path)), source)
                described[modality] = describe_raster(path, path.parent)
            _check_bands(described[modality], source, modality)
        scenes = list(described.values())
        if len(scenes) > 1:
            _check_registered(*scenes)
        yield RegisteredImages(images, _grid(images.values()))


def _check_bands(scene: RasterScene, source: ImageSource, modality: str) -> None:
    path, count = scene.files[0], scene.shape[0]
    if scene.dtype != source.dtype:
        raise InputError(
            f"{path} holds {scene.dtype}, the network was trained on {source.dtype}; convert the file the way its "
            f"training images were"
        )
    if max(source.bands) > count:
        raise InputError(f"{path} has {_count(count, 'band')}, the network reads {modality} from {list(source.bands)}")


def _check_registered(first: RasterScene, second: RasterScene) -> None:
    """One size; and where both say where they lie, one coordinate system and the same corners."""
    names = [scene.files[0].name for scene in (first, second)]
    if first.shape[1:] != second.shape[1:]:
        sizes = [f"{scene.shape[2]} x {scene.shape[1]}" for scene in (first, second)]
        raise InputError(
            f"{names[0]} has {sizes[0]} pixels (width x height), {names[1]} {sizes[1]}; resample one onto the grid of "
            f"the other"
        )
    if first.crs and second.crs and CRS.from_string(first.crs) != CRS.from_string(second.crs):
        raise InputError(
            f"{names[0]} is in {_short(first.crs)}, {names[1]} in {_short(second.crs)}; reproject one onto the grid of "
            f"the other"
        )
    if first.transform and second.transform:
        places = np.stack([corners(first), corners(second)])
        apart = np.hypot(*np.moveaxis(places[1] - places[0], -1, 0))
        worst = int(apart.argmax())
        if apart[worst] > TOLERANCE * pixel_size(first):
            (x1, y1), (x2, y2) = places[:, worst].tolist()
            raise InputError(
                f"{names[0]} and {names[1]} lie {apart[worst] / pixel_size(first):.4g} pixels apart: one corner is at "
                f"({x1:.10g}, {y1:.10g}) and ({x2:.10g}, {y2:.10g}); resample one onto the grid of the other"
            )


def _grid(images: Iterable[Image]) -> Grid:
    """The place of the image that knows it best."""
    best = max(
        (image.dataset for image in images),
        key=lambda dataset: (dataset.crs is not None, not dataset.transform.is_identity),
    )
    return Grid(best.height, best.width, best.crs, None if best.transform.is_identity else best.transform)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A damaged file is a user's affair, named with its path."""
    try:
        yield
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error


def _short(crs: str) -> str:
    return crs if len(crs) < 60 else f"{crs[:56]} ..."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "none"
