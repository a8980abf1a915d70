"""A whole scene through a PAD network: windows in, blended windows out, in the memory of one row of windows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.imagery.maps import FULL, class_map, probability_map
from finetune.mapping.blending import Strip, cover
from finetune.mapping.registered import RegisteredImages, opened_images
from finetune.pad.inputs import Inputs
from finetune.pad.model import SMALLEST, PadOutput

CACHE = 256 * 2**20  # bytes of decoded blocks that GDAL keeps; its default is a share of the machine's memory
SUFFIXES = (".tif", ".tiff")

Network = Callable[..., PadOutput]  # called with `rgb` and `sar` (b, c, h, w), as far as it takes them


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a scene is taken apart and put together."""

    window: int = 512  # side, pixels
    overlap: int = 128  # of neighbouring windows, pixels
    batch: int = 4  # windows at once
    device: str = "cpu"  # where the network is
    progress: bool = True  # show a bar where there is a terminal

    def __post_init__(self) -> None:
        if self.window < SMALLEST or not 0 <= self.overlap <= self.window // 2 or self.batch < 1:
            raise InputError(
                f"window {self.window}, overlap {self.overlap}, batch {self.batch}: a window has at least {SMALLEST} "
                f"pixels, the overlap at most half of them, a batch at least one window"
            )


STANDARD = SceneOptions()


def predict_scene(
    network: Network,
    inputs: Inputs,
    files: Mapping[str, Path],
    out: Path,
    options: SceneOptions = STANDARD,
    *,
    probabilities: Path | None = None,
) -> None:
    """Write the class map of a scene of any size as a Cloud Optimised GeoTIFF; `finetune.class_maps` says what is in it.

    The class probabilities of overlapping windows are averaged with weights that fall linearly to the windows' edges.
    Pixels that are missing in all images become 255. Memory grows with the width of the scene, not with its height.

    Args:
        network: float32, in evaluation mode on `options.device`.
        inputs: what it was trained on.
        files: registered images by modality, of the modalities of `inputs.sources`.
        probabilities: file for the class probabilities, if wanted.
    Raises:
        InputError: an image cannot be read or is not what the network was trained on, the two do not lie on one grid,
            a file to write is an image that is read or no .tif, or the network gives numbers that are not finite.
    """
    makers = {out: class_map} | ({probabilities: probability_map} if probabilities else {})
    _check_targets([out, probabilities] if probabilities else [out], list(files.values()))
    with rasterio.Env(GDAL_CACHEMAX=CACHE), opened_images(files, inputs) as scene, ExitStack() as stack:
        writers = [stack.enter_context(make(path, scene.grid, inputs.classes)) for path, make in makers.items()]
        rows, cols = (cover(side, options.window, options.overlap) for side in (scene.grid.height, scene.grid.width))
        strip = Strip(len(inputs.classes), rows, cols, options.device)
        total = len(rows.starts) * len(cols.starts)
        bar = tqdm(total=total, desc="predicting", unit="window", disable=None if options.progress else True)
        stack.enter_context(bar)
        for row, (top, below) in enumerate(pairwise([*rows.starts, scene.grid.height])):
            for first in range(0, len(cols.starts), options.batch):
                numbers = range(len(cols.starts))[first : first + options.batch]
                _predict(network, scene, strip, row, numbers)
                bar.update(len(numbers))
            _write(writers, strip, top, below - top)
            strip.advance(below - top)


def _predict(network: Network, scene: RegisteredImages, strip: Strip, row: int, numbers: range) -> None:
    """Blend the windows of these numbers along a row into the strip; those without any pixel need no network."""
    present = []
    for col in numbers:
        images, missing = scene.read(
            _window(strip.rows.starts[row], strip.cols.starts[col], strip.rows.size, strip.cols.size)
        )
        strip.missing[:, strip.span(col)] = missing
        if not missing.all():
            present.append((col, images))
    if present:
        tiles = {modality: torch.stack([images[modality] for _, images in present]) for modality in scene.images}
        for (col, _), each in zip(present, _probabilities(network, tiles, strip.device), strict=True):
            strip.add(row, col, each)


@torch.inference_mode()
def _probabilities(network: Network, tiles: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Of each class, (b, k, h, w) float32; a scene too small for the network is padded with means for it."""
    h, w = next(iter(tiles.values())).shape[-2:]
    padding = (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h))
    images = {modality: functional.pad(tile, padding).to(device) for modality, tile in tiles.items()}
    probabilities = network(**images).logits[..., :h, :w].float().softmax(dim=1)
    if not probabilities.isfinite().all():
        raise InputError("the network gives numbers that are not finite; its weights, or mean and std, do not fit")
    return probabilities


def _write(writers: Sequence[DatasetWriter], strip: Strip, top: int, count: int) -> None:
    """Write the first rows of the strip, which are finished, as the scene's rows from `top` on."""
    for left in range(0, strip.cols.length, strip.cols.size):
        span = slice(left, left + strip.cols.size)
        probabilities, missing = strip.probabilities[:, :count, span], strip.missing[:count, span].numpy()
        stored = [probabilities.argmax(dim=0, keepdim=True)]
        if len(writers) > 1:
            stored.append((probabilities * FULL).round())
        for writer, values in zip(writers, stored, strict=True):
            pixels = np.where(missing, IGNORE, values.byte().cpu().numpy()).astype(np.uint8)
            writer.write(pixels, window=_window(top, left, *missing.shape))


def _window(top: int, left: int, height: int, width: int) -> Window:
    return Window(left, top, width, height)  # pyright: ignore[reportCallIssue]


def _check_targets(targets: Sequence[Path], images: Sequence[Path]) -> None:
    for path in targets:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is written as a GeoTIFF; let its name end in .tif")
        if path.resolve() in {image.resolve() for image in images}:
            raise InputError(f"{path} is an image that is read; write to another file")
    if len({path.resolve() for path in targets}) < len(targets):
        raise InputError(f"{targets[0]} is to hold both the map and the probabilities; give two files")
