"""Exported encoders and networks: stored numbers in, what the network itself says out, to 1e-4."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

import alliance
from alliance.sensors import Band, Sensor
from datasets.imagery.images import ImageSource
from datasets.labelled.normalise import Preprocessing
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig
from finetune.backbones.pyramid import PyramidConfig
from finetune.dense.checkpoint import save_dense
from finetune.dense.model import DenseConfig, DenseNetwork
from finetune.export.command import main
from finetune.export.graphs import open_exportable
from finetune.mapping.command import main as predict
from finetune.model_files import Inputs, image_input, nameless
from finetune.pad.checkpoint import save_pad
from finetune.pad.fusion import FusionConfig
from finetune.pad.model import Pad, PadConfig
from finetune.s2fin.checkpoint import save_network
from finetune.s2fin.network import S2Fin, S2FinConfig
from tests.helpers.models import natural_image, randomise, tiny_model
from tests.helpers.rasters import write_tiff

ort = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[3]
COUNTS = Sensor(
    name="counts",
    nodata=0,
    clamp=2.0,
    groups=(("red", "blue"), ("nir",)),
    bands=(
        Band(name="blue", wavelength=490, bandwidth=60, scale=1e-4, offset=-0.1, mean=0.1, std=0.05),
        Band(name="red", wavelength=665, bandwidth=30, scale=1e-4, offset=-0.1, mean=0.15, std=0.05),
        Band(name="nir", wavelength=833, scale=2e-4, mean=0.3, std=0.1),
    ),
)


def counts(b: int, h: int, w: int) -> Tensor:
    """Stored numbers of the sensor, some of them missing, by nodata or not a number, some beyond the clamp."""
    scale, offset, mean, std = (
        torch.tensor([getattr(band, name) for band in COUNTS.bands])[:, None, None]
        for name in ("scale", "offset", "mean", "std")
    )
    image = ((mean + std * natural_image(b, 3, h, w) - offset) / scale).round()
    image[0, 1, 0, 0], image[-1, :, 1, 2], image[-1, 2, 2, :3] = torch.nan, 0, 60_000
    return image


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encoder_at(folder: Path, **changes: Any) -> str:
    encoder = tiny_model({"encoder": {"depth": 1, **changes}}, (COUNTS,)).encoder
    randomise(encoder.special)
    return str(alliance.save_encoder(encoder, folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One encoder as all that it can be."""
    folder = tmp_path_factory.mktemp("exported")
    saved = encoder_at(folder / "encoder")
    made = {"torch": folder / "encoder.pt2", "onnx": folder / "encoder.onnx"}
    for form, path in made.items():
        main([saved, str(path), "--format", form])
    return {**made, "encoder": Path(saved)}


@torch.no_grad()
def expected_of(folder: Path, image: Tensor) -> tuple[Tensor, Tensor]:
    encoder = alliance.load_encoder(folder)
    found = encoder(COUNTS.to_physical(image), COUNTS)
    (maps,) = encoder.forward_intermediates(COUNTS.to_physical(image), COUNTS, [-1])
    return found.cls, maps


SIZES = [(1, 8, 8), (2, 16, 12), (3, 24, 40), (1, 64, 4)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_onnx_encoder_takes_stored_numbers_of_any_size(files: dict[str, Path], size: tuple[int, int, int]) -> None:
    image = counts(*size)
    cls, maps = session(files["onnx"]).run(["cls", "map"], {"image": image.numpy()})
    for found, expected in zip((cls, maps), expected_of(files["encoder"], image), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_a_torch_program_takes_stored_numbers_of_any_size(files: dict[str, Path], size: tuple[int, int, int]) -> None:
    image = counts(*size)
    found = torch.export.load(files["torch"]).module()(image)
    for one, expected in zip(found, expected_of(files["encoder"], image), strict=True):
        torch.testing.assert_close(one.detach(), expected, atol=1e-4, rtol=0)


def test_both_hold_the_contract_of_the_sensor(files: dict[str, Path]) -> None:
    extra = {"contract.json": ""}
    torch.export.load(files["torch"], extra_files=extra)
    of_torch = json.loads(extra["contract.json"])
    contract = json.loads(session(files["onnx"]).get_modelmeta().custom_metadata_map["contract"])
    assert of_torch == contract
    assert Sensor.from_dict(contract["images"]["image"]["sensor"]) == COUNTS
    assert (contract["task"], contract["multiple"], list(contract["outputs"])) == ("encoder", 4, ["cls", "map"])


def test_an_encoder_for_one_sensor_gives_the_same_features_to_the_last_bit(files: dict[str, Path]) -> None:
    image = counts(2, 16, 12)
    graph = open_exportable(str(files["encoder"])).module
    with torch.no_grad():
        found = graph(image)
    for one, expected in zip(found, expected_of(files["encoder"], image), strict=True):
        assert torch.equal(one, expected)
    assert files["onnx"].stat().st_size < (files["encoder"] / "model.safetensors").stat().st_size


def test_neither_names_a_place_on_this_machine(files: dict[str, Path]) -> None:
    for form in ("torch", "onnx"):
        content = files[form].read_bytes()
        assert str(ROOT).encode() not in content and b"site-packages" not in content


@pytest.mark.long
def test_positions_that_are_resampled_are_for_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = encoder_at(tmp_path / "encoder", tokens="plain", registers=2, table=4)
    with pytest.raises(SystemExit):
        main([saved, str(tmp_path / "a.onnx"), "--format", "onnx"])
    assert (
        "its table of positions is resampled for every size; give --size 224 or --size HxW" in capsys.readouterr().err
    )
    main([saved, str(tmp_path / "a.onnx"), "--format", "onnx", "--size", "8", "--size", "12x16", "--opset", "20"])
    for h, w in ((8, 8), (12, 16)):
        image = counts(2, h, w)
        found = session(tmp_path / f"a-{h}x{w}.onnx").run(None, {"image": image.numpy()})
        for one, expected in zip(found, expected_of(tmp_path / "encoder", image), strict=True):
            np.testing.assert_allclose(one, expected.numpy(), atol=1e-4)


# Sentinel-2 counts and Sentinel-1 decibels beside each other: mean and deviation are of such scenes.
PAIR = {
    "optical": ImageSource(bands=(4, 3, 2), dtype="uint16", nodata=0, mean=(1100, 950, 900), std=(600, 400, 300)),
    "sar": ImageSource(bands=(1, 2), dtype="float32", mean=(-9, -16), std=(4, 5)),
}


def segmenting(folder: Path, sources: dict[str, ImageSource], **settings: Any) -> Path:
    """A PAD network with weights that make it look at its images."""
    channels = {"rgb_channels": len(sources["optical"].bands), "sar_channels": len(sources["sar"].bands)}
    config = PadConfig(size="atto", classes=4, **channels, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Pad(config).eval()
    with torch.no_grad():
        network.decoder.conv_seg.weight.mul_(30)
    inputs = Inputs(classes=nameless(4), images={name: image_input(source) for name, source in sources.items()})
    return save_pad(config, network.state_dict(), folder, **inputs.to_record())


def class_map(path: Path, images: dict[str, NDArray]) -> NDArray:
    """Of the images alone, by onnxruntime: what anyone does who has nothing of ours."""
    (logits,) = session(path).run(None, {name: image[None].astype(np.float32) for name, image in images.items()})
    return logits[0].argmax(axis=0)


def test_an_onnx_file_gives_the_class_map_of_a_real_tile(shared_data: Path, tmp_path: Path) -> None:
    """From the numbers in the files, read by rasterio alone; the map is that of finetune/predict.py."""
    folder, images = shared_data / "sen12mscr", {}
    given = {"optical": folder / "s2_cloudfree", "sar": folder / "s1"}
    for name, source in PAIR.items():
        (path,) = given[name].glob("*.tif")
        with rasterio.open(path) as file:
            images[name] = file.read(source.bands, window=Window(0, 0, 128, 128))  # pyright: ignore[reportCallIssue]
            everything = file.read(window=Window(0, 0, 128, 128))  # pyright: ignore[reportCallIssue]
        if name == "optical":
            everything[:, 50:60, 20:30] = images[name][:, 50:60, 20:30] = 0  # missing
        write_tiff(tmp_path / f"{name}.tif", everything)
    network = segmenting(tmp_path / "model", PAIR, early_fusion=True, fusion=FusionConfig(stages=(1,)))
    predict(["--checkpoint", str(network), "--optical", str(tmp_path / "optical.tif"), "--sar", str(tmp_path / "sar.tif"),
             "--out", str(tmp_path / "map.tif"), "--device", "cpu"])  # fmt: skip
    main([str(network), str(tmp_path / "pad.onnx"), "--format", "onnx", "--size", "128"])
    with rasterio.open(tmp_path / "map.tif") as file:
        expected = file.read(1)
    np.testing.assert_array_equal(class_map(tmp_path / "pad.onnx", images), expected)
    assert len(np.unique(expected)) > 2 and (np.bincount(expected.ravel()) > 100).sum() > 1


@pytest.mark.long
@pytest.mark.parametrize("layout", ["release", "true_radius"])
def test_a_network_with_all_its_fusions_takes_any_size(tmp_path: Path, layout: Any) -> None:
    """Logarithms and scales too: of intensities, as the description of the images says."""
    sources = {
        **PAIR,
        "sar": ImageSource(bands=(1,), mean=(3,), std=(1,), log=True, scale=0.5, offset=-1, nodata=-9999),
    }
    network = segmenting(tmp_path / "model", sources, fusion=FusionConfig(spectrum_layout=layout))
    main([str(network), str(tmp_path / "pad.onnx"), "--format", "onnx"])
    generator, run = np.random.default_rng(0), session(tmp_path / "pad.onnx")
    for h, w in ((64, 64), (96, 160), (64, 224)):
        optical = generator.normal(1000, 400, (3, h, w)).round().clip(0).astype(np.uint16)
        sar = generator.gamma(2, 20, (1, h, w)).astype(np.float32)
        sar[:, :5, :7] = -9999
        write_tiff(tmp_path / "optical.tif", optical[::-1].repeat(2, axis=0)[1:5])  # bands 4, 3, 2 of the file
        write_tiff(tmp_path / "sar.tif", sar)
        with rasterio.open(tmp_path / "optical.tif") as file:
            stored = {"optical": file.read((4, 3, 2)), "sar": sar}
        predict(["--checkpoint", str(network), "--optical", str(tmp_path / "optical.tif"), "--sar",
                 str(tmp_path / "sar.tif"), "--out", str(tmp_path / "map.tif"), "--device", "cpu", "--probabilities",
                 str(tmp_path / "shares.tif")])  # fmt: skip
        (logits,) = run.run(None, {name: image[None].astype(np.float32) for name, image in stored.items()})
        with rasterio.open(tmp_path / "shares.tif") as file:
            shares = file.read() / 250
        softmax = torch.from_numpy(logits[0]).softmax(dim=0).numpy()
        np.testing.assert_allclose(softmax, shares, atol=0.51 / 250)


@pytest.mark.long
@pytest.mark.parametrize(
    ("head", "joining"), [("linear", "change"), ("upernet", "concat"), ("fpn", "concat"), ("dpt", "concat")]
)
def test_a_head_on_an_encoder_takes_any_size(head: Any, joining: Any, tmp_path: Path) -> None:
    """Of two images, read by one encoder; logits by the network's own forward, from numbers standardised by hand."""
    own = encoder_at(tmp_path / "encoder", depth=4)
    sensors = {role: InputSensor(sensor="counts") for role in ("before", "after")}
    config = DenseConfig(
        encoder=TransferConfig(sensors=sensors), head=head, width=16, pyramid=PyramidConfig(widths=(8, 8, 8, 8), stem=4)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DenseNetwork(config, dict.fromkeys(sensors, 3), 3, joining=joining, checkpoint=own).eval()
    source = ImageSource(dtype="uint16", nodata=0, mean=(2000, 2500, 1500), std=(500, 500, 500))
    inputs = Inputs(classes=nameless(3), images=dict.fromkeys(sensors, image_input(source)))
    save_dense(network, network.state_dict(), tmp_path / "model", inputs)
    main([str(tmp_path / "model"), str(tmp_path / "dense.onnx"), "--format", "onnx"])
    run = session(tmp_path / "dense.onnx")
    for b, h, w in ((1, 64, 96), (2, 32, 32), (1, 128, 64)):
        stored = {role: counts(b, h, w).nan_to_num(0) + place for place, role in enumerate(sensors)}
        columns = [torch.tensor(values).float()[:, None, None] for values in (source.mean, source.std)]
        given = {
            role: ((image - columns[0]) / columns[1]) * (image != 0).all(dim=1, keepdim=True)
            for role, image in stored.items()
        }
        with torch.no_grad():
            expected = network(**given).logits
        (logits,) = run.run(None, {role: image.numpy() for role, image in stored.items()})
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def patches_at(folder: Path, **settings: Any) -> S2Fin:
    """A network of patches, of 20 counts that become 5 components, and of 2 decibels."""
    generator = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = S2Fin(S2FinConfig(**settings), bands=20, components=5, channels=2, classes=3).eval()
    moments = {"mean": generator.uniform(500, 900, 20), "std": generator.uniform(50, 100, 20)}
    axes = {"axes": generator.normal(0, 0.2, (20, 5)), "offsets": generator.normal(size=5)}
    images = {
        "passive": image_input(ImageSource(nodata=-999, dtype="int16"), Preprocessing(**moments, **axes)),
        "active": image_input(ImageSource(), Preprocessing(mean=np.array([-9.0, -15]), std=np.array([4.0, 5]))),
    }
    used = {name: image for name, image in images.items() if name in network.branches}
    save_network(network, network.state_dict(), folder, Inputs(classes=nameless(3), images=used))
    return network


def prepared(stored: NDArray, image: Any) -> tuple[Tensor, Tensor]:
    """Standardised bands and their components, by the definition: of every pixel its own, a missing value at the mean."""
    shape = (1, -1, 1, 1)
    values = (stored - image["mean"].reshape(shape)) / image["std"].reshape(shape)
    values = np.where(stored == -999, 0, values)
    parts = values if "axes" not in image else (
        np.einsum("bchw,ck->bkhw", values, image["axes"]) - image["offsets"].reshape(shape)
    )  # fmt: skip
    return torch.from_numpy(values).float(), torch.from_numpy(parts).float()


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 16, "patch": 3, "inputs": "active", "mixer": "none"},
        pytest.param({"width": 16, "patch": 7}, marks=pytest.mark.long),
        pytest.param({"width": 16, "patch": 5, "inputs": "passive", "mixer": "gru"}, marks=pytest.mark.long),
    ],
    ids=["active", "both", "passive"],
)
def test_patches_of_stored_numbers_are_classified(settings: dict[str, Any], tmp_path: Path) -> None:
    network = patches_at(tmp_path / "model", **settings)
    main([str(tmp_path / "model"), str(tmp_path / "s2fin.onnx"), "--format", "onnx"])
    generator, side = np.random.default_rng(1), settings["patch"]
    record = json.loads((tmp_path / "model" / "config.json").read_text())["inputs"]
    images = {
        name: {key: np.array(each[key]) for key in ("mean", "std", "axes", "offsets") if key in each}
        for name, each in record.items()
    }
    for b in (1, 4):
        stored = {"passive": generator.integers(300, 1200, (b, 20, side, side)).astype(np.float32),
                  "active": generator.normal(-12, 4, (b, 2, side, side)).astype(np.float32)}  # fmt: skip
        stored["passive"][0, 3, 0, 1] = -999
        stored = {name: stored[name] for name in images}
        made = {name: prepared(each.astype(np.float64), images[name]) for name, each in stored.items()}
        empty = torch.zeros(b, 0, side, side)
        spectral, passive = made.get("passive", (empty, empty))
        with torch.no_grad():
            expected = network(spectral, passive, made["active"][1] if "active" in made else empty).logits
        (logits,) = session(tmp_path / "s2fin.onnx").run(None, stored)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
