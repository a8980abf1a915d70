"""An encoder as a model of torchgeo-bench: `_target_: alliance.integrations.bench_model.AllianceBench`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from alliance.checkpoint import load_encoder
from alliance.errors import InputError
from alliance.integrations.timm_features import TimmFeatures, choose_sensor
from alliance.sensors import MODALITIES, Band, Sensor
from alliance.sensors.sensor import plain_name

try:
    BenchModel: Any = import_module("torchgeo_bench.models.interface").BenchModel
except ImportError as error:
    raise ImportError(f"this module needs torchgeo-bench ({error}); pip install torchgeo-bench") from error

Readout = Literal["mean", "groups"]


class Channel(Protocol):
    """What torchgeo-bench says of a band."""

    name: str
    source_name: str
    mean: float
    std: float
    wavelength_um: float | None


class AllianceBench(BenchModel):
    """Features of images as they are stored: (b, c, h, w) -> (b, d).

    For segmentation, name the layers `outputs.N`, N the number of a block: they give maps (b, d, h / patch, w / patch).

    Args:
        bands: of the data set, given by torchgeo-bench.
        checkpoint: what `alliance.load_encoder` takes.
        sensor: name of the sensor that took the images: its scale and the statistics of pretraining are used. None: the
            bands' wavelengths, and the statistics of the data set.
        readout: mean of all tokens, or one mean for each band group, side by side: (b, g * d).
    """

    def __init__(
        self, bands: list[Any], *, checkpoint: str, sensor: str | None = None, readout: Readout = "mean", **_: object
    ) -> None:
        super().__init__(bands=bands, normalization="identity")
        if readout not in ("mean", "groups"):
            raise InputError(f"readout {readout!r} is neither mean nor groups")
        encoder = load_encoder(checkpoint)
        self.sensor = described(bands) if sensor is None else selected(choose_sensor(encoder, sensor), bands)
        self.readout = readout
        self.backbone = TimmFeatures(encoder, self.sensor, numbers="standardised")

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Stored numbers (b, c, h, w) -> standardised ones, resized to the next multiples of the patch."""
        values, _ = self.sensor.standardise(self.sensor.to_physical(images))
        h, w = values.shape[-2:]
        patch = self.backbone.encoder.patch_size
        size = (h + -h % patch, w + -w % patch)
        return values if size == (h, w) else functional.interpolate(values, size=size, mode="bilinear")

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        if self.readout == "groups":
            encoder = self.backbone.encoder
            (kept,) = encoder.forward_intermediates(images, self.sensor, [-1], groups="keep", standardised=True)
            return kept.mean((-2, -1)).flatten(1)
        return self.backbone(images)[-1].mean((-2, -1))


def described(bands: Sequence[Channel]) -> Sensor:
    """A sensor of the bands of a data set, whose numbers are taken as they are stored."""
    return Sensor(
        name="bench",
        bands=tuple(
            Band(
                name=f"{place} {band.name}",
                wavelength=None if band.wavelength_um is None else 1000 * band.wavelength_um,
                modality=_modality(band),
                unit="stored",
                mean=band.mean,
                std=max(band.std, 1e-8),
            )
            for place, band in enumerate(bands)
        ),
    )


def selected(sensor: Sensor, bands: Sequence[Channel]) -> Sensor:
    """A sensor with the bands of a data set, in their order.

    Raises:
        InputError: it has no such band.
    """
    known = {name: band.name for band in sensor.bands for name in band.known_as}
    names = []
    for band in bands:
        number = band.source_name.split(" - ")[0]
        called = [plain_name(name) for name in (band.source_name, band.name, f"B{number}")]
        found = next((known[name] for name in called if name in known), None)
        if found is None:
            raise InputError(
                f"sensor {sensor.name} has no band {band.name} ({band.source_name}); leave `sensor` out, to go by wavelengths"
            )
        names.append(found)
    return sensor.select(names)


def _modality(band: Channel) -> str:
    """By its name, where there is no wavelength."""
    if band.wavelength_um is not None:
        return "optical"
    radar = f"sar-{band.name.lower()[:2]}"
    return radar if radar in MODALITIES else "elevation" if band.name.lower() in ("dem", "elevation") else "other"
