"""Labelled scenes from files: two images, a map of classes, and the official training and test pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.imagery import cubes, rasters
from datasets.imagery.grids import corners, pixel_size
from datasets.imagery.scenes import Scene, Unreadable
from datasets.labelled.layouts import Benchmark, Layout
from datasets.labelled.normalise import check_bands, logarithm

Image = NDArray[np.float32]
Map = NDArray[np.int64]
Mask = NDArray[np.bool_]
Grid = tuple[int, ...]  # (h, w)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledScene:
    """Two images of one place on one grid, and the classes of some pixels. An image that is not there has no bands."""

    name: str
    passive: Image  # (bands, h, w), HSI or MSI; nan where missing
    active: Image  # (channels, h, w), LiDAR or SAR; nan where missing
    log_active: bool = False  # whether that is the logarithm of what its file holds
    labels: Map  # (h, w), 0 unlabelled
    train: Mask | None = None  # (h, w), official training pixels
    test: Mask | None = None
    blocks: Map | None = None  # (h, w), places that a split must not tear apart
    classes: tuple[str, ...] = ()  # names of classes 1, 2, ...; empty: not known
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # a b c d e f: x = a col + b row + c, y = d col + e row + f
    dropped: int = 0  # labelled pixels that were left out, as a value is missing there

    def __post_init__(self) -> None:
        for role in ("active", "labels", "train", "test", "blocks"):
            if (array := getattr(self, role)) is not None:
                _check_grid(self.name, role, array.shape[-2:], self.passive.shape[1:])
        for role in ("passive", "active"):
            check_bands(getattr(self, role), f"{role} of scene {self.name}")
        if not (self.labels > 0).any():
            lost = f", {self.dropped} lie where a value is missing" if self.dropped else ""
            raise InputError(f"scene {self.name} has 0 labelled pixels{lost}; give a map with classes from 1 on")


class _Read(NamedTuple):
    """An array as it stands in a file."""

    array: NDArray  # (c, h, w)
    missing: NDArray[np.bool_] | None  # (c, h, w), as the file says it
    header: Scene | None = None  # of a raster


def read_scenes(benchmark: Benchmark, folder: Path) -> list[LabelledScene]:
    """All scenes of a data set below a folder, in the order of their names.

    Raises:
        InputError: a file or key is missing, sizes differ, or labels are not those of the data set.
    """
    layout = benchmark.layout(folder)
    return [_read_scene(name, own, folder, benchmark) for name, own in layout.scenes(folder)]


def _read_scene(name: str, layout: Layout, folder: Path, benchmark: Benchmark) -> LabelledScene:
    bands = {"passive": benchmark.bands, "active": benchmark.channels}
    sources = {role: (folder / file, key) for role, (file, key) in layout.sources().items()}
    maps = {role: _read_map(*source, role) for role, source in sources.items() if role not in bands}
    size = maps["labels" if layout.labels else "train"].array.shape[1:]
    reads = {role: _read(*sources[role], count, size) for role, count in bands.items() if role in sources} | maps
    grid = reads["passive" if layout.passive else "active"].array.shape[1:]
    for role in set(reads) - {"train", "test"}:
        _check_grid(name, role, reads[role].array.shape[1:], grid)
    _check_place(name, reads)
    images = {role: _image(reads.get(role), role, count, grid) for role, count in bands.items()}
    if benchmark.log_active:
        images["active"] = logarithm(images["active"])
    labels, masks = _labels(name, reads, grid, benchmark)
    missing = np.isnan(images["passive"]).any(axis=0) | np.isnan(images["active"]).any(axis=0)
    header = next((read.header for read in reads.values() if read.header and read.header.crs), None)
    return LabelledScene(
        name=name,
        passive=images["passive"],
        active=images["active"],
        log_active=benchmark.log_active,
        labels=np.where(missing, 0, labels),
        train=masks["train"] & ~missing if "train" in masks else None,
        test=masks["test"] & ~missing if "test" in masks else None,
        blocks=_whole_numbers(reads["blocks"], "blocks") if "blocks" in reads else None,
        classes=benchmark.classes,
        crs=header.crs if header else None,
        transform=header.transform if header else None,
        dropped=int((missing & (labels > 0)).sum()),
    )


def _read(path: Path, key: str | None, bands: int | None = None, grid: Grid | None = None) -> _Read:
    if not path.is_file():
        raise InputError(f"{path} is missing; give the folder of the data set, or another file name")
    try:
        if path.suffix.lower() in cubes.SUFFIXES:
            return _Read(*cubes.read_cube(path, cubes.CubeOptions(key=key, bands=bands, grid=grid)))
        if path.suffix.lower() not in rasters.SUFFIXES:
            raise Unreadable(f"is none of {', '.join((*cubes.SUFFIXES, *rasters.SUFFIXES))}; save it as one of these")
        if key:
            raise Unreadable(f"is an image without keys, yet {key!r} was asked for; leave the key out")
        header = rasters.describe_raster(path, path.parent)
        with header.open(range(header.shape[0])) as read:
            return _Read(*read(0, 0, *header.shape[1:]), header)
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error


def _read_map(path: Path, key: str | None, role: str) -> _Read:
    read = _read(path, key)
    if len(read.array) != 1:
        raise InputError(f"{path}: {role} has {len(read.array)} bands; give a map of one")
    return read


def _check_grid(name: str, role: str, found: Grid, wanted: Grid) -> None:
    if found != wanted:
        sizes = [" x ".join(map(str, grid)) for grid in (found, wanted)]
        raise InputError(f"scene {name}: {role} has {sizes[0]} pixels, its image {sizes[1]}; bring both to one grid")


def _check_place(name: str, reads: Mapping[str, _Read]) -> None:
    """Refuse rasters whose corners lie more than half a pixel apart."""
    placed = [(role, read.header) for role, read in reads.items() if read.header and read.header.transform]
    for role, header in placed[1:]:
        first_role, first = placed[0]
        apart = np.abs(corners(header) - corners(first)).max()
        if header.crs != first.crs or apart > pixel_size(first) / 2:
            raise InputError(
                f"scene {name}: {role} and {first_role} lie in different places (corners {apart:g} map units apart, "
                f"{header.crs} and {first.crs}); warp one onto the other's grid"
            )


def _image(read: _Read | None, role: str, bands: int | None, grid: Grid) -> Image:
    if read is None:
        return np.zeros((0, *grid), dtype=np.float32)
    if bands not in (None, len(read.array)):
        raise InputError(f"{role} has {len(read.array)} bands, the data set has {bands}; check file and key")
    image = read.array.astype(np.float32)
    invalid = ~np.isfinite(image)
    if read.missing is not None:
        invalid |= read.missing
    image[invalid] = np.nan
    return image


def _labels(name: str, reads: Mapping[str, _Read], grid: Grid, benchmark: Benchmark) -> tuple[Map, dict[str, Mask]]:
    """The map of classes and the official pixels; without a map of classes the official maps make one."""
    official = [role for role in ("train", "test") if role in reads]
    listed = {role for role in official if _is_list(reads[role], grid)}
    for role in set(official) - listed:
        _check_grid(name, role, reads[role].array.shape[1:], grid)
    maps = {role: _class_map(reads[role], role, benchmark) for role in {"labels", *official} & set(reads) - listed}
    if "labels" not in reads and listed:
        raise InputError(f"scene {name}: {min(listed)} is a list of pixels without classes; give a map as labels too")
    masks = {role: maps[role] > 0 for role in official if role in maps}
    masks |= {role: _listed_pixels(role, reads[role], maps["labels"]) for role in listed}
    if len(masks) == 2 and (masks["train"] & masks["test"]).any():
        both = (masks["train"] & masks["test"]).sum()
        raise InputError(f"scene {name}: {both} pixels are official for training and for test; take them out of one")
    labels = maps["labels"] if "labels" in maps else maps["train"] + maps["test"]
    for role in masks:
        known = labels == maps[role] if role in maps and maps[role].max() > 1 else labels > 0
        strange = (masks[role] & ~known).sum()
        if strange:
            raise InputError(f"scene {name}: {strange} pixels of {role} have no or another class in labels; mend one")
    return labels, masks


def _is_list(read: _Read, grid: Grid) -> bool:
    return read.array.shape[2] == 2 and read.array.shape[1:] != grid


def _listed_pixels(role: str, read: _Read, labels: Map) -> Mask:
    """Pixels of a list (1, n, 2) of rows and columns: counted from 0, or from 1 if only then all have a label."""
    place = _whole_numbers(read, role)
    for origin in (0, 1):
        row, col = (place - origin).T
        inside = (row >= 0) & (row < labels.shape[0]) & (col >= 0) & (col < labels.shape[1])
        if inside.all() and (labels[row, col] > 0).all():
            mask = np.zeros(labels.shape, dtype=bool)
            mask[row, col] = True
            return mask
    raise InputError(f"{role} lists pixels that lie outside or have no label; give rows and columns of labelled pixels")


def _class_map(read: _Read, role: str, benchmark: Benchmark) -> Map:
    labels = _whole_numbers(read, role)
    labels[labels == benchmark.unlabelled] = 0
    most = len(benchmark.classes) or np.iinfo(np.int64).max
    outside = labels[(labels < 0) | (labels > most)]
    if len(outside):
        known = f"classes 1 to {most}" if benchmark.classes else "classes from 1 on"
        raise InputError(f"{role} holds the value {outside[0]}, the data set has {known} and 0 for unlabelled; mend it")
    return labels


def _whole_numbers(read: _Read, role: str) -> Map:
    """A map (h, w) of integers; what is missing is 0."""
    array = np.where(np.isfinite(read.array[0]), read.array[0], 0)
    if read.missing is not None:
        array[read.missing[0]] = 0
    numbers = array.astype(np.int64)
    if (numbers != array).any():
        raise InputError(f"{role} holds the value {array[numbers != array][0]:g}; give whole numbers")
    return numbers
