"""A probe inside pretraining: it is told, it is right, and the run is the same to the last digit."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

import alliance
from engine.probe_images import open_probe_set
from engine.probing import probe
from tests.helpers.rasters import write_tiff
from tests.helpers.runs import Ranks, arguments_of, metrics, pretrain, records

STEPS = ("--run.steps", "4")
LOGGED = ("loss", "loss_low", "loss_mid", "loss_high", "grad_norm", "lr", "sample_digest")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory, synthetic_scenes: Path) -> Path:
    """A folder of two classes of synthetic optical chips: as they are, and half as bright; 12 each."""
    folder = tmp_path_factory.mktemp("chips") / "brightness"
    with rasterio.open(next((synthetic_scenes / "optical").glob("*.tif"))) as file:
        image, names = file.read(), file.descriptions
    for number in range(12):
        row, col = divmod(number, 4)
        chip = image[:, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        write_tiff(folder / "bright" / f"{number}.tif", chip, names=names)
        write_tiff(folder / "dark" / f"{number}.tif", np.maximum(chip // 2, 1), names=names)
    return folder


def probed(chips: Path, *more: str) -> list[str]:
    return ["--probe.data", str(chips), "--probe.every", "3", "--probe.batch", "7", *more]


def logged(folder: Path) -> list[list[object]]:
    return [[record[key] for key in LOGGED] for record in metrics(folder)]


def test_a_run_with_a_probe_has_the_losses_of_one_without(tmp_path: Path, optical_shards: Path, chips: Path):
    without, beside = tmp_path / "without", tmp_path / "beside"
    assert pretrain(without, [optical_shards], *STEPS).returncode == 0
    ended = pretrain(beside, [optical_shards], *STEPS, *probed(chips, "--probe.kind", "linear"))
    assert ended.returncode == 0, ended.stdout
    assert "probe of brightness, linear on mean_std: " in ended.stdout
    assert logged(without) == logged(beside)
    ours, theirs = (alliance.load_encoder(folder).state_dict() for folder in (without, beside))
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in ours)
    found = [record for record in records(beside) if record.get("event") == "probe" and "data" in record]
    assert [record["step"] for record in found] == [0, 2, 3]  # the first, every third, the last
    encoder = alliance.load_encoder(beside)
    images = open_probe_set(chips, encoder.sensors["synthetic-optical"], encoder.patch_size)
    expected = probe("linear", *images.features(encoder, "mean_std", 5))
    assert found[-1]["accuracy"] == pytest.approx(100 * expected.accuracy, abs=0.01)
    raw = probe("linear", *(part.statistics() for part in (images.train, images.test)))
    assert [record["raw_statistics"] for record in found] == [pytest.approx(100 * raw.accuracy, abs=0.01)] * 3
    assert f"; raw statistics {100 * raw.accuracy:.1f}" in ended.stdout
    assert found[-1]["low"] <= found[-1]["accuracy"] <= found[-1]["high"]


def test_ranks_that_share_their_weights_probe_the_same(tmp_path: Path, optical_shards: Path, chips: Path):
    given = [("--engine.zero", "3"), ("--engine.zero", "3", *probed(chips))]
    for name, arguments in zip(("without", "beside"), given, strict=True):
        command = arguments_of(tmp_path / name, [optical_shards], *STEPS, *arguments)
        ended = Ranks(command, 2).wait()
        assert [code for code, _ in ended] == [0, 0], ended[0][1]
    assert logged(tmp_path / "without") == logged(tmp_path / "beside")
    found = [record for record in records(tmp_path / "beside") if "accuracy" in record]
    assert [record["step"] for record in found] == [0, 2, 3]  # the first, every third, the last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe.data", "nowhere"], "error: nowhere"),
        (["--probe.data", "{chips}", "--probe.sensor", "sentinel9"], "probe.sensor is 'sentinel9', the run has"),
        (["--probe.data", "{scaled}"], "its images are not what sensor synthetic-optical measures"),
        (["--probe.data", "{chips}/bright"], "error: "),
    ],
)
def test_a_probe_that_cannot_be_made_is_told_before_the_first_step(
    tmp_path: Path, optical_shards: Path, chips: Path, arguments: list[str], message: str
):
    for number, name in enumerate(("one/1", "one/2", "two/1", "two/2"), start=1):  # reflectance, not counts
        image = np.full((10, 32, 32), 0.2 + number / 100, np.float32) + np.eye(32, dtype=np.float32) / 9
        write_tiff(tmp_path / "scaled" / f"{name}.tif", image)
    given = [text.format(chips=chips, scaled=tmp_path / "scaled") for text in arguments]
    ended = pretrain(tmp_path / "run", [optical_shards], *STEPS, *given)
    assert ended.returncode == 2, ended.stdout
    assert message in ended.stdout.strip().splitlines()[-1] and "Traceback" not in ended.stdout
    assert not metrics(tmp_path / "run") if (tmp_path / "run" / "metrics.jsonl").exists() else True
