"""Pretraining as a user starts it: launcher or not, any ZeRO stage, resume, wrong inputs."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import alliance
from tests.helpers.runs import PICTURE, Ranks, arguments_of, metrics, pretrain, records

STEPS = ("--run.steps", "4")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, optical_shards: Path, sar_shards: Path) -> Path:
    """A finished run of one process without launcher."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = pretrain(folder, [optical_shards, sar_shards], *STEPS, *PICTURE)
    assert result.returncode == 0, result.stdout
    assert str(folder / "encoder") in result.stdout.splitlines()[-1]
    return folder


def test_a_run_leaves_what_the_design_promises(alone: Path):
    assert {path.name for path in alone.iterdir()} >= {
        *("config.yaml", "metrics.jsonl", "train.log", "checkpoints", "encoder", "pictures")
    }
    sensors = {"synthetic-optical", "synthetic-sar"}
    assert {path.name for path in (alone / "pictures").iterdir()} == {f"step_00000004_{name}.png" for name in sensors}
    steps = metrics(alone)
    assert [record["step"] for record in steps] == [0, 1, 2, 3]
    keys = "step epoch sensor loss loss_low loss_mid loss_high loss_summary lr grad_norm samples_per_s data_wait memory_gb sample_digest"
    assert all(set(record) == set(keys.split()) for record in steps)
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in steps)
    assert {record["event"] for record in records(alone) if "event" in record} == {"picture", "probe", "checkpoint"}


def test_the_total_is_the_weighted_sum_of_the_stages_and_of_the_summary(alone: Path):
    first = metrics(alone)[0]  # a quarter of the run has equal weights
    stages = (first["loss_low"] + first["loss_mid"] + first["loss_high"]) / 3
    assert first["loss"] == pytest.approx(stages + 0.1 * first["loss_summary"], rel=1e-5)


def launched(folder: Path, sources: list[Path], *arguments: str, ranks: int) -> None:
    ended = pretrain(folder, sources, *arguments, ranks=ranks)
    assert ended.returncode == 0, ended.stdout


def plain(folder: Path, sources: list[Path], *arguments: str, ranks: int) -> None:
    ended = Ranks(arguments_of(folder, sources, *arguments), ranks).wait()
    assert [code for code, _ in ended] == [0] * ranks, ended[0][1]


@pytest.mark.parametrize(
    ("start", "ranks", "zero"),
    [(plain, 1, 2), (launched, 2, 2), (plain, 2, 0), (plain, 2, 1), (plain, 2, 3)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_ranks_and_zero_stages_do_not_change_the_losses(
    alone: Path,
    tmp_path: Path,
    optical_shards: Path,
    sar_shards: Path,
    start: Callable[..., None],
    ranks: int,
    zero: int,
):
    folder = tmp_path / "run"
    start(folder, [optical_shards, sar_shards], "--run.steps", "4", "--engine.zero", str(zero), ranks=ranks)
    expected, found = metrics(alone), metrics(folder)
    assert [r["sample_digest"] for r in found] == [r["sample_digest"] for r in expected]
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-5)
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-3)
    ours, theirs = (alliance.load_encoder(path).state_dict() for path in (folder, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-3


def test_accumulation_does_not_change_the_losses(alone: Path, tmp_path: Path, optical_shards: Path, sar_shards: Path):
    folder = tmp_path / "run"
    result = pretrain(folder, [optical_shards, sar_shards], *STEPS, "--engine.micro_batch", "2")
    assert not (folder / "pictures").exists() and "pictures are in" not in result.stdout  # none were asked for
    assert result.returncode == 0, result.stdout
    assert metrics(folder)[0]["loss"] == pytest.approx(metrics(alone)[0]["loss"], abs=1e-5)
    assert [r["grad_norm"] for r in metrics(folder)] == pytest.approx(
        [r["grad_norm"] for r in metrics(alone)], rel=1e-2
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_repeats_the_losses(
    alone: Path, tmp_path: Path, optical_shards: Path, sar_shards: Path, ranks: int
):
    """Save at step 2 and lose what came after: steps 2 and 3 come out the same; without ZeRO also on more ranks."""
    folder, sources = tmp_path / "run", [optical_shards, sar_shards]
    whole = pretrain(folder, sources, *STEPS, "--run.save_every", "2", "--run.keep", "3")
    assert whole.returncode == 0, whole.stdout
    (folder / "checkpoints" / "step_00000004" / "MANIFEST.json").unlink()  # as if it had been killed while saving
    plain(folder, sources, *STEPS, "--run.save_every", "2", "--run.resume", "auto", ranks=ranks)
    assert "going on from step 2" in (folder / "train.log").read_text()
    fixed = ("step", "sensor", "lr", "sample_digest", "epoch")
    rows = [[record[key] for key in fixed] for record in metrics(folder)]
    assert rows == [[record[key] for key in fixed] for record in metrics(alone)]
    losses, expected = ([[r["loss"], r["loss_low"], r["grad_norm"]] for r in metrics(path)] for path in (folder, alone))
    assert losses == (expected if ranks == 1 else [pytest.approx(row, rel=1e-4) for row in expected])


def test_resuming_says_what_does_not_fit_and_mends_a_missing_export(alone: Path, tmp_path: Path, sar_shards: Path):
    folder = tmp_path / "run"
    assert pretrain(folder, [sar_shards], "--run.steps", "2").returncode == 0
    other = pretrain(folder, [sar_shards], "--run.steps", "2", "--run.resume", "auto", "--optim.lr", "1e-5")
    assert other.returncode == 2
    assert "error: the checkpoint belongs to a run with another optim.lr (0.002 then, 1e-05 now)" in other.stdout
    other = pretrain(folder, [sar_shards], "--run.steps", "2", "--run.resume", "auto", "--model.encoder.depth", "3")
    assert other.returncode == 2
    assert "another model.encoder.depth (2 then, 3 now)" in other.stdout
    shutil.rmtree(folder / "encoder")  # killed between the last checkpoint and the export
    again = pretrain(folder, [sar_shards], "--run.steps", "2", "--run.resume", "auto")
    assert again.returncode == 0, again.stdout
    assert alliance.load_encoder(folder).sensors.keys() == {"synthetic-sar"}


def test_an_exported_encoder_gives_the_features_of_the_trained_one(alone: Path):
    """The training weights, read from DeepSpeed's own file, against the export."""
    state = torch.load(alone / "checkpoints" / "step_00000004" / "mp_rank_00_model_states.pt", weights_only=False)
    trained = {n.removeprefix("encoder."): v for n, v in state["module"].items() if n.startswith("encoder.")}
    exported = alliance.load_encoder(alone / "encoder")
    other = alliance.AllianceEncoder(exported.config, list(exported.sensors.values())).eval()
    other.load_state_dict(trained)
    image = torch.from_numpy(np.random.default_rng(0).uniform(0.05, 0.3, (2, 10, 32, 48)).astype(np.float32))
    with torch.no_grad():
        ours, theirs = exported(image, "synthetic-optical"), other(image, "synthetic-optical")
    assert torch.allclose(ours.tokens, theirs.tokens, atol=1e-5)
    assert torch.allclose(ours.cls, theirs.cls, atol=1e-5)


def test_checkpoints_beyond_those_to_keep_are_removed(tmp_path: Path, sar_shards: Path):
    folder = tmp_path / "run"
    result = pretrain(folder, [sar_shards], *STEPS, "--run.save_every", "1", "--run.keep", "2")
    assert result.returncode == 0, result.stdout
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["latest", "step_00000003", "step_00000004"]


def test_increments_as_targets_travel_with_the_encoder(tmp_path: Path, sar_shards: Path):
    folder = tmp_path / "run"
    result = pretrain(folder, [sar_shards], "--run.steps", "2", "--model.loss.targets", "increments")
    assert result.returncode == 0, result.stdout
    (sensor,) = json.loads((folder / "encoder" / "sensors.json").read_text())
    assert all(len(band["spread"]) == 3 and min(band["spread"]) > 0 for band in sensor["bands"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.sources", "[{shards: nowhere}]"], "error: no shard folder nowhere; make one with"),
        (["--model.encoder.patch", "7"], "error: image is 32 x 32 pixels, not a multiple of patch 7; crop it"),
        (["--model.encoder.patch", "999"], "error: image is 32 x 32 pixels, not a multiple of patch 999; crop it"),
    ],
)
def test_a_wrong_input_is_one_line(tmp_path: Path, sar_shards: Path, arguments: list[str], message: str):
    result = pretrain(tmp_path / "run", [sar_shards], "--run.steps", "1", *arguments)
    assert result.returncode == 2, result.stdout
    assert result.stdout.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stdout


def test_a_used_run_folder_is_refused(alone: Path, sar_shards: Path):
    before = sorted(path.stat().st_mtime for path in alone.rglob("*") if path.name != ".lock")
    result = pretrain(alone, [sar_shards], *STEPS)
    assert result.returncode == 2
    assert "already holds a run; go on with --run.resume auto" in result.stdout
    assert sorted(path.stat().st_mtime for path in alone.rglob("*") if path.name != ".lock") == before
