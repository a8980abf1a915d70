"""Results that a command writes into object storage: made on this machine, then put there, each file whole or not at all."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        yield Result(Path(out), str(Path(out)))
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
        made = [each for each in sorted(Path(scratch).rglob("*")) if each.is_file() and not each.name.startswith(".")]
        for path in sorted(made, key=lambda each: each == result.path or each.name in last):
            store.put(str(path.relative_to(scratch)), path)


def run_delivered(
    options: argparse.Namespace, names: Sequence[str], body: Callable[[argparse.Namespace], list[str]], *,
    last: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Run a command whose results may end up in stores.

    Args:
        names: of the options that say where; the body finds paths of this machine in them.
        last: see `delivered`.
    Returns:
        The lines of the body, with the places.
    """
    with ExitStack() as stack:
        results = []
        for name in names:
            if (place := getattr(options, name)) is not None:
                results.append(stack.enter_context(delivered(place, last=last)))
                setattr(options, name, results[-1].path)
        lines = body(options)
        for result in results:
            lines = result.told(lines)
        return lines
