"""Results that a command writes into object storage: made on this machine, then put there, each file whole or not at all."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from alliance.errors import InputError
from datasets.storage.places import PATIENCE, is_store
from datasets.storage.store import Store


class Result(NamedTuple):
    """Where a command writes."""

    path: Path  # on this machine
    place: str  # where it ends up

    def told(self, lines: Sequence[str]) -> list[str]:
        """Lines about what was written, with the place where it ends up."""
        return [line.replace(str(self.path), self.place) for line in lines]


@contextmanager
def delivered(out: str, *, last: Sequence[str] = ()) -> Iterator[Result]:
    """Where to write what ends up at `out`: there itself, or on this machine, from where it is put into the store when the
    block ends well.

    Args:
        last: names of files of a folder that say that it is whole; they follow when all others are there.
    Raises:
        InputError: the store cannot be reached or refuses us, or already holds something under that name.
    """
    if not is_store(out):
        yield Result(Path(out), out)
        return
    folder, _, name = out.rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="alliance_") as scratch:
        result = Result(Path(scratch) / name, out.rstrip("/"))
        store = Store(folder)
        marks = [name, *(f"{name}/{each}" for each in last)]
        for mark, size in zip(marks, store.sizes(marks), strict=True):
            if size is not None:
                raise InputError(
                    f"{store.name(mark)} is there already, and nothing in a store is overwritten; give a new place"
                )
        yield result
        store.be_patient(PATIENCE)
        for path in _files(result.path, last):
            store.put(str(path.relative_to(scratch)), path)


def _files(path: Path, last: Sequence[str]) -> list[Path]:
    """A file, or those of a folder, without hidden ones, in the order in which they are put."""
    if path.is_file():
        beside = [each for each in path.parent.iterdir() if each != path and each.is_file()]
        return [*sorted(beside), path]
    found = [each for each in sorted(path.rglob("*")) if each.is_file() and not each.name.startswith(".")]
    return sorted(found, key=lambda each: each.name in last)
