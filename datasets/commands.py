"""The frame around every command: Ctrl-C, full disks and a user's mistakes are one message each, never a traceback."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from alliance.errors import InputError
from alliance.passwords import hide_passwords
from datasets.descriptors import FULL, too_many
from datasets.interrupts import INTERRUPTED

KNOWN = (InputError, OSError, MemoryError, torch.OutOfMemoryError)  # anything else is a mistake of ours
MISTAKE = 2  # exit code
ONE_REQUEST = 3.0  # seconds within which several signals are one request
MENDS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "files may not grow that far here: raise the limit (ulimit -f), or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "see that you may read and write there",
    errno.EPERM: "see that you may read and write there",
    errno.ENOENT: "check the name",
    errno.EISDIR: "this is a folder, give a file",
    errno.ENOTDIR: "a part of the path is a file, give a folder",
    errno.EEXIST: "remove it, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "see that the disk is not failing",
    errno.ESTALE: "see that the file system is still there",
    errno.ETIMEDOUT: "see that the file system can be reached",
}


def run_body(body: Callable[[], Sequence[str]], *, stopped: str) -> None:
    """Run the body of a command and print its lines; every known failure is one message on stderr.

    Exit code 2 after a mistake or a full disk, 130 after Ctrl-C or SIGTERM.

    Args:
        stopped: what to say then: what is kept, and how to go on.
    """
    try:
        with interruptible():
            print("\n".join(body()), flush=True)
    except BrokenPipeError as error:
        if error.filename is not None:
            fail(error)
        with suppress(OSError):  # who read our lines has left: there is nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KNOWN as error:
        fail(error)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)


def fail(error: BaseException) -> None:
    """Say what is wrong, and end with exit code 2."""
    print(f"error: {explain(error)}", file=sys.stderr, flush=True)
    sys.exit(MISTAKE)


def explain(error: BaseException) -> str:
    """A known failure as a message: what is wrong, where, and what to do."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return hide_passwords(_explain_system(error))
    lines = str(error).strip().splitlines() or ["not enough memory"]
    return f"{lines[0]}; take smaller pieces (tiles, windows, batches, fewer workers), or a machine with more memory"


def _explain_system(error: OSError) -> str:
    if error.errno in FULL:
        return str(too_many(error))
    if error.errno is None or error.strerror is None:  # of a library
        return " ".join(str(error).split()) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    mend = MENDS.get(error.errno)
    return f"{where}{error.strerror}" + (f"; {mend}, then give the same command again" if mend else "")


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM raise KeyboardInterrupt, unless they are ignored; what was before comes back.

    They do so once, so that tidying up is not interrupted; another one, three seconds later or more, ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    asked: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise KeyboardInterrupt
        if asked[-1] - asked[0] > ONE_REQUEST:
            os._exit(INTERRUPTED)

    try:
        for number in heard:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
