"""Run folders, metrics and checkpoint files, without training."""

import json
from pathlib import Path

import pytest

from alliance.errors import InputError
from engine.checkpoints import MANIFEST, list_checkpoints, read_manifest, verify
from engine.log import Metrics, WandbMirror, duration, read_metrics
from engine.runs import RunConfig, RunFolder
from engine.summary import summarise


def test_a_folder_with_a_run_is_refused_with_both_ways_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"already holds a run.*--run.resume auto.*another --run.dir"):
        RunFolder(tmp_path).claim("never")
    going_on = RunFolder(tmp_path)
    going_on.claim("auto")
    going_on.release()


def test_a_start_that_failed_leaves_the_folder_free(tmp_path: Path):
    first = RunFolder(tmp_path / "run")
    first.claim("never")
    first.release()
    second = RunFolder(tmp_path / "run")
    second.claim("never")
    second.release()


def test_two_runs_cannot_share_a_folder(tmp_path: Path):
    first = RunFolder(tmp_path / "run")
    first.claim("never")
    with pytest.raises(InputError, match="another process trains"):
        RunFolder(tmp_path / "run").claim("auto")
    first.release()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "run").claim("never")


def test_metrics_drop_what_was_logged_after_the_resumed_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 5, "lo')
    metrics = Metrics(path, resume_step=4)
    metrics.write(step=4, loss=float("nan"))
    metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": None},
    ]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"[1]", b"null", b"{" * 5000, b"[" * 5000, b'{"step": "x"}', b"\0" * 99, b'{"a"']
)
def test_damaged_lines_are_left_out(damage: bytes, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 3}\n' + damage + b'\n{"step": 4}\n')
    assert [record["step"] for record in read_metrics(path) if record["step"] != "x"] == [3, 4]
    Metrics(path, resume_step=4).close()
    assert path.read_bytes() == b'{"step": 3}\n'


def test_a_damaged_checkpoint_is_noticed(tmp_path: Path):
    folder = tmp_path / "step_00000010"
    folder.mkdir()
    (folder / "weights.pt").write_bytes(b"12345")
    assert list_checkpoints(tmp_path) == []  # no manifest: never finished
    digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"  # SHA-256 of 12345
    files = {"weights.pt": {"bytes": 5, "sha256": digest}}
    (folder / MANIFEST).write_text("{}")
    assert list_checkpoints(tmp_path) == [folder]
    with pytest.raises(ValueError, match="its manifest cannot be read"):
        read_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps({"layout": {"ranks": 2, "zero": 1, "precision": "fp32"}, "files": files}))
    assert read_manifest(folder)["layout"] == (2, 1, "fp32")
    assert verify(folder, files) is None
    (folder / "weights.pt").write_bytes(b"12346")
    assert verify(folder, files) == "weights.pt is damaged"
    assert verify(folder, files, part=1, parts=2) is None  # another rank looks at it
    (folder / "weights.pt").write_bytes(b"123")
    assert verify(folder, files) == "weights.pt is missing or cut short"


def test_wandb_that_cannot_start_never_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    mirror = WandbMirror(RunConfig(dir=str(tmp_path), wandb="online"), RunFolder(tmp_path), {})
    mirror({"step": 1, "loss": 0.5})
    mirror.close()


def test_the_summary_compares_the_ends_of_the_run():
    losses = [1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5]
    records = [{"sensor": "s", "loss_high": loss} for loss in losses] + [{"event": "probe", "sensor": "s"}]
    (line,) = summarise(records)
    assert line.startswith("s: high 1.000 -> 0.500 (-50%);")
    assert summarise(records[:1]) == [
        "s: logged at one step alone, which tells no change; a smaller run.log_every logs more"
    ]


def test_durations_read_well():
    assert [duration(seconds) for seconds in (5, 75, 7500)] == ["0m05s", "1m15s", "2h05m"]


def test_impossible_run_lengths_are_refused():
    with pytest.raises(InputError, match="steps is 0; give a whole number from 1"):
        RunConfig(dir="x", steps=0)
