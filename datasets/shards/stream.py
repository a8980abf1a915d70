"""Shards read over the network: webdataset opens and unpacks them, a buffer mixes their samples."""

import io
import itertools
import math
import queue
import random
import shlex
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from webdataset.filters import shuffle
from webdataset.gopen import gopen_schemes
from webdataset.handlers import ignore_and_continue
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from alliance.errors import InputError
from alliance.passwords import hide_passwords
from datasets.sampling.faults import Fault
from datasets.sampling.order import Cache, shuffled
from datasets.shards.download import Download, address_of
from datasets.shards.index import NAME, Index
from datasets.shards.read import Samples
from datasets.shards.scan import read_header
from datasets.storage.places import TIMEOUT, filled_in

TRIES = 8  # shards in a row without a sample at which reading stops
ATTEMPTS = 2  # at a download that stalls, unless the one before did so too


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

    def __init__(self, place: str, *, allow_pipe: bool = True, timeout: float = TIMEOUT) -> None:
        """Fetch the index.

        Args:
            place: `${NAME}` in it stands for what the environment holds when a file is fetched.
            allow_pipe: whether the place may be a command that is run.
            timeout: seconds that a download may stall.
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
        self._place, self._timeout, self._stalled = place, timeout, False
        where = hide_passwords(address_of(place, NAME))
        self.index = Index.parse(self._fetch(NAME, where), where)
        self.counts = np.array([shard.samples for shard in self.index.shards], dtype=np.int64)
        self.sensors, self.samples = self.index.sensors, self.index.samples
        for name in (shard.name for shard in self.index.shards):
            if shlex.quote(name) != name or name.startswith("-"):  # ssh hands its words to a second shell
                raise InputError(f"{where} names {name!r}, unfit for a command; rename it to letters and digits")

    def _fetch(self, name: str, where: str) -> str:
        failure = ""
        for _ in range(ATTEMPTS):
            with self._download(name, 1 << 30) as download:
                text = download.readall().decode(errors="replace")
            failure = download.failure
            if not failure:
                return text
            if not download.stalled:
                break
        raise InputError(f"{where} cannot be fetched: {failure}; correct the place, or fetch it by hand")

    def _download(self, name: str, limit: int, stop: threading.Event | None = None) -> Download:
        return Download(address_of(filled_in(self._place), name), limit, self._timeout, stop)

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

        A sample needs arrays of all these sensors. Setting `stop` ends the reading early. A download that stalls is tried
        once more; the samples that came before are not given again.
        """
        name, expected, size, _ = self.index.shards[shard]
        fields, seen, failure = {f"{sensor}.npy": sensor for sensor in sensors}, _Seen(), ""
        limit = 2 * size + (1 << 20)  # a tar that somebody appended to is read, an endless one is not
        for _ in range(1 if self._stalled else ATTEMPTS):
            with self._download(name, limit, stop) as download:
                yield from self._unpack(download, shard, fields, seen)
                failure, self._stalled = download.failure, download.stalled
            if seen.good == expected:
                return
            if not download.stalled:
                break
        keys = list(seen.keys)
        if keys and (seen.errors or failure or len(keys) < expected):
            keys.pop()  # the tar was cut in this sample or behind it
        untold = [key for key in keys if key not in seen.told]
        yield from (Fault("member", name, key, f"does not hold {' and '.join(fields)}") for key in untold)
        reason = failure or f"ends after {len(seen.told) + len(untold)} of {expected} samples"
        for number in range(len(seen.told) + len(untold), expected):
            yield Fault("shard" if failure else "truncated", name, f"sample {number}", reason)

    def _unpack(self, download: Download, shard: int, fields: dict[str, str], seen: "_Seen") -> Iterator[Slot]:
        """The samples of one download of a shard, without those that an earlier one gave."""
        name, expected, _, _ = self.index.shards[shard]
        before = set(seen.told)
        seen.errors.clear()

        def wanted(member: str) -> bool:
            key, field = base_plus_ext(member)
            seen.keys[key or member] = None
            return field in fields

        tar: Any = [{"url": name, "stream": io.BufferedReader(download, 1 << 16)}]
        members: Any = tar_file_expander(tar, handler=seen.errors.append, select_files=wanted)  # pyright: ignore
        for sample in group_by_keys(members, lcase=False, handler=ignore_and_continue):
            if fields.keys() <= sample.keys() and sample["__key__"] not in before:
                yield (item := self._decode(name, sample, fields))
                seen.told.add(item.key)
                seen.good += isinstance(item, StreamedSample)
                if seen.good == expected:
                    return

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


class _Seen:
    """What came of a shard so far."""

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}  # of all members, in tar order
        self.told: set[str] = set()  # of samples that were given, or their faults
        self.good = 0
        self.errors: list[Exception] = []  # of the last download


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


def _batch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays, dtype=np.result_type(*arrays).newbyteorder("="))
