"""Read samples of indexed shards straight from their place in the tars into a batch array."""

import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from alliance.errors import InputError
from alliance.files import regular
from alliance.sensors import Sensor
from datasets.descriptors import FULL, too_many
from datasets.sampling.faults import BrokenSample, Cause, Fault
from datasets.sampling.order import Cache
from datasets.sampling.placement import Placement
from datasets.shards.index import Index, Sidecar

T = TypeVar("T")
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
MEND = "copy the shards again, or have the damaged ones named: python launch/shards.py --verify {}"
OPEN_SHARDS = 64  # file descriptors and sidecars kept at a time, unless fewer are to be had


class Samples(NamedTuple):
    """Samples as they are stored, (b, c, h, w) in the source dtype, native byte order."""

    stored: np.ndarray
    keys: list[str]
    faults: list[Fault]  # of the samples that could not be read; each is replaced by the first good one


class ShardSource:
    """The shards of one folder. Reads are independent of each other; a copy has caches of its own."""

    def __init__(self, folder: Path | str) -> None:
        """Read the index; the shards are not looked at, see `check`.

        Raises:
            InputError: no folder or no index.
        """
        self.folder = Path(folder)
        self.index = Index.read(self.folder)
        self.counts = np.array([shard.samples for shard in self.index.shards], dtype=np.int64)
        self.open_shards = OPEN_SHARDS
        self._open_caches()

    def check(self, tolerance: float = 0.0) -> list[Fault]:
        """See that every shard is there, with the indexed size.

        Args:
            tolerance: share of the samples that may be in shards that are not.
        Returns:
            The faults of those shards.
        Raises:
            InputError: more samples than that are lost.
        """
        faults, lost = [], 0
        for shard in self.index.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                faults.append(Fault("shard", shard.name, f"{shard.samples} samples", "is missing"))
            elif size != shard.bytes:
                reason = f"has {size} bytes, not {shard.bytes}"
                faults.append(Fault("truncated", shard.name, f"{shard.samples} samples", reason))
            else:
                continue
            lost += shard.samples
        if lost > tolerance * self.samples:
            more = f" and {len(faults) - 1} more" * (len(faults) > 1)
            raise InputError(
                f"shard {self.folder / faults[0].shard} {faults[0].reason}{more}; "
                f"copy the shards again, or give the launch/shards.py command that made them again, which writes those anew"
            )
        return faults

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The sensors by name, with the measured statistics."""
        return self.index.sensors

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return self.index.samples

    def shape(self, sensor: str) -> tuple[int, int, int]:
        """(c, h, w) of this sensor's arrays."""
        return self.index.shapes[sensor]

    def read(
        self, sensor: str, shards: np.ndarray, samples: np.ndarray, *, verify: bool = False,
        placements: Sequence[Placement] | None = None, allocate: Allocate = np.empty,
    ) -> Samples:  # fmt: skip
        """Read a batch of one sensor; broken samples are replaced by the first good one and named.

        Args:
            shards, samples: shard numbers and numbers within the shards, (b,) each.
            verify: compare every sample with its checksum.
            placements: how each sample is cut, turned and mirrored; all to the same size.
            allocate: makes the array of the batch, given shape and dtype.
        Raises:
            BrokenSample: not one of them can be read.
        """
        entries, broken = self._find(sensor, shards, samples)
        kinds = {code: np.dtype(code.decode()) for code in {entry.code for entry in entries.values()}}
        dtype = np.result_type(*kinds.values()) if entries else np.dtype(np.uint8)
        shape = self.shape(sensor)
        height, width = (placements[0].height, placements[0].width) if placements else shape[1:]
        stored = allocate((len(shards), shape[0], height, width), dtype.newbyteorder("="))
        memory, whole = _as_bytes(stored), Placement.of_whole(shape)
        size = len(memory) // len(shards)
        for place, entry in entries.items():
            placement, kind = placements[place] if placements else whole, kinds[entry.code]
            try:
                if placement == whole and kind == stored.dtype:
                    self._fill(memory[place * size : (place + 1) * size], entry, verify)
                    continue
                array = np.empty(shape, kind)
                self._fill(_as_bytes(array), entry, verify)
                stored[place] = placement.apply(array)[0]
            except BrokenSample as error:
                broken[place] = error
        if broken:
            good = [place for place in sorted(entries) if place not in broken]
            if not good:
                raise BrokenSample(*_in_order(broken))
            for place in broken:
                stored[place], entries[place] = stored[good[0]], entries[good[0]]
        return Samples(stored, [entries[place].name.decode() for place in range(len(shards))], _in_order(broken))

    def keys(self, shards: Iterable[int], samples: Iterable[int]) -> list[str]:
        """Keys of many samples; a sample whose sidecar is broken is called by its numbers."""
        names = []
        for shard, sample in zip(shards, samples, strict=True):
            try:
                names.append(self._sidecar(int(shard)).keys[sample].decode())
            except BrokenSample:
                names.append(f"{self.index.shards[int(shard)].name}:{sample}")
        return names

    def _find(
        self, sensor: str, shards: np.ndarray, samples: np.ndarray
    ) -> tuple[dict[int, "_Entry"], dict[int, BrokenSample]]:
        """Where the samples of a batch lie, by place in the batch and in the order of the files; the broken ones."""
        entries: dict[int, _Entry] = {}
        broken: dict[int, BrokenSample] = {}
        order, numbers = np.lexsort((samples, shards)).tolist(), samples.tolist()
        for shard, places in itertools.groupby(order, key=shards.tolist().__getitem__):
            try:
                sidecar = self._sidecar(shard)
            except BrokenSample as error:
                broken |= dict.fromkeys(places, error)
                continue
            key, (offset, code, crc32) = sidecar.keys.item, (column.item for column in sidecar.places[sensor])
            for place in places:
                number = numbers[place]
                entries[place] = _Entry(shard, key(number), offset(number), code(number), crc32(number))
        return entries, broken

    def _fill(self, data: memoryview, entry: "_Entry", verify: bool) -> None:
        """Read the bytes of one sample."""
        try:
            descriptor = self._descriptor(entry.shard)
            count = more = os.preadv(descriptor, [data], entry.offset)
            while more and count < len(data):  # some file systems give less than they have
                more = os.preadv(descriptor, [data[count:]], entry.offset + count)
                count += more
        except OSError as error:
            raise self._broken("shard", entry, error.strerror or str(error)) from error
        if count < len(data):
            raise self._broken("truncated", entry, f"{count} of {len(data)} bytes are there")
        if verify and zlib.crc32(data) != entry.crc32:
            raise self._broken("checksum", entry, "its bytes are not those that were indexed (crc32)")

    def _broken(self, cause: Cause, entry: "_Entry", reason: str) -> BrokenSample:
        return BrokenSample(Fault(cause, self.index.shards[entry.shard].name, entry.name.decode(), reason))

    def _sidecar(self, shard: int) -> Sidecar:
        try:
            return self._sidecars.get_or_make(shard, lambda: self._with_files(lambda: self._load_sidecar(shard)))
        except InputError:
            raise
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            name = self.index.shards[shard].name
            raise BrokenSample(Fault("index", name, "sidecar", f"cannot be read: {error}")) from error

    def _load_sidecar(self, shard: int) -> Sidecar:
        record = self.index.shards[shard]
        sidecar = Sidecar.load((self.folder / record.name).with_suffix(".npz"))
        if len(sidecar.keys) != record.samples:
            raise ValueError(f"has {len(sidecar.keys)} samples, the index {record.samples}")
        if sidecar.sha256 != record.sha256:
            raise ValueError("is that of another shard")
        if absent := sorted(set(self.sensors) - set(sidecar.places)):
            raise ValueError(f"has nothing of sensor {absent[0]}")
        return sidecar

    def _descriptor(self, shard: int) -> int:
        path = self.folder / self.index.shards[shard].name
        return self._descriptors.get_or_make(
            shard, lambda: self._with_files(lambda: os.open(regular(path), os.O_RDONLY))
        )

    def _with_files(self, action: Callable[[], T]) -> T:
        """Do what opens a file; where too many are open, once more without those of this source.

        Raises:
            InputError: there are too many all the same. That is no fault of the data.
        """
        try:
            return action()
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.close()
        try:
            return action()
        except OSError as error:
            raise (too_many(error) if error.errno in FULL else error) from error

    def _open_caches(self) -> None:
        self._sidecars: Cache[Sidecar] = Cache(self.open_shards)
        self._descriptors: Cache[int] = Cache(self.open_shards, discard=os.close)

    def keep_open(self, shards: int) -> None:
        """Keep at most so many shards open, here and in copies made from now on."""
        self.close()
        self.open_shards = shards
        self._open_caches()

    def __del__(self) -> None:
        if "_descriptors" in vars(self):
            self.close()

    def close(self) -> None:
        """Close the open shards; they are opened again when needed."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_sidecars", "_descriptors")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_caches()


def _in_order(broken: dict[int, BrokenSample]) -> list[Fault]:
    """The faults by place in the batch."""
    return [fault for place in sorted(broken) for fault in broken[place].faults]


def _as_bytes(array: np.ndarray) -> memoryview:
    """The same memory, as bytes."""
    return array.reshape(-1).view(np.uint8).data


class _Entry(NamedTuple):
    """Where one array lies."""

    shard: int
    name: bytes
    offset: int
    code: bytes  # of the dtype
    crc32: int
