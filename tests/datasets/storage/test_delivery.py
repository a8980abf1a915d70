"""Results that are put into object storage: whole, in order, and never over something else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alliance.errors import InputError
from datasets.storage import store as store_module
from datasets.storage.delivery import delivered
from datasets.storage.store import Store
from tests.helpers.object_store import ObjectStore


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    running = ObjectStore().start()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_module, "PAUSES", (0.01, 0.05))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "readme").write_text("there")
    running.upload(tmp_path / "first", "first")  # makes the bucket
    yield running
    running.stop()


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)


def test_a_folder_is_put_with_what_makes_it_whole_last(server: ObjectStore) -> None:
    server.asked.clear()
    with delivered("s3://imagery/new/shards", last=["index.json"]) as result:
        write(result.path, "index.json", "shard-0.tar", "shard-0.npz", "more/z.txt", ".lock")
    put = [name for method, name, _ in server.asked if method == "PUT"]
    assert sorted(put) == ["index.json", "shard-0.npz", "shard-0.tar", "z.txt"] and put[-1] == "index.json"
    contents = Store("s3://imagery/new/shards").whole(["index.json", "more/z.txt"])
    assert contents == [b"index.json" * 1000, b"more/z.txt" * 1000]
    assert result.told([f"12 samples in {result.path}"]) == ["12 samples in s3://imagery/new/shards"]
    assert not result.path.exists()


def test_a_file_is_put_with_those_beside_it(server: ObjectStore) -> None:
    with delivered("s3://imagery/maps/map.tif") as result:
        write(result.path.parent, "map.tif", "map.png")
    assert Store("s3://imagery/maps").whole(["map.tif", "map.png"]) == [b"map.tif" * 1000, b"map.png" * 1000]


def test_nothing_is_put_when_the_work_fails(server: ObjectStore) -> None:
    with pytest.raises(InputError, match="as it were"), delivered("s3://imagery/failed/map.tif") as result:
        write(result.path.parent, "map.tif")
        raise InputError("as it were")
    assert Store("s3://imagery/failed").sizes(["map.tif"]) == [None]


@pytest.mark.parametrize("place", ["s3://imagery/first/readme", "s3://imagery/first"])
def test_nothing_is_overwritten(place: str, server: ObjectStore) -> None:
    with (
        pytest.raises(InputError, match="first/readme is there already, and nothing in a store is overwritten"),
        delivered(place, last=["readme"]),
    ):
        raise AssertionError("the work must not begin")


def test_sending_goes_on_when_the_store_fails_for_a_while(server: ObjectStore) -> None:
    server.trouble = lambda number, name: "503" if number % 3 == 1 else ""
    with delivered("s3://imagery/much/map.tif") as result:
        result.path.parent.mkdir(parents=True, exist_ok=True)
        result.path.write_bytes(b"0123456789abcdef" * 1_000_000)  # 16 MB go in several parts
    server.trouble = lambda number, name: ""
    assert Store("s3://imagery/much").sizes(["map.tif"]) == [16_000_000]


def test_on_this_machine_the_place_is_written_itself(tmp_path: Path) -> None:
    with delivered(str(tmp_path / "map.tif")) as result:
        assert result == (tmp_path / "map.tif", str(tmp_path / "map.tif"))
