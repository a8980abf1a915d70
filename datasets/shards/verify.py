"""Compare the shards of a folder with what was written: sizes and checksums of the tars, and the index with its shards."""

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from alliance.errors import InputError
from alliance.words import counted
from datasets.descriptors import only_writer
from datasets.shards.index import NAME, Index, Shard, Sidecar, collect

SHOWN = 3  # damaged shards, and samples of each, that are named


class Damage(NamedTuple):
    """What is wrong with one shard."""

    shard: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard} {self.reason}"


def verify_folder(folder: Path, *, workers: int = 1, overwrite: bool = False) -> list[str]:
    """Read all shards of a folder and say in a line that they are as they were written.

    Args:
        overwrite: take the sidecars of damaged shards away: the command that made the shards, given again, writes those anew.
    Raises:
        InputError: some are not; the message names them, with the mend. Or there are no shards there.
    """
    index = Index.read(folder)
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        found = threads.map(partial(_check, folder, index), index.shards)
        checked = list(tqdm(found, total=len(index.shards), unit="shard", desc="verify", leave=False, disable=None))
    damaged = [damage for damage in checked if damage is not None]
    if damaged:
        if overwrite and not index.foreign:
            _discard(folder, damaged)
        raise InputError(f"{folder}: {_told(damaged, index)}; {_mend(folder, index, removed=overwrite)}")
    _check_index(folder, index)
    bytes_read = sum(shard.bytes for shard in index.shards)
    told = f"{counted(index.samples, 'sample')} in {counted(len(index.shards), 'shard')}, {bytes_read / 1e6:.1f} MB"
    return [f"{told}, are as they were written, in {folder}"]


def _check(folder: Path, index: Index, shard: Shard) -> Damage | None:
    """Compare a tar and its sidecar with the index and with each other."""
    path = folder / shard.name
    try:
        size = path.stat().st_size
        sidecar = Sidecar.load(path.with_suffix(".npz"))
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return Damage(shard.name, f"cannot be read: {Path(error.filename or path).name}: {error.strerror or error}")
    except ValueError as error:
        return Damage(shard.name, f"has a damaged sidecar: {error}")
    if size != shard.bytes:
        return Damage(shard.name, f"has {size} bytes, not {shard.bytes}")
    if (
        sidecar.sha256 != shard.sha256
        or len(sidecar.keys) != shard.samples
        or set(sidecar.places) != set(index.sensors)
    ):
        return Damage(shard.name, "has a sidecar of other samples")
    if sha256 != shard.sha256:
        return Damage(shard.name, f"holds other bytes than were written{_which(path, index, sidecar)}")
    return None


def _which(path: Path, index: Index, sidecar: Sidecar) -> str:
    """Keys of the samples whose numbers have changed."""
    changed: dict[str, None] = {}
    with path.open("rb") as stream:
        for sensor, places in sidecar.places.items():
            pixels = int(np.prod(index.shapes[sensor]))
            columns = (column.tolist() for column in (sidecar.keys, *places))
            for key, offset, code, crc32 in zip(*columns, strict=True):
                stream.seek(offset)
                if zlib.crc32(stream.read(pixels * np.dtype(code.decode()).itemsize)) != crc32:
                    changed[key.decode()] = None
    keys = list(changed)
    if not keys:
        return ", none of them in a sample's numbers"
    return f", in {len(keys)} of {len(sidecar.keys)} samples ({', '.join(keys[:SHOWN])}{', ...' * (len(keys) > SHOWN)})"


def _check_index(folder: Path, index: Index) -> None:
    """Compare the index with its shards, which are good.

    Raises:
        InputError: it is another one.
    """
    own = collect([folder / shard.name for shard in index.shards], index.sensors, index.shapes)
    for field in ("shards", "statistics", "sensors"):
        if getattr(own, field) != getattr(index, field):
            raise InputError(
                f"{folder / NAME} has other {field} than its shards; give the launch/shards.py command that made it again, "
                f"which writes it anew and keeps the shards"
            )


def _discard(folder: Path, damaged: Sequence[Damage]) -> None:
    """Without its sidecar a shard counts as not made yet; its tar is kept until another takes its place."""
    with only_writer(folder):
        for damage in damaged:
            (folder / damage.shard).with_suffix(".npz").unlink(missing_ok=True)


def _told(damaged: Sequence[Damage], index: Index) -> str:
    more = f" and {len(damaged) - SHOWN} more" * (len(damaged) > SHOWN)
    return f"{len(damaged)} of {len(index.shards)} shards are damaged: {'; '.join(map(str, damaged[:SHOWN]))}{more}"


def _mend(folder: Path, index: Index, *, removed: bool) -> str:
    """What to do about damaged shards."""
    if index.foreign:
        sensor = next(iter(index.sensors))
        return f"copy these tars again, then: python launch/shards.py --index {folder} --sensor {sensor}"
    if removed:
        return "their sidecars are removed: give the launch/shards.py command that made the shards again, which writes these anew"
    return (
        f"copy them with their .npz again; or give python launch/shards.py --verify {folder} --overwrite, and then the command "
        f"that made the shards, which writes these anew"
    )
