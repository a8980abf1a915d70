"""Two images of every patch, in the layout of BigEarthNet: paired, read, trained on, scored without the one or the other."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from sklearn.metrics import average_precision_score, f1_score

from alliance.errors import InputError
from alliance.readout import read_out
from datasets.chips.chip import ChipSet
from datasets.chips.labels import find_chips
from datasets.chips.reading import Chips
from datasets.imagery.images import ImageSource
from datasets.synthetic.bigearthnet import write_bigearthnet
from engine.ranks import World
from engine.settings import parse_settings
from engine.signals import StopRequest
from engine.watch import Watch
from finetune.backbones.alliance_encoder import TransferConfig
from finetune.chips.checkpoint import load_chips
from finetune.chips.model import ChipConfig, ChipNetwork
from finetune.mapping.command import main as predict
from finetune.tasks.chips_config import MultilabelConfig
from finetune.tasks.multilabel import Multilabel
from tests.helpers.runs import ROOT, Ranks

OPTICAL, RADAR = (
    ImageSource(sensor="sentinel2-l2a", statistics="dataset"),
    ImageSource(sensor="sentinel1-grd-db", statistics="dataset"),
)
WORLD = World(0, 1, torch.device("cpu"), Watch(0, 1), StopRequest())
GIVEN = ImageSource(sensor="sentinel1-grd-db", mean=(-10.0, -17.0), std=(4.0, 5.0))


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 patches of 12 pixels."""
    folder = tmp_path_factory.mktemp("patches") / "both"
    write_bigearthnet(folder, patches=20, size=12)
    return folder


def pairs(patches: Path, beside: Path | None = None) -> ChipSet:
    return ChipSet(
        path=str(patches / "S2"),
        labels="bigearthnet",
        image=OPTICAL,
        beside=RADAR,
        beside_path=str(beside or patches / "S1"),
    )


def test_each_radar_patch_stands_beside_the_one_that_its_metadata_name(patches: Path) -> None:
    found = find_chips(pairs(patches), several=True)
    assert len(found.chips) == 20 and not found.skipped
    for chip in found.chips:
        number = chip.name.split("_")[-2]
        assert {file.parent.name.split("_")[-2] for file in chip.beside} == {number}
        assert sorted(file.stem[-2:] for file in chip.beside) == ["VH", "VV"] and len(chip.files) == 12


def test_patches_without_a_partner_are_named_and_two_partners_refused(patches: Path, tmp_path: Path) -> None:
    some = sorted((patches / "S1").iterdir())[:6]
    for each in some:
        (tmp_path / "S1" / each.name).mkdir(parents=True)
        for file in each.iterdir():
            (tmp_path / "S1" / each.name / file.name).write_bytes(file.read_bytes())
    found = find_chips(pairs(patches, tmp_path / "S1"), several=True)
    assert len(found.chips) == 6 and len(found.skipped) == 14
    assert "no image below" in found.skipped[0].reason and "belongs to it" in found.skipped[0].reason
    metadata = tmp_path / "S1" / some[0].name / f"{some[0].name}_labels_metadata.json"
    record = json.loads(metadata.read_text())
    other = tmp_path / "S1" / some[1].name / f"{some[1].name}_labels_metadata.json"
    other.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"belong to {record['corresponding_s2_patch']}; take one"):
        find_chips(pairs(patches, tmp_path / "S1"), several=True)
    other.write_text(json.dumps({"labels": []}))
    with pytest.raises(InputError, match="does not hold the corresponding_s2_patch of a patch"):
        find_chips(pairs(patches, tmp_path / "S1"), several=True)


def test_a_folder_of_second_images_needs_a_description_and_the_other_way_round() -> None:
    for changes in (
        {"beside_path": "S1"},
        {"beside": RADAR},
        {"beside": RADAR, "beside_path": "S1", "labels": "folders"},
    ):
        with pytest.raises(InputError, match="second images, of labels bigearthnet alone, need both"):
            ChipSet(**{"path": "S2", "labels": "bigearthnet", **changes})


def test_the_channels_of_the_second_image_follow_those_of_the_first(patches: Path) -> None:
    found = find_chips(pairs(patches), several=True)
    optical = ImageSource(sensor="sentinel2-l2a", mean=(0.1,) * 12, std=(0.2,) * 12)
    chips = Chips("all", found.chips, found.classes, optical, GIVEN)
    image = chips.standardised(3)
    assert isinstance(image, torch.Tensor) and image.shape == (14, 12, 12) and chips.channels == 14
    for place, (name, mean, std) in enumerate((("VV", -10, 4), ("VH", -17, 5)), start=12):
        (path,) = [file for file in found.chips[3].beside if file.stem.endswith(name)]
        with rasterio.open(path) as file:
            assert np.allclose(image[place], (file.read(1) - mean) / std, atol=1e-5)


def test_features_of_both_sensors_stand_side_by_side() -> None:
    encoder = TransferConfig(model="alliance_nano_patch8", mode="full")
    config = ChipConfig(encoder=encoder, readout="groups").with_sensors({"image": OPTICAL, "beside": RADAR})
    model, seen = ChipNetwork(config, {"image": 12, "beside": 2}, 3, 16).eval(), []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    image = torch.randn(2, 14, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(image)
        one, other = model.encoder.features(image[:, :12], "image"), model.encoder.features(image[:, 12:], "beside")
        assert torch.allclose(
            seen[0], torch.cat([read_out(one, "groups"), read_out(other, "groups")], dim=1), atol=1e-5
        )
    with pytest.raises(InputError, match=r"the network takes \(b, 14, 16, 16\)"):
        model(image[:, :12])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, patches: Path) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("run") / "both"
    options = ["--run.dir", str(folder), "--data.path", str(patches / "S2"), "--data.labels", "bigearthnet",
               "--data.image", "{sensor: sentinel2-l2a, statistics: dataset}", "--data.beside", "{sensor: sentinel1-grd-db, statistics: dataset}",
               "--data.beside_path", str(patches / "S1"), "--data.size", "16", "--model.encoder.model", "alliance_nano_patch8",
               "--model.encoder.mode", "full", "--optim.batch", "4", "--data.workers", "1", "--run.steps", "4", "--evaluate_every", "2",
               "--run.log_every", "1", "--run.picture_every", "0", "--resamples", "5", "--augment.mixup", "0.5"]  # fmt: skip
    ((code, output),) = Ranks([str(ROOT / "finetune/multilabel.py"), *options], 1).wait()
    assert code == 0, output
    assert "without image: mAP micro" in output and "without beside: mAP micro" in output
    return folder, options


def test_a_network_is_scored_without_each_image_as_scikit_learn_does(run: tuple[Path, list[str]]) -> None:
    folder, options = run
    scores = json.loads((folder / "scores.json").read_text())
    job = Multilabel(parse_settings(MultilabelConfig, "", options), WORLD)
    network, chips = load_chips(folder / "model").network, job.data.chips["test"]
    truth = chips.targets.numpy() > 0
    images = torch.stack(
        [
            torch.nn.functional.interpolate(chips.standardised(n)[None], (16, 16), mode="bilinear")[0]
            for n in range(len(chips))
        ]
    )
    for said, lost in (
        (scores, None),
        (scores["without"]["image"], slice(0, 12)),
        (scores["without"]["beside"], slice(12, 14)),
    ):
        shown = images.clone()
        if lost is not None:
            shown[:, lost] = 0
        with torch.no_grad():
            chances = network(shown).logits.sigmoid().numpy()
        assert said["map_micro"] == pytest.approx(
            100 * average_precision_score(truth.ravel(), chances.ravel()), abs=0.02
        )
        assert said["f1_micro"] == pytest.approx(100 * f1_score(truth.ravel(), chances.ravel() >= 0.5), abs=0.02)
    for name in ("image", "beside"):
        without = scores["without"][name]
        assert without["drop"]["map_micro"] == pytest.approx(scores["map_micro"] - without["map_micro"], abs=0.006)


def test_such_a_network_labels_no_folder_of_single_images(
    run: tuple[Path, list[str]], patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        predict(["--checkpoint", str(run[0]), "--images", str(patches / "S2"), "--out", str(tmp_path / "labels.csv")])
    assert "takes two images of every patch" in capsys.readouterr().err


def test_the_real_patches_are_paired(shared_data: Path) -> None:
    found = find_chips(pairs(shared_data / "bigearthnet"), several=True)
    assert len(found.chips) == 4 and not found.skipped and all(len(chip.beside) == 2 for chip in found.chips)
