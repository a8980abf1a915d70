"""Convert WebDataset tars of any image format into shards of ours."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from tarfile import TarInfo
from tempfile import gettempdir
from typing import Any, BinaryIO

from webdataset.writer import TarWriter

from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, fit
from datasets.descriptors import clear_scratch, scratch_folder
from datasets.imagery import cubes, rasters
from datasets.imagery.cubes import CubeOptions
from datasets.imagery.scenes import Scene, Skipped, Unreadable
from datasets.imagery.units import settle_units
from datasets.shards.folder import collect_finished, own_folder
from datasets.shards.foreign import IMAGES, find_tars, held_to_sensor, image_fields, other_size, state_of
from datasets.shards.index import Index
from datasets.shards.plan import Layer
from datasets.shards.scan import members
from datasets.shards.write import Written, make_shard, npy, run_jobs, settle

TRIED = 16  # samples of the first tar, until one can be read
LARGEST = 1 << 30  # bytes of a member


@dataclass(frozen=True)
class RepackJob:
    """One foreign tar that becomes one shard."""

    source: Path
    path: Path
    fingerprint: str
    tiles: int = 1


def repack_folder(
    folder: Path,
    sensor_name: str,
    out: Path,
    *,
    member: str | None = None,
    axes: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    force: bool = False,
) -> Index:
    """Read the images of every tar, in any format and order of axes, and write them into shards and their index.

    A tar becomes a shard, a sample a sample of the same key; its other members (labels, texts) go along.

    Args:
        member: field of the image (`tif` of `<key>.tif`); default the only image there is.
        axes: order of the axes of arrays, where the sensor's band count does not tell.
        force: take numbers that are not what the sensor says; the index says so.
    Raises:
        InputError: no tars or images, several images to choose from, a tar with none of this sensor, tiles of several
            sizes, or a folder in use.
    """
    clear_scratch(_scratch())
    tars = find_tars(folder)
    sensor = find_sensor(sensor_name)
    fields = image_fields(tars, member)
    if len(fields) != 1:
        listed = ", ".join(image_fields(tars)) or "none"
        raise InputError(f"which member is the image? Pass --member FIELD; fields with images found: {listed}")
    options = CubeOptions(axes=axes, bands=len(sensor.bands))
    shape = _first_shape(tars[0], fields[0], sensor, options)
    for tar in tars[1:]:
        if (found := _first_shape(tar, fields[0], sensor, options)) != shape:
            raise InputError(other_size(tar, found, tars[0], shape))
    fingerprint = state_of(tars, sensor, fields[0], axes, shape)
    jobs = [RepackJob(tar, out / f"shard-{number:06d}.tar", fingerprint) for number, tar in enumerate(tars)]
    with own_folder(out, fingerprint, overwrite=overwrite):
        run_jobs(jobs, partial(_repack, field=fields[0], sensor=sensor, options=options, shape=shape), workers)
        index = collect_finished(jobs, {sensor.name: sensor}, {sensor.name: shape})
        index = held_to_sensor(index, folder, force=force)
        index.write(out)
    return index


def _first_shape(tar: Path, field: str, sensor: Sensor, options: CubeOptions) -> tuple[int, int, int]:
    refused: list[Skipped] = []
    samples = _samples(tar, field, sensor, options, refused)
    for _, shape in islice(samples, TRIED):
        if shape is not None:
            return shape
    reasons = "; ".join(f"{entry.file} {entry.reason}" for entry in refused[:3]) or "no sample"
    raise InputError(f"{tar.name} holds no usable image of sensor {sensor.name}: {reasons}")


def _repack(job: RepackJob, *, field: str, sensor: Sensor, options: CubeOptions, shape: tuple[int, int, int]) -> None:
    def fill(tar: TarWriter) -> Written:
        keys, skipped = set[str](), list[Skipped]()
        for sample, found in _samples(job.source, field, sensor, options, skipped):
            if found is not None and found != shape:
                reason = f"shape {found}, expected {shape} (bands, rows, columns) as the first; convert each size apart"
                skipped.append(Skipped(f"{job.source.name}: {sample['__key__']}.{field}", reason))
            elif found is not None:
                keys.add(sample["__key__"])
                tar.write(sample)
        return Written(keys, 0, skipped)

    make_shard(job, fill, {sensor.name: sensor}, {sensor.name: shape})


Sample = tuple[
    dict[str, Any], tuple[int, int, int] | None
]  # members by field, and the shape of its image if it has one


def _samples(tar: Path, field: str, sensor: Sensor, options: CubeOptions, skipped: list[Skipped]) -> Iterator[Sample]:
    """The samples of a tar with their image as an array of the sensor's bands."""
    with tar.open("rb") as stream, scratch_folder(_scratch()) as scratch:
        for key, group in groupby(members(stream, tar, skipped), key=lambda entry: entry[0]):
            parts = {name: info for _, name, info in group}
            if field not in parts:
                continue
            try:
                image, shape = _image(stream, parts[field], field, scratch, sensor, options)
            except (Unreadable, InputError) as error:
                skipped.append(Skipped(f"{tar.name}: {parts[field].name}", str(error)))
                yield {"__key__": key}, None
                continue
            image["json"]["source"] = {sensor.name: [f"{tar.name}/{parts[field].name}"]}
            described = json.dumps(image.pop("json")).encode()
            yield {"__key__": key, **image, "json": described, **_others(stream, parts, field)}, shape


def _scratch() -> Path:
    """Beside what the members of tars lie while they are read."""
    return Path(gettempdir()) / "alliance-shards"


def _image(
    stream: BinaryIO, info: TarInfo, field: str, scratch: Path, sensor: Sensor, options: CubeOptions
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """A member is an image file like any other; what GDAL and HDF5 read must have a name, so it gets one for a while."""
    file = scratch / f"member.{field.rpartition('.')[2]}"
    file.write_bytes(_content(stream, info))
    try:
        if file.suffix.lower() in cubes.SUFFIXES:
            scene: Scene = cubes.describe_cube(file, scratch, options)
        else:
            scene = rasters.describe_raster(file, scratch)
        bands = fit(sensor, scene.band_names, scene.shape[0], scene.dtype)
        if settle_units(sensor, scene, bands) != sensor:
            said = f"says scale {scene.scales[0]:g} and offset {scene.offsets[0]:g} itself"
            raise Unreadable(f"{said}, sensor {sensor.name} none; write them into a sensor file of your own")
        with scene.open(bands) as read:
            array, _ = settle(read(0, 0, *scene.shape[1:]), Layer(sensor, scene, bands))
    finally:
        file.unlink()
    described: Mapping[str, Any] = {
        "crs": scene.crs,
        "transform": scene.transform,
        "date": scene.date,
        "bands": {sensor.name: sensor.band_names},
    }
    return {f"{sensor.name}.npy": npy(array), "json": dict(described)}, (array.shape[0], array.shape[1], array.shape[2])


def _content(stream: BinaryIO, info: TarInfo) -> bytes:
    if info.size > LARGEST:
        raise Unreadable(f"has {info.size / 1e9:,.1f} GB; a tile has less than {LARGEST / 1e9:.1f}")
    stream.seek(info.offset_data)
    content = stream.read(info.size)
    if len(content) < info.size:
        raise Unreadable("is cut off")
    return content


def _others(stream: BinaryIO, parts: Mapping[str, TarInfo], field: str) -> dict[str, bytes]:
    """The members of a sample that are no images; its own JSON makes room for ours."""
    kept = {name: info for name, info in parts.items() if name != field and not f".{name.lower()}".endswith(IMAGES)}
    return {"source.json" if name == "json" else name: _content(stream, info) for name, info in kept.items()}
