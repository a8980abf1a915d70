"""Processes that a command starts: they run our code and the libraries, nothing of the current folder, and end with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread

ROOT = str(Path(__file__).resolve().parents[1])


@contextmanager
def safe_path() -> Iterator[None]:
    """Inside the block, a Python that is started finds our packages and looks for none in the current folder."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    found = [place for place in (before["PYTHONPATH"] or "").split(os.pathsep) if place]  # an empty one is the current
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([ROOT, *found]))
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def end_with_parent() -> None:
    """Let this process end when the one that started it is gone, however it went."""
    Thread(target=_await_parent, daemon=True, name="parent").start()


def _await_parent() -> None:
    parent = parent_process()
    assert parent is not None, "only processes of multiprocessing wait for their parent"
    parent.join()
    os._exit(1)
