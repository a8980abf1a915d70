"""The windows of a scene, a piece of them at a time: through the network here, or by the workers of a cluster."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import rasterio
import torch
from torch import Tensor
from tqdm import tqdm

from alliance.errors import InputError
from datasets.cluster import Cluster
from datasets.contents import digest_files
from finetune.mapping.blending import Cover, Strip
from finetune.mapping.images import SceneImages

CACHE = 32 * 2**20, 256 * 2**20  # least and most bytes of decoded blocks that GDAL keeps
BLOCKS = 1024  # rows above and below a row of windows that blocks of up to 512 pixels bring along


class Piece(NamedTuple):
    """Windows side by side that go through a network together, by their numbers down and along."""

    row: int
    cols: range

    def __str__(self) -> str:
        return f"windows {self.cols.start + 1} to {self.cols.stop} of row {self.row + 1}"


class Seen(NamedTuple):
    """What a network says of a window."""

    values: Tensor | None  # (planes, h, w) float32; None: no pixel is there
    missing: Tensor  # (h, w) bool


class Windows(Protocol):
    """A scene as a network goes over it; `side` is that of a window in pixels."""

    @property
    def scene(self) -> SceneImages: ...
    @property
    def side(self) -> int: ...
    def at(self, piece: Piece) -> Any:
        """What the network says of a piece: tensors, in tuples and lists."""
        ...


Run = Callable[
    [Any, Iterable[Piece]], Iterator[tuple[Piece, Any]]
]  # windows, pieces -> each piece in order, with `at` of it


def pieces_of(rows: Cover, cols: Cover, count: int) -> Iterator[Piece]:
    """All windows, row by row, so many at a time."""
    places = range(len(cols.starts))
    for row in range(len(rows.starts)):
        for first in range(0, len(places), count):
            yield Piece(row, places[first : first + count])


def run_here(windows: Windows, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
    """One piece after the other, in this process."""
    for piece in pieces:
        yield piece, windows.at(piece)


class Recipe(Protocol):
    """How a worker opens a scene and its network; picklable, equal where what is opened is the same."""

    def opened(self) -> AbstractContextManager[Windows]:
        """The windows, until the block ends."""
        ...


@dataclass(frozen=True)
class OnCluster:
    """A `Run`: the workers of a cluster do the pieces, each opens the scene and its network once."""

    cluster: Cluster
    recipe: Recipe

    def __call__(self, windows: Windows, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        for piece, found in self.cluster.run(partial(at_worker, recipe=self.recipe), pieces, in_order=True):
            yield (
                piece,
                _mapped(found, np.ndarray, lambda array: torch.from_numpy(array.copy())),
            )  # what came is read-only


class _Kept:
    """What this process opened for the pieces of a scene, until those of another one come."""

    def __init__(self) -> None:
        self.recipe: Recipe | None = None
        self.windows: Windows | None = None
        self.stack = ExitStack()

    def of(self, recipe: Recipe) -> Windows:
        if self.windows is None or recipe != self.recipe:
            self.recipe = self.windows = None
            self.stack.close()
            self.windows = self.stack.enter_context(recipe.opened())
            self.recipe = recipe
        return self.windows


_kept = _Kept()


def at_worker(piece: Piece, *, recipe: Recipe) -> Any:
    """What the network says of a piece, as arrays: in the process of a worker, in one thread.

    Raises:
        InputError: the scene or the network is not there, or is another one.
    """
    torch.set_num_threads(1)
    windows = _kept.of(recipe)
    with rasterio.Env(GDAL_CACHEMAX=cache_size(windows.scene, windows.side, 0)):
        return _mapped(windows.at(piece), Tensor, lambda tensor: tensor.cpu().contiguous().numpy())


def _mapped(found: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Change all of one kind in tuples and lists."""
    if isinstance(found, kind):
        return change(found)
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*(_mapped(each, kind, change) for each in found))
    if isinstance(found, list | tuple):
        return type(found)(_mapped(each, kind, change) for each in found)
    return found


def blended(
    found: Iterable[tuple[Piece, Iterable[Seen]]], strip: Strip, *, title: str, progress: bool
) -> Iterator[tuple[int, int]]:
    """Blend pieces, which come in order; rows that are finished stand at the top of the strip: their first one, and how many.

    Args:
        title: of the bar.
        progress: show one where there is a terminal.
    """
    rows, cols = strip.rows, strip.cols
    ends = list(pairwise([*rows.starts, rows.length]))
    total = len(rows.starts) * len(cols.starts)
    with tqdm(total=total, desc=title, unit="window", disable=None if progress else True) as bar:
        for piece, windows in found:
            for col, (values, missing) in zip(piece.cols, windows, strict=True):
                strip.missing[:, strip.span(col)] = missing
                if values is not None:
                    strip.add(piece.row, col, values.to(strip.device))
            bar.update(len(piece.cols))
            if piece.cols.stop == len(cols.starts):
                top, below = ends[piece.row]
                yield top, below - top
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


def contents_of(folder: Path) -> str:
    """A checksum of the files in a folder of a network.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not there; all workers need the same files under the same paths")
    return digest_files({path.name: path for path in sorted(folder.iterdir()) if path.is_file()})


def refuse_other_contents(folder: Path, expected: str) -> None:
    """See that a worker's folder holds the network that the command found there.

    Raises:
        InputError: it does not.
    """
    if contents_of(folder) != expected:
        raise InputError(f"{folder} holds another network here than the command sees; all workers need the same files")


def usable_device(name: str) -> str:
    """The name of a device, if torch can use it.

    Raises:
        InputError: it cannot.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); cpu always can") from error
    return name
