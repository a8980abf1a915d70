"""Named pipes in place of files, which would be waited for without end, and text that grows while it is read."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alliance.checkpoint import load_encoder
from alliance.errors import InputError
from alliance.export_files import read_sensors, read_tensors
from alliance.foreign import read_checkpoint, read_weights
from alliance.released.parts import read_record as read_foreign_record
from alliance.sensors.catalog import find_sensor
from datasets.imagery.images import ImageSource, describe, read_image
from datasets.labelled.find import read_list
from datasets.labelled.parse import find_set
from datasets.shards.command import main as shards
from datasets.shards.foreign import find_tars
from datasets.shards.index import Index
from datasets.shards.read import ShardSource
from engine.checkpoints import read_manifest
from engine.restore import refuse_foreign_states
from engine.runs import RunFolder
from finetune.model_files import read_record
from tests.helpers.shards import SENSOR, write_tiny_shards

pytestmark = pytest.mark.timeout(30)  # where a pipe is opened, nothing ever comes


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return path

    return make


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("model.safetensors", read_tensors),
    "weights of others": ("a.pth", read_checkpoint),
    "safetensors of others": ("a.safetensors", read_weights),
    "sensors of an export": ("sensors.json", read_sensors),
    "an encoder": ("model.safetensors", lambda path: load_encoder(path.parent)),
    "a network": ("config.json", lambda path: read_record(path.parent)),
    "a sensor": ("sensor.yaml", lambda path: find_sensor(str(path))),
    "a description": ("pairs.yaml", find_set),
    "a list": ("train.txt", read_list),
    "an index": ("index.json", lambda path: Index.read(path.parent)),
    "a tar": ("a.tar", lambda path: find_tars(path.parent)),
    "a checkpoint's states": ("a.pt", lambda path: refuse_foreign_states(path.parent)),
    "a log": ("train.log", lambda path: RunFolder(path.parent).claim("auto")),
    "metrics": ("metrics.jsonl", lambda path: RunFolder(path.parent).claim("auto")),
    **{
        f"an image {name}": (name, lambda path: read_image(path, ImageSource(files="x", bands=(1,))))
        for name in ("a.tif", "a.png", "a.vrt", "a.img", "a.h5", "a.mat", "a.npy", "a.npz", "a.nc")
    },
}


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_in_place_of_a_file_is_refused_in_one_line(kind: str, pipe: Callable[[str], Path]) -> None:
    name, read = READERS[kind]
    path = pipe(name)
    with pytest.raises(InputError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert name in said or path.parent.name in said
    assert "no regular file" in said or kind in ("an encoder", "a list")


def test_a_pipe_below_a_header_or_beside_weights_is_no_file(pipe: Callable[[str], Path]) -> None:
    header = pipe("a.hdr")
    header.with_name("a.dat").write_bytes(bytes(8))
    with pytest.raises(InputError):
        describe(header.with_name("a.dat"))
    assert read_foreign_record(pipe("config.json").with_name("a.pth")) == {}
    with pytest.raises(ValueError, match="manifest cannot be read"):
        read_manifest(pipe("MANIFEST.json").parent)


def test_a_scene_that_is_a_pipe_is_left_out_of_a_folder(
    pipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pipe("a.tif").parent
    with pytest.raises(SystemExit):
        shards([str(folder), "--sensor", "rgb-uint8", "--out", str(folder / "out")])
    assert "no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.npz"])
def test_a_shard_that_becomes_a_pipe_is_a_fault_like_any_other(name: str, tmp_path: Path) -> None:
    folder = write_tiny_shards(tmp_path / "shards", [3, 3])
    source = ShardSource(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    read = source.read(SENSOR, np.array([0, 1]), np.array([0, 0]))
    assert read.keys == ["s0-0", "s0-0"]
    assert ["no regular file" in fault.reason for fault in read.faults] == [True]
    source.close()


def bomb(levels: int = 9) -> str:
    """Aliases of aliases: nine levels of nine stand for 9^9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("read", [lambda path: find_sensor(str(path)), find_set], ids=["sensor", "description"])
def test_aliases_that_grow_without_end_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb())
    with pytest.raises(InputError, match="with its aliases written out"):
        read(tmp_path / "bomb.yaml")


def test_a_missing_checkpoint_is_called_missing(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        with pytest.raises(InputError, match=rf"there is no file '{tmp_path / name}'; check the name"):
            read_weights(tmp_path / name)
    with pytest.raises(InputError, match="is no regular file; give the file of weights itself"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "a.zip")
