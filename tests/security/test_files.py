"""Files that are written: whole, with the rights of the umask, under names that nobody could plant."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alliance.checkpoint import save_encoder
from alliance.export_files import save_tensors
from alliance.files import clear_temporaries, new_file, replace_file
from alliance.model import create_model
from engine.runs import write_whole
from tests.helpers.models import sensor_of


@pytest.fixture
def umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_files_have_the_rights_of_the_umask(umask: int, tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    replace_file(tmp_path / "config.json", b"{}")
    save_encoder(create_model("alliance_nano_patch8", [sensor_of(2)]).encoder, tmp_path / "encoder")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert rights(path) == 0o666 & ~umask, path
    assert rights(tmp_path / "encoder") == 0o777 & ~umask


@pytest.mark.parametrize("name", ["file.tmp", "file.partial", "file.0000000000000000.tmp", ".file.partial"])
def test_links_planted_under_old_or_guessed_names_are_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "theirs")
    write_whole(tmp_path / "file", "mine")
    save_tensors({"a": torch.zeros(3)}, tmp_path / "file")
    assert (tmp_path / "theirs").read_text() == "precious"
    assert (tmp_path / name).is_symlink()


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "theirs")
    replace_file(tmp_path / "file", b"mine")
    assert ((tmp_path / "theirs").read_text(), (tmp_path / "file").read_text()) == ("precious", "mine")


def test_an_export_removes_no_copy_and_follows_no_link(tmp_path: Path) -> None:
    encoder = create_model("alliance_nano_patch8", [sensor_of(2)]).encoder
    for name in ("encoder.old", "encoder.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "outside").mkdir()
    (tmp_path / ".encoder.partial").symlink_to(tmp_path / "outside")
    for _ in range(2):
        save_encoder(encoder, tmp_path / "encoder")
    assert {path.name for path in tmp_path.iterdir()} == {"encoder", "encoder.old", "encoder.partial", "outside"}
    assert not list((tmp_path / "outside").iterdir())


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError, match="now"), new_file(tmp_path / "file") as part:
        part.write_bytes(b"half")
        raise RuntimeError("now")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_what_a_killed_writer_left_is_told_from_files_of_others(tmp_path: Path) -> None:
    program = f"""
import os, pathlib
from alliance.files import new_file
with new_file(pathlib.Path({str(tmp_path / "file")!r})):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 9
    (tmp_path / "mine.tmp").write_text("mine")
    assert len(list(tmp_path.iterdir())) == 2
    clear_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tmp"]
