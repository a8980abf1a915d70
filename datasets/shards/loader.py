"""Batches for training: one sensor of one source per optimiser step, the same samples for any layout of ranks."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from alliance.sensors import Sensor
from datasets.descriptors import allowed, share_out
from datasets.sampling.faults import Fault
from datasets.shards.batches import LoaderConfig, Reader, Source, Step, Task
from datasets.shards.files import RemoteFiles
from datasets.shards.index import NAME
from datasets.shards.kept import KeptRanges
from datasets.shards.read import OPEN_SHARDS, ShardSource
from datasets.shards.stream import Lane, StreamSource, is_remote
from datasets.storage.places import is_store
from datasets.storage.store import Store, Traffic, client

STREAM = 2  # keeps the draws of sources apart from those of samples and augmentation


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Ranged):
    """One set of shards."""

    shards: str
    """Folder of shards, on this machine or elsewhere: s3://..., gs://..., az://..., https://..., or pipe:COMMAND {} to
    stream from. ${NAME} in it stands for what the environment holds: a password.
    """
    weight: float = ranged(1.0, 0, LARGE, above=True)
    """Its part of the steps, relative to the other sources."""
    sensors: tuple[str, ...] = ()
    """Which of its sensors are read; empty: all."""
    stream: bool = False
    """Of shards elsewhere: read whole tars one after the other and mix their samples in a buffer, as where there are no
    byte ranges to be had; the order is then that of this number of ranks.
    """


class Batch(NamedTuple):
    """One rank's micro-batch."""

    stored: Tensor  # (b, c, h, w) as stored; sensor.to_physical makes it float
    sensor: Sensor
    source: int
    positions: Tensor  # (b,) int64, places in the step's global batch
    keys: list[str]
    faults: list[Fault]  # of samples that were replaced by others
    step: int


class ShardLoader:
    """Iterates over micro-batches without end; `accumulation` of them make a step.

    The global batch of a step is `micro * accumulation * world` successive positions of one source's sample order.
    Micro-batch m of rank r takes positions (m * world + r) * micro onwards, so that the union over ranks and
    micro-batches does not depend on how the same product is split.
    """

    def __init__(
        self, sources: Sequence[SourceConfig], config: LoaderConfig, *, rank: int = 0, world: int = 1,
        allow_pipe: bool = True,
    ) -> None:  # fmt: skip
        """Open the sources.

        Args:
            allow_pipe: whether a source may be a command.
        Raises:
            InputError: no sources, an unknown sensor, a weight that is not positive, shards that do not fit, or a
                command that is not allowed.
        """
        if not sources:
            raise InputError("no shards given; pass data.sources '[{shards: DIR, weight: 1.0}]'")
        self.config = config
        self.batch = config.micro * config.accumulation * world
        self.sources = [_open(source, allow_pipe, config) for source in sources]
        own = [source for source in self.sources if isinstance(source, ShardSource)]
        for source in own:
            source.keep_open(share_out(allowed(), len(own) * max(config.workers, 1), OPEN_SHARDS))
        self.sensor_names = [
            _sensor_names(source, shards) for source, shards in zip(sources, self.sources, strict=True)
        ]
        weights = np.array([source.weight for source in sources], dtype=float)
        if not (weights > 0).all():
            raise InputError(f"weights of sources must be positive, got {weights.tolist()}")
        self._shares = np.cumsum(weights / weights.sum())
        lanes = {
            number: Lane(source, seed=config.seed, rank=rank, world=world, sensors=names)
            for number, (source, names) in enumerate(zip(self.sources, self.sensor_names, strict=True))
            if isinstance(source, StreamSource)
        }
        self._reader = Reader(self.sources, config, lanes, rank, world)
        self._step, self._consumed = 0, [0] * len(sources)
        self._recent: deque[tuple[Step, list[str]]] = deque(maxlen=16)  # with the keys that this rank took

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the first step that was not taken whole."""
        for number, lane in self._reader.lanes.items():
            lane.seek(self._consumed[number] // self._reader.world)
        steps = self._steps(self._step, tuple(self._consumed))
        tasks = (Task(step, micro) for step in steps for micro in range(self.config.accumulation))
        for (step, micro), reading in self._reader.read_ahead(tasks):
            if micro == 0:
                self._recent.append((step, []))
            self._recent[-1][1].extend(reading.keys)
            if micro == self.config.accumulation - 1:
                self._step = step.number + 1
                self._consumed[step.source] = step.start + self.batch
            sensor = self.sources[step.source].sensors[step.sensor]
            stored, positions, keys, faults = reading
            yield Batch(stored, sensor, step.source, positions, keys, faults, step.number)

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
        taken, own = self._taken(step)
        source = self.sources[taken.source]
        if isinstance(source, StreamSource):
            return own
        return source.keys(*self._reader.own.orders[taken.source].locate(taken.start + np.arange(self.batch)))

    def sensor(self, step: int) -> str:
        """Name of the sensor of a recent step."""
        return self._taken(step)[0].sensor

    def epoch(self) -> float:
        """Epochs of the current source that were taken."""
        source = self._recent[-1][0].source if self._recent else self._draw(self._step)[0]
        return self._reader.own.orders[source].epoch(self._consumed[source])

    def traffic(self) -> Traffic | None:
        """What was asked of stores so far; None: nothing lies in any."""
        found = [
            s.files.store.traffic
            for s in self.sources
            if isinstance(s, ShardSource) and isinstance(s.files, RemoteFiles)
        ]
        return Traffic(*map(sum, zip(*map(astuple, found), strict=True))) if found else None

    def _taken(self, step: int) -> tuple[Step, list[str]]:
        """A recent step, and the keys that this rank took."""
        found = [recent for recent in self._recent if recent[0].number == step]
        assert found, f"step {step} is not among the last {self._recent.maxlen} that were taken"
        return found[0]

    def _draw(self, step: int) -> tuple[int, str]:
        """Source and sensor of a step, from (seed, step) alone."""
        if len(self.sources) == len(self.sensor_names[0]) == 1:
            return 0, self.sensor_names[0][0]  # there is nothing to draw
        raw = np.random.Philox(np.random.SeedSequence([STREAM, self.config.seed, step])).random_raw(2)
        source = int(np.searchsorted(self._shares, raw[0] / 2**64, side="right").clip(max=len(self.sources) - 1))
        names = self.sensor_names[source]
        return source, names[int(raw[1]) % len(names)]


def _open(source: SourceConfig, allow_pipe: bool, config: LoaderConfig) -> Source:
    """Shards here and in stores are read by place, all others, and those of servers without byte ranges, as a stream."""
    place = source.shards
    if is_store(place) and not source.stream and client() is not None:
        store = Store(place, timeout=config.timeout)
        kept = KeptRanges(config.cache, int(config.cache_gb * 1e9)) if config.cache else None
        if store.gives_ranges(NAME):
            opened = ShardSource(RemoteFiles(store, kept))
            store.be_patient(config.patience)
            return opened
    if is_remote(place):
        return StreamSource(place, allow_pipe=allow_pipe, timeout=config.timeout)
    return ShardSource(place)


def _sensor_names(config: SourceConfig, source: Source) -> list[str]:
    known = list(source.sensors)
    unknown = [name for name in config.sensors if name not in known]
    if unknown:
        raise InputError(f"{config.shards} has no sensor {unknown[0]}; it has {', '.join(known)}")
    return list(config.sensors) or known
