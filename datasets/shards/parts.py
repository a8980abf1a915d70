"""Shards made in parts by several commands that know nothing of each other, such as the jobs of an array, and their union.

Part I of N makes shards I, I + N, ... of the plan. When it is done it leaves a record, which says what the whole will be.
Parts may write into one folder, or each into its own; the union holds the bytes that one command would have made.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alliance.errors import InputError
from alliance.files import clear_temporaries, regular, replace_file, scratch_file
from alliance.json_files import read_json
from alliance.records import from_record
from alliance.sensors import Sensor
from datasets.descriptors import open_lock, shared_writer
from datasets.imagery.scenes import Skipped
from datasets.shards.folder import (
    PART_LOCK,
    PART_RECORD,
    collect_finished,
    finish,
    is_finished,
    make_folder,
    own_folder,
    refuse_others,
)
from datasets.shards.index import Index, Sidecar
from datasets.shards.plan import Job, Plan
from datasets.shards.write import run_jobs, write_shard

FORMAT = 1
MOST = 10**6  # parts
SHOWN = 3  # shards or parts that are named
MEND = "take it away, then give the command of that part again"


class Part(NamedTuple):
    """Part `number`, from 1, of `total`."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """From I/N.

        Raises:
            InputError: no such part.
        """
        found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
        part = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= part.number <= part.total <= MOST:
            raise InputError(
                f"--part {text!r}: give I/N, the number of a part from 1 to N and how many there are, such as 1/4; a Slurm array "
                f"for it is numbered from 1: sbatch --array=1-N"
            )
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @property
    def lock(self) -> str:
        """Name of the file that is locked while it is made."""
        return PART_LOCK.format(self.number, self.total)

    @property
    def record(self) -> str:
        """Name of the file that is there when it is done."""
        return PART_RECORD.format(self.number, self.total)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What all parts together will be."""

    format: int
    fingerprint: str
    shards: tuple[str, ...]  # names of the tars
    sensors: list[Any]
    shapes: dict[str, tuple[int, int, int]]
    skipped: tuple[Skipped, ...]
    forced: bool

    @classmethod
    def of(cls, plan: Plan, jobs: Sequence[Job]) -> "Whole":
        """What a plan makes."""
        return cls(
            format=FORMAT,
            fingerprint=plan.fingerprint,
            shards=tuple(job.path.name for job in jobs),
            sensors=[sensor.to_dict() for sensor in plan.sensors.values()],
            shapes=plan.shapes,
            skipped=plan.skipped,
            forced=bool(plan.forced),
        )

    @classmethod
    def read(cls, path: Path) -> "Whole":
        """From the record of a part.

        Raises:
            InputError: it is damaged, or none of this version.
        """
        try:
            found = from_record(cls, read_json(path), "it")
        except InputError as error:
            raise InputError(f"{path} is no record of a part ({error}); {MEND}") from error
        plain = [name for name in found.shards if re.fullmatch(r"shard-\d{6,}\.tar", name)]
        if found.format != FORMAT or len(plain) < len(found.shards) or len(set(plain)) < len(plain):
            raise InputError(f"{path} is no record of a part of this version; {MEND}")
        return found

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        replace_file(path, (json.dumps(vars(self), indent=1) + "\n").encode())


class Stored(NamedTuple):
    """A shard that some part has made."""

    path: Path
    fingerprint: str
    tiles: int = 1


def write_part(plan: Plan, out: Path, part: Part, *, workers: int = 1) -> tuple[int, int]:
    """Make one part of the plan's shards, beside other parts that are made at the same time; how many shards, and of how many.

    Raises:
        InputError: the folder holds something else, the same part is being made, or parts of another count are.
    """
    jobs = plan.jobs(out)
    own = jobs[part.number - 1 :: part.total]
    with part_of_folder(out, part, plan.fingerprint, own):
        run_jobs(own, partial(write_shard, sensors=plan.sensors, shapes=plan.shapes), workers)
        Whole.of(plan, jobs).write(out / part.record)
    return len(own), len(jobs)


@contextmanager
def part_of_folder(out: Path, part: Part, fingerprint: str, jobs: Sequence[Job]) -> Iterator[None]:
    """Write one part into a folder, which is made if need be.

    Raises:
        InputError: see `write_part`.
    """
    make_folder(out)
    with shared_writer(out):
        lock = open_lock(out / part.lock)
        if lock is None:
            raise InputError(f"another process makes part {part} in {out}; wait for it, or give another part")
        try:
            _refuse_other_counts(out, part)
            refuse_others(out, fingerprint)
            if (out / part.record).exists():
                Whole.read(out / part.record)  # one that is not ours stays
            own = {name for job in jobs for name in (job.path.name, job.path.with_suffix(".npz").name)}
            clear_temporaries(out, own | {part.record})
            yield
        finally:
            os.close(lock)


def _refuse_other_counts(out: Path, part: Part) -> None:
    """Parts of two counts would make the same shards at the same time."""
    for path in out.glob(PART_LOCK.format("*", "*")):
        if path.stem.endswith(f"-of-{part.total}"):
            continue
        lock = open_lock(path)
        if lock is None:
            raise InputError(
                f"another process makes a part in {out}, {path.stem.lstrip('.')}; wait for it, or give as many parts"
            )
        os.close(lock)


def merge_parts(folders: Sequence[Path], out: Path) -> Index:
    """The index of shards that parts have made, in one folder or in several, whose shards are copied then.

    Args:
        out: may be one of the folders. What an interrupted merge has copied is kept.
    Raises:
        InputError: a part is missing, of another plan or there twice, or a shard is not as it was written; by name.
    """
    folders = list(dict.fromkeys(folders))
    whole = _one_whole(folders)
    found = _found(folders, out, whole)
    jobs = [Stored(out / name, whole.fingerprint) for name in whole.shards]
    with own_folder(out, whole.fingerprint):
        for job in jobs:
            if not is_finished(job):
                _copy(found[job.path.name], job)
        sensors = {sensor.name: sensor for sensor in map(Sensor.from_dict, whole.sensors)}
        return finish(collect_finished(jobs, sensors, whole.shapes, whole.skipped), out, forced=whole.forced)


def _records(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of parts; give those that launch/shards.py --part wrote into")
    return sorted(folder.glob(PART_RECORD.format("*", "*")))


def _one_whole(folders: Sequence[Path]) -> Whole:
    """What the records of all parts say.

    Raises:
        InputError: they differ, one is there twice, or a folder has none.
    """
    records = {path: Whole.read(path) for folder in folders for path in _records(folder)}
    bare = [folder for folder in folders if not any(path.parent == folder for path in records)]
    if bare:
        raise InputError(
            f"{bare[0]} holds no finished part (no {PART_RECORD.format('I', 'N')}); make one with launch/shards.py --part, or "
            f"leave the folder out"
        )
    (first, whole), *others = records.items()
    for path, other in others:
        if other != whole:
            raise InputError(
                f"{path} is a part of other scenes or options than {first}; leave it out, or make it again as the others were"
            )
    for path in records:
        same = next(each for each in records if each.name == path.name)
        if same != path:
            raise InputError(f"{path} and {same} are the same part; give each part once")
    return whole


def _found(folders: Sequence[Path], out: Path, whole: Whole) -> Mapping[str, Path]:
    """Where each shard is that has to be copied.

    Raises:
        InputError: one is nowhere, or in two places.
    """
    found, missing = dict[str, Path](), []
    others = [folder for folder in folders if folder != out]
    for name in whole.shards:
        sources = [folder / name for folder in others if is_made(folder / name, whole)]
        if len(sources) > 1:
            raise InputError(f"{sources[1]} and {sources[0]} are the same shard; give each part once")
        if sources:
            found[name] = sources[0]
        elif not is_made(out / name, whole):
            missing.append(name)
    if missing:
        raise InputError(_missing(folders, whole, missing))
    return found


def is_made(path: Path, whole: Whole) -> bool:
    """Whether a part has finished this shard."""
    return is_finished(Stored(path, whole.fingerprint))


def _missing(folders: Sequence[Path], whole: Whole, shards: Sequence[str]) -> str:
    """Which parts are not there, where all are of one count; else which shards."""
    numbers = [re.findall(r"\d+", path.name) for folder in folders for path in _records(folder)]
    counts = {int(count) for _, count in numbers}
    named = ", ".join(shards[:SHOWN]) + f" and {len(shards) - SHOWN} more" * (len(shards) > SHOWN)
    told = f"{len(shards)} of {len(whole.shards)} shards are missing ({named})"
    if len(counts) == 1:
        (count,) = counts
        wanted = {whole.shards.index(name) % count + 1 for name in shards}
        parts = [str(Part(number, count)) for number in sorted(wanted)]
        told += f", of part {', '.join(parts[:SHOWN])}" + f" and {len(parts) - SHOWN} more" * (len(parts) > SHOWN)
    return f"{' and '.join(map(str, folders))}: {told}; give the commands of these parts again, and all their folders to --merge"


def _copy(source: Path, job: Stored) -> None:
    """Copy a shard, the sidecar first, so that no tar lacks one.

    Raises:
        InputError: the copy is not what was written.
    """
    sidecar = Sidecar.load(source.with_suffix(".npz"))
    with scratch_file(job.path) as part:
        if len(sidecar.keys):
            with regular(source).open("rb") as stream, part.open("r+b") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            with part.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sidecar.sha256:
                    raise InputError(f"{source} is not as it was written; make that part again")
        replace_file(job.path.with_suffix(".npz"), source.with_suffix(".npz").read_bytes())
        if len(sidecar.keys):
            os.replace(part, job.path)
