"""The registered images of a scene: checked against what a network was trained on, read window by window."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from alliance.errors import InputError
from datasets.imagery import cubes, rasters
from datasets.imagery.grids import corners, pixel_size
from datasets.imagery.maps import Grid
from datasets.imagery.scenes import Read, Scene, Unreadable
from finetune.model_files import ImageInput

TOLERANCE = 0.5  # pixels between the corners of registered images


class ImageFile(NamedTuple):
    """A file, and which array of it where it holds several."""

    path: Path
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ImageFile":
        """From FILE or FILE:KEY; a colon that is part of an existing file's name is no separator."""
        file, colon, key = text.rpartition(":")
        return cls(Path(file), key) if colon and not Path(text).exists() and Path(file).is_file() else cls(Path(text))


class Image(NamedTuple):
    """One of the images, open."""

    file: ImageFile
    read_window: Read
    nodata: float | None

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        """The numbers of a window (c, h, w) as stored, nan where missing or not finite."""
        with _named(self.file.path):
            window = self.read_window(row, col, height, width)
        numbers = window.stored.astype(np.float32)
        missing = ~np.isfinite(numbers)  # an infinite one alone would spoil the spectrum of its window
        if window.missing is not None:
            missing |= window.missing
        if self.nodata is not None:
            missing |= window.stored == self.nodata
        numbers[missing] = np.nan
        return numbers


class SceneImages(NamedTuple):
    """The images that a network takes, by name, and their common grid."""

    images: Mapping[str, Image]
    grid: Grid

    def read(self, row: int, col: int, height: int, width: int) -> dict[str, NDArray[np.float32]]:
        """The numbers of a window (c, h, w) of every image, nan where missing."""
        return {name: image.read(row, col, height, width) for name, image in self.images.items()}


@contextmanager
def opened_images(files: Mapping[str, ImageFile], wanted: Mapping[str, ImageInput]) -> Iterator[SceneImages]:
    """Open the images of a scene, by name, for reading.

    Raises:
        InputError: one too many or too few, no image, other bands or another dtype than trained on, or not on one grid.
    """
    if set(files) != set(wanted):
        raise InputError(f"the network takes {_listed(wanted)}, given are {_listed(files)}")
    with ExitStack() as stack:
        images: dict[str, Image] = {}
        scenes: list[Scene] = []
        for name, image in wanted.items():
            with _named(files[name].path):
                scenes.append(_described(files[name], image, scenes[0].shape[1:] if scenes else None))
                bands = _bands(scenes[-1], image, name)
                images[name] = Image(files[name], stack.enter_context(scenes[-1].open(bands)), image.nodata)
        for other in scenes[1:]:
            check_registered(scenes[0], other)
        yield SceneImages(images, _grid(scenes))


def _described(file: ImageFile, image: ImageInput, grid: tuple[int, ...] | None) -> Scene:
    """The header of an image; an array's axes are those that fit the network and the other images."""
    if not file.path.is_file():
        raise InputError(f"{file.path} is no file; give an image, or FILE:KEY for an array of one")
    if file.path.suffix.lower() in cubes.SUFFIXES:
        options = cubes.CubeOptions(key=file.key, bands=image.channels, grid=grid)
        return cubes.describe_cube(file.path, file.path.parent, options)
    if file.key:
        raise InputError(f"{file.path} is an image without keys, yet {file.key!r} was asked for; leave the key out")
    return rasters.describe_raster(file.path, file.path.parent)


def _bands(scene: Scene, image: ImageInput, name: str) -> list[int]:
    """Bands to read, from 0."""
    path, count = scene.files[0], scene.shape[0]
    if image.dtype not in (None, scene.dtype):
        raise InputError(
            f"{path} holds {scene.dtype}, the network was trained on {image.dtype}; convert the file the way its "
            f"training images were"
        )
    held = f"{count} band" if count == 1 else f"{count} bands"
    if not image.bands and count != image.channels:
        raise InputError(f"{path} has {held}, the {name} images of training had {image.channels}; give such an image")
    if max(image.bands, default=1) > count:
        raise InputError(f"{path} has {held}, the network reads {name} from {list(image.bands)}")
    return [band - 1 for band in image.bands] or list(range(count))


def check_registered(first: Scene, second: Scene) -> None:
    """One size; and where both say where they lie, one coordinate system and the same corners.

    Raises:
        InputError: they differ.
    """
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


def _grid(scenes: Iterable[Scene]) -> Grid:
    """The place of the image that knows it best."""
    best = max(scenes, key=lambda scene: (scene.crs is not None, scene.transform is not None))
    return grid_of(best.shape[1:], best.crs, best.transform)


def grid_of(shape: tuple[int, ...], crs: str | None, transform: tuple[float, ...] | None) -> Grid:
    """A grid of a shape (h, w), where it lies as scenes say it."""
    place = None if transform is None or Affine(*transform).is_identity else Affine(*transform)
    return Grid(shape[0], shape[1], CRS.from_string(crs) if crs else None, place)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A damaged file is a user's affair, named with its path."""
    try:
        yield
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error


def _short(crs: str) -> str:
    return crs if len(crs) < 60 else f"{crs[:56]} ..."


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "none"
