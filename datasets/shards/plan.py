"""Which tiles are cut from which scenes into which shard: a pure function of the scenes and the options."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from alliance.sensors import Sensor
from datasets.imagery.duplicates import find_copies
from datasets.imagery.grids import compare_grids
from datasets.imagery.scenes import Scene, Skipped, Unreadable, summarise
from datasets.shards.gather import Collection
from datasets.storage.standins import version_of

VERSION = 1  # of the shards' layout; part of every fingerprint


@dataclass(frozen=True, kw_only=True)
class TileOptions(Ranged):
    """How scenes become tiles. Everything here changes the shards, and so their fingerprint."""

    tile: int = ranged(96, 1, 65536)
    """Side of a tile, pixels of the first sensor."""
    stride: int = ranged(96, 1, 65536)
    """From tile to tile, pixels."""
    max_missing: float = ranged(0.5, 0, 1)
    """Tiles with a larger part of missing values are dropped."""
    shard_mb: float = ranged(256.0, 0, LARGE, above=True)
    """A shard's tar is at most this large, 1e6 bytes, if it holds more than one sample."""


@dataclass(frozen=True)
class Layer:
    """One sensor's image of a footprint."""

    sensor: Sensor
    scene: Scene
    bands: tuple[int, ...]  # places of the sensor's bands in the scene
    ratio: Fraction = Fraction(1)  # pixels per pixel of the footprint's first layer

    def tile_shape(self, tile: int) -> tuple[int, int, int]:
        """(c, h, w) of this sensor's part of a tile whose side is `tile` pixels of the finest sensor."""
        side = int(tile * self.ratio)
        return (len(self.bands), side, side)

    @property
    def dtype(self) -> np.dtype:
        """The widest dtype a tile may be stored in."""
        dtype = np.dtype(self.scene.dtype)
        marks = {value for value in self.scene.nodata if value is not None} - {self.sensor.nodata}
        return with_nan(dtype) if marks or self.scene.masked else dtype


@dataclass(frozen=True)
class Footprint:
    """A piece of ground seen by every sensor; its tiles are samples."""

    key: str
    layers: tuple[Layer, ...]

    def windows(self, options: TileOptions) -> list[tuple[int, int]]:
        """(row, col) of every tile on the first layer; the last row and column are moved in, to the edge."""
        _, height, width = self.layers[0].scene.shape
        rows, cols = (_offsets(length, options.tile, options.stride) for length in (height, width))
        return [(row, col) for row in rows for col in cols]

    def sample_bytes(self, tile: int) -> int:
        """At most this many bytes of tar per sample."""
        total = 1024
        for layer in self.layers:
            data = int(np.prod(layer.tile_shape(tile))) * layer.dtype.itemsize
            texts = (*layer.sensor.band_names, *layer.scene.sources, layer.scene.crs or "")
            described = sum(len(json.dumps(text)) + 2 for text in texts)
            total += data + described + 8 * 512  # npy header, tar headers with long names, padding
        return total


@dataclass(frozen=True)
class Piece:
    """Tiles start .. stop - 1 of a footprint."""

    footprint: Footprint
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """One shard, made independently of the others."""

    path: Path
    pieces: tuple[Piece, ...]
    options: TileOptions
    fingerprint: str

    def __str__(self) -> str:
        return self.path.name

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class Plan:
    """All shards to be made."""

    footprints: tuple[Footprint, ...]
    skipped: tuple[Skipped, ...]
    options: TileOptions
    notes: tuple[str, ...] = ()
    forced: tuple[Skipped, ...] = ()  # scenes that are kept although their numbers are not what the sensor says

    @property
    def sensors(self) -> dict[str, Sensor]:
        """Sensors by name."""
        return {layer.sensor.name: layer.sensor for layer in self.footprints[0].layers}

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Tile shape (c, h, w) of each sensor."""
        return {layer.sensor.name: layer.tile_shape(self.options.tile) for layer in self.footprints[0].layers}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the scenes' names, sizes and times, with their sensors and with the options."""
        sensors = [sensor.to_dict() for sensor in self.sensors.values()]
        record = [VERSION, asdict(self.options), sensors, [_identity(footprint) for footprint in self.footprints]]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def jobs(self, out: Path) -> list[Job]:
        """Shards filled one after the other, each up to the size limit but with at least one sample."""
        return [
            Job(out / f"shard-{number:06d}.tar", pieces, self.options, self.fingerprint)
            for number, pieces in enumerate(self._packed())
        ]

    def _packed(self) -> Iterator[tuple[Piece, ...]]:
        limit = int(self.options.shard_mb * 1e6) - 2 * 10240  # the tar's own end
        pieces: list[Piece] = []
        room = limit
        for footprint in self.footprints:
            size, count, start = footprint.sample_bytes(self.options.tile), len(footprint.windows(self.options)), 0
            while start < count:
                if room < size and pieces:
                    yield tuple(pieces)
                    pieces, room = [], limit
                stop = min(count, start + max(room // size, 1))
                pieces.append(Piece(footprint, start, stop))
                room -= (stop - start) * size
                start = stop
        if pieces:
            yield tuple(pieces)


def with_nan(dtype: np.dtype) -> np.dtype:
    """The dtype itself if it can hold NaN, else float32."""
    return dtype if dtype.kind == "f" else np.dtype(np.float32)


def make_plan(collections: Sequence[Collection], options: TileOptions) -> Plan:
    """Plan the shards of one or more sensors; with several, scenes of the same name are one footprint.

    Raises:
        InputError: nothing to cut, with the reasons.
    """
    names = [collection.sensor.name for collection in collections]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or names.count(name) > 1:
            raise InputError(f"sensor {name!r}: each sensor once, its name of letters, digits, - and _ only")
    skipped = [entry for collection in collections for entry in collection.skipped]
    stacks, lonely = _pair(collections)
    skipped += lonely
    aligned: list[tuple[Layer, ...]] = []
    for layers in stacks:
        try:
            aligned.append(_align(layers, options, like=aligned[0] if aligned else None))
        except Unreadable as error:
            skipped += [Skipped(source, str(error)) for layer in layers for source in layer.scene.sources]
    copies = find_copies([[layer.scene for layer in layers] for layers in aligned])
    for index, first in copies.items():
        reason = f"the same bytes as {aligned[first][0].scene.sources[0]}, which is read itself"
        skipped += [Skipped(source, reason) for layer in aligned[index] for source in layer.scene.sources]
    aligned = [layers for index, layers in enumerate(aligned) if index not in copies]
    if not aligned:
        raise InputError(f"no tiles can be cut: {'; '.join(summarise(skipped)[:3])}")
    keys = _unique_keys([layers[0].scene.name for layers in aligned])
    footprints = tuple(Footprint(key, layers) for key, layers in zip(keys, aligned, strict=True))
    notes = tuple(f"{each.sensor.name}: {note}" for each in collections for note in each.notes)
    forced = tuple(entry for collection in collections for entry in collection.forced)
    return Plan(footprints, tuple(skipped), options, notes, forced)


def _pair(collections: Sequence[Collection]) -> tuple[list[list[Layer]], list[Skipped]]:
    """Layers of one footprint together: by path below the roots, else by file name alone."""
    layers = [[Layer(each.sensor, scene, bands) for scene, bands in each.scenes] for each in collections]
    if len(layers) == 1:
        return [[layer] for layer in layers[0]], []
    by_path = [{layer.scene.name: layer for layer in group} for group in layers]
    by_stem = [{Path(layer.scene.name).name: layer for layer in group} for group in layers]
    tables = by_path if set.intersection(*map(set, by_path)) else by_stem
    shared = sorted(set.intersection(*map(set, tables)))
    stacks = [[table[key] for table in tables] for key in shared]
    paired = {id(layer) for stack in stacks for layer in stack}
    reason = f"no image of the same name from every one of {', '.join(each.sensor.name for each in collections)}"
    alone = [layer for group in layers for layer in group if id(layer) not in paired]
    return stacks, [Skipped(source, reason) for layer in alone for source in layer.scene.sources]


def _align(layers: Sequence[Layer], options: TileOptions, like: Sequence[Layer] | None) -> tuple[Layer, ...]:
    """The layers with their pixel ratios, which must be those of `like`, or tiles would differ in size.

    Raises:
        Unreadable: smaller than a tile, not the same ground, or tiles would not fall on whole pixels.
    """
    first = layers[0].scene
    _, height, width = first.shape
    if min(height, width) < options.tile:
        raise Unreadable(f"{height} x {width} px, smaller than a tile; pass --tile {min(height, width)} or less")
    aligned = []
    for layer in layers:
        ratio = _pixel_ratio(first, layer.scene)
        _check_ground(first, layer.scene)
        for name, value in (("tile", options.tile), ("stride", options.stride)):
            if (value * ratio).denominator != 1:
                raise Unreadable(f"--{name} {value} is no multiple of {1 / ratio}, the pixel ratio to {first.name}")
        aligned.append(replace(layer, ratio=ratio))
    if like is not None and [layer.ratio for layer in aligned] != [layer.ratio for layer in like]:
        ratios = ["1:" + ":".join(str(1 / layer.ratio) for layer in group[1:]) for group in (aligned, like)]
        raise Unreadable(f"pixel ratio {ratios[0]}, but {ratios[1]} in {like[0].scene.name}")
    return tuple(aligned)


def _pixel_ratio(first: Scene, other: Scene) -> Fraction:
    ratio = Fraction(other.shape[1], first.shape[1])
    if Fraction(other.shape[2], first.shape[2]) != ratio or 1 not in (ratio.numerator, ratio.denominator):
        sizes = [f"{scene.shape[1]} x {scene.shape[2]} px" for scene in (other, first)]
        raise Unreadable(f"{sizes[0]} is no whole multiple or part of {sizes[1]}")
    return ratio


def _check_ground(first: Scene, other: Scene) -> None:
    placed = [scene.transform is not None or scene.points is not None for scene in (first, other)]
    if placed[0] != placed[1]:
        raise Unreadable("one of the pair is georeferenced, the other is not; write the place into both")
    compare_grids(first, other)


def _offsets(length: int, tile: int, stride: int) -> list[int]:
    offsets = list(range(0, length - tile + 1, stride))
    return offsets if offsets[-1] + tile == length else [*offsets, length - tile]


def _unique_keys(names: Sequence[str]) -> list[str]:
    """The names as sample keys: no dot, nothing a tar or a shell minds, no two alike."""
    keys: list[str] = []
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        key, number = plain, 1
        while key in used:
            number += 1
            key = f"{plain}_{number}"
        used.add(key)
        keys.append(key)
    return keys


def _identity(footprint: Footprint) -> list[Any]:
    """What a footprint's samples depend on, JSON-ready."""
    record: list[Any] = [footprint.key]
    for layer in footprint.layers:
        scene = layer.scene
        files = [version_of(file) for file in scene.files]
        ways = [repr(getattr(scene, name, None)) for name in ("parts", "alpha", "pages")]
        reading = [scene.shape, scene.dtype, scene.nodata, scene.masked, *ways]
        record.append([layer.sensor.name, scene.sources, files, layer.bands, reading])
    return record
