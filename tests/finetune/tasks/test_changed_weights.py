"""A run that began with weights from a folder does not go on when that folder, under the same name, holds others."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alliance.checkpoint import save_encoder
from alliance.encoder import AllianceEncoder
from alliance.sensors.catalog import find_sensor
from datasets.releases.command import main as prepare
from datasets.synthetic.chips import write_chips
from datasets.synthetic.labelled_scenes import write_labelled
from datasets.synthetic.pair_trees import write_whu
from finetune.pad.checkpoint import save_pad
from finetune.pad.model import Pad, PadConfig
from tests.finetune.sweep import test_classify
from tests.finetune.tasks import test_dense_tasks, test_scene, test_segment
from tests.helpers import warm
from tests.helpers.dates import write_dates
from tests.helpers.models import TINY_ENCODER, sensor_of
from tests.helpers.runs import ROOT, TIMEOUT, environment

ATTO = PadConfig(size="atto")
RGB = find_sensor("rgb-uint8").with_statistics([0.2, 0.3, 0.4], [0.1, 0.15, 0.2])
SAR = find_sensor("sentinel1-grd-db").with_statistics([-11.0, -18.0], [4.0, 5.0])
POLSAR = sensor_of(4, name="polsar").with_statistics([2.0] * 4, [3.0] * 4)
FOUR_BLOCKS = dataclasses.replace(TINY_ENCODER, depth=4)  # dense tasks read four levels
STEPS = ("--run.steps", "2", "--run.save_every", "1", "--evaluate_every", "2")


def write_encoder(folder: Path) -> str:
    return str(save_encoder(AllianceEncoder(FOUR_BLOCKS, [RGB, SAR, POLSAR]), folder / "weights"))


def of_a_network(folder: Path) -> list[str]:
    write_whu(folder / "raw", height=64, width=96)
    prepare(["whu-opt-sar", str(folder / "raw"), str(folder / "tiles"), "--tile", "32", "--constants", "released"])
    save_pad(ATTO, Pad(ATTO).state_dict(), folder / "weights")
    own = ("--run.dir", str(folder / "run"), "--data.set", str(folder / "tiles" / "pairs.yaml"))
    return ["segment.py", *test_segment.SMALL, *own, *STEPS, "--start.network", str(folder / "weights")]


def of_a_scene(folder: Path) -> list[str]:
    write_chips(folder / "data", chips=30, size=24, classes=3)
    own = ("--run.dir", str(folder / "run"), "--data.path", str(folder / "data"), "--checkpoint", write_encoder(folder))
    return ["scene.py", *own, *test_scene.SMALL, *STEPS]


def of_a_change(folder: Path) -> list[str]:
    options = test_dense_tasks.change_options(folder / "run", write_dates(folder / "data"), *STEPS)
    return ["change.py", *options, "--checkpoint", write_encoder(folder)]


def of_seeds_of_change(folder: Path) -> list[str]:
    return [*of_a_change(folder), "--seeds", "0,1", "--jobs", "1"]


def of_pixels(folder: Path) -> list[str]:
    write_labelled("augsburg", folder / "data", height=48, width=64, classes=3)
    more = ("--epochs", "2", "--references", "false", "--maps", "none", "--checkpoint", write_encoder(folder))
    sensors = ("--model.encoder.sensors", "{active: {sensor: polsar}}")
    return ["classify.py", *test_classify.command(folder / "run", folder / "data", *more, *sensors)[1:]]


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors")


def other_wavelength(folder: Path) -> None:
    sensors = json.loads((folder / "sensors.json").read_text())
    sensors[0]["bands"][0]["wavelength"] += 1
    (folder / "sensors.json").write_text(json.dumps(sensors))


@pytest.mark.parametrize(
    ("of", "change", "named"),
    [
        (of_a_network, other_weights, "weights.start.network"),
        (of_a_scene, other_weights, "weights.checkpoint"),
        (of_a_scene, other_wavelength, "weights.checkpoint"),
        (of_a_change, other_weights, "weights.checkpoint"),
        pytest.param(of_seeds_of_change, other_weights, "contents of checkpoint", marks=pytest.mark.long),
        pytest.param(of_pixels, other_weights, "contents of checkpoint", marks=pytest.mark.long),
    ],
)
def test_other_weights_under_the_same_name_are_another_run(
    of: Callable[[Path], list[str]], change: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    script, *options = of(tmp_path)
    command = [str(ROOT / "finetune" / script), *options, "--run.resume", "auto"]
    begun = warm.run(command, environment(), TIMEOUT)
    assert begun.returncode == 0, begun.stdout
    for path in (tmp_path / "run").rglob("scores.json"):
        path.unlink()
    (last,) = sorted(path.parent for path in (tmp_path / "run").rglob("MANIFEST.json"))[-1:]
    (last / "MANIFEST.json").unlink()
    change(tmp_path / "weights")
    refused = warm.run(command, environment(), TIMEOUT)
    assert refused.returncode == 2 and f"another {named}" in refused.stdout, refused.stdout
    assert "Traceback" not in refused.stdout
