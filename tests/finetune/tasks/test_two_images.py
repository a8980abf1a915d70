"""Two images of every patch, in the layout of BigEarthNet: paired, read, trained on, scored without the one or the other."""

import csv
import json
import shutil
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
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig
from finetune.chips.checkpoint import load_chips, save_chips
from finetune.chips.model import IMAGE, ChipConfig, ChipNetwork
from finetune.mapping.command import main as predict
from finetune.model_files import Inputs, image_input
from finetune.tasks.chips_config import ChipDataConfig, MultilabelConfig
from finetune.tasks.chips_data import open_parts
from finetune.tasks.multilabel import Multilabel
from tests.helpers.runs import PLAIN, ROOT, Ranks

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
               "--run.log_every", "1", *PLAIN, "--resamples", "5", "--augment.mixup", "0.5"]  # fmt: skip
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


def label(run: Path, images: Path, out: Path, *more: object) -> dict[str, dict[str, str]]:
    """The table that the command writes, by file."""
    given = ["--checkpoint", run, "--images", images, "--out", out, "--device", "cpu", *more]
    predict([str(each) for each in given])
    return table(out)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def copied(patches: Path, folder: Path, count: int) -> list[Path]:
    """The first radar patches, elsewhere."""
    some = sorted((patches / "S1").iterdir())[:count]
    return [Path(shutil.copytree(each, folder / each.name)) for each in some]


def partner(radar: Path) -> str:
    record = json.loads((radar / f"{radar.name}_labels_metadata.json").read_text())
    return record["corresponding_s2_patch"]


def test_new_pairs_get_the_probabilities_of_the_run(run: tuple[Path, list[str]], patches: Path, tmp_path: Path) -> None:
    """Whose metadata hold no labels, in one batch or several; footprints are those of the first images."""
    beside = tmp_path / "S1"
    for radar in copied(patches, beside, 20):
        (radar / f"{radar.name}_labels_metadata.json").write_text(
            json.dumps({"corresponding_s2_patch": partner(radar)})
        )
    expected = table(run[0] / "predictions.csv")
    outlines = tmp_path / "outlines.geojson"
    found = label(
        run[0], patches / "S2", tmp_path / "a.csv", "--beside", beside, "--batch", 3, "--footprints", outlines
    )
    assert len(found) == 20 and len(expected) == 4
    for name, row in expected.items():
        for column in [each for each in row if each.startswith("p_")]:
            assert float(found[name][column]) == pytest.approx(float(row[column]), abs=2e-6)
        assert found[name]["label"] == row["label"]
    features = json.loads(outlines.read_text())["features"]
    assert {each["properties"]["file"] for each in features} == {each.name for each in (patches / "S2").iterdir()}
    (one,) = label(run[0], patches / "S2" / next(iter(expected)), tmp_path / "b.csv", "--beside", beside).values()
    assert one["file"] in expected


def test_pairs_that_are_none_are_named_and_left_out(
    run: tuple[Path, list[str]], patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a second image, or one of another place."""
    radar = copied(patches, tmp_path / "S1", 19)
    for path in radar[0].glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.transform = file.transform * rasterio.Affine.translation(1, 0)
    found = label(run[0], patches / "S2", tmp_path / "a.csv", "--beside", tmp_path / "S1")
    said = " ".join(capsys.readouterr().out.split())
    assert set(found) == {partner(each) for each in radar[1:]}
    (lone,) = {each.name for each in (patches / "S2").iterdir()} - set(found) - {partner(radar[0])}
    assert f"left out: {lone}: no image below {tmp_path / 'S1'} belongs to it" in said
    assert (
        f"left out: {partner(radar[0])}: it and {radar[0]}, beside it: footprints differ by 10 map units, 1 pixels"
        in said
    )
    with pytest.raises(SystemExit):
        label(run[0], patches / "S2" / lone, tmp_path / "b.csv", "--beside", tmp_path / "S1")
    assert f"no image with a second one beside it; {lone}: no image below" in capsys.readouterr().err


def test_pairs_of_different_places_are_not_trained_on(patches: Path, tmp_path: Path) -> None:
    for radar in copied(patches, tmp_path / "S1", 20):
        for path in radar.glob("*.tif"):
            with rasterio.open(path, "r+") as file:
                file.transform = file.transform * rasterio.Affine.translation(0, 3)
    data = ChipDataConfig(
        path=str(patches / "S2"), labels="bigearthnet", image=OPTICAL, beside=RADAR, beside_path=str(tmp_path / "S1")
    )
    with pytest.raises(InputError, match=r"it and .*S1A.*, beside it: footprints differ by 30 map units"):
        open_parts(data, several=True, seed=0)


def test_second_images_are_given_where_the_network_takes_them_alone(
    run: tuple[Path, list[str]], patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        label(run[0], patches / "S2", tmp_path / "a.csv")
    assert "takes two images of every patch; give also --beside PATH, a folder of sentinel1-grd-db images" in (
        capsys.readouterr().err
    )
    encoder = TransferConfig(model="alliance_nano_patch8", sensors={IMAGE: InputSensor(sensor="sentinel1-grd-db")})
    network = ChipNetwork(ChipConfig(encoder=encoder), {IMAGE: 2}, 3, 16)
    inputs = Inputs(classes=dict.fromkeys("abc", (1, 2, 3)), images={IMAGE: image_input(GIVEN)})
    save_chips(network, network.state_dict(), tmp_path / "model", inputs, task="scene")
    with pytest.raises(SystemExit):
        label(tmp_path, patches / "S1", tmp_path / "a.csv", "--beside", patches / "S2")
    assert "takes one image of every place; omit --beside" in capsys.readouterr().err


def test_radar_of_another_unit_is_refused(
    run: tuple[Path, list[str]], patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Power in place of decibel, in the second images alone."""
    for radar in copied(patches, tmp_path / "S1", 4):
        for path in radar.glob("*.tif"):
            with rasterio.open(path, "r+") as file:
                file.write(10 ** (file.read() / 10))
    with pytest.raises(SystemExit):
        label(run[0], patches / "S2", tmp_path / "a.csv", "--beside", tmp_path / "S1")
    assert "as the beside image, which is not what the network was trained on" in capsys.readouterr().err


def test_the_real_patches_are_paired(shared_data: Path) -> None:
    found = find_chips(pairs(shared_data / "bigearthnet"), several=True)
    assert len(found.chips) == 4 and not found.skipped and all(len(chip.beside) == 2 for chip in found.chips)
    optical = ImageSource(sensor="sentinel2-l2a", mean=(0.1,) * 12, std=(0.2,) * 12)
    chips = Chips("all", found.chips, found.classes, optical, GIVEN)
    for number in range(4):  # on one ground
        assert [image.header.shape for image in chips.images(number)] == [(12, 120, 120), (2, 120, 120)]
