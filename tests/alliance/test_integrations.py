"""Encoders in the tools of others: the same maps as our own, in the form that each tool documents."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import alliance
from alliance.encoder import AllianceEncoder
from alliance.integrations.timm_features import TimmFeatures
from alliance.sensors import Band, Sensor
from tests.helpers.foreign_tools import BandSpec, BenchModel, Registry, hooked, stand_in
from tests.helpers.models import natural_image, tiny_model

OPTICAL = Sensor(
    name="own",
    nodata=0,
    bands=(
        Band(name="B02", aliases=("blue",), wavelength=490, scale=1e-4, offset=-0.1, mean=0.1, std=0.05),
        Band(name="B04", aliases=("red",), wavelength=665, scale=1e-4, offset=-0.1, mean=0.15, std=0.05),
        Band(name="B08", aliases=("nir",), wavelength=833, scale=1e-4, offset=-0.1, mean=0.3, std=0.1),
    ),
)


def encoder() -> AllianceEncoder:
    return tiny_model({"encoder": {"depth": 4}}, (OPTICAL,)).encoder.eval()


def stored(b: int = 2, h: int = 16, w: int = 24) -> Tensor:
    """Counts around the means: (value + 0.1) / 1e-4."""
    means, spread = torch.tensor([0.1, 0.15, 0.3]), torch.tensor([0.05, 0.05, 0.1])
    physical = means[:, None, None] + 0.5 * spread[:, None, None] * natural_image(b, 3, h, w).clamp(-2, 2)
    counts = ((physical + 0.1) / 1e-4).round()
    counts[0, :, 3, 4] = 0  # missing
    return counts


@torch.no_grad()
def test_maps_are_those_of_the_encoder_whatever_the_numbers():
    own, image = encoder(), stored()
    physical = OPTICAL.to_physical(image)
    expected = own.forward_intermediates(physical, OPTICAL, [1, 3])
    given = {"stored": image, "physical": physical, "standardised": OPTICAL.standardise(physical)[0]}
    for numbers, images in given.items():
        maps = TimmFeatures(own, out_indices=(1, -1), numbers=numbers)(images)  # pyright: ignore[reportArgumentType]
        assert [one.shape for one in maps] == [(2, 48, 4, 6)] * 2
        for one, other in zip(maps, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_feature_info_is_that_of_timm():
    own = TimmFeatures(encoder(), out_indices=(0, 2))
    theirs = timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(0, 2))
    assert type(own.feature_info) is type(theirs.feature_info)
    assert own.feature_info.out_indices == (0, 2)
    assert own.feature_info.channels() == [48, 48] and own.feature_info.reduction() == [4, 4]
    assert own.feature_info.module_name() == ["outputs.0", "outputs.2"]
    found = hooked(own, own.feature_info.module_name(), OPTICAL.to_physical(stored()))
    assert {name: tuple(one.shape) for name, one in found.items()} == dict.fromkeys(found, (2, 48, 4, 6)) and len(
        found
    ) == 2


@pytest.mark.parametrize(("given", "expected"), [(None, (0, 1, 2, 3)), (2, (2, 3)), ((-2, 0), (2, 0))])
def test_blocks_are_counted_as_in_timm(given, expected):
    assert TimmFeatures(encoder(), out_indices=given).out_indices == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out_indices": (4,)}, "out_indices \\(4,\\) do not fit an encoder of 4 blocks, 0 to 3"),
        ({"out_indices": 0}, "out_indices 0 do not fit"),
        ({"sensor": "other"}, "knows the sensors own, not 'other'"),
        ({"bands": ["B99"]}, "sensor own has no band B99"),
        ({"numbers": "raw"}, "numbers 'raw' are none of stored, physical, standardised"),
        ({"sensor": "sentinel2-l2a"}, "sensor sentinel2-l2a has no mean and std"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(alliance.InputError, match=message):
        TimmFeatures(encoder(), **settings)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(alliance.save_encoder(encoder(), tmp_path / "encoder"))


@torch.no_grad()
def test_a_backbone_of_terratorch(checkpoint: str, monkeypatch: pytest.MonkeyPatch):
    """Registered on import, built by name; `out_channels` and a list of maps, as its EncoderDecoderFactory asks."""
    stand_in(monkeypatch, "terratorch", "terratorch.registry", TERRATORCH_BACKBONE_REGISTRY=Registry())
    monkeypatch.delitem(sys.modules, "alliance.integrations.terratorch_backbone", raising=False)
    import alliance.integrations.terratorch_backbone as registered

    settings = {"checkpoint": checkpoint, "model_bands": ["B08", "B04"], "out_indices": [1, 3]}
    backbone = registered.REGISTRY.build("alliance_encoder", **settings)
    assert backbone.out_channels == [48, 48]
    patch = next(module.patch_size for module in backbone.modules() if hasattr(module, "patch_size"))  # as it looks
    assert patch == 4
    image = natural_image(1, 2, 8, 12)
    sensor = OPTICAL.select(["B08", "B04"])
    expected = encoder().forward_intermediates(image, sensor, [1, 3], standardised=True)
    for one, other in zip(backbone(image), expected, strict=True):
        torch.testing.assert_close(one, other)


def spec(name: str, source: str, mean: float, std: float, wavelength: float | None = None) -> BandSpec:
    return BandSpec("s2", name, source, mean, std, 0.0, 10_000.0, wavelength)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type:
    stand_in(monkeypatch, "torchgeo_bench", "torchgeo_bench.models.interface", BenchModel=BenchModel)
    monkeypatch.delitem(sys.modules, "alliance.integrations.bench_model", raising=False)
    from alliance.integrations.bench_model import AllianceBench

    return AllianceBench


@torch.no_grad()
def test_a_model_of_torchgeo_bench_with_the_statistics_of_pretraining(checkpoint: str, bench: type):
    bands = [spec("red", "04 - Red", 2500.0, 900.0), spec("blue", "B02", 2000.0, 700.0)]
    model = bench(bands=bands, checkpoint=checkpoint, sensor="own", normalization="bandspec_zscore")
    image, own, sensor = stored()[:, [1, 0]], encoder(), OPTICAL.select(["B04", "B02"])
    features = own(sensor.to_physical(image), sensor)
    torch.testing.assert_close(model(image), features.tokens.mean((1, 2)))
    torch.testing.assert_close(
        bench(bands=bands, checkpoint=checkpoint, sensor="own", readout="groups")(image),
        features.tokens.mean(2).flatten(1),
    )
    found = hooked(model, ["outputs.3", "outputs.1"], image)
    maps = own.forward_intermediates(sensor.to_physical(image), sensor, [3, 1])
    for name, one in zip(("outputs.3", "outputs.1"), maps, strict=True):
        torch.testing.assert_close(found[name], one)
    model(torch.randn(1, 2, 30, 30))  # its probe tries noise first, of a size that it chooses
    with pytest.raises(alliance.InputError, match="no band swir \\(B11\\); leave `sensor` out"):
        bench(bands=[spec("swir", "B11", 1.0, 1.0)], checkpoint=checkpoint, sensor="own")


@torch.no_grad()
def test_a_model_of_torchgeo_bench_by_wavelengths(checkpoint: str, bench: type):
    """Radar and optical bands together, with the mean and deviation that the data set says."""
    bands = [spec("red", "B04", 2500.0, 900.0, 0.665), spec("vv", "VV", -12.0, 4.0)]
    model = bench(bands=bands, checkpoint=checkpoint)
    assert [band.modality for band in model.sensor.bands] == ["optical", "sar-vv"]
    image = torch.stack([torch.full((1, 8, 8), 2500.0 + 900), torch.full((1, 8, 8), -12.0 - 4)], dim=1)
    torch.testing.assert_close(model.normalize_inputs(image)[0, :, 0, 0], torch.tensor([1.0, -1.0]))
    assert model(image).shape == (1, 48)


@pytest.mark.parametrize("name", ["terratorch_backbone", "bench_model"])
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    for package in ("terratorch.registry", "torchgeo_bench.models.interface"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"alliance.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match="pip install t"):
        __import__(f"alliance.integrations.{name}")
