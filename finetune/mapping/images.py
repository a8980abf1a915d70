"""The registered images of a scene: checked against what a network was trained on, read window by window."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from torch import Tensor

from alliance.errors import InputError
from alliance.sensors import Band, Sensor
from alliance.sensors.plausible import astray, drift, faults, look
from datasets.imagery.cubes import SUFFIXES
from datasets.imagery.images import OpenImage, describe, opened_image
from datasets.imagery.maps import Grid
from datasets.imagery.samples import sample_numbers
from datasets.imagery.scenes import Scene
from datasets.labelled.tiles import check_grids
from datasets.storage.places import is_store
from finetune.model_files import ImageInput


class ImageFile(NamedTuple):
    """A file, and which array of it where it holds several."""

    path: Path
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ImageFile":
        """From FILE or FILE:KEY; a colon that is part of an existing file's name is no separator."""
        file, colon, key = text.rpartition(":")
        return cls(Path(file), key) if colon and not Path(text).exists() and Path(file).is_file() else cls(Path(text))


def place_of(text: str) -> tuple[str, str]:
    """The place of FILE or FILE:KEY, and the rest of the text; in stores arrays alone have keys."""
    file, colon, key = text.rpartition(":")
    keyed = is_store(text) and "/" not in key and Path(file).suffix.lower() in SUFFIXES
    return (file, f"{colon}{key}") if keyed else (text, "")


class SceneImages(NamedTuple):
    """The images that a network takes, by name, and their common grid."""

    images: Mapping[str, OpenImage]
    grid: Grid

    def read(self, row: int, col: int, height: int, width: int) -> dict[str, NDArray[np.float32]]:
        """The numbers of a window (c, h, w) of every image in the unit of its source, nan where missing."""
        return {name: image.window(row, col, height, width).numpy() for name, image in self.images.items()}


@contextmanager
def opened_images(
    files: Mapping[str, ImageFile], wanted: Mapping[str, ImageInput], *, force: bool = False
) -> Iterator[SceneImages]:
    """Open the images of a scene, by name, for reading.

    Args:
        force: take numbers that do not look like those of training.
    Raises:
        InputError: one too many or too few, no image, other bands or another dtype than trained on, numbers of another
            unit, or not on one grid.
    """
    if set(files) != set(wanted):
        raise InputError(f"the network takes {_listed(wanted)}, given are {_listed(files)}")
    with ExitStack() as stack:
        images: dict[str, OpenImage] = {}
        for name, image in wanted.items():
            file = files[name]
            grid = next((other.header.shape[1:] for other in images.values()), None)
            _check(file, image, name, grid)
            images[name] = stack.enter_context(opened_image(file.path, image.source, file.key, grid=grid))
        headers = {files[name].path.name: image.header for name, image in images.items()}
        check_grids("the scene", headers)
        _check_place(headers)
        for name, image in images.items() if not force else ():
            refuse_strange(sample_numbers(image), wanted[name], name, image.header.files[0])
        yield SceneImages(images, _grid(headers.values()))


def _check(file: ImageFile, image: ImageInput, name: str, grid: tuple[int, ...] | None) -> None:
    """See that a file holds what the network was trained on.

    Raises:
        InputError: it does not.
    """
    if not file.path.is_file():
        raise InputError(f"{file.path} is no file; give the {name} image, or FILE:KEY for an array of one")
    header = describe(file.path, file.key, bands=image.source.count, grid=grid)
    if image.source.dtype not in (None, header.dtype):
        raise InputError(
            f"{file.path} holds {header.dtype}, the network was trained on {image.source.dtype}; convert the file the way "
            f"its training images were"
        )
    count, bands = header.shape[0], [band for band in image.source.bands if isinstance(band, int)]
    held = f"{file.path} has {count} band" + ("s" if count > 1 else "")
    if image.source.count not in (None, count):
        raise InputError(f"{held}, the {name} images of training had {image.source.count}; give such an image")
    if max(bands, default=0) > count:
        raise InputError(f"{held}, the network reads {name} from {bands}")


def refuse_strange(numbers: Tensor, wanted: ImageInput, name: str, file: Path) -> None:
    """Refuse an image whose numbers are of another unit than those of training, by a look at some of its pixels.

    Args:
        numbers: of these pixels, (c, n, 1), in the unit of the image's source.
        name: of the image in the network.
    Raises:
        InputError: they are.
    """
    sensor = wanted.source.description
    known = sensor or Sensor(name=name, bands=tuple(Band(name=str(n)) for n in range(wanted.channels)))
    seen = look(known, numbers)
    mean, std = (torch.from_numpy(column).double() for column in (wanted.preprocessing.mean, wanted.preprocessing.std))
    found = []
    if sensor and not wanted.source.log:
        found = faults(sensor, seen) + drift(sensor.with_statistics(mean.tolist(), std.tolist()), seen)
    found += [reason] if (reason := astray(seen, mean, std)) else []
    if found:
        raise InputError(
            f"{file} holds {seen.low.min():.5g} to {seen.high.max():.5g} as the {name} image, which is not "
            f"what the network was trained on (mean {float(mean.mean()):.5g}): {found[0]}; give it as the training images "
            f"were, or use --force if the scene is really so"
        )


def _check_place(headers: Mapping[str, Scene]) -> None:
    """Refuse a scene whose only place is points or polynomials: its map would have none."""
    if any(header.transform is not None for header in headers.values()):
        return
    for name, header in headers.items():
        if header.points is not None:
            raise InputError(
                f"{name} has {header.points.kind} and no transform, so its map would lie nowhere; put every image of the "
                f"scene onto one grid with gdalwarp {header.points.warp} -t_srs EPSG:4326 IN OUT.tif"
            )


def _grid(headers: Iterable[Scene]) -> Grid:
    """The place of the image that knows it best."""
    best = max(headers, key=lambda header: (header.crs is not None, header.transform is not None))
    return grid_of(best.shape[1:], best.crs, best.transform)


def grid_of(shape: tuple[int, ...], crs: str | None, transform: tuple[float, ...] | None) -> Grid:
    """A grid of a shape (h, w), where it lies as scenes say it."""
    place = None if transform is None or Affine(*transform).is_identity else Affine(*transform)
    return Grid(shape[0], shape[1], CRS.from_user_input(crs) if crs else None, place)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "none"
