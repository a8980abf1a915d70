"""Exported networks that label whole images: stored numbers in, what the network itself says out, to 1e-4."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torch import Tensor

import alliance
from datasets.imagery.images import ImageSource
from finetune.backbones.alliance_encoder import TransferConfig
from finetune.chips.checkpoint import TASKS, load_chips, save_chips
from finetune.chips.model import BESIDE, IMAGE, ChipConfig, ChipNetwork
from finetune.export.command import main
from finetune.mapping.command import main as predict
from finetune.model_files import Inputs, image_input
from tests.helpers.models import randomise, tiny_model
from tests.helpers.rasters import write_tiff

BANDS = ("B02", "B03", "B04", "B08", "B11")  # two band groups
MEAN, STD = (0.1, 0.12, 0.15, 0.3, 0.2), (0.05, 0.04, 0.06, 0.1, 0.05)  # reflectance
RADAR_MEAN, RADAR_STD = (-10.0, -17.0), (4.0, 5.0)  # decibel
SIZE, CLASSES = 16, ("fields", "water", "town")


def stored(count: int) -> Tensor:
    """Counts of reflectance x 10000, in one pixel missing."""
    generator = torch.Generator().manual_seed(count)
    shape, columns = (count, 5, SIZE, SIZE), [torch.tensor(each)[:, None, None] for each in (MEAN, STD)]
    image = (1e4 * (columns[0] + columns[1] * torch.randn(shape, generator=generator))).round().clamp(1, 6000)
    image[0, 2, 3, 4] = 0
    return image


def decibel(count: int) -> Tensor:
    """Backscatter of two polarisations, one pixel missing in one of them."""
    noise = torch.randn((count, 2, SIZE, SIZE), generator=torch.Generator().manual_seed(count + 100))
    image = torch.tensor(RADAR_MEAN)[:, None, None] + torch.tensor(RADAR_STD)[:, None, None] * noise
    image[0, 1, 5, 6] = torch.nan
    return image


def trained(folder: Path, task: Any, readout: Any, head: Any, *, two: bool = False) -> ChipNetwork:
    """A network with random weights, in the `model` folder of a run; of one image or two."""
    optical = ImageSource(sensor="sentinel2-l2a", bands=BANDS, mean=MEAN, std=STD)
    radar = ImageSource(sensor="sentinel1-grd-db", mean=RADAR_MEAN, std=RADAR_STD)
    images = {IMAGE: optical} | ({BESIDE: radar} if two else {})
    channels = {name: len(source.moments[0]) for name, source in images.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = alliance.save_encoder(tiny_model({"encoder": {"depth": 1}}).encoder, folder / "encoder")
        config = ChipConfig(encoder=TransferConfig(mode="full"), readout=readout, head=head).with_sensors(images)
        network = ChipNetwork(config, channels, 3, SIZE, checkpoint=str(own)).eval()
        randomise(network, std=0.05)
    described = {name: image_input(source) for name, source in images.items()}
    inputs = Inputs(classes=dict.fromkeys(CLASSES, (1, 2, 3)), images=described)
    save_chips(network, network.state_dict(), folder / "model", inputs, task=task)
    return network


def optical_by_hand(image: Tensor) -> Tensor:
    """Standardised; a pixel that lacks a band is 0 in all."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (image * 1e-4 - mean) / std * (image != 0).all(dim=1, keepdim=True)


def radar_by_hand(image: Tensor) -> Tensor:
    """The same, of an image that marks missing numbers by NaN."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (RADAR_MEAN, RADAR_STD))
    return torch.where(image.isnan().any(dim=1, keepdim=True), 0.0, (image - mean) / std)


@torch.no_grad()
def expected_of(network: ChipNetwork, *images: Tensor) -> Tensor:
    """Logits of numbers that are standardised by hand."""
    shown = [by_hand(image) for by_hand, image in zip((optical_by_hand, radar_by_hand), images, strict=False)]
    return network(torch.cat(shown, dim=1)).logits


def session_of(path: Path) -> Any:
    """The file in onnxruntime, on one core."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("task", "readout", "head"),
    [("scene", "groups", "linear"), pytest.param("multilabel", "mean_std", "mlp", marks=pytest.mark.long)],
)
def test_an_onnx_file_labels_stored_numbers_in_any_batch(task: Any, readout: Any, head: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = trained(tmp_path, task, readout, head)
    main([str(tmp_path), str(tmp_path / "chips.onnx"), "--format", "onnx"])
    session = session_of(tmp_path / "chips.onnx")
    for count in (1, 2, 5):
        (logits,) = session.run(["logits"], {"image": stored(count).numpy()})
        np.testing.assert_allclose(logits, expected_of(network, stored(count)).numpy(), atol=1e-4)
    contract = json.loads(session.get_modelmeta().custom_metadata_map["contract"])
    assert (contract["task"], contract["multiple"], [each["name"] for each in contract["classes"]]) == (
        task,
        16,
        [*CLASSES],
    )
    assert contract["images"]["image"]["bands"] == [*BANDS] and contract["images"]["image"]["nodata"] == [0.0]


def test_an_onnx_file_takes_two_images_of_a_place(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = trained(tmp_path, "multilabel", "groups", "mlp", two=True)
    main([str(tmp_path), str(tmp_path / "chips.onnx"), "--format", "onnx"])
    session = session_of(tmp_path / "chips.onnx")
    for count in (1, 2, 5):
        image, beside = stored(count), decibel(count)
        (logits,) = session.run(["logits"], {"image": image.numpy(), "beside": beside.numpy()})
        np.testing.assert_allclose(logits, expected_of(network, image, beside).numpy(), atol=1e-4)
    contract = json.loads(session.get_modelmeta().custom_metadata_map["contract"])
    bands = {name: each["bands"] for name, each in contract["images"].items()}
    assert bands == {"image": [*BANDS], "beside": ["VV", "VH"]}


def test_a_torch_program_of_two_images_and_a_card_that_names_both(tmp_path: Path) -> None:
    network = trained(tmp_path, "scene", "mean_std", "linear", two=True)
    main([str(tmp_path), str(tmp_path / "chips.pt2"), "--format", "torch"])
    image, beside = stored(2), decibel(2)
    found = torch.export.load(tmp_path / "chips.pt2").module()(image, beside)
    torch.testing.assert_close(found, expected_of(network, image, beside), atol=1e-4, rtol=0)
    main([str(tmp_path), str(tmp_path / "hub"), "--format", "hub"])
    assert "--images FOLDER --beside FOLDER --out labels.csv" in (tmp_path / "hub" / "README.md").read_text()


def test_a_torch_program_gives_the_probabilities_of_the_table(tmp_path: Path) -> None:
    """Of a file whose numbers rasterio reads, and with nothing of ours."""
    trained(tmp_path / "run", "scene", "mean_std", "linear")
    write_tiff(tmp_path / "images" / "a.tif", stored(1)[0].numpy().astype(np.uint16), names=BANDS)
    main([str(tmp_path / "run"), str(tmp_path / "chips.pt2"), "--format", "torch"])
    predict(["--checkpoint", str(tmp_path / "run"), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "labels.csv"),
             "--device", "cpu", "--force"])  # fmt: skip
    with rasterio.open(tmp_path / "images" / "a.tif") as file:
        image = torch.from_numpy(file.read().astype(np.float32))[None]
    found = torch.export.load(tmp_path / "chips.pt2").module()(image).softmax(dim=1)[0]
    with (tmp_path / "labels.csv").open() as file:
        (row,) = csv.DictReader(file)
    np.testing.assert_allclose(found.detach(), [float(row[f"p_{name}"]) for name in CLASSES], atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_for_the_hub_loads_back_and_its_card_says_how(task: Any, tmp_path: Path) -> None:
    network = trained(tmp_path / "run", task, "cls", "linear")
    settings = {"data": {"set": "", "labels": "folders", "path": str(tmp_path / "eurosat_rgb")}, "run": {"steps": 5}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    (tmp_path / "run" / "scores.json").write_text('{"split": "test", "step": 5, "oa": 71.25}')
    main([str(tmp_path / "run"), str(tmp_path / "hub"), "--format", "hub"])
    found = load_chips(tmp_path / "hub")
    assert (found.task, found.classes) == (task, CLASSES)
    with torch.no_grad():
        own = (torch.randn(2, 5, SIZE, SIZE),)
        torch.testing.assert_close(found.network(*own).logits, network(*own).logits, atol=1e-5, rtol=0)
    card = (tmp_path / "hub" / "README.md").read_text()
    for part in (f"task `{task}`", "fields, water, town", "--images FOLDER --out labels.csv", "oa 71.25",
                 "Labelled images: `eurosat_rgb`, labels from folders."):  # fmt: skip
        assert part in card
    assert str(tmp_path) not in card


def test_another_size_is_refused_with_the_networks_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, "scene", "cls", "linear")
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "a.pt2"), "--format", "torch", "--size", "32"])
    assert "--size 32: the network takes images of 16 x 16 pixels alone; leave --size out" in capsys.readouterr().err
