"""Two nodes for real: two launchers without ssh, each in its own network namespace where the machine allows that."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.runs import ROOT, SMALL, environment, free_port, metrics, pretrain, records

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PATIENCE = 120  # seconds for a start, or for a run of a few steps
NOTICED = 60  # seconds in which a node must notice that it has lost the other
SETTINGS = ("--run.steps", "10", "--run.save_every", "2", "--engine.zero", "0")


class Node(NamedTuple):
    address: str
    interface: str  # that gloo must use; a host name often leads to the loopback
    enter: tuple[str, ...] = ()  # words before a command that is to run on this node


@pytest.fixture(scope="module")
def separate() -> Iterator[tuple[Node, ...]]:
    """Two network namespaces joined by a cable; none where they cannot be made. They go with the processes in them."""
    with contextlib.ExitStack() as stack:
        try:
            yield _make_namespaces(stack)
        except (OSError, subprocess.SubprocessError, TimeoutError):
            yield ()


@pytest.fixture(params=["in namespaces", "on loopback"])
def nodes(request: pytest.FixtureRequest, separate: tuple[Node, ...]) -> tuple[Node, ...]:
    """Two nodes in namespaces, or, only where these cannot be made, both on the loopback."""
    if (request.param == "in namespaces") != bool(separate):
        pytest.skip("network namespaces can be made here" if separate else "network namespaces cannot be made here")
    return separate or (Node("127.0.0.1", "lo"),) * 2


class Job:
    """One launcher per node, each a process group of its own; leaving the context kills them."""

    def __init__(self, nodes: Sequence[Node], folder: Path, *arguments: str) -> None:
        self.nodes, self.folder, self.arguments = nodes, folder, arguments
        self.launchers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Job":
        hosts = self.folder.with_name("hosts.txt")
        hosts.write_text("".join(f"node-{number} slots=1\n" for number in range(len(self.nodes))))
        port = free_port()
        for number, node in enumerate(self.nodes):
            launcher = [
                *(str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hosts), "--no_ssh"),
                *("--node_rank", str(number), "--master_addr", self.nodes[0].address, "--master_port", port),
            ]
            command = [*node.enter, *launcher, str(ROOT / "launch/pretrain.py"), *SMALL, "--run.dir", str(self.folder)]
            with open(self.folder.with_name(f"node{number}.out"), "ab") as output:
                self.launchers.append(
                    subprocess.Popen(
                        [*command, *SETTINGS, *self.arguments],
                        cwd=ROOT,
                        start_new_session=True,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment() | {"GLOO_SOCKET_IFNAME": node.interface},
                    )  # fmt: skip
                )
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self.launchers)):
            self.lose(number)

    def lose(self, number: int) -> None:
        """Kill all processes of a node."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.launchers[number].pid, signal.SIGKILL)
        self.launchers[number].wait(10)

    def until_saved(self, step: int) -> None:
        """Wait for the checkpoint after so many steps."""

        def saved() -> bool:
            assert all(launcher.poll() is None for launcher in self.launchers), self.said()
            return (self.folder / "checkpoints" / f"step_{step:08d}").exists()

        assert _wait(saved, PATIENCE), self.said()

    def ends_by_itself(self, number: int) -> int:
        """The exit code of a node, all of whose processes must end in time."""
        launcher = self.launchers[number]
        assert _wait(lambda: launcher.poll() is not None, NOTICED), self.said()
        assert _wait(lambda: not _members(launcher.pid), 5), f"left running: {_members(launcher.pid)}"
        return launcher.returncode

    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.parent.glob("node*.out")))


def test_a_lost_node_ends_the_other_and_the_job_goes_on_with_both_or_with_one(
    nodes: tuple[Node, ...], tmp_path: Path, optical_shards: Path, sar_shards: Path
) -> None:
    """Lose the second node, later the first, finish on one alone: samples, rates and losses as if nothing had been."""
    sources, folder = [optical_shards, sar_shards], tmp_path / "run"
    alone = pretrain(tmp_path / "alone", sources, *SETTINGS)
    assert alone.returncode == 0, alone.stdout
    data = ("--data.sources", str([{"shards": str(source)} for source in sources]))
    with Job(nodes, folder, *data) as job:
        job.until_saved(2)
        job.lose(1)
        assert job.ends_by_itself(0) != 0, job.said()
    with Job(nodes, folder, *data, "--run.resume", "auto") as job:
        job.until_saved(6)
        job.lose(0)  # with the store of the process group
        assert job.ends_by_itself(1) != 0, job.said()
    with Job(nodes[:1], folder, *data, "--run.resume", "auto") as job:
        assert _wait(lambda: job.launchers[0].poll() is not None, PATIENCE), job.said()
        assert job.launchers[0].returncode == 0, job.said()
    assert sum(record.get("event") == "resume" for record in records(folder)) == 2
    found, expected = metrics(folder), metrics(tmp_path / "alone")
    fixed = ("step", "sensor", "lr", "sample_digest")
    assert [[record[key] for key in fixed] for record in found] == [[r[key] for key in fixed] for r in expected]
    assert [record["loss"] for record in found] == pytest.approx([r["loss"] for r in expected], rel=1e-4)


def test_a_cut_cable_ends_both_nodes(separate: tuple[Node, ...], tmp_path: Path, sar_shards: Path) -> None:
    """Nothing tells a node that the other is out of reach; both must notice."""
    if not separate:
        pytest.skip("network namespaces cannot be made here")
    data = ("--data.sources", str([{"shards": str(sar_shards)}]), "--run.steps", "1000000")
    with Job(separate, tmp_path / "run", *data) as job:
        try:
            job.until_saved(2)
            _run(*separate[1].enter, "ip", "link", "set", separate[1].interface, "down")
            assert job.ends_by_itself(0) != 0, job.said()
            assert job.ends_by_itself(1) != 0, job.said()
        finally:
            _run(*separate[1].enter, "ip", "link", "set", separate[1].interface, "up")


def _make_namespaces(stack: contextlib.ExitStack) -> tuple[Node, Node]:
    """Two namespaces of one user namespace, which needs no rights; each lasts as long as a process that sleeps in it."""
    mine = os.readlink("/proc/self/ns/net")
    first = _hold(stack, mine, "unshare", "--user", "--map-root-user", "--net")
    second = _hold(stack, os.readlink(f"/proc/{first}/ns/net"), *_enter(first), "unshare", "--net")
    _run(*_enter(first), *f"ip link add node-0 type veth peer name node-1 netns {second}".split())
    for number, process in enumerate((first, second)):
        _run(*_enter(process), *f"ip address add 10.77.0.{number + 1}/24 dev node-{number}".split())
        for interface in ("lo", f"node-{number}"):
            _run(*_enter(process), "ip", "link", "set", interface, "up")
    return Node("10.77.0.1", "node-0", _enter(first)), Node("10.77.0.2", "node-1", _enter(second))


def _hold(stack: contextlib.ExitStack, outside: str, *command: str) -> int:
    """A process that sleeps in another network namespace than `outside`."""
    process = subprocess.Popen([*command, "sleep", "900"], stderr=subprocess.DEVNULL, start_new_session=True)
    stack.callback(process.wait, 10)
    stack.callback(process.kill)

    def sleeps() -> bool:
        if process.poll() is not None:
            raise subprocess.SubprocessError(f"{command} ended with {process.returncode}")
        inside = os.readlink(f"/proc/{process.pid}/ns/net") != outside
        return inside and Path(f"/proc/{process.pid}/comm").read_text().strip() == "sleep"

    if not _wait(sleeps, 10):
        raise TimeoutError(f"{command} does not start")
    return process.pid


def _enter(process: int) -> tuple[str, ...]:
    return ("nsenter", "--target", str(process), "--user", "--net", "--preserve-credentials", "--")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=10, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def _members(group: int) -> list[str]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            name, _, rest = path.read_text().rpartition(") ")
            state, _, own, *_ = rest.split()
            if int(own) == group and state != "Z":
                found.append(name)
    return found
