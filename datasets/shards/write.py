"""Cut the planned tiles and write them, shard by shard, in as many processes as wanted."""

import dataclasses
import io
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from webdataset.writer import TarWriter

from alliance.errors import InputError
from alliance.files import clear_temporaries, scratch_file
from alliance.sensors import Sensor
from datasets.children import end_with_parent, safe_path
from datasets.cluster import Cluster
from datasets.imagery.marks import refuse_undeclared
from datasets.imagery.scenes import Scene, Skipped, Unreadable, Window
from datasets.shards.elsewhere import await_files, done_elsewhere
from datasets.shards.folder import ShardJob, collect_finished, finish, is_finished, own_folder
from datasets.shards.index import Index
from datasets.shards.plan import Footprint, Job, Layer, Plan, with_nan
from datasets.shards.scan import scan
from datasets.storage.standins import StandIns, current, use


def write_shards(
    plan: Plan, out: Path, *, workers: int = 1, overwrite: bool = False, cluster: Cluster | None = None
) -> Index:
    """Make the plan's shards and their index; shards that an interrupted run finished are kept.

    Args:
        workers: processes of this machine.
        cluster: whose workers make the shards instead.
    Raises:
        InputError: the folder holds something else or is written into by another process, or no sample could be made.
    """
    jobs = plan.jobs(out)
    work = partial(write_shard, sensors=plan.sensors, shapes=plan.shapes)
    with own_folder(out, plan.fingerprint, overwrite=overwrite):
        if cluster is None:
            run_jobs(jobs, work, workers)
        else:
            todo = [job for job in jobs if not is_finished(job)]
            _count(jobs, todo, done_elsewhere(todo, work, cluster))
            await_files(is_finished, todo)
            clear_temporaries(out)  # of workers that died
        return finish(collect_finished(jobs, plan.sensors, plan.shapes, plan.skipped), out, forced=bool(plan.forced))


def run_jobs(jobs: Sequence[ShardJob], work: Callable[[Any], None], workers: int) -> None:
    """Do the jobs that are not finished. On Ctrl-C the shards in work are finished, the others are left.

    Raises:
        InputError: a worker was killed.
        KeyboardInterrupt: stopped by the user.
    """
    todo = [job for job in jobs if not is_finished(job)]
    with safe_path():
        _count(jobs, todo, _done_here(todo, work, workers))


def _count(jobs: Sequence[ShardJob], todo: Sequence[ShardJob], done: Iterable[ShardJob]) -> None:
    """Show how many tiles of all jobs are done, as those that were not get done."""
    total, left = (sum(job.tiles for job in some) for some in (jobs, todo))
    with tqdm(total=total, initial=total - left, unit="tile", desc="shards", disable=None) as bar:
        for job in done:
            bar.update(job.tiles)


def _done_here(jobs: Sequence[ShardJob], work: Callable[[Any], None], workers: int) -> Iterator[ShardJob]:
    """Do jobs, one after the other or in processes of this machine; each as it is done."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            work(job)
            yield job
        return
    context = get_context("forkserver")  # no state of this process is copied, and torch is imported once for all
    context.set_forkserver_preload([__name__])
    given = (current(), dict(os.environ))
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, given) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise InputError("a worker was killed, for memory perhaps; try --workers 1, or less --shard-mb") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_shard(
    job: Job,
    *,
    sensors: dict[str, Sensor],
    shapes: dict[str, tuple[int, int, int]],
    confirm: Callable[[], None] | None = None,
) -> None:
    """Cut the tiles of one shard and write them, see `make_shard`."""
    make_shard(job, partial(_write_tiles, job), sensors, shapes, confirm)


class Written(NamedTuple):
    """What a shard should hold, and what was left out of it."""

    keys: set[str]
    dropped: int  # tiles with too many missing values
    skipped: Sequence[Skipped]


def make_shard(
    job: ShardJob,
    fill: Callable[[TarWriter], Written],
    sensors: Mapping[str, Sensor],
    shapes: Mapping[str, tuple[int, int, int]],
    confirm: Callable[[], None] | None = None,
) -> None:
    """Write one tar under a name of its own and read it back; its sidecar gets its name first, so that no tar lacks one.

    Args:
        fill: writes the samples.
        confirm: called before anything gets its name; raises where that is not wanted any more.
    Raises:
        InputError: not all samples that were written can be read back.
    """
    with scratch_file(job.path) as part:
        with part.open("r+b") as stream:
            with TarWriter(stream, encoder=False, mtime=0, format="GNU_FORMAT") as tar:
                written = fill(tar)
            stream.flush()
            os.fsync(stream.fileno())
        sidecar = scan(part, sensors, shapes)
        if sidecar.skipped or len(sidecar.keys) != len(written.keys):
            reason = f": {sidecar.skipped[0].reason}" if sidecar.skipped else ""
            raise InputError(
                f"{job.path}: {len(sidecar.keys)} of the {len(written.keys)} samples written can be read back{reason}; see "
                f"that the disk is neither full nor failing, then give the same command again"
            )
        record = {"dropped": written.dropped, "skipped": tuple(written.skipped), "fingerprint": job.fingerprint}
        record |= {} if written.keys else {"bytes": 0}
        if confirm is not None:
            confirm()
        dataclasses.replace(sidecar, **record).save(job.path.with_suffix(".npz"))
        if written.keys:
            os.replace(part, job.path)


def _write_tiles(job: Job, tar: TarWriter) -> Written:
    """The tiles of a shard; a footprint that cannot be read is left out whole."""
    keys, skipped, dropped = set[str](), list[Skipped](), 0
    for piece in job.pieces:
        windows = piece.footprint.windows(job.options)[piece.start : piece.stop]
        try:
            samples = list(_cut(piece.footprint, windows, job))
        except Unreadable as error:
            skipped.append(Skipped(_source(piece.footprint, error.file), str(error)))
            continue
        dropped += len(windows) - len(samples)
        for sample in samples:
            keys.add(sample["__key__"])
            tar.write(sample)
    return Written(keys, dropped, skipped)


def _cut(footprint: Footprint, windows: Sequence[tuple[int, int]], job: Job) -> Iterator[dict[str, Any]]:
    """Samples of the windows, without those that lack too much."""
    tile = job.options.tile
    with ExitStack() as stack:
        readers = [stack.enter_context(layer.scene.open(layer.bands)) for layer in footprint.layers]
        for row, col in windows:
            sample: dict[str, Any] = {"__key__": f"{footprint.key}_r{row:05d}_c{col:05d}"}
            for layer, read in zip(footprint.layers, readers, strict=True):
                array, missing = settle(read(*(int(v * layer.ratio) for v in (row, col, tile, tile))), layer)
                if missing > job.options.max_missing:
                    break
                sample[f"{layer.sensor.name}.npy"] = npy(array)
            else:
                yield sample | {"json": json.dumps(_describe(footprint.layers, row, col)).encode()}


def settle(window: Window, layer: Layer) -> tuple[np.ndarray, float]:
    """A tile (c, h, w) whose missing values are marked the sensor's way, and the part of its pixels that miss a band.

    Values stay as they are. Where the file marks missing values otherwise than the sensor, they become the sensor's
    nodata if the dtype holds it, else the tile becomes float with NaN.

    Raises:
        Unreadable: a usual mark of missing values stands among the others, and neither file nor sensor says so.
    """
    tile, wanted = window.stored, layer.sensor.nodata
    missing = np.isnan(tile) | (tile == wanted) if wanted is not None else np.isnan(tile)
    if window.missing is not None:
        foreign = window.missing & ~missing
        if foreign.any() and wanted is not None and _holds(tile.dtype, wanted):
            tile = np.where(foreign, np.array(wanted, tile.dtype), tile)
        elif foreign.any():
            tile = np.where(foreign, np.nan, tile.astype(with_nan(tile.dtype)))
        missing |= foreign
    refuse_undeclared(tile, missing, decibels=layer.sensor.in_decibels)
    return tile, float(missing.any(axis=0).mean())


def _holds(dtype: np.dtype, value: float) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def npy(array: np.ndarray) -> bytes:
    """An array (c, h, w) as the bytes of a little-endian .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))), allow_pickle=False)
    return buffer.getvalue()


def _describe(layers: Sequence[Layer], row: int, col: int) -> dict[str, Any]:
    """What the sample's JSON says."""
    scenes = {layer.sensor.name: layer.scene for layer in layers}
    first = layers[0].scene
    return {
        "crs": first.crs,
        "transform": _tile_transform(first, row, col),
        "date": first.date,
        "bands": {layer.sensor.name: layer.sensor.band_names for layer in layers},
        "source": {name: scene.sources for name, scene in scenes.items()},
    }


def _tile_transform(scene: Scene, row: int, col: int) -> list[float] | None:
    if scene.transform is None:
        return None
    a, b, c, d, e, f = scene.transform
    return [a, b, c + a * col + b * row, d, e, f + d * col + e * row]


def _source(footprint: Footprint, file: Path | None) -> str:
    scenes = [layer.scene for layer in footprint.layers]
    names = {path: name for scene in scenes for path, name in zip(scene.files, scene.sources, strict=True)}
    return names[file or scenes[0].files[0]]


def _start_worker(standins: StandIns | None, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.environ.clear()  # it is that of the day when the first worker of this program was started
    os.environ.update(environment)
    end_with_parent()
    use(standins)
