"""Micro-batches: read, cut, turned and checked on one rank, also ahead of their time in threads."""

import copy
import itertools
import math
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import LARGE, MANY, SEEDS, Ranged, ranged
from alliance.sensors import Sensor
from datasets.sampling.faults import BrokenSample, Fault
from datasets.sampling.order import SampleOrder
from datasets.sampling.placement import Placement, draw_placements
from datasets.shards.read import Samples, ShardSource
from datasets.shards.stream import Lane, StreamSource
from datasets.storage.places import PATIENCE, TIMEOUT

Source = ShardSource | StreamSource
TRIES = 8  # other batches looked at when no sample of a micro-batch can be read
AHEAD = 2  # micro-batches that a thread may be ahead of the training


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(Ranged):
    """How batches are drawn and read."""

    seed: int = ranged(0, 0, SEEDS)
    """Number from which sample order, crops and turns are drawn."""
    micro: int = ranged(8, 1, MANY)
    """Samples per rank and forward pass."""
    accumulation: int = ranged(1, 1, MANY)
    """Forward passes per optimiser step."""
    workers: int = ranged(0, 0, 1024)
    """Threads per rank that read ahead; 0 reads when the batch is asked for."""
    shuffle_group: int = ranged(16, 1, MANY)
    """Number of shards whose samples are mixed."""
    crop: int | None = ranged(None, 1, 65536)
    """Side of a random square cut out of every tile, pixels; smaller tiles stay whole; None: all do."""
    flips: bool = True
    """Random mirrors and quarter turns."""
    verify: bool = True
    """Compare every sample with its checksum."""
    timeout: float = ranged(TIMEOUT, 0, 600, above=True)
    """Seconds that a download may stall."""
    patience: float = ranged(PATIENCE, 0, 86400)
    """Seconds that a store may be away."""
    cache: str = ""
    """Folder that keeps what was read from stores; empty: nothing is kept."""
    cache_gb: float = ranged(100.0, 0, LARGE, above=True)
    """Size of that folder, 1e9 bytes."""


class Step(NamedTuple):
    """What an optimiser step reads: plain numbers, the same on every rank."""

    number: int
    source: int
    sensor: str
    start: int  # first position in the source's stream


class Task(NamedTuple):
    """What one rank reads for one micro-batch."""

    step: Step
    micro: int


class Reading(NamedTuple):
    """A micro-batch as it was read."""

    stored: Tensor  # (b, c, h, w) as stored
    positions: Tensor  # (b,) int64, places in the step's global batch
    keys: list[str]
    faults: list[Fault]


class Reader:
    """Turns tasks into micro-batches. What it reads depends on the task alone, not on the thread or on earlier tasks."""

    def __init__(
        self, sources: Sequence[Source], config: LoaderConfig, lanes: Mapping[int, Lane], rank: int, world: int
    ) -> None:
        """
        Args:
            lanes: of the sources that are streamed, by number.
        """
        self.config, self.lanes = config, lanes
        self.sources = [source for source in sources if isinstance(source, ShardSource)]
        self.rank, self.world = rank, world
        self.own = _Own(sources, config)
        self._buffers = Buffers(AHEAD * max(config.workers, 1) + 2)

    def read_ahead(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Reading]]:
        """The micro-batches of endless tasks, in their order."""
        if not self.config.workers:
            for task in tasks:
                yield task, self._finish(task)
            return
        threads = ThreadPoolExecutor(self.config.workers, "reader")
        begun = deque(self._begin(task, threads) for task in itertools.islice(tasks, AHEAD * self.config.workers))
        try:
            for later in tasks:
                task, reading = begun.popleft()
                begun.append(self._begin(later, threads))
                yield task, reading.result() if reading else self._finish(task)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for source in self.sources:
                source.interrupt()

    def _begin(self, task: Task, threads: ThreadPoolExecutor) -> tuple[Task, Future[Reading] | None]:
        """A lane is read in order, by the thread that asks; it reads ahead by itself."""
        return task, None if task.step.source in self.lanes else threads.submit(self._finish, task)

    def _finish(self, task: Task) -> Reading:
        step, config = task.step, self.config
        positions = (task.micro * self.world + self.rank) * config.micro + np.arange(config.micro)
        source = self.own.sources[step.source]
        shape, sensor = source.shape(step.sensor), source.sensors[step.sensor]
        drawn = draw_placements(config.seed, step.number, positions, shape[-2:], crop=config.crop, flips=config.flips)
        if isinstance(source, StreamSource):
            samples = self.lanes[step.source].take(step.sensor, config.micro)
            placed = [placement.apply(image)[0] for placement, image in zip(drawn, samples.stored, strict=True)]
            samples = samples._replace(stored=np.stack(placed))
        else:
            samples = self._read(source, step, step.start + positions, drawn)
        keys, faults = _replace_empty(samples, sensor)
        return Reading(torch.from_numpy(samples.stored), torch.from_numpy(positions), keys, faults)

    def _read(self, source: ShardSource, step: Step, places: np.ndarray, drawn: Sequence[Placement]) -> Samples:
        """Read the samples at these places of the stream; if none can be read, those one global batch further."""
        order, batch = self.own.orders[step.source], self.config.micro * self.config.accumulation * self.world
        lost: list[Fault] = []
        for attempt in range(TRIES):
            located = order.locate(places + attempt * batch)
            try:
                samples = source.read(
                    step.sensor, *located, verify=self.config.verify, placements=drawn, allocate=self._buffers
                )
                return samples._replace(faults=lost + samples.faults)
            except BrokenSample as error:
                lost += error.faults
        reason = f"{TRIES} batches in a row cannot be read: {lost[0]}"
        raise InputError(f"{source.folder}: {reason}; {source.mend}")


class _Own(threading.local):
    """Sources and orders of one thread, because their caches must not be shared."""

    def __init__(self, sources: Sequence[Source], config: LoaderConfig) -> None:
        self.sources = [copy.copy(source) for source in sources]
        self.orders = [SampleOrder(source.counts, config.seed, config.shuffle_group) for source in sources]


class Buffers:
    """Arrays for batches, given out again once nobody holds them: fresh memory costs as much as reading into it."""

    def __init__(self, count: int) -> None:
        self._blocks: deque[np.ndarray] = deque(maxlen=count)
        self._lock = threading.Lock()
        (self._alone,) = _holders([np.empty(1)])

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with any content."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            for block, holders in zip(self._blocks, _holders(self._blocks), strict=True):
                if holders == self._alone and block.nbytes == size:
                    return block.view(dtype).reshape(shape)
            block = np.empty(size, np.uint8)
            self._blocks.append(block)
            return block.view(dtype).reshape(shape)


def _holders(blocks: Sequence[np.ndarray]) -> list[int]:
    """References to each array; a view of it, or a tensor on a view, is one."""
    return [sys.getrefcount(block) for block in blocks]


def _replace_empty(samples: Samples, sensor: Sensor) -> tuple[list[str], list[Fault]]:
    """Put the first window with values into the place of those without; keys and faults afterwards.

    If no window has a value they all stay: they count nothing in the loss.
    """
    stored = samples.stored
    if sensor.nodata is None and stored.dtype.kind != "f":
        return samples.keys, samples.faults
    height, width = stored.shape[-2:]
    if _are_values(stored[..., height // 2, width // 2], sensor).all():  # one pixel of each often tells
        return samples.keys, samples.faults
    step = max(min(height, width) // 8, 1)  # a coarse grid mostly
    doubtful = np.flatnonzero(~_have_values(stored[..., ::step, ::step], sensor)).tolist()
    empty = [place for place in doubtful if not _have_values(stored[place : place + 1], sensor)]
    keys, faults = list(samples.keys), list(samples.faults)
    good = next((place for place in range(len(stored)) if place not in empty), None)
    for place in empty:
        faults.append(Fault("empty", sensor.name, keys[place], "its window has no pixel with a value in every band"))
        if good is not None:
            stored[place], keys[place] = stored[good], keys[good]
    return keys, faults


def _have_values(stored: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Which images (b, c, h, w) have a pixel with a value in every band."""
    return np.logical_and.reduce(_are_values(stored, sensor), axis=1).reshape(len(stored), -1).any(axis=-1)


def _are_values(stored: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Which numbers are finite and not nodata."""
    present = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, bool)
    if sensor.nodata is not None:
        present &= stored != sensor.nodata
    return present
