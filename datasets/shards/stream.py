"""Shards read over the network: webdataset opens and unpacks them, a buffer mixes their samples."""

import io
import itertools
import math
import os
import queue
import random
import select
import shlex
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from webdataset.filters import shuffle
from webdataset.gopen import gopen, gopen_schemes
from webdataset.handlers import ignore_and_continue
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from alliance.errors import InputError
from alliance.passwords import hide_passwords
from datasets.descriptors import FULL, too_many
from datasets.sampling.faults import Fault
from datasets.sampling.order import Cache, shuffled
from datasets.shards.index import NAME, Index
from datasets.shards.read import Samples
from datasets.shards.scan import read_header

TRIES = 8  # shards in a row without a sample at which reading stops


class StreamedSample(NamedTuple):
    """One sample as stored."""

    key: str
    arrays: dict[str, np.ndarray]  # by sensor; (c, h, w), read-only


Slot = StreamedSample | Fault


def is_remote(place: str) -> bool:
    """Whether a place begins with a scheme that webdataset opens, or with `s3:`."""
    return ":" in place and place.partition(":")[0] in {"s3", *gopen_schemes}


class StreamSource:
    """The shards under a place such as `https://host/folder` or `pipe:ssh host cat /folder/{}`."""

    def __init__(self, place: str, *, allow_pipe: bool = True) -> None:
        """Fetch the index.

        Args:
            allow_pipe: whether the place may be a command that is run.
        Raises:
            InputError: it cannot be had or is refused, or a pipe has no `{}` or is not allowed.
        """
        if place.startswith("pipe:") and not allow_pipe:
            raise InputError(
                f"{place} is a command that would be run here; if you wrote it or trust who did, give --data.allow_pipe true"
            )
        if place.startswith("pipe:") and "{}" not in place:
            raise InputError(f"{place} has no {{}}, where file names go; write pipe:ssh host cat /folder/{{}}")
        self.folder = hide_passwords(place)  # as it may be shown
        self._place, where = place, hide_passwords(_address(place, NAME))
        with _Download(_address(place, NAME), 1 << 30) as download:
            text = download.readall().decode(errors="replace")
        if download.failure:
            raise InputError(f"{where} cannot be fetched: {download.failure}; correct the place, or fetch it by hand")
        self.index = Index.parse(text, where)
        self.counts = np.array([shard.samples for shard in self.index.shards], dtype=np.int64)
        self.sensors, self.samples = self.index.sensors, self.index.samples
        for name in (shard.name for shard in self.index.shards):
            if shlex.quote(name) != name or name.startswith("-"):  # ssh hands its words to a second shell
                raise InputError(f"{where} names {name!r}, unfit for a command; rename it to letters and digits")

    def shape(self, sensor: str) -> tuple[int, int, int]:
        """(c, h, w) of this sensor's arrays."""
        return self.index.shapes[sensor]

    def first(self, sensor: str, count: int) -> np.ndarray:
        """The first good samples of the first shards, (n, c, h, w) as stored, n <= count; InputError if none."""
        lost: list[Fault] = []
        shards = range(min(TRIES, len(self.counts)))
        samples = _samples(itertools.chain.from_iterable(self.open(shard, [sensor]) for shard in shards), lost)
        found = [sample.arrays[sensor] for sample in itertools.islice(samples, count)]
        if not found:
            raise InputError(f"{self.folder}: no sample of {sensor} can be read: {lost[0]}; copy the shards again")
        return _batch(found)

    def open(self, shard: int, sensors: Sequence[str], stop: threading.Event | None = None) -> Iterator[Slot]:
        """Read one shard in tar order, as many samples as the index says; a fault stands for each that is not there.

        A sample needs arrays of all these sensors. Setting `stop` ends the reading early.
        """
        name, expected, size, _ = self.index.shards[shard]
        fields = {f"{sensor}.npy": sensor for sensor in sensors}
        keys: dict[str, None] = {}  # of all members so far, in tar order
        told, good = set[str](), 0
        errors: list[Exception] = []

        def wanted(member: str) -> bool:
            key, field = base_plus_ext(member)
            keys[key or member] = None
            return field in fields

        limit = 2 * size + (1 << 20)  # a tar that somebody appended to is read, an endless one is not
        with _Download(_address(self._place, name), limit, stop) as download:
            tar: Any = [{"url": name, "stream": io.BufferedReader(download, 1 << 16)}]
            members: Any = tar_file_expander(tar, handler=errors.append, select_files=wanted)  # pyright: ignore
            for sample in group_by_keys(members, lcase=False, handler=ignore_and_continue):
                if fields.keys() <= sample.keys():
                    yield (item := self._decode(name, sample, fields))
                    told.add(item.key)
                    good += isinstance(item, StreamedSample)
                    if good == expected:
                        return
        if keys and (errors or download.failure or len(keys) < expected):
            keys.popitem()  # the tar was cut in this sample or behind it
        untold = [key for key in keys if key not in told]
        yield from (Fault("member", name, key, f"does not hold {' and '.join(fields)}") for key in untold)
        reason = download.failure or f"ends after {len(told) + len(untold)} of {expected} samples"
        for number in range(len(told) + len(untold), expected):
            yield Fault("shard" if download.failure else "truncated", name, f"sample {number}", reason)

    def _decode(self, shard: str, members: dict[str, Any], fields: dict[str, str]) -> Slot:
        key, arrays = members["__key__"], {}
        for field, sensor in fields.items():
            stream, shape = io.BytesIO(members[field]), self.shape(sensor)
            try:
                found, dtype = read_header(stream, tarfile.TarInfo())
                if found != shape:
                    raise ValueError(f"has shape {found}, not {shape} (bands, rows, columns)")
                arrays[sensor] = np.frombuffer(members[field], dtype, math.prod(shape), stream.tell()).reshape(shape)
            except Exception as error:  # numpy's header parser lets through more than ValueError
                return Fault("array", shard, key, f"{field}: {error!r:.200}")
        return StreamedSample(key, arrays)


class Lane:
    """One rank's endless sequence of slots of a source; a slot is a sample, or the fault that took its place.

    Shards come epoch after epoch, permuted; rank r of W takes the places r, r + W, ... of that sequence. A shard has as
    many slots as the index says: its samples, mixed in a buffer, then its faults. So the index alone tells where a
    position of the lane lies. From the first `take` until `close` a thread reads ahead.
    """

    def __init__(
        self, source: StreamSource, *, seed: int, rank: int, world: int, sensors: Sequence[str], buffer: int = 256
    ) -> None:
        self.source, self.sensors = source, tuple(sensors)
        self.seed, self.rank, self.world, self.buffer = seed, rank, world, buffer
        self.position = 0  # slots taken, those of faults included
        self._ahead: queue.Queue[Any] | None = None

    def seek(self, position: int) -> None:
        """Go on as if this many slots had been taken; at most the begun shard is read again."""
        self.close()
        self.position = position

    def take(self, sensor: str, count: int) -> Samples:
        """The next slots, or those after them where all are faults; a fault is replaced by the first sample and named.

        Raises:
            InputError: eight shards in a row gave no sample.
        """
        slots, good, faults = [], [], []
        while not good:
            slots = [self._next() for _ in range(count)]
            good = list(_samples(slots, faults))
        chosen = [slot if isinstance(slot, StreamedSample) else good[0] for slot in slots]
        return Samples(_batch([slot.arrays[sensor] for slot in chosen]), [slot.key for slot in chosen], faults)

    def close(self) -> None:
        """End the reading ahead; another `take` goes on where this lane stands."""
        if self._ahead is not None:
            self._stop.set()
            self._thread.join(5)  # an opener that looks up an address may keep it longer
            self._ahead = None

    def _next(self) -> Slot:
        if self._ahead is None:
            self._ahead, self._stop = queue.Queue(2 * self.buffer), threading.Event()
            task = self._slots(self.position, self._stop), self._ahead, self._stop
            self._thread = threading.Thread(target=_read_ahead, args=task, daemon=True, name=self.source.folder)
            self._thread.start()
        slot = self._ahead.get()
        if isinstance(slot, Exception):
            self.close()
            raise slot
        self.position += 1
        return slot

    def _slots(self, begun: int, stop: threading.Event) -> Iterator[Slot]:
        """The slots from this position on."""
        counts, orders, barren = self.source.counts, Cache[np.ndarray](1), []
        for place in itertools.count(self.rank, self.world):
            epoch, turn = divmod(place, len(counts))
            shard = int(orders.get_or_make(epoch, partial(shuffled, len(counts), self.seed, epoch))[turn])
            if begun >= counts[shard]:
                begun -= int(counts[shard])
                continue
            lost: list[Fault] = []
            samples = _samples(self.source.open(shard, self.sensors, stop), lost)
            mixed = shuffle(self.buffer, rng=random.Random(f"{self.seed}:{place}"))(samples)
            slots = itertools.islice(itertools.chain(mixed, lost), int(counts[shard]))
            first = next(slots)  # a sample if the shard has one
            yield from itertools.islice(itertools.chain([first], slots), begun, None)
            begun, barren = 0, [*barren, first] if isinstance(first, Fault) else []
            if len(barren) == TRIES:
                reason = f"{TRIES} shards in a row gave no sample: {barren[0]}"
                raise InputError(f"{self.source.folder}: {reason}; see that they are there, or copy them again")


class _Download(io.RawIOBase):
    """The bytes of a file, by webdataset's opener. What went wrong stands in `failure`, but for too many open files."""

    def __init__(self, address: str, limit: int, stop: threading.Event | None = None) -> None:
        self.failure, self._left, self._stop = "", limit, stop or threading.Event()
        self._process = self._file = None
        self._poll = select.poll()
        try:
            self._pipe: Any = gopen(address)  # held, because it closes its file when it goes
            self._process, self._file = getattr(self._pipe, "proc", None), getattr(self._pipe, "stream", self._pipe)
            self._poll.register(self._file, select.POLLIN)
        except Exception as error:  # of another kind for each scheme
            if isinstance(error, OSError) and error.errno in FULL:
                raise too_many(error) from error
            self.failure = hide_passwords(" ".join(str(error).split()))[:200]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As of any raw stream; it also ends at the limit, after a failure and when told to stop."""
        while self._file and not self._stop.is_set():
            if self._poll.poll(100):  # milliseconds
                count = os.readv(self._file.fileno(), [memoryview(buffer)[: self._left]])
                self._left -= count
                if not count and self._left and self._process and self._process.wait():
                    self.failure = f"its opener ended with status {self._process.returncode}"
                return count
        return 0

    def close(self) -> None:
        """End the opener's command, however far it is."""
        super().close()
        if self._file:
            self._file.close()
        if self._process:
            self._process.kill()
            self._process.wait()


def _read_ahead(slots: Iterator[Slot], ahead: queue.Queue[Any], stop: threading.Event) -> None:
    """Put the slots into the queue until told to stop; an exception goes there too and ends it."""
    slot = None
    while not stop.is_set() and not isinstance(slot, Exception):
        try:
            slot = next(slots)
        except Exception as error:
            slot = error
        while not stop.is_set():
            with suppress(queue.Full):
                ahead.put(slot, timeout=0.1)
                break


def _samples(items: Iterable[Slot], lost: list[Fault]) -> Iterator[StreamedSample]:
    """The samples among the items; the faults go into `lost`."""
    for item in items:
        if isinstance(item, Fault):
            lost.append(item)
        else:
            yield item


def _address(place: str, name: str) -> str:
    """What webdataset's opener takes for a file under a place."""
    if place.startswith("pipe:"):
        return place.replace("{}", shlex.quote(name))
    address = f"{place.rstrip('/')}/{name}"
    return f"pipe:aws s3 cp {shlex.quote(address)} -" if place.startswith("s3:") else address


def _batch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays, dtype=np.result_type(*arrays).newbyteorder("="))
