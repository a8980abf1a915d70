"""DOFA and Clay (docs/weights.md): kernels that a small network makes from the wavelengths of all bands of a sensor."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.released.parts import (
    Embedding,
    Options,
    Released,
    Shapes,
    Weights,
    block_shapes,
    block_weights,
    depth_of,
    embed,
    heads_of,
    positions_of,
    size,
    width_of,
)
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor

WIDTH, TOKENS = 128, 128  # of the generator, and its learned tokens
HEADS, FEEDFORWARD = 4, 2048  # of its one layer
MICROMETRES = 1e-3  # per nanometre
# Wavelengths in micrometres that stand for what has none, as the projects chose them.
DOFA_RADAR = {"sar-vv": 3.75, "sar-vh": 3.75}
CLAY_RADAR = {"sar-vv": 3.5, "sar-vh": 4.0}
CLAY_BESIDE = 8  # channels of time and place, zero where they are not known
CLAY_NORMS = r"transformer\.(layers\.\d+\.(0\.norm|1\.net\.0)|norm)\.(weight|bias)"
CLAY_LAYERS = {
    "0.norm": "norm1", "0.to_qkv": "attn.qkv", "0.to_out": "attn.proj", "1.net.0": "norm2", "1.net.1": "mlp.fc1",
    "1.net.3": "mlp.fc2",
}  # fmt: skip


def _generator_shapes(weights: Weights, d: int, patch: int, prefix: str, layers: str, inner: str) -> Shapes:
    width = WIDTH
    own: Shapes = {f"{prefix}weight_generator.weight_tokens": (TOKENS, width)}
    own[f"{prefix}weight_generator.bias_token"] = (1, width)
    layer = nn.TransformerEncoderLayer(width, HEADS, FEEDFORWARD, device="meta")
    own |= {
        f"{prefix}weight_generator.{layers}.layers.0.{name}": tuple(value.shape)
        for name, value in layer.state_dict().items()
    }
    own |= {f"{prefix}weight_generator.fc_weight.weight": (patch**2 * d, width)}
    own |= {f"{prefix}weight_generator.fc_weight.bias": (patch**2 * d,)}
    own |= {f"{prefix}weight_generator.fc_bias.weight": (d, width), f"{prefix}weight_generator.fc_bias.bias": (d,)}
    for each in (1, 2):
        own |= {
            f"{prefix}fclayer.{inner}{each}.weight": (width, width),
            f"{prefix}fclayer.{inner}{each}.bias": (width,),
        }
    return own


@torch.no_grad()
def _generate(
    weights: Weights, prefix: str, layers: str, inner: str, waves: Tensor, act: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Kernels (c, p * p * d) and bias (d,), before scaling, of bands whose wavelengths have the codes `waves` (c, w)."""

    def linear(values: Tensor, name: str) -> Tensor:
        return nn.functional.linear(
            values, weights[f"{prefix}{name}.weight"].float(), weights[f"{prefix}{name}.bias"].float()
        )

    hidden = act(linear(act(linear(waves, f"fclayer.{inner}1")), f"fclayer.{inner}2")) + waves
    own = f"{prefix}weight_generator."
    layer = nn.TransformerEncoderLayer(waves.shape[1], HEADS, FEEDFORWARD, dropout=0.0, activation="gelu")
    start = f"{own}{layers}.layers.0."
    layer.load_state_dict(
        {name.removeprefix(start): value.float() for name, value in weights.items() if name.startswith(start)}
    )
    tokens = weights[f"{own}weight_tokens"].float()
    sequence = torch.cat([tokens, hidden, weights[f"{own}bias_token"].float()])
    out = layer(sequence[:, None])[:, 0]  # not in evaluation mode: its fast path rounds otherwise
    kernels = linear(out[TOKENS:-1] + hidden, "weight_generator.fc_weight")
    return kernels, linear(out[-1], "weight_generator.fc_bias")


def _waves(sensor: Sensor, radar: dict[str, float]) -> Tensor:
    """Wavelengths of the bands in micrometres (c,).

    Raises:
        InputError: a band has none, and the project gave its modality none.
    """
    values = [band.wavelength * MICROMETRES if band.wavelength else radar.get(band.modality) for band in sensor.bands]
    lacking = [band.name for band, value in zip(sensor.bands, values, strict=True) if value is None]
    if lacking:
        raise InputError(
            f"band {lacking[0]} of sensor {sensor.name} has no wavelength; give one whose bands have, by --sensor"
        )
    if not sensor.has_statistics:
        raise InputError(f"sensor {sensor.name} has no mean and std; give a YAML file that has them with --sensor")
    return torch.tensor(values, dtype=torch.float32)


def _coded(waves: Tensor, exponents: Tensor) -> Tensor:
    angle = waves[:, None] * 10_000.0**-exponents
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _sensors(options: Options, *defaults: str) -> list[Sensor]:
    return list(options.sensors) or [find_sensor(name) for name in defaults]


def _notes(sensors: list[Sensor]) -> tuple[str, ...]:
    return tuple(
        f"kernels for all bands of sensor {sensor.name} together; others are mixtures of these" for sensor in sensors
    )


def expected_dofa(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of a DOFA encoder."""
    d = width_of(weights, 768)
    rows = size(weights, ("pos_embed",), 1, 197)
    rows = rows if math.isqrt(rows - 1) ** 2 == rows - 1 else 197
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, rows, d)}
    shapes |= _generator_shapes(
        weights, d, _patch(weights, d, "patch_embed."), "patch_embed.", "transformer_encoder", "w"
    )
    return shapes | block_shapes(d, depth_of(weights))


def _patch(weights: Weights, d: int, prefix: str) -> int:
    """Side of a patch, by the number of values of a kernel."""
    return max(2, math.isqrt(size(weights, (f"{prefix}weight_generator.fc_weight.bias",), 0, 256 * d) // d))


def build_dofa(weights: Weights, options: Options) -> Released:
    """Kernels of each sensor by its wavelengths; their convolution begins one pixel before the image."""
    d = weights["norm.weight"].shape[0]
    patch = _patch(weights, d, "patch_embed.")
    sensors = _sensors(options, "dofa-sentinel2", "dofa-sentinel1")
    embeddings: list[Embedding] = []
    for sensor in sensors:
        codes = _coded(1000 * _waves(sensor, DOFA_RADAR), torch.arange(WIDTH // 2) / (WIDTH / 2))
        kernels, bias = _generate(weights, "patch_embed.", "transformer_encoder", "w", codes, nn.functional.relu)
        shaped = kernels.reshape(-1, patch, patch, d).permute(3, 0, 1, 2)
        embeddings.append(embed(_joined(sensor), 0.01 * shaped, 0.01 * bias[None], 1.0, 0.0))
    table = weights["pos_embed"][0].float()
    settings, own = positions_of(table[1:])
    own |= block_weights(weights) | {"special.cls": weights["cls_token"][0].float() + table[:1]}
    shown: dict[str, Any] = settings
    config = EncoderConfig(
        embed_dim=d, depth=depth_of(weights), heads=heads_of(d, options), patch=patch, amplitude=False, tokens="plain",
        patch_offset=1, **shown,
    )  # fmt: skip
    return Released(config=config, weights=own, embeddings=embeddings, notes=_notes(sensors))


def _joined(sensor: Sensor) -> Sensor:
    """The sensor with all of its bands in one token, as these networks read them."""
    return dataclasses.replace(sensor, groups=(sensor.band_names,))


def prepare_clay(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's names without what stands before them."""
    return {re.sub(r"^(model\.)?encoder\.", "", name): value for name, value in weights.items()}


def expected_clay(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of a Clay encoder."""
    d = width_of(weights, 1024, CLAY_NORMS)
    prefix = "patch_embedding."
    shapes: Shapes = {"cls_token": (1, 1, d)}
    shapes |= _generator_shapes(weights, d, _patch(weights, d, prefix), prefix, "encoder", "l")
    unbiased = ("attn.qkv.bias", "attn.proj.bias")
    for name, shape in block_shapes(d, depth_of(weights, r"transformer\.layers\.(\d{1,4})\.")).items():
        if not name.endswith(unbiased):
            shapes[_clay_name(name)] = shape
    return shapes


def _clay_name(name: str) -> str:
    """Clay's name of a weight that has this name in timm."""
    for theirs, ours in CLAY_LAYERS.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace("blocks.", "transformer.layers.") if name.startswith("blocks.") else f"transformer.{name}"


def build_clay(weights: Weights, options: Options) -> Released:
    """Kernels of each sensor by its wavelengths; time and place are not known, which Clay writes as zeros."""
    d = weights["transformer.norm.weight"].shape[0]
    patch, depth = _patch(weights, d, "patch_embedding."), depth_of(weights, r"transformer\.layers\.(\d{1,4})\.")
    sensors = _sensors(options, "clay-sentinel2", "clay-sentinel1")
    embeddings: list[Embedding] = []
    for sensor in sensors:
        codes = _coded(_waves(sensor, CLAY_RADAR), torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
        kernels, bias = _generate(weights, "patch_embedding.", "encoder", "l", codes, nn.functional.gelu)
        shaped = kernels.reshape(-1, d, patch, patch).transpose(0, 1)
        embeddings.append(embed(_joined(sensor), 0.02 * shaped, bias[None], 1.0, 0.0))
    own: dict[str, Tensor] = {"special.cls": weights["cls_token"][0]}
    for name, shape in block_shapes(d, depth).items():
        own[name] = weights.get(_clay_name(name), torch.zeros(shape))
    config = EncoderConfig(
        embed_dim=d, depth=depth, heads=heads_of(d, options), patch=patch, amplitude=False, tokens="plain",
        spatial_order="x_first", spatial_frequencies="clay", spatial_channels=(0, d - CLAY_BESIDE),
        spatial_unit_m=float(patch), norm_eps=1e-5,
    )  # fmt: skip
    return Released(config=config, weights=own, embeddings=embeddings, notes=(*_notes(sensors), "no time, no place"))
