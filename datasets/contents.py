"""What files hold, in one checksum: a run that goes on sees by it that its data are still the same, wherever they lie.

Of images the files count too that give their numbers a meaning or stand for them: ENVI's headers, parts of virtual rasters,
metadata of products.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alliance.files import regular
from datasets.imagery.parts import parts, speaks_of_more, told
from datasets.storage.standins import open_bytes, size_of

WHOLE = 1 << 30  # bytes of all files together up to which every byte counts; of more, ends and middles
PART = 1 << 16  # bytes of each of these
THREADS = 8


def digest_files(files: Mapping[str, Path], *, limit: int | None = None) -> str:
    """One checksum of files by their names, and of what belongs to them: of names, sizes and contents, not of places and times.

    Of more than 1 GiB in all, 64 KiB at the beginning, in the middle and at the end of every file are read, so that large
    sets begin without delay. A file that cannot be read counts as such: what reads it says so.

    Args:
        limit: bytes, in place of that 1 GiB.
    """
    with ThreadPoolExecutor(THREADS, "contents") as threads:
        places = list(dict.fromkeys(files.values()))
        stamped = dict(zip(places, threads.map(stamps, places), strict=True))
        sizes = {path: each.size for found in stamped.values() for path, each in found.items()}
        whole = sum(sizes.values()) <= (WHOLE if limit is None else limit)
        found = threads.map(lambda path: _contents(stamped[path], whole=whole), places)
        contents = dict(zip(places, found, strict=True))
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name}\0".encode() + contents[path])
    return total.hexdigest()[:32]


class Stamp(NamedTuple):
    """By which a file is known to be the same as a moment ago."""

    size: int
    time: int  # ns


ABSENT = Stamp(0, 0)


def stamps(path: Path) -> dict[Path, Stamp]:
    """Of a file and of what belongs to it; one that cannot be read counts as absent."""
    try:
        return {each: stamp(each) for each in (path, *parts(path))}
    except OSError:  # of a folder that cannot be entered
        return {path: ABSENT}


def _contents(stamped: Mapping[Path, Stamp], *, whole: bool) -> bytes:
    """Sizes and checksums of a file and of what belongs to it."""
    found = [(each.size, _digest(path, each, whole=whole)) for path, each in stamped.items()]
    return b"".join(f"{size}\0".encode() + each for size, each in found if each)


def stamp(path: Path) -> Stamp:
    """Of a file alone."""
    try:
        found = regular(path).stat()
    except OSError:
        return ABSENT
    return Stamp(0 if speaks_of_more(path) else size_of(path), found.st_mtime_ns)


@cache
def _digest(path: Path, stamp: Stamp, *, whole: bool) -> bytes:
    """Of one file; the several runs of a command read it once. Empty: it says nothing of numbers."""
    try:
        if speaks_of_more(path):
            said = told(path)
            return hashlib.sha256(said).digest() if said else b""
        return _read(path, stamp.size, whole=whole)
    except OSError:
        return b"cannot be read"


def _read(path: Path, size: int, *, whole: bool) -> bytes:
    with open_bytes(regular(path)) as file:
        if whole or size <= 3 * PART:
            return hashlib.file_digest(file, "sha256").digest()
        found = hashlib.sha256()
        for start in (0, (size - PART) // 2, size - PART):
            file.seek(start)
            found.update(file.read(PART))
        return found.digest()
