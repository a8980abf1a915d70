"""The registered images of a scene, checked against what a network was trained on, and read window by window."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.images import ImageSource, OpenImage, opened_image
from datasets.imagery.maps import Grid
from datasets.imagery.scenes import Scene
from datasets.labelled.tiles import check_grids
from finetune.pad.inputs import Inputs


class RegisteredImages(NamedTuple):
    """The images that a network takes, by modality ("rgb", "sar"), and their common grid."""

    images: Mapping[str, tuple[OpenImage, ImageSource]]
    grid: Grid

    def read(self, window: Window) -> tuple[dict[str, Tensor], Tensor]:
        """Standardised images (c, h, w) by modality, and where none of them has a pixel (h, w)."""
        place = (window.row_off, window.col_off, window.height, window.width)
        numbers = {modality: image.window(*place) for modality, (image, _) in self.images.items()}
        missing = torch.stack([image.isnan().all(dim=0) for image in numbers.values()]).all(dim=0)
        return {name: self.images[name][1].standardise(image) for name, image in numbers.items()}, missing


@contextmanager
def opened_images(files: Mapping[str, Path], inputs: Inputs) -> Iterator[RegisteredImages]:
    """Open images by modality for reading.

    Raises:
        InputError: one too many or too few, no image, another dtype, too few bands, or not on one grid.
    """
    if set(files) != set(inputs.sources):
        raise InputError(f"the network takes {_listed(inputs.sources)}, given are {_listed(files)}")
    with ExitStack() as stack:
        images = {
            name: (stack.enter_context(opened_image(files[name], source)), source)
            for name, source in inputs.sources.items()
        }
        headers = {files[name].name: image.header for name, (image, _) in images.items()}
        check_grids("the scene", headers)
        yield RegisteredImages(images, _grid(headers.values()))


def _grid(headers: Iterable[Scene]) -> Grid:
    """The place of the image that knows it best."""
    best = max(headers, key=lambda header: (header.crs is not None, header.transform is not None))
    crs = CRS.from_user_input(best.crs) if best.crs else None
    return Grid(*best.shape[1:], crs, Affine(*best.transform) if best.transform else None)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "none"
