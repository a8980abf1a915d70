"""Small sensors, images and models that the tests of the model share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alliance.blocks import FusionConfig
from alliance.decoder import DecoderConfig
from alliance.encoder import EncoderConfig
from alliance.losses import LossConfig
from alliance.model import Alliance, AllianceConfig
from alliance.sensors import Band, Sensor
from alliance.tokens import MaskingConfig, mask_noise

# Tensors this small gain nothing from a second thread, and waiting for it takes minutes where the cores are shared.

FULL_FUSION = FusionConfig(width=0.5, fusion="mlp", shared_norm=False)  # as drawn in the paper; the default is lighter
TINY_ENCODER = EncoderConfig(embed_dim=48, depth=2, heads=3, patch=4)
TINY_DECODER = DecoderConfig(embed_dim=48, depth=3, heads=3)

# One change each from the default configuration.
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "one stage": {"decoder": {"stages": 1}},
    "disjoint targets": {"loss": {"targets": "disjoint"}},
    "increments as targets": {"loss": {"targets": "increments"}},
    "plain attention": {"decoder": {"attention": "plain"}},
    "full fusion": {"decoder": {"fusion": FULL_FUSION}},
    "fusion without amplitude": {"decoder": {"fusion": FusionConfig(amplitude=False)}},
    "fusion without phase": {"decoder": {"fusion": FusionConfig(phase=False)}},
    "fusion without band selection": {"decoder": {"fusion": FusionConfig(band_selection=False)}},
    "fusion by mlp": {"decoder": {"fusion": FusionConfig(fusion="mlp")}},
    "fusion replaces": {"decoder": {"fusion": FusionConfig(fusion="replace")}},
    "phase heads": {"decoder": {"fusion": FusionConfig(phase_heads=3)}},
    "factorised attention": {"decoder": {"fusion": FusionConfig(spatial_spectral="factorised")}},
    "plain tokens": {"encoder": {"tokens": "plain"}},
    "jumbo tokens": {"encoder": {"jumbo": 4}},
    "no amplitude in the token": {"encoder": {"amplitude": False}},
    "fixed tokenizer": {"encoder": {"tokenizer": "fixed"}},
    "no cls": {"encoder": {"tokens": "none"}},
    "registers and a table of positions": {"encoder": {"tokens": "plain", "registers": 2, "table": 4}},
    "positions of other projects": {
        "encoder": {
            "spatial_order": "x_first",
            "spatial_frequencies": "galileo",
            "spatial_channels": (12, 48),
            "patch_offset": 1,
            "norm_eps": 1e-5,
        }
    },
    "query-key norm": {"encoder": {"qk_norm": True}},
    "positions side by side": {"encoder": {"position": "concat"}, "decoder": {"position": "concat"}},
    "tube masks": {"masking": {"geometry": "tube"}},
    "gates by sigmoid": {"decoder": {"gate": "sigmoid"}},
    "gates by softmax": {"decoder": {"gate": "softmax"}},
    "convex blend": {"decoder": {"blend": "convex"}},
    "injection at every block": {"decoder": {"injection": "every"}},
    "mask tokens bypass the encoder": {"decoder": {"mask_tokens": "bypass"}},
    "bump schedule": {"loss": {"schedule": "rbf"}},
    "constant schedule": {"loss": {"schedule": "constant"}},
    "patch-group normalised": {"loss": {"normalise": "patch_group"}},
    "spectral loss": {"loss": {"fft": 0.1}},
    "summary of the image": {"loss": {"summary": 0.1}},
    "ideal periodic filter": {"loss": {"edge": "ideal", "extension": "periodic"}},
    "baseline": {"encoder": {"tokens": "plain"}, "decoder": {"stages": 1, "attention": "plain"}},
}


def sensor_of(c: int, *, name: str = "synthetic", groups: Sequence[Sequence[int]] = (), **changes: Any) -> Sensor:
    """A sensor of c optical bands, 450 to 2300 nm, whose physical values are standard deviations already."""
    bands = tuple(
        Band(name=f"band{i}", wavelength=float(nm), bandwidth=20.0, mean=0.0, std=1.0, spread=(0.8, 0.4, 0.3))
        for i, nm in enumerate(np.linspace(450, 2300, c))
    )
    named = tuple(tuple(f"band{i}" for i in group) for group in groups)
    return dataclasses.replace(Sensor(name=name, bands=bands, groups=named), **changes)


FOUR_BANDS = sensor_of(4, name="four", groups=((0, 1, 2), (3,)))
FOUR_SAR = sensor_of(
    2,
    name="radar",
    bands=tuple(
        Band(name=kind, modality=f"sar-{kind}", unit="dB", mean=0.0, std=1.0, spread=(0.8, 0.4, 0.3))
        for kind in ("vv", "vh")
    ),
)


def tiny_config(changes: Mapping[str, Mapping[str, Any]] | None = None) -> AllianceConfig:
    """The smallest model that has every part, with some fields changed: `{"decoder": {"stages": 1}}`."""
    base = {"encoder": TINY_ENCODER, "decoder": TINY_DECODER, "masking": MaskingConfig(), "loss": LossConfig()}
    parts: dict[str, Any] = {
        part: dataclasses.replace(default, **(changes or {}).get(part, {})) for part, default in base.items()
    }
    return AllianceConfig(**parts)


def tiny_model(
    changes: Mapping[str, Mapping[str, Any]] | None = None, sensors: Sequence[Sensor] = (FOUR_BANDS,), *, seed: int = 0
) -> Alliance:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Alliance(tiny_config(changes), sensors)


def natural_image(b: int, c: int, h: int, w: int, *, seed: int = 0) -> Tensor:
    """Random images whose power falls as 1 / f^2, as that of real scenes; zero mean and unit deviation."""
    white = np.random.default_rng(seed).standard_normal((b, c, h, w))
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])
    radius[0, 0] = np.inf
    image = np.fft.ifft2(np.fft.fft2(white) / radius).real
    return torch.from_numpy(image / image.std(axis=(-2, -1), keepdims=True)).float()


def noise_for(image: Tensor, groups: int, patch: int = TINY_ENCODER.patch, *, seed: int = 0, step: int = 0) -> Tensor:
    count = groups * (image.shape[-2] // patch) * (image.shape[-1] // patch)
    return mask_noise(seed, step, range(len(image)), count)


def randomise(module: torch.nn.Module, *, std: float = 0.2, seed: int = 0) -> None:
    """Give every parameter, also those that start at zero, some value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter + std * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
