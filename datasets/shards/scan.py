"""Read a tar once, our own or a foreign one: where its arrays lie, their checksums and their statistics."""

import hashlib
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import torch

from alliance.sensors import Sensor
from datasets.imagery.cubes.arrays import npy_header
from datasets.imagery.scenes import Skipped, Unreadable, check_dtype
from datasets.sampling.moments import Moments
from datasets.shards.index import Places, Sidecar


class _Member(NamedTuple):
    sensor: str
    dtype: str
    offset: int
    crc32: int
    moments: Moments


def scan(
    tar: Path,
    sensors: Mapping[str, Sensor],
    shapes: Mapping[str, tuple[int, int, int]],
    fields: Mapping[str, str] | None = None,
) -> Sidecar:
    """Read a tar once: places, checksums and statistics of its arrays. Nothing is unpickled or written.

    Args:
        fields: member field (`<key>.<field>`) of each sensor; default `<sensor>.npy`.
    Returns:
        The sidecar of the complete samples; damaged or unfitting members are among its `skipped`.
    """
    wanted = {field: name for name, field in (fields or {name: f"{name}.npy" for name in sensors}).items()}
    samples: dict[str, dict[str, _Member]] = {}
    skipped: list[Skipped] = []
    with tar.open("rb") as stream, _one_thread():
        size, sha256 = os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest()
        for key, field, info in members(stream, tar, skipped):
            name = wanted.get(field)
            if name is None:
                continue
            try:
                member = _read_member(stream, info, sensors[name], shapes[name])
                samples.setdefault(key, {})[name] = member
            except Unreadable as error:
                skipped.append(Skipped(f"{tar.name}: {info.name}", str(error)))
    complete = {key: found for key, found in samples.items() if len(found) == len(sensors)}
    moments = {name: Moments.empty(shape[0]) for name, shape in shapes.items()}
    for found in complete.values():
        moments = {name: merged.merge(found[name].moments) for name, merged in moments.items()}
    return Sidecar(
        keys=np.array([key.encode() for key in complete], dtype=np.bytes_),
        places={name: _places([found[name] for found in complete.values()]) for name in sensors},
        moments=moments,
        bytes=size,
        sha256=sha256,
        skipped=tuple(skipped),
    )


def members(stream: BinaryIO, tar: Path, skipped: list[Skipped]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, field and header of each file in a tar; damage ends it and is added to `skipped`."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Within(stream, size)), mode="r:") as archive:
            for info in archive:
                if info.offset_data + info.size > size:
                    skipped.append(
                        Skipped(f"{tar.name}: {info.name}", f"is cut off: {info.size} bytes, {size} in the tar")
                    )
                    return
                end = info.offset_data + (info.size + 511) // 512 * 512
                place = re.fullmatch(r"((?:.*/|)[^./]+)\.([^/]*)", info.name)
                if info.isreg() and place:
                    yield place[1], place[2], info
    except (tarfile.TarError, OverflowError) as error:
        skipped.append(Skipped(tar.name, f"damaged after byte {end}: {error}"))
        return
    stream.seek(end)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            skipped.append(Skipped(tar.name, f"damaged after byte {end}, the rest is not read"))
            return


class _Within:
    """A file of which no more is asked for than it has: headers of tars may claim any size of a name."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        left = max(self.size - self.stream.tell(), 0)
        return self.stream.read(min(count, left) if count >= 0 else left)


def read_header(stream: BinaryIO, info: tarfile.TarInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in a member; the stream is left at its first data byte.

    Raises:
        Unreadable: no plain numeric array in C order.
    """
    stream.seek(info.offset_data)
    try:
        shape, fortran, dtype = npy_header(stream)
    except (ValueError, EOFError) as error:
        raise Unreadable(f"no .npy array: {' '.join(str(error).split())[:80]}") from error
    if dtype.hasobject:
        raise Unreadable("holds Python objects, which are never unpickled")
    check_dtype(dtype)
    if fortran and len(shape) > 1:
        raise Unreadable("is in Fortran order; save np.ascontiguousarray of it")
    return shape, dtype


def bytes_of(stream: BinaryIO, info: tarfile.TarInfo, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array whose header was just read.

    Raises:
        Unreadable: the member has fewer.
    """
    claimed, there = math.prod(shape) * dtype.itemsize, info.offset_data + info.size - stream.tell()
    if claimed > there:
        raise Unreadable(
            f"is cut off: its header says {claimed} bytes of {' x '.join(map(str, shape))}, it has {there}"
        )
    return claimed


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tiles are too small to be shared among threads; on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_member(stream: BinaryIO, info: tarfile.TarInfo, sensor: Sensor, shape: tuple[int, ...]) -> _Member:
    found, dtype = read_header(stream, info)
    if found != shape:
        raise Unreadable(f"shape {found}, expected {tuple(shape)} (bands, rows, columns)")
    offset, length = stream.tell(), bytes_of(stream, info, found, dtype)
    data = stream.read(length)
    if len(data) < length:  # cut off since it was opened
        raise Unreadable(f"is cut off: {len(data)} of {length} bytes")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    physical = sensor.to_physical(torch.from_numpy(array.astype(dtype.newbyteorder("="))))
    return _Member(sensor.name, dtype.str, offset, zlib.crc32(data), Moments.of(physical))


def _places(found: Sequence[_Member]) -> Places:
    offset = np.array([member.offset for member in found], dtype=np.int64)
    dtype = np.array([member.dtype.encode() for member in found], dtype="S4")
    return Places(offset, dtype, np.array([member.crc32 for member in found], dtype=np.uint32))
