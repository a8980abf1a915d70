"""Memory of a process that runs for days."""

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Free what holds itself in cycles, and give the heap's free pages back to the system: after what is large and seldom."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than that of GNU
        ctypes.CDLL("libc.so.6").malloc_trim(0)
