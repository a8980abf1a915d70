"""A run that was interrupted goes on as if it had not been, also with other ranks, another ZeRO stage or precision."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alliance.errors import InputError
from engine.training import refuse_another_run
from tests.helpers.runs import Ranks, arguments_of, metrics, records

STEPS = ("--run.steps", "6", "--run.save_every", "3", "--run.keep", "9")
LOSSES = ("loss", "loss_low", "loss_mid", "loss_high", "grad_norm")
PLACE = ("step", "sensor", "lr", "epoch", "sample_digest")


@pytest.fixture(scope="module")
def sources(optical_shards: Path, sar_shards: Path) -> list[Path]:
    return [optical_shards, sar_shards]


def train(folder: Path, sources: Sequence[Path | str], ranks: int, zero: int, *arguments: str) -> str:
    """A run that ends well; the main rank's output."""
    options = ("--engine.zero", str(zero), *STEPS, *arguments)
    ended = Ranks(arguments_of(folder, sources, *options), ranks).wait()
    assert [code for code, _ in ended] == [0] * ranks, ended[0][1] + ended[-1][1]
    return ended[0][1]


def values(folder: Path, names: tuple[str, ...]) -> list[list[object]]:
    return [[record[name] for name in names] for record in metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder" / "model.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, sources: list[Path]):
    """Finished runs by (ranks, ZeRO stage), made once each."""
    root, made = tmp_path_factory.mktemp("saved"), {}

    def make(ranks: int, zero: int) -> Path:
        if (ranks, zero) not in made:
            train(root / f"{ranks}-{zero}", sources, ranks, zero)
            made[ranks, zero] = root / f"{ranks}-{zero}"
        return made[ranks, zero]

    return make


def interrupted(folder: Path, target: Path) -> Path:
    """A copy of a finished run as it was after step 3, but for half a checkpoint of step 6."""
    shutil.copytree(folder, target)
    (target / "checkpoints" / "step_00000006" / "MANIFEST.json").unlink()
    shutil.rmtree(target / "encoder")
    return target


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 0), (1, 0)),
        ((1, 0), (2, 2)),
        ((2, 2), (1, 1)),
        ((2, 2), (2, 3)),
        *(pytest.param(*layouts, marks=pytest.mark.long) for layouts in (((2, 2), (4, 2)), ((2, 3), (2, 1)))),
    ],
    ids=lambda layout: f"{layout[0]}ranks-zero{layout[1]}",
)
def test_a_run_goes_on_in_another_layout(saved, before, after, sources: list[Path], tmp_path: Path) -> None:
    straight = saved(*before)
    folder = interrupted(straight, tmp_path / "run")
    output = train(folder, sources, *after, "--run.resume", "auto")
    assert "going on from step 3: same samples and random draws" in output
    assert f"was saved by {before[0]} rank" in output
    assert values(folder, PLACE) == values(straight, PLACE)
    for found, expected in zip(values(folder, LOSSES), values(straight, LOSSES), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    trained, expected = weights(folder), weights(straight)
    assert all(torch.allclose(trained[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"latest", "step_00000003", "step_00000006"}


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.long), 3])
def test_the_same_layout_resumes_bit_for_bit(saved, zero: int, sources: list[Path], tmp_path: Path) -> None:
    straight = saved(2, zero)
    folder = interrupted(straight, tmp_path / "run")
    train(folder, sources, 2, zero, "--run.resume", "auto")
    assert values(folder, PLACE + LOSSES) == values(straight, PLACE + LOSSES)
    trained, expected = weights(folder), weights(straight)
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_a_run_on_streamed_and_local_shards_resumes_bit_for_bit(sources: list[Path], tmp_path: Path) -> None:
    mixed = [f"pipe:cat {sources[0]}/{{}}", sources[1]]
    pipes = ("--data.allow_pipe", "true")
    train(tmp_path / "straight", mixed, 2, 0, *pipes)
    folder = interrupted(tmp_path / "straight", tmp_path / "run")
    train(folder, mixed, 2, 0, *pipes, "--run.resume", "auto", "--data.workers", "1")
    assert values(folder, PLACE + LOSSES) == values(tmp_path / "straight", PLACE + LOSSES)
    assert {record["sensor"] for record in metrics(folder)} == {"synthetic-optical", "synthetic-sar"}


def test_reduced_precision_goes_on_from_full(saved, sources: list[Path], tmp_path: Path) -> None:
    folder = interrupted(saved(1, 0), tmp_path / "run")
    output = train(folder, sources, 1, 1, "--engine.precision", "bf16", "--run.resume", "auto")
    assert "in fp32, now 1 rank at ZeRO stage 1 in bf16" in output
    for found, expected in zip(values(folder, LOSSES), values(saved(1, 0), LOSSES), strict=True):
        assert found[:4] == pytest.approx(expected[:4], rel=2e-2)  # bfloat16 holds 8 bits


@pytest.mark.parametrize(
    ("number", "receiver"), [(signal.SIGTERM, 1), pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.long)]
)
def test_a_signal_to_any_rank_saves_on_all_and_the_run_goes_on(
    saved, number: signal.Signals, receiver: int, sources: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    started = Ranks(arguments_of(folder, sources, "--run.steps", "6", "--run.save_every", "6"), 2)
    wait_for_step(folder, 1)
    started.processes[receiver].send_signal(number)
    ended = started.wait(60)
    assert [code for code, _ in ended] == [0, 0], ended
    last = records(folder)[-1]
    if last["event"] == "stopped":  # else it was faster than the signal
        assert f"stopped as asked, after step {last['step'] + 1}" in ended[0][1]
        assert [path.name for path in (folder / "checkpoints").glob("step_*")] == [f"step_{last['step'] + 1:08d}"]
        train(folder, sources, 2, 0, "--run.resume", "auto")
    assert values(folder, PLACE + LOSSES) == values(saved(2, 0), PLACE + LOSSES)


def test_a_second_signal_ends_a_rank_at_once_even_when_it_waits_for_another(
    sources: list[Path], tmp_path: Path
) -> None:
    started = Ranks(arguments_of(tmp_path / "run", sources, "--run.steps", "500"), 2)
    wait_for_step(tmp_path / "run", 1)
    still, asked = started.processes
    still.send_signal(signal.SIGSTOP)
    time.sleep(1)
    asked.send_signal(signal.SIGTERM)
    time.sleep(4)
    assert asked.poll() is None  # it waits for the other rank in a collective
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(5) == 128 + signal.SIGTERM
    still.kill()
    started.wait(10)


def test_a_rank_that_dies_is_named_and_ends_the_others(sources: list[Path], tmp_path: Path) -> None:
    started = Ranks(arguments_of(tmp_path / "run", sources, "--run.steps", "500"), 2)
    wait_for_step(tmp_path / "run", 1)
    process = started.processes[1].pid
    started.processes[1].kill()
    began = time.monotonic()
    (code, output), _ = started.wait(60)
    assert code == 1, output
    assert time.monotonic() - began < 60
    line = output.strip().splitlines()[-1]
    assert "stopped: rank 1 (host " in line
    assert f"process {process}) died or stopped at step " in line
    assert "Traceback" not in output


def wait_for_step(folder: Path, step: int) -> None:
    """Until a run has logged this step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (folder / "metrics.jsonl").exists() and any(line["step"] >= step for line in metrics(folder)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{folder} has not reached step {step}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nodata": 77}, "bands, scale, offset and nodata"),
        ({"scale": 0.5}, "bands, scale, offset and nodata"),
        ({"offset": 0.5}, "bands, scale, offset and nodata"),
        ({"wavelength": 501.0}, "bands, scale, offset and nodata"),
        ({"mean": 1.001}, "statistics"),
    ],
)
def test_shards_that_are_indexed_otherwise_are_other_data(
    saved, sources: list[Path], tmp_path: Path, change: dict[str, float], named: str
) -> None:
    """The same tars: what their numbers mean, or the statistics they are standardised by, is another."""
    run, shards = tmp_path / "run", tmp_path / "optical"
    interrupted(saved(1, 2), run)
    shutil.copytree(sources[0], shards)
    index = json.loads((shards / "index.json").read_text())
    name = index["sensors"][0]["name"]
    for field, value in change.items():
        if field == "mean":
            index["statistics"][name][field] = [value * mean for mean in index["statistics"][name][field]]
            for band in index["sensors"][0]["bands"]:
                band[field] *= value
        else:
            holders = [index["sensors"][0]] if field == "nodata" else index["sensors"][0]["bands"]
            for holder in holders:
                holder[field] = value
    (shards / "index.json").write_text(json.dumps(index))
    ((code, output),) = Ranks(
        arguments_of(run, [shards, sources[1]], "--engine.zero", "2", *STEPS, "--run.resume", "auto"), 1
    ).wait()
    assert code == 2 and f"another sensors.{name}.{named}" in output, output


def test_a_setting_that_came_after_a_run_is_named_and_0_goes_on_without_it() -> None:
    saved = {"model": {"loss": {"fft": 0.1}}}
    refuse_another_run(saved, {"model": {"loss": {"fft": 0.1, "asked_later": 0.0, "asked": False}}})
    with pytest.raises(
        InputError, match=r"from before there was model\.loss\.asked_later \(0\.3 now\); --model\.loss\.asked_later 0"
    ):
        refuse_another_run(saved, {"model": {"loss": {"fft": 0.1, "asked_later": 0.3}}})
    with pytest.raises(InputError, match=r"--model\.loss\.asked false goes on"):
        refuse_another_run(saved, {"model": {"loss": {"asked": True}}})
    with pytest.raises(InputError, match=r"another sensors\.s\.nodata \(None then, 0 now\)"):
        refuse_another_run({"sensors": {"s": {}}}, {"sensors": {"s": {"nodata": 0}}})  # zeros were pixels then
    with pytest.raises(InputError, match=r"another model\.loss\.fft \(0\.1 then, 0 now\)"):
        refuse_another_run(saved, {"model": {"loss": {"fft": 0}}})
    with pytest.raises(InputError, match=r"another model\.loss\.kind \(None then, hog now\)"):
        refuse_another_run(saved, {"model": {"loss": {"kind": "hog"}}})
