"""Servers and commands that fall silent: no reading waits for ever, and nothing that came before is lost or given twice."""

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.sampling.faults import Fault
from datasets.sampling.order import shuffled
from datasets.shards.stream import Lane, Slot, StreamedSample, StreamSource
from tests.helpers.processes import all_end
from tests.helpers.runs import Ranks, arguments_of
from tests.helpers.shards import SENSOR, write_tiny_shards

pytestmark = pytest.mark.timeout(60)
SILENCE = 0.4  # seconds


@dataclass
class Server:
    """A real server of files that can be told to fall silent."""

    folder: Path
    place: str = ""
    stops: dict[str, tuple[int, int]] = field(default_factory=dict)  # by file: after so many bytes, so many times
    pause: float = 0.0  # seconds between two pieces
    piece: int = 1 << 20  # bytes
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.removeprefix("/")
        self.asked.append(name)
        content = (self.folder / name).read_bytes()
        sent, times = self.stops.get(name, (len(content), 0))
        if times and sent < 0:
            self.over.wait()
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        until = sent if times else len(content)
        for start in range(0, until, self.piece):
            request.wfile.write(content[start : min(start + self.piece, until)])
            request.wfile.flush()
            if self.over.wait(self.pause):
                return
        if times:
            self.stops[name] = sent, times - 1
            self.over.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten shards of four samples, 16 kB each."""
    return write_tiny_shards(tmp_path / "shards", [4] * 10, side=128, member=SENSOR)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    told = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the reader has given up
                told.answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        told.place = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield told
        told.over.set()
        running.shutdown()


def good(slots: list[Slot]) -> list[str]:
    return [slot.key for slot in slots if isinstance(slot, StreamedSample)]


def faults(slots: list[Slot]) -> list[Fault]:
    return [slot for slot in slots if isinstance(slot, Fault)]


def names(folder: Path, shard: int) -> list[str]:
    return [f"s{shard}-{sample}" for sample in range(4)]


@pytest.mark.parametrize("sent", [-1, 0, 30], ids=["never answers", "headers alone", "stops midway"])
def test_an_index_that_does_not_come_is_given_up_with_the_setting(sent: int, server: Server) -> None:
    server.stops["index.json"] = sent, 9
    begun = time.monotonic()
    with pytest.raises(
        InputError, match=r"index\.json cannot be fetched: nothing came, .* for 0\.4 s \(data\.timeout\)"
    ):
        StreamSource(server.place, timeout=SILENCE)
    assert 2 * SILENCE <= time.monotonic() - begun < 2 * SILENCE + 3
    assert server.asked == ["index.json"] * 2


def test_a_shard_that_stalls_once_is_read_whole(server: Server, folder: Path) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    server.stops["shard-000001.tar"] = 40_000, 1  # in the third sample
    slots = list(source.open(1, [SENSOR]))
    assert good(slots) == names(folder, 1)
    assert not faults(slots)
    values = [slot.arrays[SENSOR].flat[0] for slot in slots if isinstance(slot, StreamedSample)]
    assert values == [16, 17, 18, 19]  # 16 s + n
    assert server.asked[1:] == ["shard-000001.tar"] * 2


def test_a_shard_that_always_stalls_keeps_what_came_and_names_the_rest(server: Server, folder: Path) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    server.stops["shard-000002.tar"] = 40_000, 9
    slots = list(source.open(2, [SENSOR]))
    assert good(slots) == names(folder, 2)[:2]
    assert [(fault.cause, fault.shard) for fault in faults(slots)] == [("shard", "shard-000002.tar")] * 2
    assert all("data.timeout" in fault.reason for fault in faults(slots))
    begun = time.monotonic()
    list(source.open(2, [SENSOR]))
    assert time.monotonic() - begun < 2 * SILENCE  # it is not tried twice again
    assert good(list(source.open(3, [SENSOR]))) == names(folder, 3)


def test_a_server_that_falls_silent_for_good_stops_the_reading(server: Server) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    server.stops = {f"shard-{shard:06d}.tar": (-1, 99) for shard in range(10)}
    lane = Lane(source, seed=0, rank=0, world=1, sensors=[SENSOR])
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"8 shards in a row gave no sample: .*data\.timeout"):
        lane.take(SENSOR, 2)
    assert time.monotonic() - begun < 9 * SILENCE + 4
    assert len(server.asked) == 1 + 9  # the index, the first shard twice, seven more
    lane.close()


def test_a_silent_shard_among_others_leaves_the_batches_full(server: Server) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    second = int(shuffled(10, 0, 0)[1])
    server.stops[f"shard-{second:06d}.tar"] = -1, 2
    lane = Lane(source, seed=0, rank=0, world=1, sensors=[SENSOR])
    batches = [lane.take(SENSOR, 2) for _ in range(20)]
    lane.close()
    assert all(len(batch.keys) == 2 for batch in batches)
    assert Counter(fault.cause for batch in batches for fault in batch.faults) == {"shard": 4}
    whole = {f"s{shard}-{sample}" for shard in range(10) for sample in range(4) if shard != second}
    assert whole <= {key for batch in batches for key in batch.keys}


def test_a_trickle_is_a_stall_and_a_slow_stream_is_none(server: Server, folder: Path) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    server.piece, server.pause = 1, 0.02  # 50 bytes a second
    begun = time.monotonic()
    slots = list(source.open(0, [SENSOR]))
    assert not good(slots)
    assert time.monotonic() - begun < 2 * SILENCE + 3
    server.piece, server.pause = 8000, SILENCE / 4  # some 80 kB a second
    assert good(list(source.open(0, [SENSOR]))) == names(folder, 0)


def test_a_reader_that_takes_its_time_is_no_stall(folder: Path) -> None:
    source = StreamSource(f"pipe:cat {folder}/{{}}", timeout=SILENCE)
    slots = source.open(0, [SENSOR])
    taken = [next(slots)]
    time.sleep(2 * SILENCE)
    assert good([*taken, *slots]) == names(folder, 0)


def test_a_command_that_falls_silent_ends_with_all_that_it_started(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    line = f"case {{}} in *.tar) (echo $(exec sh -c 'echo $PPID') >> {started}; sleep 60) | cat;; *) cat {folder}/{{}};; esac"
    source = StreamSource(f"pipe:{line}", timeout=SILENCE)
    assert len(faults(list(source.open(0, [SENSOR])))) == 4
    processes = started.read_text().split()
    assert len(processes) == 2  # it was tried twice
    assert all_end([int(process) for process in processes], 5)


@pytest.mark.parametrize("end", ["sleep 60", "trap '' PIPE TERM; sleep 60; sleep 60"])
def test_a_command_that_closes_its_output_and_goes_on_is_given_up(end: str, folder: Path) -> None:
    cut = "head -c 40000"
    source = StreamSource(
        f"pipe:case {{}} in *.tar) {cut} {folder}/{{}}; exec >&-; {end};; *) cat {folder}/{{}};; esac", timeout=SILENCE
    )
    begun = time.monotonic()
    slots = list(itertools.islice(source.open(0, [SENSOR]), 9))
    assert time.monotonic() - begun < 2 * SILENCE + 3
    assert good(slots) == names(folder, 0)[:2]
    assert len(slots) == 4


def test_references_to_the_environment_are_filled_in_when_a_file_is_fetched(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.place.removeprefix("http://")
    with pytest.raises(
        InputError, match=r"\$\{SHARDS_HOST\}: the environment variable SHARDS_HOST is not set; export it"
    ):
        StreamSource("http://${SHARDS_HOST}")
    monkeypatch.setenv("SHARDS_HOST", host)
    source = StreamSource("http://${SHARDS_HOST}", timeout=SILENCE)
    assert source.folder == "http://${SHARDS_HOST}"
    assert good(list(source.open(0, [SENSOR]))) == names(folder, 0)
    monkeypatch.setenv("SHARDS_FOLDER", str(folder))
    assert StreamSource("pipe:cat ${SHARDS_FOLDER}/{}").samples == 40
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "aws").write_text(f'#!/bin/sh\ncase "$3" in "s3://a\'b; exit/"*) cat "{folder}/index.json";; esac\n')
    (folder / "aws").chmod(0o755)
    monkeypatch.setenv("BUCKET", "a'b; exit")  # one word for the shell, whatever it holds
    assert StreamSource("s3://${BUCKET}").samples == 40


def test_a_run_on_a_silent_server_ends_with_the_setting_to_change(server: Server, tmp_path: Path) -> None:
    server.stops["index.json"] = -1, 9
    arguments = arguments_of(tmp_path / "run", [server.place], "--data.timeout", "0.5", "--run.steps", "1")
    ((code, said),) = Ranks(arguments, 1, environ={"no_proxy": "127.0.0.1"}).wait(60)
    assert code == 2
    assert f"error: {server.place}/index.json cannot be read for 0.5 s (data.timeout)" in said.splitlines()[-1]


def test_samples_are_those_of_the_tars(server: Server, folder: Path) -> None:
    source = StreamSource(server.place, timeout=SILENCE)
    for shard in (0, 9):
        for number, slot in enumerate(source.open(shard, [SENSOR])):
            assert isinstance(slot, StreamedSample)
            np.testing.assert_array_equal(slot.arrays[SENSOR], np.full((1, 128, 128), 16 * shard + number, np.uint8))
