"""Processes as /proc shows them, and work for workers to be killed at."""

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


def runs(process: int) -> bool:
    """Whether a process is there and not only waits to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def all_end(processes: Collection[int], seconds: float) -> bool:
    """Whether these processes have all ended within a time."""
    until = time.monotonic() + seconds
    while any(map(runs, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def descendants(process: int) -> Iterator[int]:
    """The children of a process that run now, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    todo = list(parents.get(process, ()))
    while todo:
        yield (found := todo.pop())
        todo += parents.get(found, ())


class SleepJob(NamedTuple):
    """Work for a worker of shards that is never done."""

    path: Path
    tiles: int = 1
    fingerprint: str = ""


def sleep(job: SleepJob) -> None:
    """Say that it has begun, and hold on."""
    job.path.with_suffix(".begun").touch()
    time.sleep(120)
