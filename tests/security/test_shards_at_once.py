"""The shards command among files of others, beside itself, and in a folder with traps."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.shards import ShardSource, command
from datasets.shards.index import Index, Sidecar
from datasets.synthetic.landscapes import write_scenes
from tests.helpers import warm
from tests.helpers.processes import descendants
from tests.helpers.runs import ROOT, environment

SCRIPT = ROOT / "launch" / "shards.py"
TILING = ("--tile", "32", "--workers", "1", "--shard-mb", "0.1")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, scenes=3, size=128, seed=0)
    return folder / "sar"


def arguments(scenes: Path, out: Path, *more: str) -> list[str]:
    return [str(scenes), "--sensor", "synthetic-sar", "--out", str(out), *TILING, *more]


def start(scenes: Path, out: Path) -> warm.Started:
    return warm.start([str(SCRIPT), *arguments(scenes, out)], environment())


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        command.main(given)
    assert caught.value.code == 2
    return capsys.readouterr().err


WITHOUT_LOCKS = """
import fcntl
def without(*_): raise OSError("no locks here")
fcntl.flock = without
from datasets.shards import command
command.main({arguments!r})
"""


def begin(scenes: Path, out: Path, *, locks: bool) -> warm.Started:
    """Start the command; without locks it is as on a file system that knows none."""
    if locks:
        return start(scenes, out)
    program = WITHOUT_LOCKS.format(arguments=arguments(scenes, out))
    return warm.start(["-m", "tests.helpers.hold", program, str(out.with_name("said"))], environment())


def samples_read(folder: Path) -> int:
    source, count = ShardSource(folder), 0
    for number, held in enumerate(source.counts.tolist()):
        read = source.read("synthetic-sar", np.full(held, number), np.arange(held), verify=True)
        assert not read.faults
        count += held
    return count


def signalled(process: warm.Started, number: int) -> None:
    for each in (process.pid, *descendants(process.pid)):
        os.kill(each, number)


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_the_same_command_at_once_loses_no_sample(locks: bool, scenes: Path, tmp_path: Path) -> None:
    both = [begin(scenes, tmp_path / "out", locks=locks) for _ in range(2)]
    said = [each.communicate(timeout=200)[0] for each in both]
    codes = sorted(each.wait(1) for each in both)
    assert codes in ([0, 0], [0, 2]), said  # one after the other, or one refused
    assert not locks or codes == [0, 0] or any("another process writes into" in text for text in said)
    command.main(arguments(scenes, tmp_path / "out"))
    assert Index.read(tmp_path / "out").samples == samples_read(tmp_path / "out") == 3 * 4 * 4
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("seen", ["*.tmp", "shard-000000.tar", "shard-000001.npz"])
def test_the_whole_command_in_the_midst_of_the_same_loses_no_sample(
    seen: str, locks: bool, scenes: Path, tmp_path: Path
) -> None:
    first, until = begin(scenes, tmp_path / "out", locks=locks), time.monotonic() + 100
    while not any((tmp_path / "out").glob(seen)):
        assert first.poll() is None and time.monotonic() < until
    signalled(first, signal.SIGSTOP)
    try:
        second = begin(scenes, tmp_path / "out", locks=locks)
        said, _ = second.communicate(timeout=200)
        assert first.poll() is None
    finally:
        signalled(first, signal.SIGCONT)
    told, _ = first.communicate(timeout=200)
    if locks:
        assert (first.returncode, second.returncode) == (0, 2), (told, said)
        assert "another process writes into" in said
    command.main(arguments(scenes, tmp_path / "out"))
    assert Index.read(tmp_path / "out").samples == samples_read(tmp_path / "out") == 3 * 4 * 4


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.npz", "index.json", "shard-000099.tar"])
def test_a_file_of_somebody_else_with_a_name_of_ours_stays(
    name: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"precious")
    assert f"holds {name}, which this command has not made" in refused(capsys, arguments(scenes, tmp_path))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"precious")]
    command.main(arguments(scenes, tmp_path, "--overwrite"))
    assert Index.read(tmp_path).samples == 48


def test_a_tar_of_somebody_else_beside_our_shards_stays(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(arguments(scenes, tmp_path))
    (tmp_path / "shard-000777.tar").write_bytes(b"precious")
    assert "holds shard-000777.tar, which" in refused(capsys, arguments(scenes, tmp_path))
    assert (tmp_path / "shard-000777.tar").read_bytes() == b"precious"


def test_an_index_of_somebody_else_beside_foreign_tars_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        path = tmp_path / "a.npy"
        np.save(path, np.ones((3, 8, 8), np.uint8))
        tar.add(path, "a.npy")
        path.unlink()
    (tmp_path / "index.json").write_text('{"mine": 1}')
    assert "is in the way" in refused(capsys, ["--index", str(tmp_path), "--sensor", "rgb-uint8"])
    assert json.loads((tmp_path / "index.json").read_text()) == {"mine": 1}


def test_no_tar_is_ever_without_its_sidecar(scenes: Path, tmp_path: Path) -> None:
    """However it is killed: a tar without one would be taken for somebody else's."""
    run = start(scenes, tmp_path / "out")
    while run.poll() is None:
        tars = {path.stem for path in (tmp_path / "out").glob("*.tar")}
        assert tars <= {path.stem for path in (tmp_path / "out").glob("*.npz")}
        if len(tars) >= 2:
            run.kill()
    run.communicate()
    command.main(arguments(scenes, tmp_path / "out"))
    assert Index.read(tmp_path / "out").samples == 48
    assert all(len(Sidecar.load(path).keys) for path in (tmp_path / "out").glob("*.npz"))


def test_code_in_the_current_folder_is_run_by_no_worker(scenes: Path, tmp_path: Path) -> None:
    """A trap in the place of each of these would spring, and end the command, whichever is imported first."""
    for name in ("signal.py", "numpy.py", "json.py", "deepspeed.py", "torch.py"):
        (tmp_path / name).write_text("open('sprung', 'w')\nraise SystemExit(9)\n")
    script = [sys.executable, str(SCRIPT), *arguments(scenes, tmp_path / "out", "--workers", "2")]
    run = subprocess.run(script, cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not (tmp_path / "sprung").exists()
    assert Index.read(tmp_path / "out").samples == 48


def test_planted_temporary_names_are_not_followed(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "out").mkdir()
    command.main(arguments(scenes, tmp_path / "out"))
    (tmp_path / "out" / "shard-000000.npz").unlink()
    for name in ("shard-000000.tar.tmp", "shard-000000.npz.tmp", "index.json.tmp"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "theirs")
    command.main(arguments(scenes, tmp_path / "out"))
    assert (tmp_path / "theirs").read_text() == "precious"


def test_damage_that_the_scan_finds_is_refused(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that loses a block between writing and reading."""
    written = os.fsync

    def lose(descriptor: int) -> None:
        written(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition(".tar.")[2].endswith(".tmp"):
            os.pwrite(descriptor, bytes(512), 512 * 20)
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)

    monkeypatch.setattr(os, "fsync", lose)
    assert "samples written can be read back" in refused(capsys, arguments(scenes, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.tar*"))
    monkeypatch.undo()
    command.main(arguments(scenes, tmp_path / "out"))
    assert Index.read(tmp_path / "out").samples == 48


def test_a_folder_in_use_is_refused(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets.descriptors import only_writer

    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"):
        assert "another process writes into" in refused(capsys, arguments(scenes, tmp_path / "out"))
        with pytest.raises(InputError, match="another process"), only_writer(tmp_path / "out"):
            pass
