"""What commands end with, and what they remove: Ctrl-C, `make clean`, conversion into a folder that is in use."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.conversion import main as convert
from tests.helpers.runs import ROOT, Ranks, arguments_of, metrics, records

MAKE = shutil.which("make")


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_and_ends_with_130_and_no_traceback(ranks: int, sar_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = Ranks(arguments_of(folder, [sar_shards], "--run.steps", "5000"), ranks)
    until = time.monotonic() + 150
    while not (folder / "metrics.jsonl").exists() or not metrics(folder):
        assert time.monotonic() < until
        time.sleep(0.1)
    for process in started.processes:  # as a terminal does
        process.send_signal(signal.SIGINT)
    ended = started.wait(100)
    assert [code for code, _ in ended] == [130] * ranks, ended
    assert "Traceback" not in "".join(output for _, output in ended)
    last = records(folder)[-1]
    assert last["event"] == "stopped"
    assert (
        ended[0][1]
        .strip()
        .splitlines()[-1]
        .endswith(f"stopped as asked, after step {last['step'] + 1}; go on with --run.resume auto")
    )
    assert (folder / "checkpoints" / f"step_{last['step'] + 1:08d}" / "MANIFEST.json").is_file()


def test_a_run_started_without_ctrl_c_stays_without(sar_shards: Path, tmp_path: Path) -> None:
    """As `nohup` and a shell's background jobs have it."""
    started = Ranks(arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "20"), 1, ignored=[signal.SIGINT])
    until = time.monotonic() + 150
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    started.processes[0].send_signal(signal.SIGINT)
    ((code, output),) = started.wait(100)
    assert code == 0, output
    assert len(metrics(tmp_path / "run")) == 20


@pytest.mark.skipif(MAKE is None, reason="make is not here")
@pytest.mark.parametrize(
    "shards", ["{}/big disk/shards", "{}/big;touch {}/sprung;", "{}", "/", "..", "$(shell touch {}/sprung)"]
)
def test_make_clean_removes_fixed_places_alone(shards: str, tmp_path: Path) -> None:
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    clone.mkdir()
    shutil.copy(ROOT / "Makefile", clone)
    kept = [elsewhere / name for name in ("big/a", "big disk/shards/optical/a", "optical/a", "disk/a")]
    kept += [
        clone / name for name in ("runs/mine/a", "data/mine/a", "optical/a", "disk/shards/optical/a", "my.egg-info/a")
    ]
    gone = [
        clone / name for name in ("runs/quickstart/a", "data/shards/optical/a", "data/shards/sar/a", "data/synthetic/a")
    ]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True)
        path.write_text("a")
    given = shards.format(elsewhere, elsewhere)
    assert MAKE is not None
    subprocess.run(
        [MAKE, "clean", f"SHARDS={given}", f"RUN={elsewhere}", f"PYTHON={sys.executable}"], cwd=clone, check=True
    )
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes"])
def test_a_conversion_overwrites_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pad").mkdir()
    (tmp_path / "pad" / name).write_text("trained for a week")
    with pytest.raises(SystemExit) as caught:
        convert(["pad", str(tmp_path / "release.pth"), str(tmp_path / "pad")])
    assert caught.value.code == 2
    assert "is not empty, and nothing in it is overwritten; give a new folder" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in (tmp_path / "pad").iterdir()] == [(name, "trained for a week")]


def test_no_environment_is_changed_for_who_calls_a_command(tmp_path: Path) -> None:
    from datasets.children import ROOT as own
    from datasets.children import safe_path

    before = dict(os.environ)
    with safe_path():
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == own == str(ROOT)
        program = "import sys; print(''in sys.path, sys.path)"
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.startswith("False")
        assert str(tmp_path) not in done.stdout
    assert dict(os.environ) == before
