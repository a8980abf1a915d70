"""A whole scene through a trained network: windows in, blended windows out, in the memory of one row of windows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from datasets.cluster import refuse_unseen, stamped
from datasets.contents import Stamp
from datasets.imagery.labels import IGNORE
from datasets.imagery.maps import BLOCK, FULL, class_map, probability_map
from finetune.mapping.blending import Cover, Strip, cover
from finetune.mapping.images import ImageFile, SceneImages, opened_images
from finetune.mapping.networks import SceneNetwork, open_network
from finetune.mapping.pieces import (
    Piece,
    Run,
    Seen,
    blended,
    cache_size,
    contents_of,
    pieces_of,
    refuse_other_contents,
    run_here,
    usable_device,
)

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


class SceneWindows(NamedTuple):
    """A scene as a network goes over it."""

    network: SceneNetwork
    scene: SceneImages
    rows: Cover
    cols: Cover
    batch: int

    @property
    def side(self) -> int:
        """Of a window, pixels."""
        return self.rows.size

    def pieces(self) -> Iterator[Piece]:
        """All windows; those that see more than themselves one by one."""
        return pieces_of(self.rows, self.cols, 1 if self.network.margin else self.batch)

    def at(self, piece: Piece) -> list[Seen]:
        """Class probabilities of windows; those without any pixel need no network."""
        network, scene = self.network, self.scene
        down, height = _with_margin(self.rows.starts[piece.row], self.rows.size, network.margin, scene.grid.height)
        inner, read, missing = [], [], []
        for col in piece.cols:
            along, width = _with_margin(self.cols.starts[col], self.cols.size, network.margin, scene.grid.width)
            images = scene.read(down.start, along.start, len(down), len(along))
            inner.append(width)
            read.append(images)
            missing.append(network.missing(images)[height, width])
        present = [number for number, gone in enumerate(missing) if not gone.all()]
        found = network.probabilities([read[number] for number in present], self.batch) if present else []
        values = {number: each[:, height, inner[number]] for number, each in zip(present, found, strict=True)}
        return [Seen(values.get(number), torch.from_numpy(gone)) for number, gone in enumerate(missing)]


@contextmanager
def opened_windows(
    network: SceneNetwork, files: Mapping[str, ImageFile], options: SceneOptions = STANDARD
) -> Iterator[SceneWindows]:
    """The windows of a scene, until the block ends.

    Raises:
        InputError: see `predict_scene`.
    """
    overlap, batch = options.suited_to(network)
    with opened_images(files, network.inputs.images, force=options.force) as scene:
        rows, cols = (cover(side, options.window, overlap) for side in (scene.grid.height, scene.grid.width))
        yield SceneWindows(network, scene, rows, cols, batch)


@dataclass(frozen=True, kw_only=True)
class MapRecipe:
    """How a worker opens the windows of a scene."""

    folder: Path
    """Of the network."""
    contents: str
    """Checksum of that folder."""
    device: str
    """For the network."""
    files: dict[str, ImageFile]
    """Of the scene, by name."""
    stamps: dict[Path, Stamp]
    """Of these files and what belongs to them, as the command sees them."""
    options: SceneOptions
    """As of the command, which has looked at the numbers."""

    @classmethod
    def of(cls, folder: Path, device: str, files: Mapping[str, ImageFile], options: SceneOptions) -> "MapRecipe":
        """With absolute paths."""
        folder = folder.absolute()
        located = {name: file._replace(path=file.path.absolute()) for name, file in files.items()}
        return cls(
            folder=folder,
            contents=contents_of(folder),
            device=device,
            files=located,
            stamps=stamped(file.path for file in located.values()),
            options=replace(options, force=True),
        )

    @contextmanager
    def opened(self) -> Iterator[SceneWindows]:
        """On a worker."""
        refuse_unseen(self.stamps)
        with opened_windows(_network(self.folder, self.contents, self.device), self.files, self.options) as windows:
            yield windows


@lru_cache(maxsize=1)
def _network(folder: Path, contents: str, device: str) -> SceneNetwork:
    refuse_other_contents(folder, contents)
    return open_network(folder, usable_device(device))


def predict_scene(
    network: SceneNetwork,
    files: Mapping[str, ImageFile],
    out: Path,
    options: SceneOptions = STANDARD,
    *,
    probabilities: Path | None = None,
    run: Run = run_here,
) -> None:
    """Write the class map of a scene of any size as a Cloud Optimised GeoTIFF; `datasets.imagery.maps` says what is in it.

    The class probabilities of overlapping windows are averaged with weights that fall linearly to the windows' edges.
    Pixels without anything to go by become 255. Memory grows with the width of the scene, not with its height.

    Args:
        network: float32, in evaluation mode.
        files: registered images by name, those of `network.inputs.images`.
        probabilities: file for the class probabilities, if wanted.
        run: what puts the windows through the network.
    Raises:
        InputError: an image cannot be read or is not what the network was trained on, also by its numbers, the images do not lie on one grid,
            a file to write is an image that is read or no .tif, or the network gives numbers that are not finite.
    """
    makers = {out: class_map} | ({probabilities: probability_map} if probabilities else {})
    classes = network.inputs.classes
    options.suited_to(network)
    check_targets([out, probabilities] if probabilities else [out], [file.path for file in files.values()])
    with ExitStack() as stack:
        windows = stack.enter_context(opened_windows(network, files, options))
        grid = windows.scene.grid
        written = sum(1 if path == out else len(classes) for path in makers) * BLOCK * grid.width
        cache = cache_size(windows.scene, options.window, written)
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache))
        writers = [stack.enter_context(make(path, grid, classes)) for path, make in makers.items()]
        strip = Strip(len(classes), windows.rows, windows.cols, network.device)
        found = run(windows, windows.pieces())
        for top, count in blended(found, strip, title="predicting", progress=options.progress):
            _write(writers, strip, top, count)


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
