"""Plain vision transformers with timm's names: timm, MAE, DINOv2, and SSL4EO-S12, FG-MAE and SoftCon (docs/weights.md)."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.positions import Resampling
from alliance.released.parts import (
    Options,
    Released,
    Shapes,
    Weights,
    block_shapes,
    block_weights,
    depth_of,
    embed,
    find,
    heads_of,
    one_sensor,
    positions_of,
    size,
    width_of,
)
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor

REGISTERS = ("reg_token", "register_tokens")  # as timm and as DINOv2 call them
PATCHES = "patch_embed.proj.weight"


def expected(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of a vision transformer whose width, patch and grid are those of these weights."""
    d = width_of(weights, 768)
    channels, patch = size(weights, (PATCHES,), 1, 3), size(weights, (PATCHES,), 3, 16)
    registers = next((name for name in REGISTERS if name in weights), None)
    count = size(weights, (registers,), 1, 4) if registers else 0
    rows = size(weights, ("pos_embed",), 1, 197)
    prefix = prefix_rows(rows, count)
    cls = "cls_token" in weights or prefix in (1, 1 + count)
    shapes: Shapes = {"cls_token": (1, 1, d)} if cls else {}
    shapes["pos_embed"] = (1, 197 if prefix is None else rows, d)
    shapes |= {registers: (1, count, d)} if registers else {}
    shapes |= {PATCHES: (d, channels, patch, patch), "patch_embed.proj.bias": (d,)}
    depth = depth_of(weights)
    scaled = any(name.endswith((".ls1.gamma", ".ls2.gamma")) for name in weights)
    gammas: Shapes = {f"blocks.{i}.ls{j}.gamma": (d,) for i in range(depth) for j in (1, 2)} if scaled else {}
    return shapes | block_shapes(d, depth) | gammas


def prefix_rows(rows: int, registers: int) -> int | None:
    """Rows of `pos_embed` before those of a square grid: none, cls alone, or cls and registers; None: no grid is left."""
    return next((n for n in (0, 1, 1 + registers) if n < rows and math.isqrt(rows - n) ** 2 == rows - n), None)


def transformer(weights: Weights, options: Options, **more: Any) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Settings and weights, by our names, of all but the embedding of pixels.

    Args:
        more: settings of the encoder beside those that the weights show.
    """
    d = weights["norm.weight"].shape[0]
    table = weights["pos_embed"][0].float()
    registers = next((weights[name][0].float() for name in REGISTERS if name in weights), table[:0])
    prefix = prefix_rows(len(table), len(registers)) or 0
    settings, own = positions_of(table[prefix:])
    own |= block_weights(weights)
    if "cls_token" in weights:
        own["special.cls"] = weights["cls_token"][0].float() + (table[:1] if prefix else 0.0)
    if len(registers):
        own["special.registers"] = registers + (table[1:prefix] if prefix > 1 else 0.0)
    shown: dict[str, Any] = settings | ({"patch": weights[PATCHES].shape[-1]} if PATCHES in weights else {}) | more
    config = EncoderConfig(
        embed_dim=d,
        depth=depth_of(weights),
        heads=heads_of(d, options),
        amplitude=False,
        tokens="plain" if "cls_token" in weights else "none",
        registers=len(registers),
        **shown,
    )
    return config, own


def _plain(
    weights: Weights, options: Options, sensor: Sensor, resampling: Resampling, *, stored: bool = False
) -> Released:
    """
    Args:
        stored: the authors gave the network physical values; else standardised ones.
    """
    kernel = weights[PATCHES]
    sensor = one_sensor(options, sensor, kernel.shape[1])
    config, own = transformer(weights, options, table_resampling=resampling)
    mean, std = (torch.tensor([getattr(band, name) for band in sensor.bands]) for name in ("mean", "std"))
    scale, shift = (std, mean) if stored else (1.0, 0.0)
    embedding = embed(sensor, kernel, weights["patch_embed.proj.bias"][None], scale, shift)
    return Released(config=config, weights=own, embeddings=[embedding], notes=(f"images of sensor {sensor.name}",))


def build_timm(weights: Weights, options: Options) -> Released:
    """A model of timm, whose config.json may say its mean and std."""
    channels = weights[PATCHES].shape[1]
    sensor = find_sensor("rgb-half")
    mean, std = (find(options.record, name) for name in ("mean", "std"))
    if _three_numbers(mean) and _three_numbers(std):
        sensor = dataclasses.replace(sensor.with_statistics(mean, std), name="rgb-timm")
    if channels != 3 and not options.sensors:
        raise InputError(f"the kernels read {channels} bands that the file does not name; give them with --sensor")
    return _plain(weights, options, sensor, "antialiased")


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, float | int) for value in values)
    )


def build_mae(weights: Weights, options: Options) -> Released:
    """MAE on ImageNet; its decoder is left out."""
    return _plain(weights, options, find_sensor("rgb-imagenet"), "plain")


def build_dinov2(weights: Weights, options: Options) -> Released:
    """DINOv2: its own resampling of positions, with an offset where it has no registers."""
    resampling: Resampling = "antialiased" if any(name in weights for name in REGISTERS) else "offset"
    return _plain(weights, options, find_sensor("rgb-imagenet"), resampling)


def build_ssl4eo(weights: Weights, options: Options) -> Released:
    """Sentinel-1 in decibels, standardised, or the 13 bands of Sentinel-2 L1C as reflectance."""
    channels = weights[PATCHES].shape[1]
    radar = channels == 2
    if channels not in (2, 13) and not options.sensors:
        raise InputError(
            f"SSL4EO-S12 has encoders of 2 or 13 bands, this one reads {channels}; name them with --sensor"
        )
    sensor = find_sensor("ssl4eo-sentinel1" if radar else "ssl4eo-sentinel2")
    return _plain(weights, options, sensor, "plain", stored=not radar)
