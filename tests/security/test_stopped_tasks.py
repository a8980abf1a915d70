"""Ctrl-C in the training of every task and in sweeps of seeds: all is saved, the end is 130, and no traceback is shown."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from datasets.releases.command import main as prepare
from datasets.synthetic.chips import write_chips
from datasets.synthetic.domains import write_yellow_river
from datasets.synthetic.labelled_scenes import write_labelled
from datasets.synthetic.pair_trees import write_whu
from engine.log import read_metrics
from tests.finetune.sweep import test_classify
from tests.finetune.tasks import test_dense_tasks, test_scene, test_segment
from tests.helpers import warm
from tests.helpers.dates import write_dates
from tests.helpers.processes import all_end, descendants
from tests.helpers.runs import ROOT, TIMEOUT, environment

ENDLESS = ("--run.steps", "100000", "--run.save_every", "100000")
NO_SCORES = ("--evaluate_every", "100000")
TWO, AT_ONCE = ("--seeds", "0,1", "--jobs", "1"), ("--seeds", "0,1", "--jobs", "2")


def segment(folder: Path, data: Path) -> list[str]:
    write_whu(data / "raw", height=64, width=96)
    prepare(["whu-opt-sar", str(data / "raw"), str(data / "tiles"), "--tile", "32", "--constants", "released"])
    own = ("--run.dir", str(folder), "--data.set", str(data / "tiles" / "pairs.yaml"))
    return [*test_segment.SMALL, *own, *ENDLESS, *NO_SCORES]


def change(folder: Path, data: Path) -> list[str]:
    return test_dense_tasks.change_options(folder, write_dates(data), *ENDLESS, *NO_SCORES)


def crossdomain(folder: Path, data: Path) -> list[str]:
    write_yellow_river(data, size=96)
    return test_dense_tasks.domain_options(folder, data, *ENDLESS)


def scene(folder: Path, data: Path) -> list[str]:
    write_chips(data, chips=60, size=24, classes=3)
    return ["--run.dir", str(folder), "--data.path", str(data), *test_scene.SMALL, *ENDLESS, *NO_SCORES]


def multilabel(folder: Path, data: Path) -> list[str]:
    return [*scene(folder, data), "--data.labels", "table"]


def classify(folder: Path, data: Path) -> list[str]:
    write_labelled("augsburg", data, height=48, width=64, classes=3)
    return test_classify.command(folder, data, "--epochs", "100000", "--run.save_every", "100000")[1:]


def running(process: warm.Started, logs: Sequence[Path]) -> None:
    """Wait until each of these runs has trained a step."""
    until = time.monotonic() + TIMEOUT
    while not all(log.is_file() and any("event" not in record for record in read_metrics(log)) for log in logs):
        assert process.poll() is None and time.monotonic() < until, process.communicate(10)
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("task", "seeds"),
    [
        (segment, ()),
        pytest.param(change, (), marks=pytest.mark.long),
        pytest.param(crossdomain, (), marks=pytest.mark.long),
        pytest.param(scene, (), marks=pytest.mark.long),
        pytest.param(multilabel, (), marks=pytest.mark.long),
        pytest.param(classify, (), marks=pytest.mark.long),
        (change, TWO),
        pytest.param(classify, TWO, marks=pytest.mark.long),
        (classify, AT_ONCE),
        pytest.param(scene, AT_ONCE, marks=pytest.mark.long),
    ],
    ids=lambda given: given.__name__ if callable(given) else " ".join(given[2:]) or "one",
)
def test_ctrl_c_saves_and_ends_with_130(
    task: Callable[[Path, Path], list[str]], seeds: tuple[str, ...], tmp_path: Path
) -> None:
    folder, data = tmp_path / "run", tmp_path / "data"
    command = [str(ROOT / f"finetune/{task.__name__}.py"), *task(folder, data), *seeds]
    process = warm.start(command, environment())
    first = [folder / f"seed_{seed}" for seed in ((0, 1) if seeds == AT_ONCE else (0,))]
    runs = first if seeds or task is classify else [folder]
    everything = []
    try:
        running(process, [run / "metrics.jsonl" for run in runs])
        everything = list(descendants(process.pid))
        for each in (process.pid, *everything):  # as a terminal does
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGINT)
        output, _ = process.communicate(60)
    finally:
        process.kill()
    assert process.wait(10) == 130, output
    said = output + "".join(log.read_text() for log in folder.glob("process_*.log"))
    assert "Traceback" not in said and "stopped as asked" in output
    for run in runs:
        last = read_metrics(run / "metrics.jsonl")[-1]
        assert last["event"] == "stopped"
        assert (run / "checkpoints" / f"step_{last['step'] + 1:08d}" / "MANIFEST.json").is_file()
    assert all_end(everything, 15)
