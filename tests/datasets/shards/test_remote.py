"""Shards in object storage: the batches of the same shards on disk, whatever the store does meanwhile."""

import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.shards.files import RemoteFiles
from datasets.shards.kept import KeptRanges
from datasets.shards.loader import Batch, LoaderConfig, ShardLoader, SourceConfig
from datasets.shards.read import ShardSource
from datasets.shards.stream import StreamSource
from datasets.storage import store as store_module
from datasets.storage.store import Store
from tests.helpers.object_store import SECRET, ObjectStore, named_by_the_environment, running_store
from tests.helpers.shards import SENSOR, write_tiny_shards

pytestmark = pytest.mark.timeout(60)
SIDE = 128  # pixels: 16 kB a sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of four samples."""
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "here", [4] * 10, side=SIDE)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ObjectStore]:
    with running_store() as server:
        server.upload(folder, "some/shards")
        yield server


@pytest.fixture
def server(running: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server as a user's environment names it, without trouble and with quick tries anew."""
    with named_by_the_environment(running, monkeypatch) as server:
        yield server


PLACE = "s3://imagery/some/shards"


def loader_of(place: Path | str, *, rank: int = 0, world: int = 1, **settings) -> ShardLoader:
    config = LoaderConfig(**{"micro": 4, "crop": 64, "seed": 3, **settings})
    return ShardLoader([SourceConfig(shards=str(place))], config, rank=rank, world=world)


def take(loader: ShardLoader, count: int) -> list[Batch]:
    with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]
        return list(itertools.islice(batches, count))


def same(found: list[Batch], expected: list[Batch]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    assert all(mine.keys == theirs.keys for mine, theirs in pairs)
    return all(np.array_equal(mine.stored.numpy(), theirs.stored.numpy()) for mine, theirs in pairs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_batches_are_those_of_the_shards_on_disk(
    workers: int, rank: int, world: int, folder: Path, server: ObjectStore
) -> None:
    options = {"rank": rank, "world": world, "accumulation": 2}
    here, there = loader_of(folder, **options), loader_of(PLACE, workers=workers, **options)
    assert same(take(there, 8), take(here, 8))
    assert there.state_dict() == here.state_dict()
    assert there.global_keys(3) == here.global_keys(3)


def test_a_run_begun_here_goes_on_there_with_other_ranks(folder: Path, server: ObjectStore) -> None:
    here = loader_of(folder)
    take(here, 3)
    state, expected = here.state_dict(), take(here, 4)
    halves = []
    for rank in range(2):
        there = loader_of(PLACE, rank=rank, world=2, micro=2)
        there.load_state_dict(state)
        halves.append(take(there, 4))
    for batch, *parts in zip(expected, *halves, strict=True):
        assert batch.keys == [key for part in parts for key in part.keys]
        np.testing.assert_array_equal(batch.stored, np.concatenate([part.stored for part in parts]))


def test_ranges_of_a_batch_are_asked_for_at_once_and_near_ones_as_one(server: ObjectStore) -> None:
    source = ShardSource(RemoteFiles(Store(PLACE)))
    shards, samples = np.repeat(np.arange(8), 2), np.tile([0, 3], 8)
    source.read(SENSOR, shards, samples)  # takes the sidecars
    server.asked.clear()
    server.delay = 0.3
    began = time.monotonic()
    source.read(SENSOR, shards, samples)
    assert time.monotonic() - began < 8 * 0.3  # eight requests one after the other
    assert sorted(name for _, name, _ in server.asked) == [f"shard-{shard:06d}.tar" for shard in range(8)]
    assert source.files.store.traffic.bytes > 8 * 2 * SIDE**2  # pyright: ignore[reportAttributeAccessIssue]


def test_ranges_far_from_each_other_are_two(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "NEAR", 1000)
    name = "shard-000002.tar"
    (found,) = Store(PLACE).ranges([(name, [40_000, 0, 500], [40_010, 5, 510])])
    content = server_file(server, name)
    assert [bytes(part) for part in found] == [content[40_000:40_010], content[:5], content[500:510]]
    assert sorted(asked for _, _, asked in server.asked[:2]) == ["bytes=0-509", "bytes=40000-40009"]


def server_file(server: ObjectStore, name: str) -> bytes:
    (content,) = Store(PLACE).whole([name])
    assert isinstance(content, bytes)
    return content


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, truncate, flip])
@pytest.mark.parametrize("ending", [".tar", ".npz"])
def test_damage_costs_the_samples_that_it_costs_on_disk(
    harm, ending: str, folder: Path, server: ObjectStore, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    place = server.upload(damaged, f"damaged-{harm.__name__}{ending}")
    path = damaged / f"shard-000004{ending}"
    harm(path)
    server.remove(place, path.name)
    if path.exists():
        (tmp_path / "one").mkdir()
        shutil.copy(path, tmp_path / "one")
        server.upload(tmp_path / "one", place.rpartition("/")[2])
    here, there = ShardSource(damaged), ShardSource(RemoteFiles(Store(place)))
    shards, samples = np.array([3, 4, 4, 4, 4]), np.array([0, 0, 1, 2, 3])
    expected, found = (source.read(SENSOR, shards, samples, verify=True) for source in (here, there))
    assert found.keys == expected.keys and np.array_equal(found.stored, expected.stored)
    assert (
        [(fault.cause, fault.shard, fault.key) for fault in found.faults]
        == [(fault.cause, fault.shard, fault.key) for fault in expected.faults]
        != []
    )
    assert [fault.shard for fault in there.check(0.2)] == [fault.shard for fault in here.check(0.2)]


@pytest.mark.parametrize("trouble", ["503", "cut", "silent"])
def test_what_fails_for_a_while_is_asked_for_again(
    trouble: str, folder: Path, server: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    server.trouble = lambda number, name: trouble if number % 4 == 1 else ""
    there = loader_of(PLACE, timeout=0.3, workers=2)
    assert same(take(there, 6), take(loader_of(folder), 6))
    traffic = there.traffic()
    assert traffic is not None and traffic.retries >= 5
    assert "asked again" in caplog.text and SECRET not in caplog.text


def test_a_server_that_is_away_for_a_moment_is_waited_for(folder: Path, server: ObjectStore) -> None:
    there = loader_of(PLACE, workers=1)
    taken = take(there, 2)
    server.stop()
    timer = threading.Timer(1.0, server.start)
    timer.start()
    assert same(taken + take(there, 3), take(loader_of(folder), 5))
    timer.join()


def test_a_server_that_stays_away_stops_the_reading_with_a_way_on(server: ObjectStore) -> None:
    server.trouble = lambda number, name: "503" if name.endswith(".tar") else ""
    there = loader_of(PLACE, patience=0.3)
    with pytest.raises(InputError, match=r"cannot be read for 0.3 s \(data.patience\): .*503.* --run.resume auto"):
        take(there, 3)


def test_credentials_that_are_refused_are_named_and_not_shown(server: ObjectStore) -> None:
    server.trouble = lambda number, name: "403" if name.endswith(".tar") else ""
    with pytest.raises(InputError, match="is refused to us: the credentials in the environment") as caught:
        take(loader_of(PLACE), 3)
    assert SECRET not in str(caught.value) and "someone" not in str(caught.value)


def test_an_interrupt_ends_what_waits(server: ObjectStore) -> None:
    store = Store(PLACE)
    threading.Timer(0.3, store.interrupt).start()
    began = time.monotonic()
    server.trouble = lambda number, name: "503"
    with pytest.raises(InputError, match="reading was ended"):
        store.whole(["index.json"])
    assert time.monotonic() - began < 5


def test_what_was_read_is_kept_here_and_not_asked_for_again(folder: Path, server: ObjectStore, tmp_path: Path) -> None:
    settings = {"cache": str(tmp_path / "kept"), "micro": 8}
    assert same(take(loader_of(PLACE, **settings), 5), take(loader_of(folder, micro=8), 5))  # one epoch of 40
    server.asked.clear()
    there = loader_of(PLACE, **settings)
    assert same(take(there, 10), take(loader_of(folder, micro=8), 10))
    assert {name.rpartition(".")[2] for _, name, _ in server.asked} == {"json", "npz"}


def test_damage_in_the_cache_is_read_anew(folder: Path, server: ObjectStore, tmp_path: Path) -> None:
    settings = {"cache": str(tmp_path / "kept"), "micro": 8}
    take(loader_of(PLACE, **settings), 5)
    for path in (tmp_path / "kept").glob("*.part"):
        path.write_bytes(b"x" * path.stat().st_size)
    there = loader_of(PLACE, **settings)
    found = take(there, 5)
    assert same(found, take(loader_of(folder, micro=8), 5)) and not any(batch.faults for batch in found)


def test_the_cache_stays_within_its_size(folder: Path, server: ObjectStore, tmp_path: Path) -> None:
    limit, place = 200_000, tmp_path / "kept"
    source = ShardSource(RemoteFiles(Store(PLACE), KeptRanges(place, limit)))
    for shard in range(10):
        source.read(SENSOR, np.repeat(shard, 4), np.arange(4))
        taken = sum(path.stat().st_blocks * 512 for path in place.glob("*.part"))
        assert taken <= limit + 4 * 20_480  # one batch may be over it until it is measured
    names = {path.stem for path in place.glob("*.part")}
    newest = [shard.sha256 for shard in source.index.shards[-2:]]
    assert 0 < len(names) < 10 and names >= set(newest)


def test_a_cache_that_cannot_be_made_is_refused(server: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"data.cache .*file: File exists; give a folder that can be written"):
        loader_of(PLACE, cache=str(tmp_path / "file"))


def test_without_the_client_stores_are_streamed_as_before_and_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match=r"needs obstore; install it: pip install '\.\[cloud\]'"):
        Store(PLACE)
    with serving(partial(Quiet, directory=str(folder))) as address:
        assert isinstance(loader_of(address).sources[0], StreamSource)


class Quiet(SimpleHTTPRequestHandler):
    """Python's server of files, which gives no ranges."""

    def log_message(self, format: str, *args: object) -> None: ...


class serving:
    """A web server for the block; its address."""

    def __init__(self, handler) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_web_server_without_ranges_is_streamed_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(partial(Quiet, directory=str(folder))) as address:
        assert isinstance(loader_of(address).sources[0], StreamSource)


class Guarded(BaseHTTPRequestHandler):
    """Files with ranges, for those who say the password."""

    folder: Path

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Basic c29tZW9uZTpwQHNz":  # someone:p@ss
            self.send_error(401)
            return
        content = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        if asked := self.headers["Range"]:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        else:
            part = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_web_server_with_a_password_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SHARDS_LOGIN", "someone:p%40ss")
    handler = type("Handler", (Guarded,), {"folder": folder})
    with serving(handler) as address:
        there = loader_of(address.replace("//", "//${SHARDS_LOGIN}@"))
        assert isinstance(there.sources[0], ShardSource)
        assert same(take(there, 4), take(loader_of(folder), 4))
        with pytest.raises(InputError, match="credentials") as caught:
            loader_of(address.replace("//", "//someone:wrong@"))
        assert "wrong" not in str(caught.value)


def test_a_store_that_needs_what_the_environment_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(
        InputError, match=r"az://box/x cannot be opened: .*Account must be specified; docs/cloud.md says"
    ):
        Store("az://box/x")
