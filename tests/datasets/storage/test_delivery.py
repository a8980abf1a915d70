"""Results that are put into object storage: whole, in order, and never over something else."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alliance.checkpoint import save_encoder
from alliance.errors import InputError
from alliance.model import create_model
from datasets.shards.command import main as shards
from datasets.shards.files import RemoteFiles
from datasets.shards.read import ShardSource
from datasets.storage.delivery import delivered
from datasets.storage.store import Store
from datasets.synthetic.landscapes import write_scenes
from finetune.export.command import main as export
from tests.helpers.models import sensor_of
from tests.helpers.object_store import ObjectStore, named_by_the_environment, running_store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "readme").write_text("there")
    with running_store() as running, named_by_the_environment(running, monkeypatch) as server:
        server.upload(tmp_path / "first", "first")  # makes the bucket
        yield server


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


def test_shards_are_made_into_a_store_and_read_from_it(server: ObjectStore, tmp_path: Path, capsys) -> None:
    write_scenes(tmp_path / "scenes", scenes=1, size=64, seed=0)
    command = [str(tmp_path / "scenes" / "sar"), "--sensor", "synthetic-sar", "--tile", "32", "--workers", "1", "--out"]
    shards([*command, str(tmp_path / "here")])
    shards([*command, "s3://imagery/made/there"])
    assert "in s3://imagery/made/there\n" in capsys.readouterr().out
    here, there = ShardSource(tmp_path / "here"), ShardSource(RemoteFiles(Store("s3://imagery/made/there")))
    numbers = np.zeros(4, int), np.arange(4)
    mine, theirs = (source.read("synthetic-sar", *numbers, verify=True) for source in (here, there))
    assert theirs.keys == mine.keys and np.array_equal(theirs.stored, mine.stored) and not there.check()
    with pytest.raises(SystemExit):
        shards([*command, "s3://imagery/made/there"])
    assert "index.json is there already, and nothing in a store is overwritten" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shards([*command, "s3://imagery/other", "--part", "1/2"])
    assert "--part needs a folder that is seen as one, not s3://imagery/other" in capsys.readouterr().err


def test_an_export_goes_into_a_store(server: ObjectStore, tmp_path: Path, capsys) -> None:
    save_encoder(create_model("alliance_nano_patch8", [sensor_of(3)]).encoder, tmp_path / "encoder")
    export([str(tmp_path / "encoder"), "s3://imagery/hub/mine", "--format", "hub"])
    assert "s3://imagery/hub/mine holds the weights" in capsys.readouterr().out
    (config, card) = Store("s3://imagery/hub/mine").whole(["config.json", "README.md"])
    assert isinstance(config, bytes) and json.loads(config) and isinstance(card, bytes)


def test_on_this_machine_the_place_is_written_itself(tmp_path: Path) -> None:
    with delivered(str(tmp_path / "map.tif")) as result:
        assert result == (tmp_path / "map.tif", str(tmp_path / "map.tif"))
