"""A cache of byte ranges of remote shards on this machine, shared by its processes and limited in size."""

import fcntl
import logging
import os
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alliance.errors import InputError
from alliance.files import NO_LINKS
from datasets.shards.index import Shard

logger = logging.getLogger("alliance")

NAMED = re.compile(r"[0-9a-f]{64}")
LOOKED_AT = 64  # parts of the limit: after so much was written the folder is measured
BLOCK = 512  # bytes, of st_blocks


class KeptRanges:
    """Files named by the shard's sha256, full of holes, which fill with what was read. A range is there when its checksum is
    that of the index, so that a hole, a torn write or a shard of another content is never taken for it.
    """

    def __init__(self, folder: Path | str, limit: int) -> None:
        """Make the folder.

        Args:
            limit: bytes that it may take; the shards that were not used for longest go first.
        Raises:
            InputError: it cannot be written.
        """
        self.folder, self.limit = Path(folder), limit
        self._written, self._ended, self._lock = 0, False, threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666))
        except OSError as error:
            raise InputError(f"data.cache {folder}: {error.strerror}; give a folder that can be written") from error
        self._measure()

    def read(self, shard: Shard, offset: int, memory: memoryview, crc32: int) -> bool:
        """Fill the memory, if the range is here."""
        with suppress(OSError), self._file(shard, os.O_RDONLY) as descriptor:
            if descriptor is not None and os.preadv(descriptor, [memory], offset) == len(memory):
                os.utime(descriptor)
                return zlib.crc32(memory) == crc32
        return False

    def write(self, shard: Shard, offset: int, data: memoryview) -> None:
        """Keep a range; a disk that is full or fails ends the keeping, not the reading."""
        if self._ended:
            return
        try:
            with self._file(shard, os.O_WRONLY | os.O_CREAT) as descriptor:
                if descriptor is None:
                    return
                os.pwritev(descriptor, [data], offset)
                os.utime(descriptor)
        except OSError as error:
            self._ended = True
            logger.warning("data.cache %s: %s; nothing more is kept there", self.folder, error.strerror)
            return
        with self._lock:
            self._written += len(data)
            due = self._written > self.limit // LOOKED_AT
            self._written = 0 if due else self._written
        if due:
            self._measure()

    @contextmanager
    def _file(self, shard: Shard, flags: int) -> Iterator[int | None]:
        """A shard's file; None: its content has no name."""
        if not NAMED.fullmatch(shard.sha256):
            yield None
            return
        descriptor = os.open(self.folder / f"{shard.sha256}.part", flags | NO_LINKS, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _measure(self) -> None:
        """Remove what was not used for longest while the folder is over its limit; one process of the machine does."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | NO_LINKS)
        try:
            with suppress(OSError):  # another process measures, or there are no locks here
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = []
                for path in self.folder.glob("*.part"):
                    with suppress(FileNotFoundError):
                        found.append((path.stat().st_mtime_ns, path.stat().st_blocks * BLOCK, path))
                taken = sum(size for _, size, _ in found)
                for _, size, path in sorted(found):
                    if taken <= self.limit:
                        break
                    path.unlink(missing_ok=True)
                    taken -= size
        finally:
            os.close(lock)
