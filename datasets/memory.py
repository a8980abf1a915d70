"""Memory of a process that runs for days, and what of it must not get into files."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TRIM, MMAP, PERTURB = -1, -3, -6  # of mallopt in GNU's C library: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB
ZERO = 0xFF  # its complement is what fresh memory is filled with
KEPT = 2**29  # bytes that may be free at the end of the heap before they go back to the system
OF_THE_HEAP = 2**25  # bytes; larger pieces are mapped one by one, the most that GNU's library allows


def keep_heap() -> None:
    """Keep what a training step frees for the next one, which needs as much.

    Left to itself GNU's C library returns it after every step and asks for it again, page by page; where in the heap a
    long-lived piece then comes to lie, and so the size of what cannot be returned, is chance. Who has set variables of
    the library for it has chosen otherwise.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library than that of GNU
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(MMAP, OF_THE_HEAP)
        library.mallopt(TRIM, KEPT)


def give_back() -> None:
    """Free what holds itself in cycles, and give the heap's free pages back to the system: after what is large and seldom."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than that of GNU
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def zeroed() -> Iterator[None]:
    """Inside the block, memory that is allocated holds zeros, where it is GNU's C library that gives it.

    For libraries that write more than they have filled: of files of half precision GDAL's COG driver also writes, beyond the
    image's edge, what lay in the memory of its blocks before.
    """
    _perturb(ZERO)
    try:
        yield
    finally:
        _perturb(0)


def _perturb(byte: int) -> None:
    with suppress(OSError, AttributeError):  # another C library than that of GNU
        ctypes.CDLL("libc.so.6").mallopt(PERTURB, byte)
