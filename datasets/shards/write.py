"""Cut the planned tiles and write them, shard by shard, in as many processes as wanted."""

import dataclasses
import io
import json
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm
from webdataset.writer import TarWriter

from alliance.errors import InputError
from alliance.files import TEMPORARY, clear_temporaries, final_name, scratch_file
from alliance.sensors import Sensor
from datasets.children import end_with_parent, safe_path
from datasets.descriptors import LOCK, only_writer
from datasets.imagery.marks import refuse_undeclared
from datasets.imagery.scenes import Scene, Skipped, Unreadable, Window
from datasets.shards.index import NAME, Index, Sidecar, collect
from datasets.shards.plan import Footprint, Job, Layer, Plan, with_nan
from datasets.shards.scan import scan

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)  # what a damaged sidecar raises
OUR_NAME = re.compile(rf"(?:shard-\d{{6,}}\.(?:tar|npz)|{re.escape(NAME)})(?:\.tmp)?")


class ShardJob(Protocol):
    """Work whose result is a tar and its sidecar."""

    @property
    def path(self) -> Path: ...
    @property
    def tiles(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


def write_shards(plan: Plan, out: Path, *, workers: int = 1, overwrite: bool = False) -> Index:
    """Make the plan's shards and their index; shards that an interrupted run finished are kept.

    Raises:
        InputError: the folder holds something else or is written into by another process, or no sample could be made.
    """
    jobs = plan.jobs(out)
    work = partial(write_shard, sensors=plan.sensors, shapes=plan.shapes)
    with own_folder(out, plan.fingerprint, overwrite=overwrite):
        run_jobs(jobs, work, workers)
        index = collect_finished(jobs, plan.sensors, plan.shapes, plan.skipped)
        index = dataclasses.replace(index, forced=bool(plan.forced))
        index.write(out)
    return index


@contextmanager
def own_folder(out: Path, fingerprint: str, *, overwrite: bool) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made if need be, and see that nothing else lies in it.

    Raises:
        InputError: another process writes into it, or it holds what is not ours, see `prepare_folder`.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; pass another --out")
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        prepare_folder(out, fingerprint, overwrite=overwrite)
        yield


def collect_finished(
    jobs: Sequence[ShardJob],
    sensors: Mapping[str, Sensor],
    shapes: Mapping[str, tuple[int, int, int]],
    skipped: Sequence[Skipped] = (),
) -> Index:
    """The index of shards that are all as they were written.

    Raises:
        InputError: one is not, there are no samples at all, or a band is missing everywhere.
    """
    undone = [job.path for job in jobs if not is_finished(job)]
    if undone:
        where = undone[0].parent
        raise InputError(f"{undone[0]} is not as it was written; see that nobody else writes into {where}, then go on")
    return collect([job.path for job in jobs], sensors, shapes, skipped)


def prepare_folder(out: Path, fingerprint: str, *, overwrite: bool) -> None:
    """See that all a folder holds is an earlier run of the same plan, or remove that run; and what a kill left of it.

    Raises:
        InputError: the folder holds anything else; nothing is removed then.
    """
    paths = sorted(out.iterdir())
    others = [path for path in paths if path.name != LOCK and not OUR_NAME.fullmatch(final_name(path))]
    if others:
        raise InputError(f"{out} holds other files ({others[0].name}); pass another --out")
    if overwrite:
        for path in (path for path in paths if path.name != LOCK):
            path.unlink(missing_ok=True)
        return
    foreign = _of_others(out)
    if foreign:
        raise InputError(
            f"{out} holds {foreign[0].name}, which this command has not made; pass another --out, or --overwrite to lose it"
        )
    if any(_fingerprint(path) not in (None, fingerprint) for path in out.glob("shard-*.npz")):
        raise InputError(f"{out} holds shards of other scenes or options; pass --overwrite, or another --out")
    clear_temporaries(out)
    for path in out.glob("shard-*.tmp"):  # as earlier versions called theirs
        path.unlink(missing_ok=True)


def _of_others(out: Path) -> list[Path]:
    """Files with names of ours that nothing of ours belongs to: a shard needs its sidecar or a line of the index."""
    ours = {path.stem for path in out.glob("*.npz") if _fingerprint(path) is not None}
    index = out / NAME
    with suppress(InputError):
        listed = Index.read(out).shards
        ours |= {Path(shard.name).stem for shard in listed} | {index.stem}
    claimed = ours | ({index.stem} if ours else set())  # a damaged index of good shards is made anew
    paths = [path for path in sorted(out.iterdir()) if path.name != LOCK and not TEMPORARY.fullmatch(path.name)]
    return [
        path for path in paths if path.name.partition(".")[0] not in claimed and not (ours and path.suffix == ".tmp")
    ]


def is_finished(job: ShardJob) -> bool:
    """Whether an earlier run made this shard."""
    try:
        sidecar = Sidecar.load(job.path.with_suffix(".npz"))
        size = job.path.stat().st_size if len(sidecar.keys) else 0
    except UNREADABLE:
        return False
    return sidecar.fingerprint == job.fingerprint and size == sidecar.bytes


def run_jobs(jobs: Sequence[ShardJob], work: Callable[[Any], None], workers: int) -> None:
    """Do the jobs that are not finished. On Ctrl-C the shards in work are finished, the others are left.

    Raises:
        InputError: a worker was killed.
        KeyboardInterrupt: stopped by the user.
    """
    todo = [job for job in jobs if not is_finished(job)]
    total, left = (sum(job.tiles for job in some) for some in (jobs, todo))
    with safe_path(), tqdm(total=total, initial=total - left, unit="tile", desc="shards", disable=None) as bar:
        if workers <= 1 or len(todo) <= 1:
            for job in todo:
                work(job)
                bar.update(job.tiles)
            return
        context = get_context("forkserver")  # no state of this process is copied, and torch is imported once for all
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_start_worker)
        with pool:
            futures = {pool.submit(work, job): job for job in todo}
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update(futures[future].tiles)
            except BrokenProcessPool as error:
                raise InputError(
                    "a worker was killed, for memory perhaps; try --workers 1, or less --shard-mb"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def write_shard(job: Job, *, sensors: dict[str, Sensor], shapes: dict[str, tuple[int, int, int]]) -> None:
    """Cut the tiles of one shard and write them, see `make_shard`."""
    make_shard(job, partial(_write_tiles, job), sensors, shapes)


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
) -> None:
    """Write one tar under a name of its own and read it back; its sidecar gets its name first, so that no tar lacks one.

    Args:
        fill: writes the samples.
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


def _fingerprint(sidecar: Path) -> str | None:
    try:
        return Sidecar.load(sidecar).fingerprint
    except UNREADABLE:
        return None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    end_with_parent()
