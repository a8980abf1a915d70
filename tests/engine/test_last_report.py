"""The last report: told once, however often the run's end is gone through; a picture only where one was written."""

from collections import Counter
from pathlib import Path

from engine.log import read_metrics
from tests.helpers.runs import pretrain


def test_a_run_that_has_all_its_steps_tells_its_last_report_once(sar_shards: Path, tmp_path: Path) -> None:
    """As after a kill between the last checkpoint and the export."""
    arguments = tmp_path / "run", [sar_shards], "--run.steps", "2", "--run.resume", "auto"
    for _ in range(2):
        done = pretrain(*arguments)
        assert done.returncode == 0, done.stdout
    assert "already has its 2 steps" in done.stdout
    told = Counter((each.get("event"), each["step"]) for each in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert told["picture", 1] == told["probe", 1] == told["checkpoint", 1] == told[None, 0] == told[None, 1] == 1


def test_a_picture_that_cannot_be_written_is_no_event(sar_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "pictures" / "step_00000001_sentinel1-grd.png").mkdir(parents=True)
    done = pretrain(tmp_path / "run", [sar_shards], "--run.steps", "1")
    assert done.returncode == 0, done.stdout
    assert "cannot be written" in done.stdout
    events = [each.get("event") for each in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert "probe" in events and "picture" not in events
