"""A Dask scheduler and its workers as processes of their own, on the loopback."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tests.helpers.runs import ROOT, environment

FORKED = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}
TWO_DEATHS = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}


class Scheduler(NamedTuple):
    """A running one."""

    address: str
    process: "subprocess.Popen[str]"


@contextmanager
def scheduler() -> Iterator[Scheduler]:
    """A scheduler that gives up a unit whose worker died twice. It runs where none of our packages are found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--no-show",
        ]
        with _running(command, folder, TWO_DEATHS) as process:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"Scheduler at:\s+(tcp://[\d.:]+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield Scheduler(found[1], process)


@contextmanager
def workers(address: str, count: int, *, in_the_clone: bool = True) -> Iterator[None]:
    """Worker processes of one thread each, every one with a nanny that starts it again when it dies."""
    with tempfile.TemporaryDirectory() as folder:
        command = [address, "--nworkers", str(count), "--nthreads", "1", "--no-dashboard"]
        command += ["--local-directory", folder, "--memory-limit", "0"]
        module = "tests.helpers.dask" if in_the_clone else "distributed.cli.dask_worker"
        with _running([module, *command], folder, FORKED | {"PYTHONPATH": str(ROOT)} if in_the_clone else {}):
            yield


@contextmanager
def _running(command: list[str], folder: str, more: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH"} | more
    module, *given = command
    with subprocess.Popen(
        [sys.executable, "-m", module, *given], cwd=folder, env=environ, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers


def main() -> None:
    """Be the command of a worker whose processes are forks of one that has imported our rooms."""
    from distributed.cli.dask_worker import main as start
    from distributed.utils import get_mp_context

    get_mp_context().set_forkserver_preload(["distributed", "datasets.shards.write", "finetune.mapping.command"])
    start()


if __name__ == "__main__":
    main()
