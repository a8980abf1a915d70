"""Files of Prithvi, DOFA, Clay and Galileo become encoders with their features, evaluated here from the weights alone."""

import dataclasses
import math
from pathlib import Path

import pytest
import rasterio
import torch
from torch import Tensor, nn
from torch.nn import functional

from alliance.checkpoint import load_encoder
from alliance.sensors.catalog import find_sensor
from finetune.conversion import main
from tests.conftest import ROOT
from tests.helpers.released import (
    block_weights,
    blocks,
    converted,
    image_of,
    mae_positions,
    random,
    sines,
    standardised,
)

GALILEO = ROOT.parent / "shared" / "weights" / "galileo_nano" / "encoder.pt"


def tokens_of(image: Tensor, kernel: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Patches (b, n, d) of a convolution."""
    found = functional.conv2d(image, kernel, bias, stride=kernel.shape[-1], padding=padding)
    return found.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_prithvi_keeps_its_features_of_one_date(prefix: str, tmp_path: Path):
    d, side, dates = 64, 4, 3
    y, x = (each.flatten() for each in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    space = torch.cat([sines(x, 24), sines(y, 24)], 1)
    every = [torch.cat([space, sines(torch.full_like(x, date), 16)], 1) for date in range(dates)]
    positions = torch.cat([torch.zeros(1, d), *every])[None]
    weights = block_weights(d, 2) | {
        "cls_token": random(1, 1, d), "pos_embed": positions,
        "patch_embed.proj.weight": random(d, 6, 1, 16, 16, seed=3), "patch_embed.proj.bias": random(d, seed=4),
    }  # fmt: skip
    file = {prefix + name: value for name, value in weights.items()} | {"decoder.decoder_norm.bias": random(8)}
    encoder = converted("prithvi", file, tmp_path, "--heads", "4")
    sensor = encoder.sensors["prithvi2-hls"]
    image = image_of(sensor, 16 * side)
    patches = tokens_of(
        standardised(image, sensor), weights["patch_embed.proj.weight"][:, :, 0], weights["patch_embed.proj.bias"]
    )
    sequence = torch.cat([weights["cls_token"].expand(2, -1, -1), patches + positions[:, 1 : side**2 + 1]], 1)
    theirs = blocks(sequence, weights, 2, 4, eps=1e-5)
    with torch.no_grad():
        ours = encoder(image, sensor)
    torch.testing.assert_close(ours.tokens[:, 0], theirs[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.cls, theirs[:, 0], atol=1e-4, rtol=1e-4)


def generator_file(d: int, patch: int, prefix: str, layers: str, inner: str) -> dict[str, Tensor]:
    own = {f"{prefix}weight_generator.{layers}.layers.0.{name}": random(*value.shape, seed=30 + i) for i, (name, value) in
           enumerate(nn.TransformerEncoderLayer(128, 4).state_dict().items())}  # fmt: skip
    shapes = {
        "weight_generator.weight_tokens": (128, 128), "weight_generator.bias_token": (1, 128),
        "weight_generator.fc_weight.weight": (patch**2 * d, 128), "weight_generator.fc_weight.bias": (patch**2 * d,),
        "weight_generator.fc_bias.weight": (d, 128), "weight_generator.fc_bias.bias": (d,),
        f"fclayer.{inner}1.weight": (128, 128), f"fclayer.{inner}1.bias": (128,),
        f"fclayer.{inner}2.weight": (128, 128), f"fclayer.{inner}2.bias": (128,),
    }  # fmt: skip
    return own | {prefix + name: random(*shape, seed=50 + i) for i, (name, shape) in enumerate(shapes.items())}


def generated(weights: dict[str, Tensor], prefix: str, layers: str, inner: str, codes: Tensor, act: nn.Module):
    """Kernels and bias of bands with these codes of wavelengths: a post-norm transformer layer, written out."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = codes + act(linear(act(linear(codes, f"{prefix}fclayer.{inner}1")), f"{prefix}fclayer.{inner}2"))
    own = f"{prefix}weight_generator."
    layer = f"{own}{layers}.layers.0."
    z = torch.cat([weights[f"{own}weight_tokens"], x, weights[f"{own}bias_token"]])
    qkv = z @ weights[f"{layer}self_attn.in_proj_weight"].T + weights[f"{layer}self_attn.in_proj_bias"]
    q, k, v = qkv.reshape(len(z), 3, 4, 32).permute(1, 2, 0, 3)
    mixed = ((q @ k.transpose(-1, -2) / math.sqrt(32)).softmax(-1) @ v).transpose(0, 1).reshape(len(z), 128)

    def norm(values: Tensor, name: str) -> Tensor:
        return functional.layer_norm(values, (128,), weights[f"{layer}{name}.weight"], weights[f"{layer}{name}.bias"])

    z = norm(z + linear(mixed, f"{layer}self_attn.out_proj"), "norm1")
    z = norm(z + linear(functional.gelu(linear(z, f"{layer}linear1")), f"{layer}linear2"), "norm2")
    return linear(z[128:-1] + x, f"{own}fc_weight"), linear(z[-1], f"{own}fc_bias")


@pytest.mark.parametrize("name", ["dofa-sentinel2", "dofa-sentinel1"])
def test_dofa_keeps_its_features_with_the_grid_one_pixel_off(name: str, tmp_path: Path):
    d, side, patch = 48, 3, 16
    weights = block_weights(d, 2) | generator_file(d, patch, "patch_embed.", "transformer_encoder", "w") | {
        "cls_token": random(1, 1, d), "pos_embed": torch.cat([torch.zeros(1, d), mae_positions(side, d)])[None],
    }  # fmt: skip
    encoder = converted(
        "dofa", weights | {"mask_token": random(1, 1, d), "projector.weight": random(4, d)}, tmp_path, "--heads", "3"
    )
    sensor = encoder.sensors[name]
    waves = torch.tensor([band.wavelength / 1000 if band.wavelength else 3.75 for band in sensor.bands])
    kernels, bias = generated(weights, "patch_embed.", "transformer_encoder", "w", sines(1000 * waves, 128), nn.ReLU())
    kernels = 0.01 * kernels.reshape(-1, patch, patch, d).permute(3, 0, 1, 2)
    image = image_of(sensor, patch * side, spread=0.2)
    patches = tokens_of(standardised(image, sensor), kernels, 0.01 * bias, padding=1)
    sequence = torch.cat([weights["cls_token"].expand(2, -1, -1), patches + mae_positions(side, d)], 1)
    with torch.no_grad():
        ours = encoder(image, sensor)
    torch.testing.assert_close(ours.tokens[:, 0], blocks(sequence, weights, 2, 3)[:, 1:], atol=1e-4, rtol=1e-4)


def dofa_file(d: int = 48, side: int = 3) -> dict[str, Tensor]:
    made = generator_file(d, 16, "patch_embed.", "transformer_encoder", "w")
    positions = torch.cat([torch.zeros(1, d), mae_positions(side, d)])[None]
    return block_weights(d, 1) | made | {"cls_token": random(1, 1, d), "pos_embed": positions}


def test_dofa_makes_kernels_for_a_sensor_of_ones_own(tmp_path: Path):
    """Its kernels are those of the generator at the sensor's wavelengths, all bands together."""
    weights = dofa_file()
    bands = "".join(
        f"  - {{name: b{nm}, wavelength: {nm}, bandwidth: 20, mean: 0.1, std: 0.05}}\n" for nm in (450, 550, 1600)
    )
    (tmp_path / "mine.yaml").write_text(f"name: mine\nbands:\n{bands}")
    encoder = converted("dofa", weights, tmp_path, "--heads", "3", "--sensor", str(tmp_path / "mine.yaml"))
    waves = sines(torch.tensor([450.0, 550.0, 1600.0]), 128)
    wanted, _ = generated(weights, "patch_embed.", "transformer_encoder", "w", waves, nn.ReLU())
    with torch.no_grad():
        code = encoder.patch_embed.code(encoder.sensors["mine"].bands)
        found = encoder.patch_embed.kernels.source(code)[0]
    torch.testing.assert_close(found, 0.01 * math.sqrt(3) * wanted.reshape(3, 256, 48), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("count", "statistics", "told"),
    [(33, ", mean: 0.1, std: 0.05", "33 bands"), (3, "", "no mean and std")],
)
def test_a_sensor_that_cannot_be_made_kernels_for_is_refused(
    count: int, statistics: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bands = "".join(f"  - {{name: b{i}, wavelength: {400 + 20 * i}{statistics}}}\n" for i in range(count))
    (tmp_path / "mine.yaml").write_text(f"name: mine\nbands:\n{bands}")
    with pytest.raises(SystemExit):
        converted("dofa", dofa_file(), tmp_path, "--heads", "3", "--sensor", str(tmp_path / "mine.yaml"))
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["clay-sentinel2", "clay-sentinel1"])
def test_clay_keeps_its_features_with_positions_in_pixels(name: str, tmp_path: Path):
    d, side, patch, heads = 64, 3, 8, 4
    own = block_weights(d, 2)
    zero = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(("qkv.bias", "proj.bias"))}
    names = [("norm1", "0.norm"), ("attn.qkv", "0.to_qkv"), ("attn.proj", "0.to_out"), ("norm2", "1.net.0")]
    names += [("mlp.fc1", "1.net.1"), ("mlp.fc2", "1.net.3"), ("blocks.", "transformer.layers.")]
    file = {
        "encoder.cls_token": random(1, 1, d),
        "teacher.bias": random(3),
        "decoder.bias": random(3),
        "proj.bias": random(3),
    }
    for key, value in own.items():
        if key not in zero:
            theirs = key if key.startswith("blocks") else f"transformer.{key}"
            for ours, other in names:
                theirs = theirs.replace(ours, other)
            file[f"encoder.{theirs}"] = value
    made = generator_file(d, patch, "encoder.patch_embedding.", "encoder", "l")
    content = {"state_dict": {f"model.{key}": value for key, value in (file | made).items()}}
    encoder = converted("clay", content, tmp_path, "--heads", str(heads))
    sensor = encoder.sensors[name]
    radar = {"sar-vv": 3.5, "sar-vh": 4.0}
    waves = torch.tensor([band.wavelength / 1000 if band.wavelength else radar[band.modality] for band in sensor.bands])
    angle = waves[:, None] * 10_000.0 ** -(torch.arange(64) / 63)
    codes = torch.cat([angle.sin(), angle.cos()], 1)
    kernels, bias = generated(made, "encoder.patch_embedding.", "encoder", "l", codes, nn.GELU())
    kernels = 0.02 * kernels.reshape(-1, d, patch, patch).transpose(0, 1)
    image = image_of(sensor, patch * side)
    count = (d - 8) // 4
    omega = 10 / 10_000.0 ** (2 * (torch.arange(count) / (count - 1)) / (d - 8))  # pixels of 10 m
    y, x = (
        each.flatten()[:, None] * omega
        for each in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    positions = torch.cat([x.sin(), x.cos(), y.sin(), y.cos(), torch.zeros(side**2, 8)], 1)
    patches = tokens_of(standardised(image, sensor), kernels, bias) + positions
    sequence = torch.cat([file["encoder.cls_token"].expand(2, -1, -1), patches], 1)
    theirs = blocks(sequence, own | zero, 2, heads, eps=1e-5)
    with torch.no_grad():
        ours = encoder(image, sensor)
    torch.testing.assert_close(ours.tokens[:, 0], theirs[:, 1:], atol=1e-4, rtol=1e-4)


def galileo_features(weights: dict[str, Tensor], image: Tensor, heads: int, month: int, gsd: float = 10.0) -> Tensor:
    """Galileo's tokens (b, 7, n, d) of standardised images, one date, written out."""
    d = len(weights["norm.weight"])
    groups = {"S1": 2, "S2_RGB": 3, "S2_Red_Edge": 3, "S2_NIR_10m": 1, "S2_NIR_20m": 1, "S2_SWIR": 2, "NDVI": 1}
    patch = weights["space_time_embed.S1.proj.weight"].shape[-1]
    side, quarter, first, sequences = image.shape[-1] // patch, d // 4, 0, []
    omega = 10_000.0 ** -(torch.arange(quarter // 4) / (quarter // 2) / 2)
    y, x = (
        each.flatten() * patch * gsd / 10
        for each in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    x, y = x[:, None] * omega, y[:, None] * omega
    place = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
    for index, (group, bands) in enumerate(groups.items()):
        values = image[:, first : first + bands] / 4 + 0.5
        first += bands
        kernel, bias = (weights[f"space_time_embed.{group}.proj.{part}"] for part in ("weight", "bias"))
        told = torch.cat(
            [weights["s_t_channel_embed"][index], weights["pos_embed"][0], weights["month_embed.weight"][month]]
        )
        sequences.append(tokens_of(values, kernel, bias) + torch.cat([told.expand(side**2, -1), place], 1))
    stacked = {}
    for name, value in weights.items():
        if ".attn.q." in name:
            stacked[name.replace(".q.", ".qkv.")] = torch.cat(
                [weights[name.replace(".q.", f".{part}.")] for part in "qkv"]
            )
        stacked[name] = value
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    found = blocks(torch.cat(sequences, 1), stacked, depth, heads, eps=1e-5)
    return found.reshape(len(image), 7, side**2, d)


@pytest.fixture(scope="module")
def galileo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not GALILEO.is_file():
        pytest.skip("the released weights of Galileo nano are not here")
    out = tmp_path_factory.mktemp("galileo") / "out"
    main(["galileo", str(GALILEO), str(out), "--month", "4"])
    return out


def test_the_released_galileo_nano_keeps_its_features(galileo: Path):
    encoder = load_encoder(galileo)
    assert (encoder.config.heads, encoder.config.depth, encoder.config.embed_dim) == (8, 4, 128)
    sensor = encoder.sensors["galileo"]
    image = image_of(sensor, 32)
    weights = torch.load(GALILEO, map_location="cpu", weights_only=True)
    theirs = galileo_features(weights, standardised(image, sensor), heads=8, month=3)
    with torch.no_grad():
        ours = encoder(image, sensor)
    torch.testing.assert_close(ours.tokens, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.cls, theirs.mean((1, 2)), atol=1e-4, rtol=1e-4)


def test_galileo_reads_some_of_its_bands_and_another_sensor(galileo: Path):
    encoder = load_encoder(galileo)
    optical = encoder.sensors["galileo"].select(["B02", "B03", "B04"])
    image = image_of(optical, 32)
    landsat = find_sensor("landsat8").with_statistics([0.1] * 7, [0.05] * 7)
    with torch.no_grad():
        assert encoder(image, optical).tokens.shape == (2, 1, 16, 128)
        found = encoder(image_of(landsat, 32), landsat)
    assert found.tokens.shape == (2, 3, 16, 128) and found.tokens.isfinite().all()


def test_a_landsat_scene_runs_through_galileo(galileo: Path, shared_data: Path):
    """Six bands of Landsat 7 as stored numbers: kernels by wavelength, statistics of the scene itself."""
    with rasterio.open(shared_data / "landsat" / "L7_ETMs.tif") as file:
        stored = torch.from_numpy(file.read()[:, :64, :64]).float()
    bands = [band for band in find_sensor("landsat7").bands if band.modality == "optical"]
    assert len(bands) == len(stored) == 6
    measured = [
        dataclasses.replace(band, unit="number", scale=1.0, offset=0.0, valid=None, typical=None) for band in bands
    ]
    sensor = dataclasses.replace(find_sensor("landsat7"), name="etm", bands=tuple(measured), groups=(), nodata=None)
    sensor = sensor.with_statistics(stored.mean((1, 2)).tolist(), stored.std((1, 2)).tolist())
    with torch.no_grad():
        features = load_encoder(galileo)(stored[None], sensor)
    assert features.tokens.shape[2:] == (64, 128) and features.tokens.isfinite().all()
    assert features.tokens.std(2).mean() > 0.05  # places differ
