"""Processes that a command starts: they run our code and the libraries, nothing of the current folder, and end with it."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

ROOT = str(Path(__file__).resolve().parents[1])
GUARDIAN = str(Path(__file__).with_name("guardian.py"))
SIGNAL_AT_DEATH = 1  # PR_SET_PDEATHSIG of Linux
GATE = 'read -r _ < /dev/fd/{} || exit 1; exec "$@"'  # begins at a line from us; if we are gone before it, never


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
    """Let this process of multiprocessing end when the one that started it is gone, however it went."""
    with suppress(AttributeError, OSError):  # not Linux; the thread below does it everywhere, if a library lets it
        ctypes.CDLL(None).prctl(SIGNAL_AT_DEATH, signal.SIGKILL)
    threading.Thread(target=_await_parent, daemon=True, name="parent").start()


def _await_parent() -> None:
    parent = parent_process()
    assert parent is not None, "only processes of multiprocessing wait for their parent"
    parent.join()
    os._exit(1)


class Guarded(NamedTuple):
    """A program that ends when this process does, even if this one is killed."""

    process: "subprocess.Popen[Any]"
    target: int  # for `kill`: the process, or minus its group

    def end(self) -> None:
        """Kill it, with all of its group, if it still runs."""
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.kill(self.target, signal.SIGKILL)
        _tell(f"!{self.target}")  # before its number can be another's
        self.process.wait()


def start(command: Sequence[str] | str, **options: Any) -> Guarded:
    """Start a program, or a line for a shell, in a session of its own; what it starts in turn belongs to it.

    Args:
        options: those of `subprocess.Popen`.
    """
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    gate, opener = os.pipe()
    try:
        gated = ["/bin/sh", "-c", GATE.format(gate), "sh", *words]
        process = subprocess.Popen(gated, start_new_session=True, pass_fds=[gate], **options)
        guarded = _guard(process, -process.pid)
        os.write(opener, b"\n")
    finally:
        os.close(gate)
        os.close(opener)
    return guarded


def guard(process: "subprocess.Popen[Any]") -> Guarded:
    """Let a program that is running, and starts no other, end with this process."""
    return _guard(process, process.pid)


def _guard(process: "subprocess.Popen[Any]", target: int) -> Guarded:
    _tell(f"+{target}")
    return Guarded(process, target)


class _Guardian:
    """The program that watches this process; started when it is first needed, and anew in a fork."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def tell(self, line: str) -> None:
        with self.lock:
            if self.process is None or self.owner != os.getpid():
                self.owner = os.getpid()
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", GUARDIAN], bufsize=0, start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                atexit.register(self.close)
            assert self.process.stdin is not None
            with suppress(BrokenPipeError):  # somebody killed it
                self.process.stdin.write(f"{line}\n".encode())

    def close(self) -> None:
        """Let it go, for this process ends in order."""
        if self.process is not None and self.owner == os.getpid():
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
            self.process = None


_guardian = _Guardian()
_tell = _guardian.tell
