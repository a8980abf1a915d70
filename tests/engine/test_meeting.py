"""Ranks that wait for each other: they say for whom, and give up in time with what to do."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from alliance.errors import InputError
from engine.build import EngineConfig
from engine.meeting import Meeting
from engine.ranks import start
from tests.helpers import warm
from tests.helpers.listening import heard
from tests.helpers.runs import arguments_of, environment, free_port

pytestmark = pytest.mark.timeout(60)
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What a rank tells while it waits."""
    with heard() as lines:
        yield lines


@pytest.mark.parametrize("loopback", [True, False])
def test_ranks_meet_in_any_order_and_share_a_store(loopback: bool, said: list[str]) -> None:
    port, all_have = int(free_port()), threading.Barrier(3)

    def take(rank: int) -> bytes:
        meeting = Meeting("127.0.0.1", port, 3, 20, tell=10)
        time.sleep(0.3 * (rank == 0))  # the others are there before it
        store = meeting.join(rank) if rank else meeting.host(loopback=loopback)
        store.set(f"from {rank}", str(rank))
        got = store.get(f"from {(rank + 1) % 3}")
        all_have.wait()  # the store goes with rank 0
        return got

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(take, range(3))) == [b"1", b"2", b"0"]
    assert not said


def test_rank_0_says_for_whom_it_waits_and_gives_up(said: list[str]) -> None:
    port = int(free_port())
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        Meeting("127.0.0.1", port, 2, 1.0, tell=0.3).host(loopback=True)
    assert 1.0 <= time.monotonic() - begun < 5
    where = f"127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)"
    assert said == [f"waits for 1 of 2 ranks (rank 1) at {where}; for 1 s at most"]
    assert str(caught.value) == (
        f"rank 1 did not come to {where} within 1 s; start it with this address and port, correct WORLD_SIZE (2), or wait "
        f"longer with --engine.timeout"
    )


def test_of_many_missing_ranks_the_first_are_named(said: list[str]) -> None:
    with pytest.raises(InputError, match=r"^ranks 1, 2, 3, 4, 5, 6, 7, 8 and 11 more did not come .*; start them with"):
        Meeting("127.0.0.1", int(free_port()), 20, 0.5, tell=0.1).host(loopback=True)
    assert said[0].startswith("waits for 19 of 20 ranks (ranks 1, 2,")


def test_another_rank_says_that_it_cannot_reach_rank_0(said: list[str]) -> None:
    port = int(free_port())
    with pytest.raises(
        InputError, match=rf"^rank 0 did not come to 127\.0\.0\.1:{port} .*within 0\.8 s: Connection refused"
    ):
        Meeting("127.0.0.1", port, 2, 0.8, tell=0.2).join(1)
    assert said == [
        f"waits for 1 of 2 ranks (rank 0) at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): Connection refused; for 0.8 s at most"
    ]


def test_a_stranger_that_accepts_and_never_answers_is_no_rank_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"is no rank 0 of this run, or has gone .*give another MASTER_PORT"):
            Meeting("127.0.0.1", silent.getsockname()[1], 2, 1.5).join(1)
        assert time.monotonic() - begun < 10


def test_a_rank_whose_rank_0_gives_up_does_not_wait_longer() -> None:
    port = int(free_port())
    ends: list[BaseException] = []

    def join() -> None:
        try:
            Meeting("127.0.0.1", port, 3, 20).join(1)
        except InputError as error:
            ends.append(error)

    thread = threading.Thread(target=join)
    thread.start()
    with pytest.raises(InputError, match=r"^rank 2 did not come"):
        Meeting("127.0.0.1", port, 3, 1.0).host(loopback=True)
    thread.join(15)
    assert not thread.is_alive()
    assert "has gone" in str(ends[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"RANK": "0"},
            "RANK is set, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not; start with deepspeed or",
        ),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is '2', RANK is not set; start with deepspeed or torchrun.* unset WORLD_SIZE",
        ),
        (
            {"RANK": "2", "WORLD_SIZE": "2"},
            "RANK is 2 and WORLD_SIZE is 2; ranks are numbered from 0 to WORLD_SIZE - 1",
        ),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE is 0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, "MASTER_PORT is 99999; give a port from 1 to 65535"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0"}, "MASTER_PORT is 0; give a port"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no whole number"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    whole = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if len(given) > 1 else {}
    for name, value in (whole | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        start()


def test_a_run_that_lacks_a_rank_ends_with_one_line(tmp_path) -> None:
    port = free_port()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = arguments_of(tmp_path / "run", [tmp_path], "--engine.timeout", "1.5")
    done = warm.run(command, environment() | place, 60)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith(f"error: rank 1 did not come to 127.0.0.1:{port} (MASTER_ADDR")
    assert "Traceback" not in done.stdout


def test_the_time_is_a_setting_with_a_range() -> None:
    assert EngineConfig().timeout == 600  # ten minutes, as launch/nodes.sh says
    with pytest.raises(InputError, match="timeout is 0; give a number from 1 to 86400"):
        EngineConfig(timeout=0)
