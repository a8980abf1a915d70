"""Open files: locks on folders, appending without following links, and how many a process may have at a time."""

import errno
import os
import resource
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from alliance.errors import InputError
from alliance.files import NO_LINKS, TEMPORARY, lock

LOCK = ".lock"
SPARE = 128  # descriptors kept for everything that is no shard: libraries, logs, sockets, scenes
FULL = (errno.EMFILE, errno.ENFILE)  # too many open files, of this process or of the machine


def open_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, which is made if need be and never followed as a link, until its descriptor is closed.

    Args:
        shared: with others who ask for it so too.
    Returns:
        The descriptor; None: another process holds the lock. On a file system without locks nothing is locked.
    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
    if lock(descriptor, shared=shared) is False:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder. Where folders cannot be locked (NFS), a file `.lock` in it is.

    Raises:
        InputError: another process is.
    """
    with _writer(folder, shared=False):
        yield


@contextmanager
def shared_writer(folder: Path) -> Iterator[None]:
    """Be one of several processes that write into a folder, none of which is its `only_writer`.

    Raises:
        InputError: another process is.
    """
    with _writer(folder, shared=True):
        yield


@contextmanager
def _writer(folder: Path, *, shared: bool) -> Iterator[None]:
    descriptor: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    locked = lock(descriptor, shared=shared)
    if locked is None:
        os.close(descriptor)
        descriptor = open_lock(folder / LOCK, shared=shared)
    if locked is False or descriptor is None:
        raise InputError(f"another process writes into {folder}; wait for it, or give another folder")
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder of our own beside `path`, removed when the block ends; `clear_scratch` removes it after a kill."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    made.mkdir(mode=0o700)
    descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(descriptor)
        folder = made.rename(made.with_name(f"{made.name}.tmp"))  # only now may others look whether it is locked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def clear_scratch(path: Path) -> None:
    """Remove the scratch folders of `path` whose processes were killed; those of living ones are locked and stay."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if not TEMPORARY.fullmatch(left.name):
            continue
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | NO_LINKS)
            try:
                if lock(descriptor):
                    shutil.rmtree(left)
            finally:
                os.close(descriptor)


def append_to(path: str | Path) -> BinaryIO:
    """Open a file to append to, unbuffered; it is made if need be and never followed as a link."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | NO_LINKS, 0o666))


def allowed() -> int:
    """Raise this process's limit of open files as far as it may; the limit."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def share_out(limit: int, holders: int, most: int) -> int:
    """Files that each of several holders may keep open, at least one and at most `most`."""
    return max(1, min(most, (limit - SPARE) // max(holders, 1)))


def too_many(error: OSError) -> InputError:
    """What to say when no more files can be opened: the data are not at fault."""
    return InputError(
        f"{os.strerror(error.errno or errno.EMFILE).lower()}: this process may have {allowed()}; raise the limit "
        f"(ulimit -n), or lower data.workers or the number of sources"
    )
