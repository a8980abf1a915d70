"""Stand-ins: files of this machine in the place of files in stores, which are read by byte ranges and never as they are.

A stand-in holds a sentence that no reader of images takes for one. What asks for the size, the version or the bytes of a
file that may be one does so here; GDAL opens it through `opener_of`, and `refuse_failure` says afterwards whether all that
it read came from the store.
"""

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rasterio.abc import FileContainer

from alliance.errors import InputError
from datasets.storage.places import PATIENCE
from datasets.storage.store import Entry, NoRanges, Store

TEXT = b"The bytes of this file are in object storage, and are read from there by ranges.\n"
BLOCK = 1 << 16  # bytes that are asked for at least
AHEAD = 64  # blocks that are asked for at once, at most, where a file is read on and on
KEPT = 1024  # blocks that a process keeps


class StoreFailure(Exception):
    """A store did not give what was read. It is no InputError and no OSError: what passes over damaged files must not pass
    over it, or a scene would be left out because a connection was cut.
    """


class Far(NamedTuple):
    """A file in a store."""

    place: str  # folder; `${NAME}` in it stands for what the environment holds
    entry: Entry


@dataclass
class StandIns:
    """The stand-ins of a command, by their paths. They travel to its worker processes, what was read does not."""

    root: Path  # what lies below is read as if it all were here
    files: dict[str, Far] = field(default_factory=dict)
    stores: dict[str, Store] = field(default_factory=dict)
    blocks: OrderedDict[tuple[str, int], bytes] = field(default_factory=OrderedDict)
    failure: BaseException | None = None  # the first one of what GDAL read; nothing is asked for after it
    thread: int = field(default_factory=threading.get_ident)  # that reads: GDAL finds our opener in no other

    def __reduce__(self) -> tuple[Any, ...]:
        return StandIns, (self.root, self.files)

    @cached_property
    def opener(self) -> FileContainer:
        """One for all files: GDAL keeps every one that it was ever given."""
        return _Opener(self)

    def store(self, place: str) -> Store:
        """The store of a place, opened once."""
        if place not in self.stores:
            self.stores[place] = Store(place)
            self.stores[place].be_patient(PATIENCE)
        return self.stores[place]

    def read(self, path: str, start: int, end: int, ahead: int = 1) -> bytes:
        """Bytes start .. end - 1 of a file, in whole blocks, at least so many; they are kept for a while.

        Raises:
            StoreFailure: the store does not give them.
        """
        size = self.files[path].entry.size
        first, last = start // BLOCK, -(-end // BLOCK)
        lacking = [number for number in range(first, last) if (path, number) not in self.blocks]
        if lacking:
            begin, stop = lacking[0], min(max(lacking[-1] + 1, lacking[0] + ahead), -(-size // BLOCK))
            content = self._ask(path, begin * BLOCK, min(stop * BLOCK, size))
            for number in range(begin, stop):
                self.blocks[path, number] = content[(number - begin) * BLOCK : (number - begin + 1) * BLOCK]
        for number in range(first, last):
            self.blocks.move_to_end((path, number))
        found = b"".join(self.blocks[path, number] for number in range(first, last))
        while len(self.blocks) > KEPT:
            self.blocks.popitem(last=False)
        return found[start - first * BLOCK : end - first * BLOCK]

    def _ask(self, path: str, start: int, end: int) -> bytes:
        place, entry = self.files[path]
        store = self.store(place)
        try:
            return store.pieces([(entry, start, end)])[0]
        except NoRanges as error:
            raise StoreFailure(
                f"{store.name(entry.name)}: its server gives no byte ranges; fetch the file (curl -O), and give its path"
            ) from error
        except InputError as error:
            raise StoreFailure(str(error)) from error


_used: list[StandIns] = []  # by this process; one command at a time


def use(standins: StandIns | None) -> None:
    """Take these stand-ins for this process, or none any more."""
    _used[:] = [] if standins is None else [standins]


def current() -> StandIns | None:
    """What this process has taken, for a process that it starts."""
    return _used[0] if _used else None


def far(path: Path) -> Far | None:
    """The file in a store that a path stands for, if it does."""
    return _used[0].files.get(os.path.normpath(path)) if _used else None


def size_of(path: Path) -> int:
    """Bytes of a file, wherever it lies."""
    found = far(path)
    return found.entry.size if found else path.stat().st_size


def version_of(path: Path) -> tuple[int | str, ...]:
    """What changes with a file, wherever it lies: its size, the time of its last change (ns), and in a store its version."""
    found = far(path)
    if found:
        return found.entry.size, found.entry.time, found.entry.version
    return path.stat().st_size, path.stat().st_mtime_ns


def open_bytes(path: Path) -> io.BufferedReader:
    """A file for reading, wherever it lies; StoreFailure, from what is read: a store does not give it."""
    if far(path):
        return io.BufferedReader(FarFile(_used[0], os.path.normpath(path)), BLOCK)
    return path.open("rb")


def opener_of(path: str | Path) -> FileContainer | None:
    """What GDAL is to open a file with, and those that it leads to; None: nothing, they lie here."""
    path = Path(path)
    if _used and (far(path) or (path.suffix.lower() == ".vrt" and path.is_relative_to(_used[0].root))):
        return _used[0].opener
    return None


def refuse_failure() -> None:
    """See that all that GDAL has read until now came from the store.

    Raises:
        StoreFailure: it did not, and what GDAL gave is not what the file holds.
        KeyboardInterrupt: the user stopped it meanwhile.
    """
    if not _used:
        return
    assert threading.get_ident() == _used[0].thread, "scenes in stores are read by one thread of a process"
    if not _used[0].root.is_dir():
        raise StoreFailure(f"{_used[0].root} was taken away while it was needed; give the same command again")
    failure = _used[0].failure
    if isinstance(failure, StoreFailure):
        raise StoreFailure(str(failure)) from failure
    if failure is not None:
        raise failure


class FarFile(io.RawIOBase):
    """A file in a store, read by ranges; the farther it is read on and on, the more is asked for at once."""

    def __init__(self, standins: StandIns, path: str) -> None:
        self.standins, self.path, self.size = standins, path, standins.files[path].entry.size
        self._at = self._end = 0
        self._ahead = 1

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; one behind the last byte has no bytes."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """All bytes that there are, up to as many as the buffer takes."""
        end = min(self._at + len(buffer), self.size)
        if end <= self._at:
            return 0
        self._ahead = min(2 * self._ahead, AHEAD) if self._at == self._end else 1
        content = self.standins.read(self.path, self._at, end, self._ahead)
        buffer[: len(content)] = content
        self._at = self._end = end
        return len(content)


class _GdalFile(FarFile):
    """As GDAL reads it. Nothing may be raised into GDAL, and it does not always say that bytes are lacking: it gets zeros in
    the place of what a store does not give, and `refuse_failure` tells.
    """

    def read(self, size: int = -1) -> bytes:
        """As many bytes as there are, up to `size`."""
        end = self.size if size < 0 else min(self._at + size, self.size)
        count = max(end - self._at, 0)
        if self.standins.failure is None:
            try:
                return super().read(count) or b""
            except BaseException as error:
                self.standins.failure = error
        self._at += count
        return bytes(count)


class _Opener(FileContainer):
    """How GDAL sees the files below the root: stand-ins as what they stand for."""

    def __init__(self, standins: StandIns) -> None:
        self.standins = standins

    def _below(self, path: str) -> Path:
        found = Path(os.path.normpath(path))
        if not found.is_relative_to(self.standins.root):
            raise FileNotFoundError(path)
        return found

    def open(self, path: str, mode: str = "r", **kwds: Any) -> Any:
        """A file for reading."""
        found = self._below(path)
        if set(mode) & set("wa+"):
            raise PermissionError(path)
        return _GdalFile(self.standins, str(found)) if str(found) in self.standins.files else found.open("rb")

    def isfile(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._below(path).is_file()

    def isdir(self, path: str) -> bool:
        """Whether there is such a folder."""
        return self._below(path).is_dir()

    def ls(self, path: str) -> list[str]:
        """Names in a folder."""
        return os.listdir(self._below(path))

    def mtime(self, path: str) -> int:
        """Time of the last change, s."""
        return int(self._below(path).stat().st_mtime)

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return size_of(self._below(path))

    def rm(self, path: str) -> None:
        """Nothing is removed."""
        raise PermissionError(path)
