"""Batches for training: one sensor of one source per optimiser step, the same samples for any layout of ranks."""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alliance.errors import InputError
from alliance.sensors import Sensor
from datasets.augment import draw_placements
from datasets.shards.order import SampleOrder
from datasets.shards.read import BrokenSample, Fault, Samples, ShardSource
from datasets.shards.stream import Lane, StreamSource, is_remote

Source = ShardSource | StreamSource
TRIES = 8  # other batches looked at when no sample of a micro-batch can be read
STREAM = 2  # keeps the draws of sources apart from those of samples and augmentation


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of shards."""

    shards: str  # folder, or a place to stream from: https://..., s3://..., pipe:COMMAND {}
    weight: float = 1.0  # its part of the steps, relative to the other sources
    sensors: tuple[str, ...] = ()  # which of its sensors; empty: all


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are drawn and read."""

    seed: int = 0
    micro: int = 8  # samples per rank and forward pass
    accumulation: int = 1  # forward passes per optimiser step
    workers: int = 0  # reading processes per rank; 0 reads in the training process
    shuffle_group: int = 16  # shards whose samples are mixed
    crop: int | None = None  # pixels; smaller tiles stay whole, None: all do
    flips: bool = True  # random mirrors and quarter turns
    verify: bool = True  # compare every sample with its checksum


class Batch(NamedTuple):
    """One rank's micro-batch."""

    stored: Tensor  # (b, c, h, w) as stored; sensor.to_physical makes it float
    sensor: Sensor
    source: int
    positions: Tensor  # (b,) int64, places in the step's global batch
    keys: list[str]
    faults: list[Fault]  # of samples that were replaced by others
    step: int


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


class ShardLoader:
    """Iterates over micro-batches without end; `accumulation` of them make a step.

    The global batch of a step is `micro * accumulation * world` successive positions of one source's sample order.
    Micro-batch m of rank r takes positions (m * world + r) * micro onwards, so that the union over ranks and
    micro-batches does not depend on how the same product is split.
    """

    def __init__(self, sources: Sequence[SourceConfig], config: LoaderConfig, *, rank: int = 0, world: int = 1) -> None:
        """Open the sources.

        Raises:
            InputError: no sources, an unknown sensor, a weight that is not positive, or shards that do not fit.
        """
        if not sources:
            raise InputError("no shards given; pass data.sources '[{shards: DIR, weight: 1.0}]'")
        self.config = config
        self.batch = config.micro * config.accumulation * world
        self.sources = [_open(source.shards) for source in sources]
        self.sensor_names = [
            _sensor_names(source, shards) for source, shards in zip(sources, self.sources, strict=True)
        ]
        weights = np.array([source.weight for source in sources], dtype=float)
        if not (weights > 0).all():
            raise InputError(f"weights of sources must be positive, got {weights.tolist()}")
        self._shares = np.cumsum(weights / weights.sum())
        self._reader = _Reader(self.sources, config, rank, world)
        self._lanes = {
            number: Lane(source, seed=config.seed, rank=rank, world=world, sensors=names)
            for number, (source, names) in enumerate(zip(self.sources, self.sensor_names, strict=True))
            if isinstance(source, StreamSource)
        }
        self._step, self._consumed = 0, [0] * len(sources)
        self._recent: deque[tuple[Step, list[str]]] = deque(maxlen=16)  # with the keys that this rank took

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the first step that was not taken whole."""
        steps, passes = partial(self._steps, self._step, tuple(self._consumed)), self.config.accumulation
        for number, lane in self._lanes.items():
            lane.seek(self._consumed[number] // self._reader.world)
        indexed = _Tasks(steps, passes, leave_out=self._lanes)
        readings = iter(
            _loader(self._reader, indexed, self.config.workers) if len(self._lanes) < len(self.sources) else ()
        )
        for task in _Tasks(steps, passes):
            step, micro = task
            lane = self._lanes.get(step.source)
            reading = self._reader.stream(task, lane) if lane else next(readings)
            if micro == 0:
                self._recent.append((step, []))
            self._recent[-1][1].extend(reading.keys)
            if micro == self.config.accumulation - 1:
                self._step = step.number + 1
                self._consumed[step.source] = step.start + self.batch
            sensor = self.sources[step.source].sensors[step.sensor]
            yield Batch(sensor=sensor, source=step.source, step=step.number, **reading._asdict())

    def state_dict(self) -> dict[str, Any]:
        """The first step that was not taken whole, and how many samples of each source were."""
        return {"step": self._step, "consumed": list(self._consumed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; iterate anew afterwards.

        Raises:
            InputError: the state is of another number of sources.
        """
        if len(state["consumed"]) != len(self.sources):
            raise InputError(
                f"the checkpoint read {len(state['consumed'])} sources, data.sources has {len(self.sources)}; "
                f"give the same sources in the same order"
            )
        self._step, self._consumed = int(state["step"]), [int(count) for count in state["consumed"]]
        self._recent.clear()

    def _steps(self, number: int, consumed: tuple[int, ...]) -> Iterator[Step]:
        starts = list(consumed)
        while True:
            source, sensor = self._draw(number)
            yield Step(number, source, sensor, starts[source])
            starts[source] += self.batch
            number += 1

    def global_keys(self, step: int) -> list[str]:
        """Keys of the whole global batch of a recent step, in order, as they are without broken samples.

        Of a step that was streamed, the keys that this rank took: the others are not known here.
        """
        found = [recent for recent in self._recent if recent[0].number == step]
        assert found, f"step {step} is not among the last {self._recent.maxlen} that were taken"
        (taken, own), source = found[0], self.sources[found[0][0].source]
        if isinstance(source, StreamSource):
            return own
        return source.keys(*self._reader.orders[taken.source].locate(taken.start + np.arange(self.batch)))

    def epoch(self) -> float:
        """Epochs of the current source that were taken."""
        source = self._recent[-1][0].source if self._recent else self._draw(self._step)[0]
        return self._reader.orders[source].epoch(self._consumed[source])

    def _draw(self, step: int) -> tuple[int, str]:
        """Source and sensor of a step, from (seed, step) alone."""
        raw = np.random.Philox(np.random.SeedSequence([STREAM, self.config.seed, step])).random_raw(2)
        source = int(np.searchsorted(self._shares, raw[0] / 2**64, side="right").clip(max=len(self.sources) - 1))
        names = self.sensor_names[source]
        return source, names[int(raw[1]) % len(names)]


class _Tasks:
    """The micro-batches of successive steps, as an endless sampler; every walk begins at the same step."""

    def __init__(self, steps: Callable[[], Iterator[Step]], accumulation: int, leave_out: Container[int] = ()) -> None:
        """
        Args:
            leave_out: sources whose steps are not among the tasks.
        """
        self.steps = steps
        self.accumulation = accumulation
        self.leave_out = leave_out

    def __iter__(self) -> Iterator[Task]:
        for step in self.steps():
            if step.source not in self.leave_out:
                yield from (Task(step, micro) for micro in range(self.accumulation))


class _Reading(NamedTuple):
    stored: Tensor
    positions: Tensor
    keys: list[str]
    faults: list[Fault]


class _Reader(Dataset[_Reading]):
    """Tasks to samples; the part that runs in worker processes."""

    def __init__(self, sources: Sequence[Source], config: LoaderConfig, rank: int, world: int) -> None:
        self.sources = sources
        self.config = config
        self.rank, self.world = rank, world
        self.orders = [SampleOrder(source.counts, config.seed, config.shuffle_group) for source in sources]

    def __getitem__(self, task: Task) -> _Reading:
        positions = self._positions(task)
        return self._place(task.step, positions, self._read(task.step, task.step.start + positions))

    def stream(self, task: Task, lane: Lane) -> _Reading:
        """The micro-batch of a source that is read one sample after the other."""
        return self._place(task.step, self._positions(task), lane.take(task.step.sensor, self.config.micro))

    def _positions(self, task: Task) -> np.ndarray:
        """Places of this rank's samples in the global batch of a step."""
        return (task.micro * self.world + self.rank) * self.config.micro + np.arange(self.config.micro)

    def _place(self, step: Step, positions: np.ndarray, samples: Samples) -> _Reading:
        """Cut, turn and mirror the samples of a micro-batch."""
        config = self.config
        shape = samples.stored.shape[-2:]
        drawn = draw_placements(config.seed, step.number, positions, shape, crop=config.crop, flips=config.flips)
        placed = [placement.apply(image)[0] for placement, image in zip(drawn, samples.stored, strict=True)]
        keys, faults = _replace_empty(placed, samples, self.sources[step.source].sensors[step.sensor])
        return _Reading(torch.from_numpy(np.stack(placed)), torch.from_numpy(positions), keys, faults)

    def _read(self, step: Step, places: np.ndarray) -> Samples:
        """Read the samples at these places of the stream; if none can be read, those one global batch further."""
        source, order = self.sources[step.source], self.orders[step.source]
        assert isinstance(source, ShardSource), "streams are read by lanes"
        batch = self.config.micro * self.config.accumulation * self.world
        lost: list[Fault] = []
        for attempt in range(TRIES):
            located = order.locate(places + attempt * batch)
            try:
                samples = source.read(step.sensor, *located, verify=self.config.verify)
                return samples._replace(faults=lost + samples.faults)
            except BrokenSample as error:
                lost.append(error.fault)
        raise InputError(f"{source.folder}: {TRIES} batches in a row cannot be read: {lost[0]}; copy the shards again")


def _replace_empty(placed: list[np.ndarray], samples: Samples, sensor: Sensor) -> tuple[list[str], list[Fault]]:
    """Put the first window with values into the place of those without; keys and faults afterwards.

    If no window has a value they all stay: they count nothing in the loss.
    """
    empty = [place for place, image in enumerate(placed) if not _has_values(image, sensor)]
    keys, faults = list(samples.keys), list(samples.faults)
    good = next((place for place in range(len(placed)) if place not in empty), None)
    for place in empty:
        faults.append(Fault("empty", sensor.name, keys[place], "its window has no pixel with a value in every band"))
        if good is not None:
            placed[place], keys[place] = placed[good], keys[good]
    return keys, faults


def _has_values(image: np.ndarray, sensor: Sensor) -> bool:
    """Whether some pixel of (c, h, w) stored numbers is there in every band; a coarse grid of pixels mostly tells."""
    step = max(min(image.shape[-2:]) // 8, 1)
    for pixels in (image[:, ::step, ::step], image):
        present = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
        if sensor.nodata is not None:
            present &= pixels != sensor.nodata
        if present.all(0).any():
            return True
    return False


def _loader(reader: _Reader, tasks: _Tasks, workers: int) -> DataLoader[_Reading]:
    own = torch.Generator()  # so that starting the workers leaves torch's global random state alone
    return DataLoader(reader, sampler=tasks, batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=own)


def _as_it_is(reading: Any) -> Any:
    return reading


def _open(place: str) -> Source:
    return StreamSource(place) if is_remote(place) else ShardSource(place)


def _sensor_names(config: SourceConfig, source: Source) -> list[str]:
    known = list(source.sensors)
    unknown = [name for name in config.sensors if name not in known]
    if unknown:
        raise InputError(f"{config.shards} has no sensor {unknown[0]}; it has {', '.join(known)}")
    return list(config.sensors) or known
