"""Index WebDataset tars that somebody else wrote, so that they are read like ours."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alliance.errors import InputError
from alliance.files import TEMPORARY, final_name
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, fit
from alliance.sensors.plausible import faults, recall
from datasets.descriptors import only_writer
from datasets.imagery import cubes, rasters
from datasets.imagery.scenes import Skipped, Unreadable
from datasets.shards.index import NAME, Index, Sidecar, collect
from datasets.shards.scan import bytes_of, members, read_header, scan
from datasets.shards.write import run_jobs

IMAGES = tuple({*rasters.SUFFIXES, *cubes.SUFFIXES} - {".vrt"})  # a VRT is a list of other files
LOOKED_AT = 4  # arrays of a tar, of which one must have the size of the others


@dataclass(frozen=True)
class ScanJob:
    """One tar to be read once."""

    path: Path
    fingerprint: str
    tiles: int = 1


class _Array(NamedTuple):
    field: str
    shape: tuple[int, ...]
    dtype: np.dtype


def index_folder(
    folder: Path,
    sensor_name: str,
    *,
    member: str | None = None,
    axes: str | None = None,
    workers: int = 1,
    force: bool = False,
) -> Index:
    """Read every tar of a folder once and write the sidecars and the index beside them.

    Args:
        member: field of the image (`npy` of `<key>.npy`); default the only `.npy` field there is.
        axes: order of the arrays' axes where the band count does not tell; only "chw" is read in place.
        force: take numbers that are not what the sensor says; the index says so.
    Raises:
        InputError: no tars, no arrays or several to choose from, another band count than the sensor's, another order
            of axes, or tiles of several sizes.
    """
    tars = find_tars(folder)
    sensor = find_sensor(sensor_name)
    command = f"python launch/shards.py --index {folder} --sensor {sensor_name} --out DIR"
    field, shape = _first_array(tars, member, sensor, axes, command)
    _check_sizes(tars, field, shape)
    fingerprint = state_of(tars, sensor, field, shape)
    jobs = [ScanJob(tar, fingerprint) for tar in tars]
    with only_writer(folder):
        _check_index_ours(folder)
        for left in folder.glob("*.tmp"):  # by a kill
            if TEMPORARY.fullmatch(left.name) and final_name(left).endswith((".npz", NAME)):
                left.unlink(missing_ok=True)
        run_jobs(jobs, partial(_scan_shard, sensor=sensor, field=field, shape=shape), workers)
        index = held_to_sensor(collect(tars, {sensor.name: sensor}, {sensor.name: shape}), folder, force=force)
        index = replace(index, foreign=True)
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


def held_to_sensor(index: Index, folder: Path, *, force: bool) -> Index:
    """The index, if the statistics of its arrays are what their sensor says, or marked as forced.

    Raises:
        InputError: they are not, and it is not forced.
    """
    for name, sensor in index.sensors.items():
        figures = index.statistics[name]
        found = faults(sensor, recall(sensor, figures["mean"], figures["std"], figures["min"], figures["max"]))
        if found and not force:
            raise InputError(
                f"{folder}: these arrays are not {name}: {found[0]}; give a sensor file with their scale and offset, or "
                f"--force to take them as they are"
            )
        index = replace(index, forced=index.forced or bool(found))
    return index


def find_tars(folder: Path) -> list[Path]:
    """The tars of a folder, sorted.

    Raises:
        InputError: there are none.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise InputError(f"{folder} holds no .tar files (compressed tars must be unpacked to .tar first)")
    for tar in tars:
        if not tar.is_file():
            raise InputError(f"{tar} is no regular file; put the tar in its place, or take it away")
    return tars


def state_of(tars: Sequence[Path], sensor: Sensor, *options: object) -> str:
    """Fingerprint of the tars as they are now, and of how they are read."""
    state = [(tar.name, tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    return hashlib.sha256(json.dumps([state, sensor.to_dict(), *options]).encode()).hexdigest()


def image_fields(tars: Sequence[Path], member: str | None = None) -> list[str]:
    """Fields of the first sample that hold images of any format, or the one that is named."""
    found: dict[str, str] = {}
    for key, field, _ in _members(tars):
        if found and key not in found.values():
            break
        if f".{field.lower()}".endswith(IMAGES) and is_field(field, member):
            found[field] = key
    return list(found)


def is_field(field: str, member: str | None) -> bool:
    """Whether a field is the one that is called so, with or without its suffix."""
    return member in (None, field, field.rpartition(".")[0])


def _members(tars: Sequence[Path]) -> Iterator[tuple[str, str, Path]]:
    for tar in tars:
        with tar.open("rb") as stream:
            yield from ((key, field, tar) for key, field, _ in members(stream, tar, []))


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


def _first_array(
    tars: Sequence[Path], member: str | None, sensor: Sensor, axes: str | None, command: str
) -> tuple[str, tuple[int, int, int]]:
    """Field and shape of the images, as the first readable sample has them."""
    fields: dict[str, _Array] = {}
    refused: list[str] = []
    for array in _arrays(tars, refused):
        if array.field in fields:  # the second sample begins
            break
        fields[array.field] = array
    chosen = [array for field, array in fields.items() if is_field(field, member)]
    others = [] if fields else image_fields(tars, member)
    if others:
        raise InputError(
            f"{tars[0].name} holds its images as .{others[0]}; in place only .npy arrays (bands, rows, columns) are "
            f"read: convert the tars once with {command}"
        )
    if len(chosen) != 1:
        listed = ", ".join(f"{field} {array.shape}" for field, array in fields.items()) or "none"
        reasons = f" ({'; '.join(refused[:3])})" if refused else ""
        raise InputError(f"which array is the image? Pass --member FIELD; .npy fields found: {listed}{reasons}")
    field, shape, dtype = chosen[0]
    _check_order(chosen[0], sensor, axes, command)
    try:
        fit(sensor, None, shape[0], dtype.name)
    except InputError as error:
        raise InputError(f"arrays {field} of shape {shape}: {error}") from error
    return field, (shape[0], shape[1], shape[2])


def _check_order(array: _Array, sensor: Sensor, axes: str | None, command: str) -> None:
    """Refuse arrays that are not (bands, rows, columns)."""
    field, shape, _ = array
    count = len(sensor.bands)
    if len(shape) != 3:
        raise InputError(f"arrays {field} have shape {shape}, not (bands, rows, columns)")
    if axes is None and shape[0] == count and count in shape[1:]:
        raise InputError(
            f"arrays {field} of shape {shape}: the {count} bands may be another axis than the first; if they are the "
            f"first pass --axes chw, if they are the last convert the tars with {command} --axes hwc"
        )
    if axes not in (None, "chw") or (axes is None and shape[0] != count and shape[2] == count):
        raise InputError(
            f"arrays {field} of shape {shape} are not (bands, rows, columns), the only order that is read in place; "
            f"convert the tars once with {command}{f' --axes {axes}' if axes else ''}"
        )


def _check_sizes(tars: Sequence[Path], field: str, shape: tuple[int, ...]) -> None:
    """Refuse a tar all of whose first arrays have another size than those of the first tar."""
    for tar in tars:
        own = (array.shape for array in _arrays([tar], []) if array.field == field)
        found = list(islice(own, LOOKED_AT))
        if found and shape not in found:
            raise InputError(other_size(tar, found[0], tars[0], shape))


def other_size(tar: Path, found: tuple[int, ...], first: Path, shape: tuple[int, ...]) -> str:
    """The refusal of a tar whose tiles have another size than those of the first."""
    return (
        f"{tar.name} holds tiles of {found}, {first.name} of {shape}; one index is for tiles of one size: "
        f"put the tars of each size into a folder of their own"
    )


def _arrays(tars: Sequence[Path], refused: list[str]) -> Iterator[_Array]:
    for tar in tars:
        skipped: list[Skipped] = []
        with tar.open("rb") as stream:
            for _, field, info in members(stream, tar, skipped):
                if not field.endswith("npy"):
                    continue
                try:
                    array = _Array(field, *read_header(stream, info))
                    bytes_of(stream, info, array.shape, array.dtype)
                    yield array
                except Unreadable as error:
                    refused.append(f"{tar.name}: {info.name} {error}")
        refused.extend(f"{file} {reason}" for file, reason in skipped)
