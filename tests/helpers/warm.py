"""Real processes without their imports: a helper process imports torch, DeepSpeed and our rooms once, and forks every run.

A forked run is a process of its own, with its own environment, limits, signals and exit code; five seconds of imports
are saved by each. What must be seen from the first import on is started with `subprocess` instead.
"""

import atexit
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 8  # bytes that tell how long a message is
SENT = 2  # file descriptors of a request: for the output, and for the exit status


class Started:
    """A process that the helper forked, with the methods of `subprocess.Popen` that tests use; output is one stream."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid, self.returncode = pid, None
        self._output, self._status = output, status

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            told = os.read(self._status, 16)
            os.close(self._status)
            self.returncode = os.waitstatus_to_exitcode(int(told)) if told else -signal.SIGKILL
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it says until it has ended."""
        until, parts = None if timeout is None else time.monotonic() + timeout, []
        while True:
            left = None if until is None else max(until - time.monotonic(), 0)
            if not select.select([self._output], [], [], left)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            part = os.read(self._output, 2**16)
            if not part:
                break
            parts.append(part)
        os.close(self._output)
        self.wait(None if until is None else max(until - time.monotonic(), 0.1))
        return b"".join(parts).decode(errors="replace"), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, which the helper is about to tell
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Helper:
    """The process that forks; it ends when this one does."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environ |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.helpers.warm", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environ, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()

    def close(self) -> None:
        self.socket.close()
        self.process.wait(10)

    def start(self, **request: Any) -> Started:
        output, said = os.pipe()
        status, ended = os.pipe()
        text = json.dumps(request).encode()
        socket.send_fds(self.socket, [len(text).to_bytes(LENGTH)], [said, ended])
        self.socket.sendall(text)
        for given in (said, ended):
            os.close(given)
        return Started(int.from_bytes(_receive(self.socket, LENGTH)), output, status)


@cache
def _helper() -> Helper:
    helper = Helper()
    atexit.register(helper.close)
    return helper


def start(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    limits: Mapping[int, tuple[int, int]] = MappingProxyType({}),
    ignored: Sequence[int] = (),
) -> Started:
    """Start a script, or `-m` and a module, with its arguments in the clone's root.

    Args:
        environ: all that it gets.
        limits: soft and hard ones, by number of the resource.
        ignored: signals, as a shell's background jobs ignore Ctrl-C.
    """
    return _helper().start(
        command=list(command), environ=dict(environ), limits=list(limits.items()), ignored=list(ignored)
    )


def run(command: Sequence[str], environ: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """As `start`, awaited; killed if it does not end in time."""
    started = start(command, environ)
    try:
        output, _ = started.communicate(timeout)
    finally:
        started.kill()
    return subprocess.CompletedProcess(list(command), started.wait(), stdout=output)


def _receive(stream: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = stream.recv(count - len(parts))
        if not part:
            raise EOFError("the other side has ended")
        parts += part
    return parts


def _requests(stream: socket.socket) -> dict[str, Any] | None:
    """Fork a child for every request; returns the request in each child, None when the tests have ended."""
    ends: dict[int, int] = {}  # where to tell the exit status, by process
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([stream, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            while ends:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                os.write(ends[pid], str(status).encode())
                os.close(ends.pop(pid))
        if stream not in ready:
            continue
        head, descriptors, _, _ = socket.recv_fds(stream, LENGTH, SENT)
        if not head:
            return None
        request = json.loads(_receive(stream, int.from_bytes(head)))
        output, ended = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for inherited in (1, 2):
                os.dup2(output, inherited)
            for own in (output, ended, wake, woken, *ends.values()):
                os.close(own)
            stream.close()
            return request
        ends[pid] = ended
        os.close(output)
        stream.sendall(pid.to_bytes(LENGTH))


def _preload() -> None:
    """Import what runs import; nothing may start a thread, which a fork would lose."""
    import deepspeed  # noqa: F401

    import engine.training  # noqa: F401
    import finetune.mapping.command  # noqa: F401
    import finetune.tasks.change  # noqa: F401
    import finetune.tasks.classification_seeds  # noqa: F401
    import finetune.tasks.crossdomain  # noqa: F401
    import finetune.tasks.multilabel  # noqa: F401
    import finetune.tasks.scene  # noqa: F401
    import finetune.tasks.segmentation  # noqa: F401
    import pretrain.run  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads after the imports"


def main() -> None:
    stream = socket.socket(fileno=int(sys.argv[1]))
    _preload()
    request = _requests(stream)
    if request is None:
        return
    os.environ.clear()
    os.environ.update(request["environ"])
    for number, limit in request["limits"]:
        resource.setrlimit(number, tuple(limit))
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    first, *rest = request["command"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
