"""Shards made in parts by commands that know nothing of each other: their union is what one command would have made."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from datasets.descriptors import only_writer, open_lock
from datasets.shards.command import main
from datasets.shards.index import Index
from datasets.shards.parts import Part
from datasets.synthetic.landscapes import write_scenes
from tests.datasets.shards.test_shards import digests, refused
from tests.helpers.runs import ROOT, environment

TILING = ("--sensor", "synthetic-sar", "--tile", "32", "--workers", "1", "--shard-mb", "0.1")
COUNT = 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, scenes=3, size=128, seed=0)
    return folder / "sar"


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that one command made: several for each of the parts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    main([str(scenes), "--out", str(out), *TILING])
    assert len(Index.read(out).shards) > 2 * COUNT
    return out


def make(scenes: Path, out: Path, number: int, *more: str, count: int = COUNT) -> None:
    main([str(scenes), "--out", str(out), *TILING, "--part", f"{number}/{count}", *more])


def merge(*folders: Path, out: Path | None = None) -> None:
    main(["--merge", *map(str, folders), *(["--out", str(out)] if out else [])])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("shard-*.tar")}


# Parts


def test_parts_share_the_shards_among_them_in_turn(scenes: Path, whole: Path, tmp_path: Path) -> None:
    make(scenes, tmp_path, 2)
    all_names = sorted(names(whole))
    assert names(tmp_path) == set(all_names[1::COUNT])
    assert not (tmp_path / "index.json").exists()
    own = {
        name: digest
        for name, digest in digests(whole).items()
        if Path(name).with_suffix(".tar").name in names(tmp_path)
    }
    assert {name: digest for name, digest in digests(tmp_path).items() if name.startswith("shard-")} == own


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_in_one_folder_become_what_one_command_makes(
    order: Sequence[int], scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in order:
        make(scenes, tmp_path / "out", number)
    assert f"python launch/shards.py --merge {tmp_path / 'out'}" in capsys.readouterr().out
    merge(tmp_path / "out")
    assert digests(tmp_path / "out") == digests(whole)


def test_parts_in_folders_of_their_own_become_what_one_command_makes(scenes: Path, whole: Path, tmp_path: Path) -> None:
    folders = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders, 1):
        make(scenes, folder, number)
    before = [digests(folder) for folder in folders]
    merge(*reversed(folders), out=tmp_path / "out")
    assert digests(tmp_path / "out") == digests(whole)
    assert [digests(folder) for folder in folders] == before
    (tmp_path / "out" / sorted(names(whole))[4]).unlink()
    (tmp_path / "out" / "index.json").unlink()
    merge(*folders, out=tmp_path / "out")  # as after an interruption
    assert digests(tmp_path / "out") == digests(whole)
    merge(*folders, out=folders[0])  # into one of them
    assert digests(folders[0]) == digests(whole)


def test_the_command_without_part_finishes_what_parts_began(scenes: Path, whole: Path, tmp_path: Path) -> None:
    make(scenes, tmp_path, 1)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    main([str(scenes), "--out", str(tmp_path), *TILING])
    assert digests(tmp_path) == digests(whole)
    assert kept == {name: (tmp_path / name).stat().st_mtime_ns for name in kept}


def test_more_parts_than_shards(scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(names(whole)) + 2
    make(scenes, tmp_path, count, count=count)
    assert f"part {count}/{count}: 0 of {count - 2} shards" in capsys.readouterr().out
    assert names(tmp_path) == set()


def test_scenes_that_are_left_out_are_told_as_by_one_command(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    (tmp_path / "scenes" / "broken.tif").write_bytes(b"II*\0 nothing")
    main([str(tmp_path / "scenes"), "--out", str(tmp_path / "one"), *TILING])
    for number in (1, 2, 3):
        make(tmp_path / "scenes", tmp_path / "out", number)
    capsys.readouterr()
    merge(tmp_path / "out")
    assert "broken.tif" in capsys.readouterr().out
    assert digests(tmp_path / "out") == digests(tmp_path / "one")


# What is refused


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/2", "1/99999999"])
def test_what_is_no_part(text: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, scenes, "--out", tmp_path / "out", f"--part={text}")
    assert "give I/N" in told and "--array=1-N" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "mixture",
    [
        ("--part", "1/2", "--merge", "x"),
        ("--part", "1/2", "--dask", "tcp://127.0.0.1:1"),
        ("--part", "1/2", "--overwrite"),
        ("--part", "1/2", "--verify", "x"),
        ("--merge", "x", "--index", "x"),
        ("--dask", "tcp://127.0.0.1:1", "--inspect"),
    ],
)
def test_options_that_do_not_go_together(
    mixture: Sequence[str], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--merge" in mixture else [scenes]
    told = refused(capsys, *given, "--out", tmp_path / "out", *mixture)
    assert all(name in told for name in mixture if name.startswith("--")) or "--overwrite would remove" in told


def test_missing_parts_are_named(scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no finished part" in refused(capsys, "--merge", whole)
    for number in (1, 3):
        make(scenes, tmp_path, number)
    missing = sorted(names(whole))[1::COUNT]
    told = refused(capsys, "--merge", tmp_path)
    assert (
        f"{len(missing)} of {len(names(whole))} shards are missing ({missing[0]}, " in told and "of part 2/3;" in told
    )
    make(scenes, tmp_path, 2)
    (tmp_path / missing[-1]).unlink()
    assert f"1 of {len(names(whole))} shards are missing ({missing[-1]})" in refused(capsys, "--merge", tmp_path)
    make(scenes, tmp_path, 2)
    merge(tmp_path)
    assert digests(tmp_path) == digests(whole)


def test_foreign_parts_are_named(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(scenes, tmp_path / "one", 1)
    main([str(scenes), "--out", str(tmp_path / "two"), *TILING, "--stride", "16", "--part", "2/3"])
    told = refused(capsys, "--merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert str(tmp_path / "two" / "part-2-of-3.json") in told and "other scenes or options" in told
    assert "other scenes or options" in refused(
        capsys, scenes, "--out", tmp_path / "two", *TILING, "--part", "1/3"
    )  # of the same folder


def test_parts_given_twice_are_named(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, folder in ((1, "a"), (2, "a"), (3, "a"), (2, "b")):
        make(scenes, tmp_path / folder, number)
    told = refused(capsys, "--merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert str(tmp_path / "b" / "part-2-of-3.json") in told and "same part" in told
    (tmp_path / "b" / "part-2-of-3.json").rename(tmp_path / "b" / "part-9-of-10.json")
    told = refused(capsys, "--merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert "are the same shard" in told and str(tmp_path / "b" / "shard-000001.tar") in told
    assert not (tmp_path / "out").exists()
    assert "where to?" in refused(capsys, "--merge", tmp_path / "a", tmp_path / "b")


def test_a_damaged_shard_is_not_copied(
    scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        make(scenes, tmp_path / "a", number)
    path = tmp_path / "a" / "shard-000004.tar"
    good = path.read_bytes()
    path.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    assert f"{path} is not as it was written" in refused(capsys, "--merge", tmp_path / "a", "--out", tmp_path / "out")
    path.write_bytes(good)
    merge(tmp_path / "a", out=tmp_path / "out")
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.parametrize("content", ["mine", "{}", '{"format": 2}', '{"shards": ["../a.tar"]}'])
def test_a_record_of_somebody_else_stays(
    content: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "part-1-of-3.json"
    path.write_text(content)
    assert str(path) in refused(capsys, scenes, "--out", tmp_path, *TILING, "--part", "1/3")
    assert str(path) in refused(capsys, "--merge", tmp_path)
    assert path.read_text() == content


def test_a_record_that_names_files_elsewhere_is_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(scenes, tmp_path, 1)
    path = tmp_path / "part-1-of-3.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"shards": ["../shard-000000.tar"]}))
    assert "is no record of a part of this version" in refused(capsys, "--merge", tmp_path)


# At once


def test_the_same_part_twice_at_once_is_refused_and_others_are_not(
    scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(scenes, tmp_path, 1)
    lock = open_lock(tmp_path / Part(2, 3).lock)  # as one that is making part 2 holds it
    assert lock is not None
    assert "another process makes part 2/3" in refused(capsys, scenes, "--out", tmp_path, *TILING, "--part", "2/3")
    assert "part-2-of-3" in refused(capsys, scenes, "--out", tmp_path, *TILING, "--part", "1/2")
    make(scenes, tmp_path, 3)
    with open(lock, "rb"):
        pass  # which has ended
    make(scenes, tmp_path, 2)
    merge(tmp_path)
    assert digests(tmp_path) == digests(whole)


def test_the_whole_and_a_part_of_it_are_not_made_at_once(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"):
        told = refused(capsys, scenes, "--out", tmp_path / "out", *TILING, "--part", "1/3")
    assert "another process writes into" in told


AT_ONCE = """
import os, sys
from datasets.shards.command import main
count, out, *given = sys.argv[1:]
for folder in ("a", "b", "c"):
    children = []
    for number in range(1, int(count) + 1):
        if child := os.fork():
            children.append(child)
            continue
        main([*given, "--out", os.path.join(out, folder), "--part", f"{number}/{count}"])
        os._exit(0)
    assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def test_parts_at_once_lose_nothing_to_each_other(scenes: Path, whole: Path, tmp_path: Path) -> None:
    """A shard each, so that some begin among half-written files of the others."""
    count = str(len(names(whole)))
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, count, str(tmp_path), str(scenes), *TILING],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for folder in ("a", "b", "c"):
        merge(tmp_path / folder)
        assert digests(tmp_path / folder) == digests(whole)
