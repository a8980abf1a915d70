"""Processes that a command starts run our code and the installed libraries, not what lies in the current folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
