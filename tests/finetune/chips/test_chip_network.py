"""The network of whole images: what it computes, what learns, its files; losses and scores; tables and footprints."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio.crs import CRS
from rasterio.warp import transform
from sklearn.metrics import average_precision_score, f1_score, log_loss
from torch import Tensor, nn

from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.readout import read_out
from datasets.imagery.images import ImageSource
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Scene
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig
from finetune.chips.checkpoint import load_chips, probabilities, save_chips
from finetune.chips.losses import multilabel_loss, scene_loss
from finetune.chips.model import IMAGE, ChipConfig, ChipNetwork
from finetune.chips.scores import Labelled, RankedPairs, multilabel_record, percents, scene_record
from finetune.chips.tables import Line, footprint, write_footprints, write_labels
from finetune.model_files import Inputs, image_input
from tests.helpers.models import randomise
from tests.helpers.rasters import write_tiff

S2 = InputSensor(sensor="sentinel2-l2a", bands=("B02", "B03", "B04", "B08", "B11"))  # two band groups
WIDTHS = {"cls": 96, "mean": 96, "mean_std": 192, "groups": 384}


def network(mode: str = "frozen", checkpoint: str = "", **changes: Any) -> ChipNetwork:
    torch.manual_seed(0)
    encoder = TransferConfig(model="alliance_nano_patch8", mode=mode, sensors={IMAGE: S2})  # pyright: ignore[reportArgumentType]
    model = ChipNetwork(ChipConfig(encoder=encoder, **changes), {"image": 5}, 3, 16, checkpoint=checkpoint)
    randomise(model, std=0.05)
    return model.eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 5, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("readout", WIDTHS)
def test_logits_are_a_linear_map_of_the_normalised_read_out(readout: str) -> None:
    model = network(readout=readout)
    features = read_out(model.encoder.features(images(), IMAGE), readout)  # pyright: ignore[reportArgumentType]
    assert features.shape == (2, WIDTHS[readout])
    normal = (features - features.mean(1, keepdim=True)) / (features.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    last = model.head[-1]
    assert isinstance(last, nn.Linear)
    expected = (normal * model.norm.weight + model.norm.bias) @ last.weight.T + last.bias
    assert torch.allclose(model(images()).logits, expected, atol=1e-5)


def test_features_are_those_of_the_encoder_on_standardised_images() -> None:
    model = network()
    sensor = model.encoder.readings[IMAGE].sensor
    known = sensor.with_statistics([0.0] * 5, [1.0] * 5)
    expected = model.encoder.encoder(images(), known)
    for one, two in zip(model.encoder.features(images(), IMAGE), expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["frozen", "full", "lora"])
def test_what_learns(mode: str) -> None:
    model = network(mode, head="mlp").train()
    scene_loss(model(images()).logits, torch.eye(3)[:2], torch.ones(2), 0.0).backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"norm.weight", "head.0.weight", "head.3.weight"} <= learns
    assert any(name.startswith("encoder") for name in learns) == (mode != "frozen")


@pytest.mark.parametrize(("mode", "head", "task"), [("lora", "mlp", "multilabel"), ("full", "linear", "scene")])
def test_a_written_network_says_the_same(mode: str, head: str, task: Any, tmp_path: Path) -> None:
    model = network(mode, head=head, readout="groups")
    source = ImageSource(sensor=S2.sensor, bands=S2.bands, mean=(0.1,) * 5, std=(0.2,) * 5)
    inputs = Inputs(classes=dict.fromkeys("xyz", (0, 0, 0)), images={IMAGE: image_input(source)})
    save_chips(model, model.state_dict(), tmp_path, inputs, task=task)
    found = load_chips(tmp_path)
    assert torch.allclose(found.network(images()).logits, model(images()).logits, atol=1e-5)
    assert (found.classes, found.task, found.network.size) == (("x", "y", "z"), task, 16)
    assert found.image.described.mean == (0.1,) * 5
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | {"size": "large"}))
    with pytest.raises(InputError, match="is not the configuration of a network that labels images"):
        load_chips(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(record | {"task": "pad"}))
    with pytest.raises(InputError, match="is of a network of task pad; needed is scene or multilabel"):
        load_chips(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ChipConfig(readout="max"), "readout 'max' is not one of cls, mean, mean_std, groups"),  # pyright: ignore[reportArgumentType]
        (lambda: ChipConfig(head="deep"), "head 'deep' is not one of linear, mlp"),  # pyright: ignore[reportArgumentType]
        (lambda: ChipNetwork(network().config, {"image": 5}, 3, 20), "data.size is 20, the encoder's patch 8 pixels; give a multiple, such as 16"),
        (lambda: network()(torch.zeros(1, 5, 24, 24)), "images are (1, 5, 24, 24), the network takes (b, 5, 16, 16)"),
        (lambda: ChipConfig(encoder=TransferConfig(sensors={"rgb": S2})).with_sensors({"image": ImageSource()}),
         "encoder.sensors names the input rgb; the inputs are image"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        change()
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_cls_of_an_encoder_without_one_is_refused(tmp_path: Path) -> None:
    from alliance import save_encoder

    save_encoder(AllianceEncoder(EncoderConfig(embed_dim=48, depth=1, heads=3, tokens="none")), tmp_path / "encoder")
    with pytest.raises(InputError, match="model.readout is cls, which this encoder does not have"):
        network(checkpoint=str(tmp_path / "encoder"), readout="cls")


# Losses


def test_losses_are_those_of_scikit_learn_over_the_images_with_weight() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(5, 3).double(), torch.tensor([0, 2, 1, 0, 2])
    weight = torch.tensor([1.0, 1, 0, 1, 1])
    kept = weight > 0
    expected = log_loss(truth[kept], logits[kept].softmax(1), labels=[0, 1, 2])
    target = nn.functional.one_hot(truth, 3).float()
    assert scene_loss(logits, target, weight, 0.0).item() == pytest.approx(expected, rel=1e-5)
    smooth = 0.8 * expected - 0.2 * logits[kept].log_softmax(1).mean().item()
    assert scene_loss(logits, target, weight, 0.2).item() == pytest.approx(smooth, rel=1e-5)
    several = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    chances = logits.sigmoid()[kept].flatten()
    expected = log_loss(several[kept].flatten(), torch.stack([1 - chances, chances], 1), labels=[0, 1])
    assert multilabel_loss(logits, several, weight).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_with_weight_is_no_loss() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    scene_loss(logits, torch.zeros(2, 3), torch.zeros(2), 0.1).backward()
    assert logits.grad is not None and not logits.grad.any()


# Scores


def labelled(count: int = 60, classes: int = 4, seed: int = 0) -> Labelled:
    """Probabilities that know something of the truth, with ties; the last class has no image."""
    generator = np.random.default_rng(seed)
    truth = generator.random((count, classes)) < 0.3
    truth[:, -1] = False
    return Labelled(np.round(0.3 * truth + 0.7 * generator.random((count, classes)), 1), truth)


def test_scores_of_several_labels_are_those_of_scikit_learn_on_classes_that_occur() -> None:
    found = labelled()
    record = multilabel_record(found, "abcd", resamples=0)
    there, predicted = found.truth[:, :3], found.probabilities >= 0.5
    expected = average_precision_score(there, found.probabilities[:, :3], average="macro")
    assert record["map_macro"] == pytest.approx(100 * expected, abs=0.006)
    micro = average_precision_score(found.truth, found.probabilities, average="micro")
    assert record["map_micro"] == pytest.approx(100 * micro, abs=0.006)
    assert record["f1_micro"] == pytest.approx(100 * f1_score(found.truth, predicted, average="micro"), abs=0.006)
    assert record["ap"]["d"] is None and record["positives"]["d"] == 0 and record["map_micro_interval"] is None
    assert record["confusion"][0] == [
        [int((~there[:, 0] & ~predicted[:, 0]).sum()), int((~there[:, 0] & predicted[:, 0]).sum())],
        [int((there[:, 0] & ~predicted[:, 0]).sum()), int((there[:, 0] & predicted[:, 0]).sum())],
    ]


def test_a_hand_worked_average_precision() -> None:
    """Ranked: true, false, true; precision 1 at recall 1/2, 2/3 at recall 1."""
    found = Labelled(np.array([[0.9], [0.8], [0.4]]), np.array([[True], [False], [True]]))
    record = multilabel_record(found, "a", resamples=0)
    assert record["map_macro"] == pytest.approx(100 * (1 / 2 + 1 / 3), abs=0.006)
    assert record["f1_micro"] == record["f1_macro"] == 50.0  # of one true and one false prediction, one is missed


def test_weighted_average_precision_is_that_of_scikit_learn() -> None:
    found, generator = labelled(), np.random.default_rng(3)
    ranked = RankedPairs.of(found.truth, found.probabilities)
    for _ in range(5):
        weights = generator.integers(0, 4, len(found.truth)).astype(float)
        expected = average_precision_score(
            found.truth.ravel(), found.probabilities.ravel(), sample_weight=weights.repeat(4)
        )
        assert ranked.average_precision(weights) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(ranked.average_precision(np.zeros(len(found.truth))))


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    """300 of 400 right: 75 % +- 1.96 sqrt(.75 * .25 / 400)."""
    right = np.zeros(400)
    right[:300] = 1
    low, high = percents(lambda weights: float(weights @ right / 400), 400, 4000) or (0, 0)
    half = 100 * 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(75 - half, abs=0.4) and high == pytest.approx(75 + half, abs=0.4)
    assert percents(lambda weights: 0.0, 400, 0) is None


def test_scores_of_one_label_each_as_counted_by_hand() -> None:
    truth = np.eye(3, dtype=bool)[[0, 0, 0, 1, 1]]
    chances = np.eye(3)[[0, 0, 1, 1, 2]]
    record = scene_record(Labelled(chances, truth), "abc", resamples=100)
    assert (record["oa"], record["aa"]) == (60.0, pytest.approx((200 / 3 + 50) / 2, abs=0.006))
    assert record["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 0]] and record["per_class"]["c"] is None
    assert record["oa_interval"][0] < 60 < record["oa_interval"][1]


def test_probabilities_of_one_label_add_up_and_of_several_do_not() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    assert probabilities(logits, "scene").tolist() == [[0.5, 0.5]]
    assert probabilities(torch.tensor([[100.0, 100.0]]), "multilabel").tolist() == [[1, 1]]


# Tables and footprints


def scene_at(folder: Path, **profile: Any) -> Scene:
    write_tiff(folder / "a.tif", np.zeros((3, 10, 20), dtype=np.uint8), **profile)
    return describe_raster(folder / "a.tif", folder)


def test_a_footprint_is_the_corners_in_degrees_anticlockwise(tmp_path: Path) -> None:
    ring = footprint(scene_at(tmp_path))
    assert ring is not None and ring[0] == ring[-1] and len(ring) == 5
    x, y = [400_000, 400_000, 400_200, 400_200], [5_000_000, 4_999_900, 4_999_900, 5_000_000]
    lon, lat = transform(CRS.from_epsg(32633), CRS.from_epsg(4326), x, y)[:2]
    assert np.allclose(ring[:4], np.column_stack([lon, lat]), atol=1e-8)
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:], strict=False))
    assert area > 0
    assert footprint(scene_at(tmp_path, crs=None)) is None


def test_tables_hold_labels_and_probabilities(tmp_path: Path) -> None:
    lines = [Line("a.tif", np.array([0.9, 0.6]), {"truth": "x"}), Line("b, c.tif", np.array([0.2, 0.1]), {"truth": ""})]
    write_labels(tmp_path / "t.csv", lines, ("x", "file"), several=True)
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"file": "a.tif", "label": "x;file", "truth": "x", "p_x": "0.900000", "p_file": "0.600000"},
        {"file": "b, c.tif", "label": "", "truth": "", "p_x": "0.200000", "p_file": "0.100000"},
    ]
    count = write_footprints(tmp_path / "t.geojson", [(lines[0], scene_at(tmp_path))], ("x", "y"), several=False)
    (feature,) = json.loads((tmp_path / "t.geojson").read_text())["features"]
    assert count == 1 and feature["properties"] == {
        "file": "a.tif", "label": "x", "probabilities": {"x": 0.9, "y": 0.6}
    }  # fmt: skip
