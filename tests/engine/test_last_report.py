"""The last report: told once, however often the run's end is gone through; a picture only where one was written."""

from collections import Counter
from pathlib import Path

from engine.log import read_metrics
from tests.helpers.runs import PICTURE, pretrain


def test_a_run_that_has_all_its_steps_tells_its_last_report_once(sar_shards: Path, tmp_path: Path) -> None:
    """As after a kill between the last checkpoint and the export."""
    arguments = tmp_path / "run", [sar_shards], "--run.steps", "2", "--run.resume", "auto", *PICTURE
    first, done = pretrain(*arguments), pretrain(*arguments)
    assert first.returncode == done.returncode == 0, first.stdout + done.stdout
    assert "already has its 2 steps" in done.stdout
    told = Counter((each.get("event"), each["step"]) for each in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert told["picture", 1] == told["probe", 1] == told["checkpoint", 1] == told[None, 0] == told[None, 1] == 1


def test_a_picture_that_cannot_be_written_is_no_event(sar_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pretrain(run, [sar_shards], "--run.steps", "1", *PICTURE).returncode == 0
    first = next((run / "pictures").iterdir())
    first.with_name(first.name.replace("00000001", "00000002")).mkdir()  # in the way of the second
    done = pretrain(run, [sar_shards], "--run.steps", "2", "--run.resume", "auto", *PICTURE)
    assert done.returncode == 0, done.stdout
    assert "cannot be written" in done.stdout
    records = read_metrics(run / "metrics.jsonl")
    assert [each["path"] for each in records if each.get("event") == "picture"] == [first.name]
    assert [each["step"] for each in records if each.get("event") == "probe"] == [0, 1]
