"""Index WebDataset tars that somebody else wrote, so that they are read like ours."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, fit
from datasets.descriptors import only_writer
from datasets.imagery.scenes import Skipped, Unreadable
from datasets.shards.index import NAME, Index, Sidecar, collect
from datasets.shards.scan import members, read_header, scan
from datasets.shards.write import run_jobs


@dataclass(frozen=True)
class ScanJob:
    """One tar to be read once."""

    path: Path
    fingerprint: str
    tiles: int = 1


def index_folder(folder: Path, sensor_name: str, *, member: str | None = None, workers: int = 1) -> Index:
    """Read every tar of a folder once and write the sidecars and the index beside them.

    Args:
        member: field of the image (`npy` of `<key>.npy`); default the only `.npy` field there is.
    Raises:
        InputError: no tars, no arrays or several to choose from, or another band count than the sensor's.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise InputError(f"{folder} holds no .tar files (compressed tars must be unpacked to .tar first)")
    sensor = find_sensor(sensor_name)
    field, shape = _first_array(tars, member, sensor)
    state = [(tar.name, tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    fingerprint = hashlib.sha256(json.dumps([state, sensor.to_dict(), field, shape]).encode()).hexdigest()
    jobs = [ScanJob(tar, fingerprint) for tar in tars]
    with only_writer(folder):
        _check_index_ours(folder)
        run_jobs(jobs, partial(_scan_shard, sensor=sensor, field=field, shape=shape), workers)
        index = collect(tars, {sensor.name: sensor}, {sensor.name: shape})
        index.write(folder)
    return index


def _check_index_ours(folder: Path) -> None:
    """Raise InputError where an index.json is neither ours nor lies beside sidecars of ours."""
    path = folder / NAME
    if not path.exists():
        return
    try:
        Index.read(folder)
    except InputError as error:
        for sidecar in folder.glob("*.npz"):
            with suppress(InputError):
                _check_ours(sidecar)
                return
        raise InputError(f"{path} is in the way: the index is kept under this name; move it") from error


def _scan_shard(job: ScanJob, *, sensor: Sensor, field: str, shape: tuple[int, int, int]) -> None:
    sidecar = scan(job.path, {sensor.name: sensor}, {sensor.name: shape}, {sensor.name: field})
    path = job.path.with_suffix(".npz")
    if path.exists():
        _check_ours(path)
    replace(sidecar, fingerprint=job.fingerprint).save(path)


def _check_ours(path: Path) -> None:
    try:
        Sidecar.load(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is in the way: the index of its tar is kept under this name; move it") from error


def _first_array(tars: Sequence[Path], member: str | None, sensor: Sensor) -> tuple[str, tuple[int, int, int]]:
    """Field and shape of the images, as the first readable sample has them."""
    fields: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    refused: list[str] = []
    for field, shape, dtype in _arrays(tars, refused):
        if field in fields:  # the second sample begins
            break
        fields[field] = shape, dtype
    chosen = [field for field in fields if member in (None, field, field.removesuffix(".npy"))]
    if len(chosen) != 1:
        listed = ", ".join(f"{field} {shape}" for field, (shape, _) in fields.items()) or "none"
        reasons = f" ({'; '.join(refused[:3])})" if refused else ""
        raise InputError(f"which array is the image? Pass --member FIELD; .npy fields found: {listed}{reasons}")
    shape, dtype = fields[chosen[0]]
    if len(shape) != 3:
        raise InputError(f"arrays {chosen[0]} have shape {shape}, not (bands, rows, columns)")
    try:
        fit(sensor, None, shape[0], dtype.name)
    except InputError as error:
        raise InputError(f"arrays {chosen[0]} of shape {shape}: {error}") from error
    return chosen[0], (shape[0], shape[1], shape[2])


def _arrays(tars: Sequence[Path], refused: list[str]) -> Iterator[tuple[str, tuple[int, ...], np.dtype]]:
    for tar in tars:
        skipped: list[Skipped] = []
        with tar.open("rb") as stream:
            for _, field, info in members(stream, tar, skipped):
                if not field.endswith("npy"):
                    continue
                try:
                    shape, dtype = read_header(stream, info)
                    yield field, shape, dtype
                except Unreadable as error:
                    refused.append(f"{tar.name}: {info.name} {error}")
        refused.extend(f"{file} {reason}" for file, reason in skipped)
