"""A folder of shards: who may write into it, what may lie in it, which shards are made, and the index that ends the work."""

import dataclasses
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from alliance.errors import InputError
from alliance.files import TEMPORARY, clear_temporaries, final_name
from alliance.sensors import Sensor
from datasets.descriptors import LOCK, only_writer
from datasets.imagery.scenes import Skipped
from datasets.shards.index import NAME, Index, Sidecar, collect

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)  # what a damaged sidecar raises
PART_LOCK, PART_RECORD = (
    ".part-{}-of-{}.lock",
    "part-{}-of-{}.json",
)  # by number and count, see datasets/shards/parts.py
OF_PARTS = re.compile(r"\.part-\d+-of-\d+\.lock|part-\d+-of-\d+\.json")
OUR_NAME = re.compile(rf"(?:shard-\d{{6,}}\.(?:tar|npz)|{re.escape(NAME)})(?:\.tmp)?|{OF_PARTS.pattern}")


class ShardJob(Protocol):
    """Work whose result is a tar and its sidecar."""

    @property
    def path(self) -> Path: ...
    @property
    def tiles(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


@contextmanager
def own_folder(out: Path, fingerprint: str, *, overwrite: bool = False) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made if need be, and see that nothing else lies in it.

    Raises:
        InputError: another process writes into it, or it holds what is not ours, see `prepare_folder`.
    """
    make_folder(out)
    with only_writer(out):
        prepare_folder(out, fingerprint, overwrite=overwrite)
        yield


def make_folder(out: Path) -> None:
    """Make a folder, if need be.

    Raises:
        InputError: a file stands there.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; pass another --out")
    out.mkdir(parents=True, exist_ok=True)


def prepare_folder(out: Path, fingerprint: str, *, overwrite: bool) -> None:
    """See that all a folder holds is an earlier run of the same plan, or remove that run; and what a kill left of it.

    Raises:
        InputError: the folder holds anything else; nothing is removed then.
    """
    if overwrite:
        for path in (path for path in _named_as_ours(out) if path.name != LOCK):
            path.unlink(missing_ok=True)
        return
    refuse_others(out, fingerprint)
    clear_temporaries(out)
    for path in out.glob("shard-*.tmp"):  # as earlier versions called theirs
        path.unlink(missing_ok=True)


def _named_as_ours(out: Path) -> list[Path]:
    """All that a folder holds.

    Raises:
        InputError: a name is none of ours.
    """
    paths = sorted(out.iterdir())
    others = [path for path in paths if path.name != LOCK and not OUR_NAME.fullmatch(final_name(path))]
    if others:
        raise InputError(f"{out} holds other files ({others[0].name}); pass another --out")
    return paths


def refuse_others(out: Path, fingerprint: str) -> None:
    """See that a folder holds nothing but what commands of the same plan made, or are making.

    Raises:
        InputError: it holds anything else.
    """
    foreign = _of_others(_named_as_ours(out), out)
    if foreign:
        raise InputError(
            f"{out} holds {foreign[0].name}, which this command has not made; pass another --out, or --overwrite to lose it"
        )
    if any(_fingerprint(path) not in (None, fingerprint) for path in out.glob("shard-*.npz")):
        raise InputError(f"{out} holds shards of other scenes or options; pass --overwrite, or another --out")


def _of_others(paths: Sequence[Path], out: Path) -> list[Path]:
    """Files with names of ours that nothing of ours belongs to: a shard needs its sidecar or a line of the index.

    Args:
        paths: found before this, so that the sidecars of shards that others make meanwhile are there.
    """
    ours = {path.stem for path in out.glob("*.npz") if _fingerprint(path) is not None}
    index = out / NAME
    with suppress(InputError):
        listed = Index.read(out).shards
        ours |= {Path(shard.name).stem for shard in listed} | {index.stem}
    claimed = ours | ({index.stem} if ours else set())  # a damaged index of good shards is made anew
    paths = [path for path in paths if not TEMPORARY.fullmatch(path.name)]
    paths = [path for path in paths if path.name != LOCK and not OF_PARTS.fullmatch(path.name)]
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


def finish(index: Index, out: Path, *, forced: bool) -> Index:
    """Write the index of a folder, after which it is whole, and take away what parts of it left there."""
    index = dataclasses.replace(index, forced=forced)
    index.write(out)
    for path in out.iterdir():
        if OF_PARTS.fullmatch(path.name):
            path.unlink()
    return index


def _fingerprint(sidecar: Path) -> str | None:
    try:
        return Sidecar.load(sidecar).fingerprint
    except UNREADABLE:
        return None
