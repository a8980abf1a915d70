"""Prithvi 1 and 2 on one date (docs/weights.md): kernels over time of length 1, positions of width, height and date."""

import math
import re

import torch
from torch import Tensor

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.positions import SpatialCode, coded_position
from alliance.released.parts import (
    EQUAL,
    Options,
    Released,
    Shapes,
    Weights,
    block_shapes,
    block_weights,
    depth_of,
    embed,
    heads_of,
    one_sensor,
    size,
    width_of,
)
from alliance.sensors.catalog import find_sensor

PATCHES = "patch_embed.proj.weight"
FIRST = 768  # width of Prithvi 1
DATES = 16  # most of them that positions are looked for


def prepare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `encoder.` that some files put before the encoder's names."""
    return {re.sub(r"^encoder\.", "", name): value for name, value in weights.items()}


def expected(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of a Prithvi encoder."""
    d = width_of(weights, 1024)
    bands, patch = size(weights, (PATCHES,), 1, 6), size(weights, (PATCHES,), 4, 16)
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, size(weights, ("pos_embed",), 1, 785), d)}
    shapes |= {PATCHES: (d, bands, 1, patch, patch), "patch_embed.proj.bias": (d,)}
    return shapes | block_shapes(d, depth_of(weights))


def build(weights: Weights, options: Options) -> Released:
    """Six bands, one date; the codes of date and place that TL variants add are left out, as for images without them."""
    d = weights["norm.weight"].shape[0]
    channels, date = _positions(weights["pos_embed"][0, 1:].float())
    first = d == FIRST and "temporal_embed_enc.scale" not in weights
    kernel = weights[PATCHES][:, :, 0]
    sensor = one_sensor(options, find_sensor("prithvi1-hls" if first else "prithvi2-hls"), kernel.shape[1])
    config = EncoderConfig(
        embed_dim=d, depth=depth_of(weights), heads=heads_of(d, options), patch=kernel.shape[-1], amplitude=False,
        tokens="plain", spatial_order="x_first", spatial_channels=(0, channels), norm_eps=1e-5,
    )  # fmt: skip
    own = block_weights(weights) | {
        "special.cls": weights["cls_token"][0].float() + weights["pos_embed"][0, :1].float()
    }
    embedding = embed(sensor, kernel, (weights["patch_embed.proj.bias"].float() + date)[None], 1.0, 0.0)
    return Released(
        config=config, weights=own, embeddings=[embedding], notes=(f"images of sensor {sensor.name}, one date",)
    )


def _positions(table: Tensor) -> tuple[int, Tensor]:
    """Channels (6 + 6 of 16 parts) of the code of columns and rows, and what the first date adds (d,).

    Raises:
        InputError: the stored positions are not those of the code.
    """
    count, d = table.shape
    channels = d // 16 * 12
    date = torch.cat([torch.zeros(d - (d - channels) // 2), torch.ones((d - channels) // 2)])  # sines and cosines of 0
    code = SpatialCode(order="x_first", channels=(0, channels))
    for dates in range(1, DATES + 1):
        side = math.isqrt(count // dates)
        if dates * side**2 == count:
            wanted = coded_position(side, side, d, torch.device("cpu"), code) + date
            if (table[: side**2] - wanted).abs().max() < EQUAL:
                return channels, date
    raise InputError("pos_embed is not the sine-cosine code of width, height and date that Prithvi has")
