"""Files that are there whole or not at all, under names that nobody could plant beforehand."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from alliance.errors import InputError

try:
    import fcntl
except ImportError:  # not of Unix
    fcntl = None

TEMPORARY = re.compile(r"(?P<name>.+)\.[0-9a-f]{16}\.tmp")
LITTLE = 64 * 2**20  # bytes; where less is free, the disk is taken to be full
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # where the system has them


def replace_file(path: Path, content: bytes, *, crowded: bool = False) -> None:
    """Write a file so that it is either the old or the new one, never half of it, also after a power cut.

    Args:
        crowded: see `new_file`.
    """
    with replacing(path, crowded=crowded) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, crowded: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, whole and on the disk, when the block ends; nothing stays if it fails.

    It is made beside `path`, with the rights that the umask gives, and follows no link.
    """
    with new_file(path, crowded=crowded) as part, open(part, "r+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_file(path: Path, *, crowded: bool = False) -> Iterator[Path]:
    """An empty file of our own beside `path`, for a writer that wants a name; it gets the name `path` when the block ends.

    Whatever the writer makes of it has the rights that the umask gives. Nothing stays if the block fails; what a writer of
    `path` that was killed has left goes.

    Args:
        crowded: one of very many files of a folder, whose owner removes what was left once for all.
    """
    if not crowded:
        clear_left(path)
    with scratch_file(path) as part:
        rights = part.stat().st_mode & 0o777
        yield part
        part.chmod(rights)
        os.replace(part, path)


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """An empty file of our own beside `path`, under a name that nobody can foresee; it is removed when the block ends."""
    with naming(path):
        part, descriptor = _created(path)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)


def _created(path: Path) -> tuple[Path, int]:
    """A new file, locked for as long as its writer lives; another one if `clear_left` took it before it was locked."""
    while True:
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)
        if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed; whether that could be done. None: there are no locks on this file system.

    Args:
        shared: with others who ask for it so too.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def clear_left(path: Path) -> None:
    """Remove the temporary files of `path` whose writers were killed; those of living ones are locked and stay."""
    for left in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        if TEMPORARY.fullmatch(left.name) and left.is_file() and not left.is_symlink():
            with suppress(OSError):
                descriptor = os.open(left, os.O_RDONLY | NO_LINKS)
                try:
                    if lock(descriptor):
                        left.unlink()
                finally:
                    os.close(descriptor)


def require_empty(folder: Path) -> None:
    """Refuse a file, or a folder that holds something, as a place to write into.

    Raises:
        InputError: it is one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty, and nothing in it is overwritten; give a new folder, or remove it")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Failures of writing a file name that file, whoever writes it: the system's without a name, safetensors', torch's.

    Raises:
        OSError: it cannot be written; with its errno and `path`.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _number_of(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: Exception, path: Path) -> int | None:
    """The errno of a failure to write; None: it is another one, or tells all itself."""
    if isinstance(error, OSError):
        own = error.filename is None or TEMPORARY.fullmatch(Path(os.fsdecode(error.filename)).name)
        return error.errno if own else None
    told = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))  # safetensors, and its versions before 0.6
    if told:
        return int(told[1] or told[2])
    if "unexpected pos" not in str(error):  # torch's writer, which does not say why
        return None
    return errno.ENOSPC if shutil.disk_usage(path.parent).free < LITTLE else errno.EIO


def regular(path: Path) -> Path:
    """The same path, if what is there can be read as a file: a pipe may never give a byte, a device never end.

    Raises:
        OSError: it cannot; where nothing is, who opens it says so.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file; give a file", str(path))
    return path


def final_name(path: Path) -> str:
    """The name that a file gets, or has: `a.tar` of `a.tar.0123456789abcdef.tmp`."""
    made = TEMPORARY.fullmatch(path.name)
    return made["name"] if made else path.name


def clear_temporaries(folder: Path, names: Container[str] | None = None) -> None:
    """Remove the files that writers which were killed left in a folder.

    Args:
        names: that these files would have got, and that nobody else writes now; None: nobody else writes into the folder.
    """
    for path in folder.glob("*.tmp"):
        wanted = names is None or final_name(path) in names
        if wanted and TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a folder or a file, of a link the link alone; what cannot be removed stays."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
