"""--run.dry_run: everything is built, two steps are taken, what the whole run would take is told, nothing is left."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.synthetic.chips import write_chips
from datasets.synthetic.labelled_scenes import write_labelled
from engine.estimate import Rehearsed, estimate
from engine.runs import RunConfig
from tests.helpers import warm
from tests.helpers.runs import ROOT, Ranks, arguments_of, environment, pretrain

DRY = ("--run.dry_run", "true", "--run.wandb", "offline", "--run.tensorboard", "true")


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def leaving_nothing(tmp_path: Path) -> Callable[[list[str], int], list[tuple[int, str]]]:
    """Runs a command on some ranks; no file is there afterwards that was not before, nor changed, nor a folder."""

    def run(command: list[str], ranks: int) -> list[tuple[int, str]]:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        before, in_clone = tree(tmp_path), {path.name for path in ROOT.iterdir()}
        ended = Ranks(command, ranks, environ={"TMPDIR": str(scratch)}).wait()
        assert tree(tmp_path) == before and {path.name for path in ROOT.iterdir()} == in_clone
        assert list(scratch.iterdir()) == [] and not (tmp_path / "runs").exists()
        return ended

    return run


def figure(output: str, pattern: str) -> float:
    found = re.search(pattern, output)
    assert found, output
    return float(found[1])


def test_the_main_rank_tells_what_the_run_will_take(sar_shards: Path, tmp_path: Path, leaving_nothing) -> None:
    options = ("--run.steps", "3", "--engine.zero", "2", "--run.keep", "1", "--run.save_every", "1")
    command = arguments_of(tmp_path / "runs" / "mine", [sar_shards], *options, *DRY)
    (code, output), (other, said) = leaving_nothing(command, 2)
    assert code == other == 0, output + said
    assert "dry run: 2 of 3 steps taken" in output and "dry run" not in said and "parameters" not in said
    assert "at most 2 checkpoints at a time" in output
    megabytes = 16 * figure(output, r"([\d.]+) M parameters")  # a weight, its copy and two moments, of four bytes each
    assert figure(output, r"at a time, ([\d.]+) MB each") == pytest.approx(megabytes, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("zero", ["0", "2", "3"])
def test_a_checkpoint_is_as_large_as_was_told(sar_shards: Path, tmp_path: Path, zero: str) -> None:
    options = ("--run.steps", "3", "--engine.zero", zero, "--run.keep", "1")
    command = arguments_of(tmp_path / "run", [sar_shards], *options)
    output = Ranks([*command, *DRY], 2).wait()[0][1]
    assert all(code == 0 for code, _ in Ranks(command, 2).wait())
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    written = sum(path.stat().st_size for path in checkpoint.glob("*.pt"))
    assert figure(output, r"at a time, ([\d.]+) MB each") == pytest.approx(written / 1e6, rel=0.02)


def test_a_dry_run_meets_the_mistakes_of_the_run(sar_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    for arguments, told in [
        (("--optim.lr", "inf"), "lr"),
        (("--run.resume", "never"), "holds metrics.jsonl, but no run to go on with"),
    ]:
        done = pretrain(run, [sar_shards], *DRY, *arguments)
        assert done.returncode == 2 and told in done.stdout, done.stdout
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_dry_run_of_seeds_tells_of_one_and_how_many_there_are(tmp_path: Path, leaving_nothing) -> None:
    write_labelled("augsburg", tmp_path / "scene", height=48, width=64, classes=3)
    script = str(ROOT / "finetune/classify.py")
    small = ["--config", str(ROOT / "configs/finetune/classify_augsburg.yaml"), "--model.width", "16"]
    small += ["--model.patch", "5", "--model.mixer", "none", "--data.components", "4", "--data.protocol.per_class", "6"]
    small += ["--data.protocol.kind", "random", "--epochs", "8", "--optim.batch", "6", "--seeds", "0-4", "--jobs", "2"]
    own = ["--run.dir", str(tmp_path / "runs" / "augsburg"), "--data.path", str(tmp_path / "scene")]
    ((code, output),) = leaving_nothing([script, *small, *own, *DRY], 1)
    assert code == 0, output
    assert "dry run: 2 of 24 steps taken" in output  # 18 pixels in batches of 6, eight times
    assert "that was one run of 5, of which 2 are trained at a time" in output


@pytest.mark.parametrize(("task", "labels"), [("scene", "folders"), ("multilabel", "table")])
def test_a_dry_run_of_images_leaves_an_empty_folder_empty_and_a_new_one_unmade(
    task: str, labels: str, tmp_path: Path, leaving_nothing
) -> None:
    write_chips(tmp_path / "chips", chips=20, size=24, classes=2)
    (tmp_path / "empty").mkdir()
    small = ["--model.encoder.model", "alliance_nano_patch8", "--optim.batch", "4", "--run.steps", "3"]
    small += ["--model.encoder.mode", "frozen"]
    data = ["--data.path", str(tmp_path / "chips"), "--data.labels", labels]
    for folder in (tmp_path / "empty", tmp_path / "runs" / "new"):
        command = [str(ROOT / f"finetune/{task}.py"), *small, *data, "--run.dir", str(folder)]
        ((code, output),) = leaving_nothing([*command, *DRY], 1)
        assert code == 0, output
        assert "dry run: 2 of 3 steps taken" in output and "splits.csv" not in output
        assert re.search(r"[1-9]\.\d\d M parameters, 0\.\d\d M of them learn", output), output


def test_the_estimate_by_hand() -> None:
    run = RunConfig(dir="x", steps=900, save_every=100, keep=2)
    seen = Rehearsed(
        steps=2, seconds=0.5, memory=1.25, available=16.0, ranks=2, on_gpu=False, checkpoint=20_000_000, weights=5_000_000,
        free=10**12,
    )  # fmt: skip
    told = "\n".join(estimate(run, seen))
    assert (
        "7m30s: 900 steps of 0.5 s" in told and "1.25 GB of 16.0 GB of this machine in the largest of 2 ranks" in told
    )
    assert "65.0 MB of 1000.0 GB free: at most 3 checkpoints at a time, 20.0 MB each, and 5.0 MB" in told
    assert "too small" not in told
    short = "\n".join(estimate(replace(run, steps=50), seen._replace(ranks=1)))
    assert "at most 1 checkpoint at a time" in short and "the largest of 1 rank," in short
    assert "the disk is too small" in "\n".join(estimate(run, seen._replace(free=64_000_000)))


def test_settings_of_a_dry_run_stand_in_the_help() -> None:
    done = warm.run([str(ROOT / "launch/pretrain.py"), "--help"], environment() | {"COLUMNS": "400"}, 60)
    for name in ("run.dry_run", "run.keep_every", "run.tensorboard", "run.page"):
        assert re.search(rf"--{name} .*\n?.*[a-z]{{4}}", done.stdout), name
