"""A whole scene through a trained network: windows in, blended windows out, in the memory of one row of windows."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from tqdm import tqdm

from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from datasets.imagery.labels import IGNORE
from datasets.imagery.maps import BLOCK, FULL, class_map, probability_map
from finetune.mapping.blending import Strip, cover
from finetune.mapping.images import ImageFile, SceneImages, opened_images
from finetune.mapping.networks import SceneNetwork

CACHE = 32 * 2**20, 256 * 2**20  # least and most bytes of decoded blocks that GDAL keeps
BLOCKS = 1024  # rows above and below a row of windows that blocks of up to 512 pixels bring along
SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class SceneOptions(Ranged):
    """How a scene is taken apart and put together."""

    window: int = ranged(512, 1, 65536)
    """Side of a window, pixels."""
    overlap: int | None = ranged(None, 0, 65536)
    """Pixels that neighbouring windows share; None: what suits the network."""
    batch: int | None = ranged(None, 1, MANY)
    """Windows, or patches, at once; None: what suits the network."""
    force: bool = False
    """Take images whose numbers do not look like those of training."""
    progress: bool = True
    """Show a bar where there is a terminal."""

    def suited_to(self, network: SceneNetwork) -> tuple[int, int]:
        """Overlap and batch for a network.

        Raises:
            InputError: windows or an overlap that it cannot have.
        """
        if self.overlap and network.overlap is None:
            raise InputError(
                f"overlap {self.overlap}: the network sees a patch around every pixel, so that windows need none; "
                f"leave --overlap out"
            )
        usual = min(network.overlap or 0, self.window // 2)
        overlap = usual if self.overlap is None else self.overlap
        batch = network.batch if self.batch is None else self.batch
        if self.window < network.smallest or overlap > self.window // 2:
            raise InputError(
                f"window {self.window}, overlap {overlap}: a window has at least {network.smallest} pixels, the overlap at "
                f"most half of them"
            )
        return overlap, batch


STANDARD = SceneOptions()


def predict_scene(
    network: SceneNetwork,
    files: Mapping[str, ImageFile],
    out: Path,
    options: SceneOptions = STANDARD,
    *,
    probabilities: Path | None = None,
) -> None:
    """Write the class map of a scene of any size as a Cloud Optimised GeoTIFF; `datasets.imagery.maps` says what is in it.

    The class probabilities of overlapping windows are averaged with weights that fall linearly to the windows' edges.
    Pixels without anything to go by become 255. Memory grows with the width of the scene, not with its height.

    Args:
        network: float32, in evaluation mode.
        files: registered images by name, those of `network.inputs.images`.
        probabilities: file for the class probabilities, if wanted.
    Raises:
        InputError: an image cannot be read or is not what the network was trained on, also by its numbers, the images do not lie on one grid,
            a file to write is an image that is read or no .tif, or the network gives numbers that are not finite.
    """
    makers = {out: class_map} | ({probabilities: probability_map} if probabilities else {})
    classes = network.inputs.classes
    overlap, batch = options.suited_to(network)
    check_targets([out, probabilities] if probabilities else [out], [file.path for file in files.values()])
    with ExitStack() as stack:
        scene = stack.enter_context(opened_images(files, network.inputs.images, force=options.force))
        written = sum(1 if path == out else len(classes) for path in makers) * BLOCK * scene.grid.width
        cache = cache_size(scene, options.window, written)
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache))
        writers = [stack.enter_context(make(path, scene.grid, classes)) for path, make in makers.items()]
        rows, cols = (cover(side, options.window, overlap) for side in (scene.grid.height, scene.grid.width))
        strip = Strip(len(classes), rows, cols, network.device)
        total = len(rows.starts) * len(cols.starts)
        bar = tqdm(total=total, desc="predicting", unit="window", disable=None if options.progress else True)
        stack.enter_context(bar)
        at_once = 1 if network.margin else batch
        for row, (top, below) in enumerate(pairwise([*rows.starts, scene.grid.height])):
            for first in range(0, len(cols.starts), at_once):
                numbers = range(len(cols.starts))[first : first + at_once]
                _predict(network, scene, strip, row, numbers, batch)
                bar.update(len(numbers))
            _write(writers, strip, top, below - top)
            strip.advance(below - top)


def cache_size(scene: SceneImages, window: int, written: int) -> int:
    """How many bytes of decoded blocks GDAL shall keep: those of a row of windows, so that none is decoded for every window,
    and not those of rows that are done. GDAL's default is a share of the machine's memory, which a tall scene fills.

    Args:
        window: its rows, pixels.
        written: bytes of a row of blocks of the files that are written.
    """
    headers = [image.header for image in scene.images.values()]
    pixel = sum(header.shape[0] * np.dtype(header.dtype).itemsize for header in headers)
    least, most = CACHE
    return min(max((window + BLOCKS) * scene.grid.width * pixel + 2 * written, least), most)


def _predict(network: SceneNetwork, scene: SceneImages, strip: Strip, row: int, numbers: range, batch: int) -> None:
    """Blend the windows of these numbers along a row into the strip; those without any pixel need no network."""
    down, height = _with_margin(strip.rows.starts[row], strip.rows.size, network.margin, scene.grid.height)
    present = []
    for col in numbers:
        along, width = _with_margin(strip.cols.starts[col], strip.cols.size, network.margin, scene.grid.width)
        images = scene.read(down.start, along.start, len(down), len(along))
        missing = network.missing(images)[height, width]
        strip.missing[:, strip.span(col)] = torch.from_numpy(missing)
        if not missing.all():
            present.append((col, width, images))
    if present:
        found = network.probabilities([images for _, _, images in present], batch)
        for (col, width, _), each in zip(present, found, strict=True):
            strip.add(row, col, each[:, height, width].to(strip.device))


def _with_margin(start: int, size: int, margin: int, length: int) -> tuple[range, slice]:
    """Rows or columns of a window and as much around them as the scene has, and where the window lies among these."""
    first, last = max(start - margin, 0), min(start + size + margin, length)
    return range(first, last), slice(start - first, start - first + size)


def _write(writers: Sequence[DatasetWriter], strip: Strip, top: int, count: int) -> None:
    """Write the first rows of the strip, which are finished, as the scene's rows from `top` on."""
    for left in range(0, strip.cols.length, strip.cols.size):
        span = slice(left, left + strip.cols.size)
        probabilities, missing = strip.values[:, :count, span], strip.missing[:count, span].numpy()
        stored = [probabilities.argmax(dim=0, keepdim=True)]
        if len(writers) > 1:
            stored.append((probabilities * FULL).round())
        for writer, values in zip(writers, stored, strict=True):
            pixels = np.where(missing, IGNORE, values.byte().cpu().numpy()).astype(np.uint8)
            writer.write(pixels, window=_window(top, left, *missing.shape))


def _window(top: int, left: int, height: int, width: int) -> Window:
    return Window(left, top, width, height)  # pyright: ignore[reportCallIssue]


def check_targets(targets: Sequence[Path], images: Sequence[Path]) -> None:
    """Refuse files to write that are no GeoTIFFs by their names, one of the images, or one file twice."""
    for path in targets:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is written as a GeoTIFF; let its name end in .tif")
        if path.resolve() in {image.resolve() for image in images}:
            raise InputError(f"{path} is an image that is read; write to another file")
    if len({path.resolve() for path in targets}) < len(targets):
        raise InputError(f"{targets[0]} is to hold both the map and the probabilities; give two files")
