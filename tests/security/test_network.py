"""Who listens where, and what a stranger on the machine can do to a run."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from tests.helpers import warm
from tests.helpers.processes import descendants
from tests.helpers.runs import ROOT, Ranks, arguments_of, environment, free_port, metrics

LISTENS = "0A"  # state of a socket in /proc/net/tcp
LOOPBACK = re.compile(r"0100007F|00000000000000000000000001000000|0000000000000000FFFF00000100007F")


def listening(process: int) -> set[tuple[str, int]]:
    """Addresses, as the kernel writes them, and ports at which a process and its children accept connections."""
    own = set()
    for each in (process, *descendants(process)):
        with suppress(OSError):  # just ended
            for link in Path(f"/proc/{each}/fd").iterdir():
                with suppress(OSError):  # just closed
                    own.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in own:
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return found


def wait_until_it_trains(folder: Path, *processes: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 150
    while not (folder / "metrics.jsonl").exists() or not metrics(folder):
        assert time.monotonic() < until and all(process.poll() is None for process in processes), processes[0].stdout
        time.sleep(0.1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_of_one_machine_listen_at_its_loopback_address_alone(
    ranks: int, sar_shards: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "5000")
    if ranks == 1:
        alone = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), text=True, stdout=subprocess.DEVNULL
        )
        processes, end = [alone], alone.kill
    else:
        started = Ranks(arguments, 2)
        processes, end = started.processes, lambda: [process.kill() for process in started.processes]
    try:
        wait_until_it_trains(tmp_path / "run", *processes)
        seen = set().union(*(listening(process.pid) for process in processes))
    finally:
        end()
        for process in processes:
            process.communicate(timeout=10)
    assert all(LOOPBACK.fullmatch(address) for address, _ in seen), seen
    assert seen or ranks == 1  # two must meet somewhere


STRANGER = """
import sys
import torch.distributed as dist
from datetime import timedelta
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
store.set("a stranger's key", "here")
"""


def with_a_store(known: int, *ports: int) -> set[int]:
    """Those ports of this machine at which a stranger finds a store of torch's; what never answers is none.

    Args:
        known: one that has a store; others may take some seconds longer to answer.
    """
    started = {
        port: subprocess.Popen(
            [sys.executable, "-c", STRANGER, str(port)], env=environment(), stderr=subprocess.DEVNULL
        )
        for port in (known, *ports)
    }
    try:
        assert started[known].wait(90) == 0
        time.sleep(5)
        return {port for port, process in started.items() if process.poll() == 0}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_one_process_keeps_no_store(sar_shards: Path, tmp_path: Path) -> None:
    """What it listens at is gloo's, which lets nobody in that it was not told of."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = Ranks(arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "5000"), 1)
    (process,) = started.processes
    try:
        wait_until_it_trains(tmp_path / "run", process)
        ports = {int(started.port), *(port for _, port in listening(process.pid))}
        assert with_a_store(store.port, *ports) == {store.port}
        assert process.poll() is None  # the stranger's words did no harm
    finally:
        process.kill()


def test_a_strangers_key_in_the_store_stops_no_run(sar_shards: Path, tmp_path: Path) -> None:
    arguments = arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "60")
    started = Ranks(arguments, 2)
    wait_until_it_trains(tmp_path / "run", *started.processes)
    program = f"""
import torch.distributed as dist
from datetime import timedelta
store = dist.TCPStore("127.0.0.1", {int(started.port)}, is_master=False, timeout=timedelta(seconds=20))
for key in ("watch/failure", "default_pg/0//watch/failure", "default_pg//watch/failure", "watch/0", "watch/1"):
    store.set(key, "a stranger")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    ended = started.wait(200)
    assert [code for code, _ in ended] == [0, 0], ended
    assert len(metrics(tmp_path / "run")) == 60


def alone(tmp_path: Path, sar_shards: Path, **given: str) -> subprocess.CompletedProcess[str]:
    return warm.run(arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "1"), environment() | given, 200)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"RANK": "0"},
            "error: RANK is set, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not; start with deepspeed",
        ),
        (
            {"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "RANK is 'x'",
        ),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two', no whole number"),
    ],
    ids=["rank alone", "no number", "slurm"],
)
def test_a_launcher_that_says_half_is_refused_in_one_line(
    given: dict[str, str], said: str, sar_shards: Path, tmp_path: Path
) -> None:
    done = alone(tmp_path, sar_shards, **given)
    assert (done.returncode, "Traceback" in done.stdout) == (2, False), done.stdout
    assert said in done.stdout


def test_a_port_in_use_is_named(sar_shards: Path, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", int(port))):
        given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = alone(tmp_path, sar_shards, **given)
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1, where the ranks meet, is taken" in done.stdout
