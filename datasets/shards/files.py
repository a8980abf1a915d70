"""The files of a shard folder: on this machine, or in object storage, there with a cache on this machine."""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from alliance.errors import InputError
from alliance.files import regular
from datasets.descriptors import FULL, too_many
from datasets.sampling.order import Cache
from datasets.shards.index import NAME, Index, Shard
from datasets.shards.kept import KeptRanges
from datasets.storage.store import Store

T = TypeVar("T")
OPEN_SHARDS = 64  # file descriptors and sidecars kept at a time, unless fewer are to be had
SMALL_FILES = 256  # kept of a store, for all threads


class Span(NamedTuple, Generic[T]):
    """Bytes of a shard that are wanted."""

    shard: Shard
    offset: int
    memory: memoryview  # where they go
    crc32: int
    what: T  # for whom


class Files(Protocol):
    """What reading shards asks of the place where they lie."""

    @property
    def place(self) -> str:
        """The folder as it may be shown."""
        ...

    def index(self) -> Index:
        """The index; InputError if there is none or it is damaged."""
        ...

    def whole(self, names: Sequence[str]) -> list[bytes | OSError]:
        """Contents of small files."""
        ...

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Sizes in bytes; None: there is no such file."""
        ...

    def fill(self, spans: Iterable[Span[T]]) -> Iterator[tuple[Span[T], int | OSError]]:
        """Read every span into its memory; how many bytes there were, or why there are none."""
        ...

    def keep_open(self, shards: int) -> None:
        """Keep at most so many shards open, here and in copies made from now on."""
        ...

    def close(self) -> None:
        """Close the open shards; they are opened again when needed."""
        ...

    def interrupt(self) -> None:
        """End what other threads wait for."""
        ...


class LocalFiles:
    """A folder of this machine, or mounted on it. A copy has open files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = OPEN_SHARDS
        self._descriptors: Cache[int] = Cache(self._open, discard=os.close)

    @property
    def place(self) -> str:
        return str(self.folder)

    def index(self) -> Index:
        return Index.read(self.folder)

    def whole(self, names: Sequence[str]) -> list[bytes | OSError]:
        return [self._whole(name) for name in names]

    def _whole(self, name: str) -> bytes | OSError:
        try:
            return self._with_files(regular(self.folder / name).read_bytes)
        except OSError as error:
            return error

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        paths = [self.folder / name for name in names]
        return [path.stat().st_size if path.is_file() else None for path in paths]

    def fill(self, spans: Iterable[Span[T]]) -> Iterator[tuple[Span[T], int | OSError]]:
        for span in spans:
            yield span, self._fill(span)

    def _fill(self, span: Span[Any]) -> int | OSError:
        try:
            descriptor = self._descriptor(span.shard.name)
            count = more = os.preadv(descriptor, [span.memory], span.offset)
            while more and count < len(span.memory):  # some file systems give less than they have
                more = os.preadv(descriptor, [span.memory[count:]], span.offset + count)
                count += more
        except OSError as error:
            return error
        return count

    def _descriptor(self, name: str) -> int:
        path = self.folder / name
        return self._descriptors.get_or_make(
            name, lambda: self._with_files(lambda: os.open(regular(path), os.O_RDONLY))
        )

    def _with_files(self, action: Callable[[], T]) -> T:
        """Do what opens a file; where too many are open, once more without those of this folder.

        Raises:
            InputError: there are too many all the same. That is no fault of the data.
        """
        try:
            return action()
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.close()
        try:
            return action()
        except OSError as error:
            raise (too_many(error) if error.errno in FULL else error) from error

    def keep_open(self, shards: int) -> None:
        self.close()
        self._open = shards
        self._descriptors = Cache(shards, discard=os.close)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def interrupt(self) -> None:
        """Nothing here waits."""

    def __del__(self) -> None:
        if "_descriptors" in vars(self):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_descriptors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._descriptors = Cache(self._open, discard=os.close)


class RemoteFiles:
    """A folder in object storage. Copies share it; the ranges of a batch are asked for all at once."""

    def __init__(self, store: Store, kept: KeptRanges | None = None) -> None:
        self.store, self.kept = store, kept
        self._small: Cache[bytes] = Cache(SMALL_FILES)
        self._lock = threading.Lock()

    def __copy__(self) -> "RemoteFiles":
        return self

    @property
    def place(self) -> str:
        return self.store.place

    def index(self) -> Index:
        (found,), where = self.store.whole([NAME]), self.store.name(NAME)
        if isinstance(found, OSError):
            raise InputError(f"{where} {found}; give the folder that launch/shards.py made, copied whole")
        return Index.parse(found.decode(errors="replace"), where)

    def whole(self, names: Sequence[str]) -> list[bytes | OSError]:
        with self._lock:
            found: dict[str, bytes | OSError] = {name: self._small[name] for name in names if name in self._small}
        absent = [name for name in names if name not in found]
        found |= dict(zip(absent, self.store.whole(absent), strict=True))
        with self._lock:
            for name in absent:
                if isinstance(content := found[name], bytes):
                    self._small.get_or_make(name, lambda content=content: content)
        return [found[name] for name in names]

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return self.store.sizes(names)

    def fill(self, spans: Iterable[Span[T]]) -> Iterator[tuple[Span[T], int | OSError]]:
        wanted = defaultdict[str, list[Span[T]]](list)
        for span in spans:
            if self.kept is not None and self.kept.read(span.shard, span.offset, span.memory, span.crc32):
                yield span, len(span.memory)
            else:
                wanted[span.shard.name].append(span)
        asked = [
            (name, [span.offset for span in own], [span.offset + len(span.memory) for span in own])
            for name, own in wanted.items()
        ]
        for own, found in zip(wanted.values(), self.store.ranges(asked), strict=True):
            for place, span in enumerate(own):
                yield span, found if isinstance(found, OSError) else self._take(span, found[place])

    def _take(self, span: Span[Any], found: memoryview) -> int:
        count = min(len(found), len(span.memory))
        span.memory[:count] = found[:count]
        if self.kept is not None and count == len(span.memory):
            self.kept.write(span.shard, span.offset, span.memory)
        return count

    def keep_open(self, shards: int) -> None:
        """Nothing is kept open here."""

    def close(self) -> None:
        """Nothing is kept open here."""

    def interrupt(self) -> None:
        self.store.interrupt()
