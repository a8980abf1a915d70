"""What files hold, in one checksum: a run that goes on sees by it that its data are still the same, wherever they lie."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WHOLE = 1 << 30  # bytes of all files together up to which every byte counts; of more, ends and middles
PART = 1 << 16  # bytes of each of these
THREADS = 8


def digest_files(files: Mapping[str, Path], *, limit: int | None = None) -> str:
    """One checksum of files by their names: of names, sizes and contents, not of places and times.

    Of more than 1 GiB in all, 64 KiB at the beginning, in the middle and at the end of every file are read, so that large
    sets begin without delay.

    Args:
        limit: bytes, in place of that 1 GiB.
    Raises:
        OSError: a file cannot be read.
    """
    sizes = {path: path.stat().st_size for path in set(files.values())}
    whole = sum(sizes.values()) <= (WHOLE if limit is None else limit)
    with ThreadPoolExecutor(THREADS, "contents") as threads:
        contents = dict(
            zip(sizes, threads.map(lambda path: _digest(path, sizes[path], whole=whole), sizes), strict=True)
        )
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name}\0{sizes[path]}\0".encode() + contents[path])
    return total.hexdigest()[:32]


def _digest(path: Path, size: int, *, whole: bool) -> bytes:
    with path.open("rb") as file:
        if whole or size <= 3 * PART:
            return hashlib.file_digest(file, "sha256").digest()
        found = hashlib.sha256()
        for start in (0, (size - PART) // 2, size - PART):
            file.seek(start)
            found.update(file.read(PART))
        return found.digest()
