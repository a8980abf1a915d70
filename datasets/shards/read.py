"""Read samples of indexed shards straight from their place in the tars into a batch array."""

import copy
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alliance.errors import InputError
from alliance.sensors import Sensor
from datasets.sampling.faults import BrokenSample, Cause, Fault
from datasets.sampling.order import Cache
from datasets.sampling.placement import Placement
from datasets.shards.files import OPEN_SHARDS, Files, LocalFiles, Span
from datasets.shards.index import Sidecar

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
MEND = "copy the shards again, or have the damaged ones named: python launch/shards.py --verify {}"


class Samples(NamedTuple):
    """Samples as they are stored, (b, c, h, w) in the source dtype, native byte order."""

    stored: np.ndarray
    keys: list[str]
    faults: list[Fault]  # of the samples that could not be read; each is replaced by the first good one


class ShardSource:
    """The shards of one folder. Reads are independent of each other; a copy has caches of its own."""

    def __init__(self, place: Path | str | Files) -> None:
        """Read the index; the shards are not looked at, see `check`.

        Args:
            place: a folder of this machine, or files that lie elsewhere.
        Raises:
            InputError: no folder or no index.
        """
        self.files: Files = LocalFiles(Path(place)) if isinstance(place, Path | str) else place
        self.folder = self.files.place  # as it may be shown
        self.index = self.files.index()
        self.counts = np.array([shard.samples for shard in self.index.shards], dtype=np.int64)
        self.kept_open = OPEN_SHARDS  # shards
        self._sidecars: Cache[Sidecar] = Cache(self.kept_open)

    def check(self, tolerance: float = 0.0) -> list[Fault]:
        """See that every shard is there, with the indexed size.

        Args:
            tolerance: share of the samples that may be in shards that are not.
        Returns:
            The faults of those shards.
        Raises:
            InputError: more samples than that are lost.
        """
        faults, lost, shards = [], 0, self.index.shards
        for shard, size in zip(shards, self.files.sizes([shard.name for shard in shards]), strict=True):
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
                f"shard {self.folder}/{faults[0].shard} {faults[0].reason}{more}; "
                f"copy the shards again, or give the launch/shards.py command that made them again, which writes those anew"
            )
        return faults

    @property
    def mend(self) -> str:
        """What to do about damaged shards; the command that names them reads folders of this machine."""
        return MEND.format(self.folder) if isinstance(self.files, LocalFiles) else "copy the shards there again"

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
        chosen = placements or [Placement.of_whole(shape)] * len(shards)
        for span, found in self.files.fill(self._spans(entries.values(), kinds, shape, stored, chosen)):
            entry, array = span.what
            try:
                self._check(entry, span.memory, found, verify)
            except BrokenSample as error:
                broken[entry.place] = error
                continue
            if array is not None:
                stored[entry.place] = chosen[entry.place].apply(array)[0]
        if broken:
            good = [place for place in sorted(entries) if place not in broken]
            if not good:
                raise BrokenSample(*_in_order(broken))
            for place in broken:
                stored[place], entries[place] = stored[good[0]], entries[good[0]]
        return Samples(stored, [entries[place].name.decode() for place in range(len(shards))], _in_order(broken))

    def keys(self, shards: Iterable[int], samples: Iterable[int]) -> list[str]:
        """Keys of many samples; a sample whose sidecar is broken is called by its numbers."""
        named = [(int(shard), int(sample)) for shard, sample in zip(shards, samples, strict=True)]
        sidecars = self._sidecars_of(sorted({shard for shard, _ in named}))
        return [
            f"{self.index.shards[shard].name}:{sample}"
            if isinstance(sidecar := sidecars[shard], BrokenSample)
            else sidecar.keys[sample].decode()
            for shard, sample in named
        ]

    def _find(
        self, sensor: str, shards: np.ndarray, samples: np.ndarray
    ) -> tuple[dict[int, "_Entry"], dict[int, BrokenSample]]:
        """Where the samples of a batch lie, by place in the batch and in the order of the files; the broken ones."""
        entries: dict[int, _Entry] = {}
        broken: dict[int, BrokenSample] = {}
        order, numbers = np.lexsort((samples, shards)).tolist(), samples.tolist()
        sidecars = self._sidecars_of(np.unique(shards).tolist())
        for shard, places in itertools.groupby(order, key=shards.tolist().__getitem__):
            sidecar = sidecars[shard]
            if isinstance(sidecar, BrokenSample):
                broken |= dict.fromkeys(places, sidecar)
                continue
            key, (offset, code, crc32) = sidecar.keys.item, (column.item for column in sidecar.places[sensor])
            for place in places:
                number = numbers[place]
                entries[place] = _Entry(place, shard, key(number), offset(number), code(number), crc32(number))
        return entries, broken

    def _spans(
        self, entries: Iterable["_Entry"], kinds: Mapping[bytes, np.dtype], whole: tuple[int, ...], stored: np.ndarray,
        placements: Sequence[Placement],
    ) -> Iterator[Span["_Target"]]:  # fmt: skip
        """What is read for a batch: straight into its array, or into one of the sample's own that is cut afterwards."""
        memory, size, uncut = _as_bytes(stored), stored.nbytes // len(stored), Placement.of_whole(whole)
        for entry in entries:
            place, kind, array = entry.place, kinds[entry.code], None
            part = memory[place * size : (place + 1) * size]
            if placements[place] != uncut or kind != stored.dtype:
                array = np.empty(whole, kind)
                part = _as_bytes(array)
            yield Span(self.index.shards[entry.shard], entry.offset, part, entry.crc32, _Target(entry, array))

    def _check(self, entry: "_Entry", data: memoryview, found: int | OSError, verify: bool) -> None:
        """Refuse bytes that are not those of the sample."""
        if isinstance(found, OSError):
            raise self._broken("shard", entry, found.strerror or str(found)) from found
        if found < len(data):
            raise self._broken("truncated", entry, f"{found} of {len(data)} bytes are there")
        if verify and zlib.crc32(data) != entry.crc32:
            raise self._broken("checksum", entry, "its bytes are not those that were indexed (crc32)")

    def _broken(self, cause: Cause, entry: "_Entry", reason: str) -> BrokenSample:
        return BrokenSample(Fault(cause, self.index.shards[entry.shard].name, entry.name.decode(), reason))

    def _sidecars_of(self, shards: Sequence[int]) -> dict[int, Sidecar | BrokenSample]:
        """The sidecars of some shards; in place of one that cannot be read, the fault of its samples."""
        found: dict[int, Sidecar | BrokenSample] = {
            shard: self._sidecars[shard] for shard in shards if shard in self._sidecars
        }
        absent = [shard for shard in shards if shard not in found]
        names = [Path(self.index.shards[shard].name).with_suffix(".npz").name for shard in absent]
        for shard, name, content in zip(absent, names, self.files.whole(names) if names else [], strict=True):
            try:
                found[shard] = self._parse_sidecar(shard, name, content)
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                fault = Fault("index", self.index.shards[shard].name, "sidecar", f"cannot be read: {error}")
                found[shard] = BrokenSample(fault)
        for shard in shards:
            if isinstance(sidecar := found[shard], Sidecar):
                self._sidecars.get_or_make(shard, lambda sidecar=sidecar: sidecar)
        return found

    def _parse_sidecar(self, shard: int, name: str, content: bytes | OSError) -> Sidecar:
        if isinstance(content, OSError):
            raise content
        record, sidecar = self.index.shards[shard], Sidecar.parse(content, f"{self.folder}/{name}")
        if len(sidecar.keys) != record.samples:
            raise ValueError(f"has {len(sidecar.keys)} samples, the index {record.samples}")
        if sidecar.sha256 != record.sha256:
            raise ValueError("is that of another shard")
        if absent := sorted(set(self.sensors) - set(sidecar.places)):
            raise ValueError(f"has nothing of sensor {absent[0]}")
        return sidecar

    def keep_open(self, shards: int) -> None:
        """Keep at most so many shards open, here and in copies made from now on."""
        self.files.keep_open(shards)
        self.kept_open, self._sidecars = shards, Cache[Sidecar](shards)

    def close(self) -> None:
        """Close the open shards; they are opened again when needed."""
        self.files.close()

    def interrupt(self) -> None:
        """End what other threads wait for."""
        self.files.interrupt()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "_sidecars"}
        return own | {"files": copy.copy(self.files)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._sidecars: Cache[Sidecar] = Cache(self.kept_open)


def _in_order(broken: dict[int, BrokenSample]) -> list[Fault]:
    """The faults by place in the batch."""
    return [fault for place in sorted(broken) for fault in broken[place].faults]


def _as_bytes(array: np.ndarray) -> memoryview:
    """The same memory, as bytes."""
    return array.reshape(-1).view(np.uint8).data


class _Entry(NamedTuple):
    """Where one array of a batch lies."""

    place: int  # in the batch
    shard: int
    name: bytes
    offset: int
    code: bytes  # of the dtype
    crc32: int


class _Target(NamedTuple):
    """Whose bytes are read, and the array that is cut afterwards, if it is."""

    entry: _Entry
    array: np.ndarray | None
