"""Remote shards: the samples of the local reader, exact positions, and no stop and no hang on damage."""

import io
import itertools
import json
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alliance.errors import InputError
from datasets.sampling.order import shuffled
from datasets.shards.command import main
from datasets.shards.read import Samples, ShardSource
from datasets.shards.stream import Lane, StreamedSample, StreamSource, is_remote
from tests.helpers.rasters import write_sentinel2

SENSOR, RADAR = "sentinel2-l1c", "sentinel1-grd-db"
Member = tuple[str, bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one sensor: 48 tiles of 16 pixels in six tars, five of 9 and one of 3."""
    root = tmp_path_factory.mktemp("one")
    write_sentinel2(root / "in", scenes=3, size=64)
    make(root / "in", "--sensor", SENSOR, "--out", root / "out", "--shard-mb", "0.13")
    return root / "out"


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


class Server(ThreadingHTTPServer):
    """Files of a folder over HTTP, and what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(folder)))

    @property
    def place(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away early is nothing to tell."""


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        assert isinstance(self.server, Server)
        if format.startswith('"'):  # a request, not an error
            self.server.asked.append(self.path.removeprefix("/"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        servers.append(Server(folder))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not readers()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if is_remote(thread.name)]


def make(*arguments: object) -> None:
    main([*map(str, arguments), "--tile", "16", "--workers", "1"])


def pipe(folder: Path) -> str:
    return f"pipe:cat {folder}/{{}}"


def lane_of(source: StreamSource, *, rank: int = 0, world: int = 1, buffer: int = 8, seed: int = 3) -> Lane:
    return Lane(source, seed=seed, rank=rank, world=world, sensors=[SENSOR], buffer=buffer)


def run(lane: Lane, slots: int, sensor: str = SENSOR) -> list[Samples]:
    """The next slots one by one, the lane closed behind them."""
    try:
        return [lane.take(sensor, 1) for _ in range(slots)]
    finally:
        lane.close()


def keys(batches: list[Samples]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def local(folder: Path, sensor: str = SENSOR) -> dict[str, np.ndarray]:
    """Every sample of a folder by key, as the local reader reads it."""
    source = ShardSource(folder)
    found: dict[str, np.ndarray] = {}
    for shard, count in enumerate(source.counts.tolist()):
        samples = source.read(sensor, np.full(count, shard), np.arange(count))
        found |= dict(zip(samples.keys, samples.stored, strict=True))
    source.close()
    return found


def members(tar: Path) -> list[Member]:
    with tarfile.open(tar) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]  # pyright: ignore


def rewrite(tar: Path, change: Callable[[list[Member]], list[Member]]) -> None:
    content = change(members(tar))
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_array(place: int, change: Callable[[np.ndarray], bytes]) -> Callable[[list[Member]], list[Member]]:
    """Another content of the place-th array of a tar."""

    def changed(content: list[Member]) -> list[Member]:
        arrays = [number for number, (name, _) in enumerate(content) if name.endswith(".npy")]
        name, data = content[arrays[place]]
        content[arrays[place]] = name, change(np.load(io.BytesIO(data)))
        return content

    return changed


def renamed(place: int, name: str) -> Callable[[list[Member]], list[Member]]:
    """Another name of all members of the place-th sample of a tar."""

    def changed(content: list[Member]) -> list[Member]:
        key = list(dict.fromkeys(member.partition(".")[0] for member, _ in content))[place]
        return [(name if member.startswith(f"{key}.") else member, data) for member, data in content]

    return changed


def test_a_place_is_told_from_a_folder() -> None:
    remote = ["pipe:cat {}", "http://a/b", "https://a/b", "s3://a/b", "gs://a/b", "hf://datasets/a/b"]
    assert all(map(is_remote, remote))
    assert not any(map(is_remote, ["shards/optical", "/data/a:b", "./http:", "s3", "C:\\shards", ""]))


@pytest.mark.parametrize("kind", ["pipe", "http"])
def test_a_shard_gives_what_the_local_reader_reads(kind: str, folder: Path, serve) -> None:
    source, here = StreamSource(pipe(folder) if kind == "pipe" else serve(folder).place), ShardSource(folder)
    assert source.samples == here.samples == 48
    assert source.counts.tolist() == here.counts.tolist()
    assert source.sensors == here.sensors
    assert source.shape(SENSOR) == here.shape(SENSOR) == (13, 16, 16)
    for shard, count in enumerate(here.counts.tolist()):
        expected = here.read(SENSOR, np.full(count, shard), np.arange(count))
        streamed = [item for item in source.open(shard, [SENSOR]) if isinstance(item, StreamedSample)]
        assert [sample.key for sample in streamed] == expected.keys
        np.testing.assert_array_equal([sample.arrays[SENSOR] for sample in streamed], expected.stored)
    first = source.first(SENSOR, 20)
    np.testing.assert_array_equal(first, np.stack(list(local(folder).values())[:20]))
    here.close()


def test_s3_is_fetched_by_the_aws_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "aws"
    command.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec cat "{folder}/${{3#s3://my bucket/a/}}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert StreamSource("s3://my bucket/a/").first(SENSOR, 2).shape == (2, 13, 16, 16)


def test_batches_hold_the_stored_values(folder: Path, serve) -> None:
    expected, lane = local(folder), lane_of(StreamSource(serve(folder).place))
    for _ in range(20):
        batch = lane.take(SENSOR, 5)
        assert not batch.faults
        assert batch.stored.dtype == np.uint16
        np.testing.assert_array_equal(batch.stored, [expected[key] for key in batch.keys])
    assert lane.position == 100
    lane.close()


def visits(source: StreamSource, rank: int, world: int) -> Iterator[int]:
    """Slots of the shards that a rank visits, by the definition of the order."""
    shards = len(source.counts)
    for place in itertools.count(rank, world):
        yield int(source.counts[shuffled(shards, 3, place // shards)[place % shards]])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_an_epoch_holds_every_sample_once_over_the_ranks(folder: Path, world: int) -> None:
    source, expected = StreamSource(pipe(folder)), Counter(list(local(folder)))
    first, second = Counter[str](), Counter[str]()
    for rank in range(world):
        slots = list(itertools.islice(visits(source, rank, world), 2 * 6 // world))
        everything, half = keys(run(lane_of(source, rank=rank, world=world), sum(slots))), sum(slots[: 6 // world])
        first.update(everything[:half])
        second.update(everything[half:])
    assert first == second == expected


@pytest.mark.parametrize("world", [4, 5, 13])
def test_no_rank_waits_when_shards_and_ranks_do_not_fit(folder: Path, world: int) -> None:
    """In as many epochs as there are ranks, each rank makes as many visits as there are shards."""
    source, seen = StreamSource(pipe(folder)), Counter[str]()
    for rank in range(world):
        slots = sum(itertools.islice(visits(source, rank, world), 6))
        seen.update(keys(run(lane_of(source, rank=rank, world=world), slots)))
    assert seen == Counter(dict.fromkeys(local(folder), world))


def test_order_differs_by_epoch_and_seed_and_mixes_a_shard(folder: Path) -> None:
    source = StreamSource(pipe(folder))
    taken = keys(run(lane_of(source), 96))
    assert taken[:48] != taken[48:]
    assert taken[:48] != keys(run(lane_of(source, seed=4), 48))
    assert taken == keys(run(lane_of(source), 96))
    assert taken[:9] != [key for key in local(folder) if key in taken[:9]]  # not the order of the tar


@pytest.fixture(scope="module")
def straight(folder: Path) -> list[str]:
    """What rank 1 of 2 takes without a stop."""
    return keys(run(lane_of(StreamSource(pipe(folder)), rank=1, world=2), 160))


@settings(deadline=None, max_examples=25)
@given(position=st.integers(0, 140), taken=st.integers(0, 20))
def test_seek_goes_on_as_if_never_stopped(folder: Path, straight: list[str], position: int, taken: int) -> None:
    lane = lane_of(StreamSource(pipe(folder)), rank=1, world=2)
    run(lane, taken)
    lane.seek(position)
    assert keys(run(lane, 10)) == straight[position : position + 10]
    assert lane.position == position + 10
    assert keys(run(lane, 2)) == straight[position + 10 : position + 12][:2]  # behind a close


def test_a_distant_position_is_found_at_once(folder: Path) -> None:
    lane = lane_of(StreamSource(pipe(folder)))
    start = time.perf_counter()
    lane.seek(48 * 20_000 + 5)
    taken = keys(run(lane, 43))
    assert time.perf_counter() - start < 5
    assert len(set(taken)) == 43


def test_seek_fetches_nothing_that_lies_before(folder: Path, serve) -> None:
    server = serve(folder)
    source = StreamSource(server.place)
    order = [source.index.shards[shard].name for shard in shuffled(6, 3, 0)]
    ends = np.cumsum([source.counts[shard] for shard in shuffled(6, 3, 0)]).tolist()
    assert server.asked == ["index.json"]
    for place, position in [(3, ends[2]), (3, ends[2] + 2), (5, ends[4] + 1)]:
        server.asked.clear()
        lane = lane_of(source)
        lane.seek(position)
        run(lane, 1)
        assert server.asked[0] == order[place]
        assert not set(server.asked[: 6 - place]) & set(order[:place])


def test_reading_ahead_is_bounded(folder: Path, serve) -> None:
    server = serve(folder)
    lane = lane_of(StreamSource(server.place), buffer=2)
    lane.take(SENSOR, 1)
    time.sleep(0.3)
    assert 1 <= len(server.asked) - 1 <= 3  # 1 taken, 4 in the queue, 1 in hand, 2 in the buffer; shards of 9, one of 3
    lane.close()


def test_two_sensors_of_a_footprint_come_together(paired: Path) -> None:
    source = StreamSource(pipe(paired))
    lane = Lane(source, seed=0, rank=0, world=1, sensors=[SENSOR, RADAR])
    optical, radar = lane.take(SENSOR, 9), lane.take(RADAR, 9)
    lane.close()
    for batch, sensor in [(optical, SENSOR), (radar, RADAR)]:
        assert sorted(batch.keys) == sorted(local(paired, sensor))
        np.testing.assert_array_equal(batch.stored, [local(paired, sensor)[key] for key in batch.keys])
    for item in source.open(0, [SENSOR, RADAR]):
        assert isinstance(item, StreamedSample)
        for sensor in (SENSOR, RADAR):
            np.testing.assert_array_equal(item.arrays[sensor], local(paired, sensor)[item.key])


class Bomb:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def cut(fraction: float) -> Callable[[Path], None]:
    return lambda tar: os.truncate(tar, int(tar.stat().st_size * fraction))


def zero_header(place: int) -> Callable[[Path], None]:
    """Zero the tar header of the place-th array."""

    def damage(tar: Path) -> None:
        with tarfile.open(tar) as archive:
            offset = [info.offset for info in archive if info.name.endswith(".npy")][place]
        content = bytearray(tar.read_bytes())
        content[offset : offset + 512] = bytes(512)
        tar.write_bytes(content)

    return damage


def objects(array: np.ndarray) -> bytes:
    bombs = np.empty(array.shape, dtype=object)
    bombs[...] = Bomb(Path("executed"))
    return npy(bombs, allow_pickle=True)


def change(*args: object, by: Callable[..., Callable[[list[Member]], list[Member]]] = with_array):
    return lambda tar: rewrite(tar, by(*args))


def drop(content: list[Member]) -> list[Member]:
    """Without the array of the second sample and of the last."""
    arrays = [name for name, _ in content if name.endswith(".npy")]
    return [member for member in content if member[0] not in (arrays[1], arrays[-1])]


def with_pickles(content: list[Member]) -> list[Member]:
    bomb = pickle.dumps(Bomb(Path("executed")))
    return [*[("a.pkl", bomb), ("a.pyd", bomb), (f"a.{SENSOR}.pickle", bomb)], *content]


DAMAGES: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "cut in data": (cut(0.5), {"truncated": 5}),
    "cut to nothing": (cut(0), {"truncated": 9}),
    "gone": (Path.unlink, {"shard": 9}),
    "no tar": (lambda tar: tar.write_text("<html>moved</html>" * 99), {"truncated": 9}),
    "zeroed header": (zero_header(4), {"truncated": 5}),
    "no array": (lambda tar: rewrite(tar, drop), {"member": 2}),
    "another sensor": (change(2, f"k.{RADAR}.npy", by=renamed), {"member": 1}),
    "wrong shape": (change(3, lambda array: npy(array[:, :-1])), {"array": 1}),
    "wrong rank": (change(3, lambda array: npy(array.ravel())), {"array": 1}),
    "objects": (change(0, objects), {"array": 1}),
    "pickle": (change(0, lambda array: pickle.dumps(Bomb(Path("executed")))), {"array": 1}),
    "pickles beside": (lambda tar: rewrite(tar, with_pickles), {}),
    "complex": (change(1, lambda array: npy(array.astype("c8"))), {"array": 1}),
    "text": (change(1, lambda array: npy(array.astype("U1"))), {"array": 1}),
    "Fortran order": (change(1, lambda array: npy(np.asfortranarray(array))), {"array": 1}),
    "short data": (change(1, lambda array: npy(array)[:-1]), {"array": 1}),
    "a name upwards": (change(1, "../../x", by=renamed), {"member": 1}),
    "an absolute name": (change(1, "/abs", by=renamed), {"member": 1}),
    "more samples": (lambda tar: rewrite(tar, lambda content: content + with_array(0, npy)(members(tar))), {}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_batches_stay_full(name: str, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(damaged.parent)
    before, expected = {path.name for path in damaged.parent.iterdir()}, local(damaged)
    source = StreamSource(pipe(damaged))
    damage, causes = DAMAGES[name]
    victim = damaged / source.index.shards[0].name
    damage(victim)
    lane = lane_of(source)
    batches = [lane.take(SENSOR, 4) for _ in range(48 // 4 * 2)]
    lane.close()
    assert all(len(batch.keys) == 4 for batch in batches)
    for batch in batches:
        np.testing.assert_array_equal(batch.stored, [expected[key] for key in batch.keys])
    faults = [fault for batch in batches for fault in batch.faults][: sum(causes.values())]
    assert Counter(fault.cause for fault in faults) == causes
    assert {fault.shard for fault in faults} <= {victim.name}
    whole = set(expected) - set(list(expected)[:9])
    assert whole <= set(keys(batches))  # every sample of the other shards
    assert len(set(keys(batches))) == 48 - sum(causes.values())
    assert {path.name for path in damaged.parent.iterdir()} == before  # nothing executed, nothing extracted


def test_what_came_before_a_command_failed_is_kept(folder: Path) -> None:
    source = StreamSource(f"pipe:cd {folder}; case {{}} in *.tar) head -c 30000 {{}}; exit 7;; *) cat {{}};; esac")
    items = list(source.open(0, [SENSOR]))
    good = [item for item in items if isinstance(item, StreamedSample)]
    assert [sample.key for sample in good] == list(local(folder))[: len(good)]
    assert 1 <= len(good) < 9
    faults = [item for item in items if not isinstance(item, StreamedSample)]
    assert len(good) + len(faults) == 9
    assert {(fault.cause, fault.reason) for fault in faults} == {("shard", "its opener ended with status 7")}


def test_a_fault_is_replaced_by_the_first_good_sample(damaged: Path) -> None:
    source = StreamSource(pipe(damaged))
    for shard in source.index.shards:
        rewrite(damaged / shard.name, with_array(0, lambda array: npy(array[:1])))
    lane = lane_of(source)
    batch = lane.take(SENSOR, int(source.counts[shuffled(6, 3, 0)[0]]))  # the first shard whole; faults are its end
    lane.close()
    assert [fault.cause for fault in batch.faults] == ["array"]
    assert batch.keys[-1] == batch.keys[0]
    assert len(set(batch.keys)) == len(batch.keys) - 1
    np.testing.assert_array_equal(batch.stored[-1], batch.stored[0])


def test_a_batch_of_faults_gives_way_to_the_next_slots(damaged: Path, serve) -> None:
    source = StreamSource(serve(damaged).place)
    shard = int(shuffled(6, 3, 0)[0])
    (damaged / source.index.shards[shard].name).unlink()  # 404 from now on
    lane, lost = lane_of(source), int(source.counts[shard])
    batch = lane.take(SENSOR, 2)
    lane.close()
    assert len(set(batch.keys)) == 2 - lost % 2
    assert Counter(fault.cause for fault in batch.faults) == {"shard": lost}
    assert lane.position == lost + 2 - lost % 2


def test_mixed_dtypes_become_one_native_dtype(damaged: Path) -> None:
    source, expected = StreamSource(pipe(damaged)), local(damaged)
    for shard in source.index.shards:
        rewrite(damaged / shard.name, with_array(0, lambda array: npy(array.astype(">f4"))))
        rewrite(damaged / shard.name, with_array(1, lambda array: npy(array.astype(">u2"))))
    lane = lane_of(source)
    batch = lane.take(SENSOR, 48)
    lane.close()
    assert batch.stored.dtype == np.dtype("f4")
    assert batch.stored.dtype.isnative
    np.testing.assert_array_equal(batch.stored, [expected[key] for key in batch.keys])


@settings(deadline=None, max_examples=30)
@given(places=st.lists(st.integers(0, 127), min_size=1, max_size=6), values=st.binary(min_size=6, max_size=6))
def test_any_array_header_is_survived(folder: Path, tmp_path_factory, places: list[int], values: bytes) -> None:
    scratch = Path(shutil.copytree(folder, tmp_path_factory.mktemp("fuzz") / "copy"))
    source = StreamSource(pipe(scratch))

    def spoil(array: np.ndarray) -> bytes:
        data = bytearray(npy(array))
        for place, value in zip(places, values, strict=False):
            data[place] = value
        return bytes(data)

    rewrite(scratch / source.index.shards[0].name, with_array(0, spoil))
    items = list(source.open(0, [SENSOR]))
    assert len(items) == source.counts[0]
    assert all(isinstance(item, StreamedSample) for item in items[1:])
    shutil.rmtree(scratch)


def test_everything_broken_stops_with_the_place_and_the_first_fault(damaged: Path) -> None:
    source = StreamSource(pipe(damaged))
    for tar in damaged.glob("*.tar"):
        tar.unlink()
    lane = lane_of(source)
    first = source.index.shards[int(shuffled(6, 3, 0)[0])].name
    for _ in range(2):
        with pytest.raises(InputError, match=rf"^{pipe(damaged)}: 8 shards in a row .*{first}: sample 0: .*status 1; "):
            lane.take(SENSOR, 4)
    lane.close()
    with pytest.raises(InputError, match="no sample of sentinel2-l1c can be read: shard-000000.tar"):
        source.first(SENSOR, 4)


def refused(place: str) -> str:
    with pytest.raises(InputError) as caught:
        StreamSource(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_index_that_cannot_be_had_is_one_line(tmp_path: Path, serve) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert f"http://127.0.0.1:{port}/a/index.json cannot be fetched: " in refused(f"http://127.0.0.1:{port}/a/")
    assert "index.json cannot be fetched: " in refused(serve(tmp_path).place)
    assert "cannot be fetched: its opener ended with status 1" in refused(f"pipe:cat {tmp_path}/{{}} 2>/dev/null")
    assert "cannot be fetched: its opener ended with status 127" in refused("pipe:no-such-command {} 2>/dev/null")
    assert "has no {}" in refused(f"pipe:cat {tmp_path}/index.json")
    for text in ("", "<html>hello</html>", "[]", '{"version": 7}', "\0" * 99):
        (tmp_path / "index.json").write_text(text)
        refused(pipe(tmp_path))


def test_a_command_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gsutil" in refused("gs://bucket/shards")


@pytest.mark.parametrize("name", ["a; touch executed.tar", "$(touch executed).tar", "-rf.tar", "a b.tar"])
def test_a_shard_name_that_a_shell_would_read_is_refused(damaged: Path, name: str) -> None:
    record = json.loads((damaged / "index.json").read_text())
    record["shards"][0]["name"] = name
    (damaged / "index.json").write_text(json.dumps(record))
    assert "unfit for a command" in refused(pipe(damaged))


def test_close_ends_the_thread_of_a_full_queue(folder: Path) -> None:
    lane = lane_of(StreamSource(pipe(folder)), buffer=1)
    lane.close()
    lane.take(SENSOR, 1)
    assert len(readers()) == 1
    start = time.perf_counter()
    lane.close()
    lane.close()
    assert time.perf_counter() - start < 2
    assert not readers()


def test_close_ends_a_stream_that_stalls(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    stall = f"head -c 60000 {folder}/{{}}; case {{}} in *.tar) echo $$ >> {started}; exec sleep 60;; esac"
    lane = lane_of(StreamSource(f"pipe:{stall}"), buffer=2)
    lane.take(SENSOR, 2)
    deadline = time.perf_counter() + 10
    while not started.exists() and time.perf_counter() < deadline:
        time.sleep(0.01)
    start = time.perf_counter()
    lane.seek(7)
    assert time.perf_counter() - start < 2
    assert not readers()
    for process in started.read_text().split():
        assert not Path(f"/proc/{process}").exists()
