"""finetune/probe.py: several sets at once, dense labels, raw statistics and an untrained encoder beside."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from alliance.checkpoint import load_encoder, save_encoder
from alliance.encoder import AllianceEncoder
from alliance.sensors import Band, Sensor
from datasets.imagery.images import SensorSource, read_image
from datasets.imagery.labels import IGNORE
from engine.probe_images import open_probe_set
from engine.probing import Labelled, probe, raw_statistics
from finetune.probing.command import main, untrained
from finetune.probing.dense import mean_iou, patch_labels
from tests.helpers.models import TINY_ENCODER, natural_image
from tests.helpers.rasters import counts, write_tiff

NAMES = ("green", "red", "nir")
SENSOR = Sensor(
    name="three",
    bands=tuple(
        Band(name=name, wavelength=nm, bandwidth=50.0, scale=1e-4, mean=0.2, std=0.05)
        for name, nm in zip(NAMES, (560.0, 665.0, 842.0), strict=True)
    ),
    nodata=0.0,
)
BRIGHTNESS = {"dark": 0.12, "middle": 0.2, "bright": 0.3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return save_encoder(AllianceEncoder(TINY_ENCODER, [SENSOR]), tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in brightness, 12 images each of 18 x 17 pixels."""
    folder = tmp_path_factory.mktemp("chips")
    for place, (name, level) in enumerate(BRIGHTNESS.items()):
        for number, image in enumerate(natural_image(12, 3, 18, 17, seed=place).numpy()):
            stored = np.round((level + 0.02 * image) * 1e4).clip(1).astype(np.uint16)
            write_tiff(folder / name / f"{number}.tif", stored, names=NAMES)
    return folder


def test_raw_statistics_tell_brightness_and_stand_beside_every_score(
    tmp_path: Path, checkpoint: Path, chips: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--data", f"one={chips}", "--data", f"two@three={chips}", "--fit", "crop", "--out", str(tmp_path)]
    main([str(checkpoint), *given])
    record = json.loads((tmp_path / "scores.json").read_text())
    told = [(row["data"], row["kind"], row["readout"]) for row in record["probes"]]
    kinds = [(kind, readout) for readout in ("cls", "mean", "mean_std", "groups") for kind in ("knn", "linear")]
    assert told == [(data, *each) for data in ("one", "two") for each in kinds]
    assert all(row["raw statistics"]["accuracy"] > 90 for row in record["probes"])  # one image in 18 may be wrong
    assert all(
        row["encoder"]["low"] <= row["encoder"]["accuracy"] <= row["encoder"]["high"] for row in record["probes"]
    )
    said = capsys.readouterr().out
    assert "one: 3 classes, 18 images to learn from, 18 scored, 16 x 16 pixels of three" in said
    assert "raw statistics 94.4 (83.3 to 100.0)" in said or "raw statistics 100.0 (100.0 to 100.0)" in said


def test_images_are_resized_or_their_middles_cut_out_as_in_the_tasks(chips: Path):
    """Of 18 x 17 pixels with a patch of 4: squares of 16 by either choice."""
    resized, cut = (open_probe_set(chips, SENSOR, 4, fit=fit).train.images for fit in ("resize", "crop"))
    assert resized.shape == cut.shape == (18, 3, 16, 16)
    stored = [read_image(path, SensorSource(known=SENSOR)).numbers for path in sorted(chips.glob("*/*.tif"))]
    middles = [(image[:, 1:17, :16] - 0.2) / 0.05 for image in stored]
    assert all(any(torch.allclose(one, middle, atol=1e-4) for middle in middles) for one in cut)
    whole = [
        functional.interpolate((image[None] - 0.2) / 0.05, (16, 16), mode="bilinear", antialias=True)[0]
        for image in stored
    ]
    assert all(any(torch.allclose(one, each, atol=1e-4) for each in whole) for one in resized)


def test_the_score_is_that_of_the_probe_on_the_encoders_features(tmp_path: Path, checkpoint: Path, chips: Path):
    given = ["--kind", "linear", "--readout", "mean", "--out", str(tmp_path), "--seed", "3"]
    main([str(checkpoint), "--data", f"one={chips}", *given])
    (row,) = json.loads((tmp_path / "scores.json").read_text())["probes"]
    encoder = load_encoder(checkpoint)
    images = open_probe_set(chips, SENSOR, encoder.patch_size, seed=3)
    with torch.no_grad():
        for name, each in (("encoder", encoder), ("untrained", untrained(encoder, 3))):
            parts = [
                Labelled(each(part.images * 0.05 + 0.2, SENSOR).tokens.mean((1, 2)), part.labels)
                for part in (images.train, images.test)
            ]  # physical images
            expected = probe("linear", *parts, seed=3)
            assert row[name]["accuracy"] == pytest.approx(100 * expected.accuracy, abs=6)  # one of 18 images
    raw = [Labelled(raw_statistics(part.images), part.labels) for part in (images.train, images.test)]
    assert row["raw statistics"]["accuracy"] == pytest.approx(100 * probe("linear", *raw, seed=3).accuracy, abs=0.01)


def test_a_patch_has_the_class_of_most_of_its_pixels():
    label = torch.tensor([[0, 0, 1, 1], [0, 2, 1, IGNORE], [2, IGNORE, 1, IGNORE], [2, 2, IGNORE, IGNORE]])
    assert patch_labels(label, 2, 3).tolist() == [0, 1, 2, -1]


def test_the_interval_of_a_mean_iou_holds_it_and_one_image_has_none():
    right, wrong = torch.tensor([[5, 0], [0, 5]]), torch.tensor([[0, 5], [5, 0]])
    found = mean_iou(torch.stack([right, right, right, wrong]))
    assert found.accuracy == pytest.approx(15 / 25)  # 15 right of each class, 5 taken for the other and 5 for it
    assert found.low < found.accuracy < found.high
    assert np.isnan(mean_iou(right[None]).low)


def test_label_maps_are_probed_patch_by_patch(tmp_path: Path, checkpoint: Path):
    """Left and right halves differ in brightness: raw statistics of patches find every pixel."""
    for number in range(4):
        image = np.full((3, 24, 32), 1200, np.uint16)
        image[..., 16:] = 3000
        image += np.random.default_rng(number).integers(0, 100, image.shape).astype(np.uint16)
        write_tiff(tmp_path / "images" / f"{number}.tif", image, names=NAMES)
        write_tiff(tmp_path / "labels" / f"{number}.tif", (image[:1] > 2000).astype(np.uint8))
    (tmp_path / "set.yaml").write_text(
        "name: halves\nimages: {optical: {files: images, bands: [1, 2, 3]}}\nlabel: {files: labels}\nclasses: [dark, bright]\n"
        "splits: {train: ['0', '1'], test: ['2', '3']}\n"
    )
    main([str(checkpoint), "--masks", f"halves={tmp_path / 'set.yaml'}", "--out", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["probes"]
    assert [(row["kind"], row["readout"]) for row in rows] == [("dense", "mean"), ("dense", "groups")]
    assert all(row["raw statistics"]["accuracy"] == 100.0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to probe on; give --data NAME=FOLDER of classes"),
        (["--data", "nowhere"], "--data 'nowhere': give NAME=PLACE"),
        (["--data", "x=nowhere"], "nowhere"),
        (["--data", "x@sentinel2-l2a={chips}"], "sensor sentinel2-l2a has no mean and std"),
        (["--data", "x={chips}/dark"], "error: "),
        (["--data", "x={chips}", "--sensor", "rgb-uint8"], "rgb-uint8 has no mean and std"),
        (
            ["--data", "x={rgb}"],
            "; --bands names those of three that the images have; images of another sensor are read by --data x@SENSOR.yaml={rgb}",
        ),
        (["--masks", "x=nowhere"], "unknown data set 'nowhere'"),
    ],
)
def test_a_wrong_input_is_one_message(
    tmp_path: Path,
    checkpoint: Path,
    chips: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    rgb = tmp_path / "rgb"
    for seed, name in enumerate(BRIGHTNESS):
        for number in range(4):
            write_tiff(
                rgb / name / f"{number}.tif", counts((3, 18, 17), 4 * seed + number), names=("red", "green", "blue")
            )
    places = {"chips": chips, "rgb": rgb}
    with pytest.raises(SystemExit) as ended:
        main([str(checkpoint), "--out", str(tmp_path / "out"), *(text.format(**places) for text in arguments)])
    assert ended.value.code == 2
    assert message.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
