"""Cut registered scenes into tiles, window by window, and refuse scenes that are not what they should be."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from alliance.files import new_file, sync
from alliance.ranges import REQUIRED, Ranged, ranged
from datasets.imagery.grids import compare_grids
from datasets.imagery.images import describe
from datasets.imagery.labels import IGNORE, Colour, to_indices
from datasets.imagery.rasters import open_quietly, opened
from datasets.imagery.scenes import Unreadable, readable
from datasets.labelled.find import SampleFiles

Edges = Literal["drop", "shift"]
STRIP = 512  # rows that are read at once
LABEL_DTYPES = ("uint8", "int8", "uint16", "int16")


@dataclass(frozen=True, kw_only=True)
class Grid(Ranged):
    """Where tiles lie: side by side from the upper left corner."""

    tile: int = ranged(REQUIRED, 1, 65536)
    """Side, pixels."""
    edges: Edges = "drop"
    """What no whole tile covers is left out (PAD), or the last tile is shifted inwards (ASANet)."""

    def starts(self, length: int) -> list[int]:
        """First pixel of every tile along a side of `length` pixels."""
        starts = list(range(0, length - self.tile + 1, self.tile))
        if self.edges == "shift" and starts and starts[-1] + self.tile < length:
            starts.append(length - self.tile)
        return starts

    def windows(self, height: int, width: int) -> list[Window]:
        """All tiles of a scene, row by row."""
        return [
            Window(col, row, self.tile, self.tile)  # pyright: ignore[reportCallIssue]
            for row in self.starts(height)
            for col in self.starts(width)
        ]


class Inspection(NamedTuple):
    """What is known of a scene that can be cut."""

    height: int  # that optical image, SAR image and labels have in common, pixels
    width: int
    notes: tuple[str, ...]  # peculiarities


class _Scene(NamedTuple):
    optical: rasterio.DatasetReader
    sar: rasterio.DatasetReader
    label: rasterio.DatasetReader


def inspect_scene(files: SampleFiles, values: Mapping[int, int]) -> Inspection:
    """Check a scene before it is cut.

    Args:
        values: class index of every stored label.
    Raises:
        Unreadable: damaged, other bands, dtypes, sizes or grids than expected, or labels that are no class.
    """
    with _opened(files) as scene:
        _check_bands(scene)
        height, width = min(each.height for each in scene), min(each.width for each in scene)
        sizes = [f"{each.height} x {each.width}" for each in scene]
        if max(each.height for each in scene) > height + 1 or max(each.width for each in scene) > width + 1:
            raise Unreadable(f"optical, SAR and labels have {', '.join(sizes)} pixels; they should be of one size")
        notes = ["sizes differ by one pixel, the common part is cut"] if len(set(sizes)) > 1 else []
        _check_grids(files)
        stored = _label_values(scene.label)
        unknown = sorted(stored - values.keys())
        if unknown:
            raise Unreadable(f"labels hold {unknown[:5]}, which are no class; is this the folder of the labels?")
        if 10 in values and stored & set(range(1, 8)):
            notes.append("labels are 1, 2, ... instead of 10, 20, ...; taken as the same classes")
    return Inspection(height, width, tuple(notes))


def cut_scene(
    files: SampleFiles, size: tuple[int, int], out: Path, grid: Grid, values: Mapping[int, int], colours: list[Colour]
) -> list[str]:
    """Write a scene's tiles as <out>/{optical,sar,label}/<key>.tif and return their keys.

    Images keep all numbers, CRS and transform; labels become class indices with 255 to ignore. A tile that is there
    is kept: files appear whole or not at all.

    Args:
        size: (height, width) that is cut.
        colours: of the classes, for viewers.
    Raises:
        Unreadable: a window cannot be read.
    """
    keys = []
    windows = grid.windows(*size)
    with _opened(files) as scene:
        for window in windows:
            place = "" if len(windows) == 1 else f"_r{window.row_off:05d}_c{window.col_off:05d}"
            keys.append(f"{files.key}{place}")
            paths = [out / role / f"{keys[-1]}.tif" for role in scene._fields]
            if all(path.exists() for path in paths):
                continue
            with readable(Path(files.key)):
                optical, sar = scene.optical.read(window=window), scene.sar.read([1], window=window)
                stored = scene.label.read(window=window)
            label = to_indices(stored, dict(values)).astype(np.uint8)
            for path, pixels, source in zip(paths, (optical, sar, label), scene, strict=True):
                _write_tile(path, pixels, source, window, colours if path is paths[-1] else None)
    return keys


@contextmanager
def _opened(files: SampleFiles) -> Iterator[_Scene]:
    with ExitStack() as stack:
        yield _Scene(**{role: stack.enter_context(opened(path)) for role, path in files.paths.items()})


def _check_bands(scene: _Scene) -> None:
    for role, dataset in scene._asdict().items():
        dtypes = set(dataset.dtypes)
        if not dtypes <= (set(LABEL_DTYPES) if role == "label" else {"uint8"}):
            raise Unreadable(f"the {role} file holds {', '.join(sorted(dtypes))}; the release has 8-bit numbers")
    if scene.optical.count < 3:
        raise Unreadable(f"the optical file has {scene.optical.count} bands, not 3 or 4; are folders mixed up?")
    if scene.sar.count not in (1, 3) or (scene.sar.count == 3 and not _is_grey(scene.sar)):
        raise Unreadable(f"the SAR file has {scene.sar.count} bands that differ, not one; are folders mixed up?")
    if scene.label.count != 1:
        raise Unreadable(f"the label file has {scene.label.count} bands, not one; is this the folder of the labels?")


def _check_grids(files: SampleFiles) -> None:
    """Files that say where they lie must lie on one pixel grid, to half a pixel."""
    headers = {role: describe(path) for role, path in files.paths.items()}
    placed = [(role, header) for role, header in headers.items() if header.transform or header.points]
    for role, header in placed[1:]:
        try:
            compare_grids(placed[0][1], header)
        except Unreadable as error:
            raise Unreadable(f"{placed[0][0]} and {role} lie on different map grids: {error}") from error


def _strips(dataset: rasterio.DatasetReader) -> Iterator[np.ndarray]:
    for row in range(0, dataset.height, STRIP):
        with readable(Path(dataset.name)):
            yield dataset.read(window=((row, min(row + STRIP, dataset.height)), (0, dataset.width)))


def _is_grey(dataset: rasterio.DatasetReader) -> bool:
    return all((strip == strip[:1]).all() for strip in _strips(dataset))


def _label_values(dataset: rasterio.DatasetReader) -> set[int]:
    return {value for strip in _strips(dataset) for value in np.unique(strip).tolist()}


def _write_tile(
    path: Path, pixels: np.ndarray, source: rasterio.DatasetReader, window: Window, colours: list[Colour] | None
) -> None:
    """A GeoTIFF under a name of its own, renamed once it has been read back; with colours it is a label map.

    Raises:
        OSError: it does not hold the pixels: GDAL does not tell that a disk is full when it closes a file.
    """
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    profile |= {"compress": "deflate", "predictor": 2, "photometric": "RGB" if count > 2 else "MINISBLACK"}
    profile |= {"alpha": "NO"} if count == 4 else {}  # the fourth band is infrared, no transparency
    if source.crs or not source.transform.is_identity:
        profile |= {"crs": source.crs, "transform": source.window_transform(window)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, crowded=True) as part:
        tile = open_quietly(part, "w", **profile)
        with suppress(RasterioError, CPLE_BaseError), tile:  # told by what can be read
            tile.write(pixels)
            if colours is None:
                tile.descriptions = source.descriptions[:count]
            else:
                tile.nodata = IGNORE
                tile.write_colormap(1, dict(enumerate(colours)))
        sync(part)
        if not _holds(part, pixels):
            raise OSError(f"{path} cannot be written whole; make room, then give the same command again")


def _holds(path: Path, pixels: np.ndarray) -> bool:
    """Whether a GeoTIFF can be read and holds these pixels."""
    try:
        with open_quietly(path) as tile:
            return np.array_equal(tile.read(), pixels)
    except (RasterioError, CPLE_BaseError):
        return False
