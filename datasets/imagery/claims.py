"""What headers claim, held against what there is before anything is read: the bytes of the file, and free memory."""

import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from datasets.imagery.scenes import Unreadable
from datasets.storage.standins import size_of

EXPANSION = 2000  # no file of numbers holds more bytes than this many times its own; deflate reaches 1032
EMPTY = 1 << 30  # bytes that a raster may claim all the same: constant and sparse ones are packed without limit
UNASKED = 1 << 26  # bytes that are always to be had
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
ANEW = "if it holds nothing but one value, write it anew: gdal_translate -co COMPRESS=DEFLATE IN OUT.tif"


def too_large(shape: Iterable[int], itemsize: int, there: int) -> str:
    """Why an array cannot be what its header says: more bytes than a file of `there` bytes holds; empty if it can."""
    claimed = np.prod([float(length) for length in shape]) * itemsize
    if claimed <= EXPANSION * there:
        return ""
    return f"claims {claimed / 1e9:,.1f} GB in a file of {there / 1e6:,.3f} MB; it is damaged, or holds nothing"


def refuse_claim(shape: Iterable[int], itemsize: int, files: Iterable[Path]) -> None:
    """Refuse a raster whose header says more pixels than its files can hold.

    Raises:
        Unreadable: it does.
    """
    shape = tuple(shape)
    there = max(sum(size_of(file) for file in files if file.is_file()), EMPTY // EXPANSION)
    reason = too_large(shape, itemsize, there)
    if reason:
        raise Unreadable(f"{' x '.join(map(str, shape))} pixels: {reason}; {ANEW}")


def refuse_large(size: float) -> None:
    """Refuse to read more bytes at once than there is free memory.

    Raises:
        Unreadable: there is less.
    """
    if size <= UNASKED:
        return
    free = free_memory()
    if size > free:
        raise Unreadable(
            f"needs {size / 1e9:,.1f} GB at once, of memory {free / 1e9:,.1f} GB are free; its header is damaged, or it must "
            f"be cut into smaller files"
        )


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, within its container and its own limit."""
    known = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    for limit in CGROUPS:
        with suppress(OSError, ValueError):
            known.append(int(limit.read_text()))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            known.append(max(most - taken, 0))
    return min(known)
