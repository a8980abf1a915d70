"""What a whole run will take of time, memory and disk, told from its first steps."""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from alliance.words import counted
from engine.log import duration
from engine.runs import RunConfig


class Rehearsed(NamedTuple):
    """What the first steps of a run came to."""

    steps: int
    seconds: float  # of the last of them
    memory: float  # GiB, the most that a rank used
    available: float  # GiB, of a GPU or of this machine
    ranks: int
    on_gpu: bool
    checkpoint: int  # bytes
    weights: int  # bytes of the network in float32
    free: int  # bytes where the run would write


def memory_of_machine() -> float:
    """Memory of this machine, GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def checkpoints_at_once(run: RunConfig) -> int:
    """The most checkpoints that lie on the disk at a time: the newest ones, those that stay, and one being written."""
    every, stays = run.save_every, run.steps // run.keep_every if run.keep_every else 0
    both = run.steps // math.lcm(every, run.keep_every) if run.keep_every else 0
    at_the_end = run.steps % every != 0 and (not run.keep_every or run.steps % run.keep_every != 0)
    saved = run.steps // every + stays - both + at_the_end
    return min(saved, run.keep + stays + 1)


def estimate(run: RunConfig, seen: Rehearsed) -> Iterator[str]:
    """The lines of a dry run."""
    yield f"dry run: {seen.steps} of {run.steps} steps taken, nothing is left behind; the whole run would take about"
    yield (f"  time    {duration(run.steps * seen.seconds)}: {run.steps} steps of {seen.seconds:.3g} s, as the last one took; "
           f"pictures, evaluations, probes and checkpoints come on top")  # fmt: skip
    place = "of a GPU" if seen.on_gpu else "of this machine"
    yield (f"  memory  {seen.memory:.2f} GB of {seen.available:.1f} GB {place} in the largest of "
           f"{counted(seen.ranks, 'rank')}, in these steps")  # fmt: skip
    count = checkpoints_at_once(run)
    need = count * seen.checkpoint + seen.weights
    yield (f"  disk    {in_units(need)} of {in_units(seen.free)} free: at most {counted(count, 'checkpoint')} at a time, {in_units(seen.checkpoint)} "
           f"each, and {in_units(seen.weights)} of exported weights; pictures and logs come on top")  # fmt: skip
    if need > seen.free:
        yield "the disk is too small for it: make room, choose another run.dir, or lower run.keep"


def in_units(count: float) -> str:
    """Bytes for people: 7340032 -> '7.3 MB'."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
