"""SatMAE and SatMAE++ with band groups (docs/weights.md): one kernel per group, channels of each token tell its group."""

import math

import torch

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.released.parts import (
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
    positions_of,
    size,
    width_of,
)
from alliance.sensors.catalog import find_sensor

GROUPS = (4, 4, 2)  # bands


def expected(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of a SatMAE encoder of three groups."""
    d = width_of(weights, 768)
    patch = size(weights, tuple(f"patch_embed.{group}.proj.weight" for group in range(3)), 3, 8)
    beside = size(weights, ("channel_embed",), 2, 256)
    beside = beside if beside < d else d // 4  # the table of differences shows the wrong one
    rows = size(weights, ("pos_embed",), 1, 145)
    rows = rows if math.isqrt(rows - 1) ** 2 == rows - 1 else 145
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, rows, d - beside), "channel_embed": (1, 3, beside)}
    if "channel_cls_embed" in weights:
        shapes["channel_cls_embed"] = (1, 1, beside)
    for group, bands in enumerate(GROUPS):
        shapes |= {f"patch_embed.{group}.proj.weight": (d, bands, patch, patch), f"patch_embed.{group}.proj.bias": (d,)}
    return shapes | block_shapes(d, depth_of(weights))


def build(weights: Weights, options: Options) -> Released:
    """Values clipped to two deviations, then moved to 0 to 1; their rounding to 8 bits is left out."""
    d = weights["norm.weight"].shape[0]
    sensor = one_sensor(options, find_sensor("satmae-sentinel2"), sum(GROUPS))
    if tuple(map(len, sensor.group_indices)) != GROUPS:
        raise InputError(f"sensor {sensor.name} has not the band groups of {GROUPS} bands that these kernels read")
    table, channel = weights["pos_embed"][0].float(), weights["channel_embed"][0].float()
    width = table.shape[1]
    settings, own = positions_of(table[1:])
    constants = torch.stack([weights[f"patch_embed.{group}.proj.bias"].float() for group in range(3)])
    constants[:, width:] += channel
    kernel = torch.zeros(d, sum(GROUPS), *weights["patch_embed.0.proj.weight"].shape[2:])
    for group, indices in enumerate(sensor.group_indices):
        kernel[:, list(indices)] = weights[f"patch_embed.{group}.proj.weight"].float()
    if "table" in settings:  # of a part of the channels
        found = own["patch_embed.position.table"]
        own["patch_embed.position.table"] = torch.nn.functional.pad(found, (0, d - width))
    else:
        settings["spatial_channels"] = (0, width)
    cls = weights["cls_token"][0].float().clone()
    cls[:, :width] += table[:1]
    if "channel_cls_embed" in weights:
        cls[:, width:] += weights["channel_cls_embed"][0].float()
    own |= {"special.cls": cls} | block_weights(weights)
    patch = kernel.shape[-1]
    config = EncoderConfig(
        embed_dim=d, depth=depth_of(weights), heads=heads_of(d, options), patch=patch, amplitude=False, tokens="plain",
        **settings,
    )  # fmt: skip
    embedding = embed(sensor, kernel, constants, 0.25, 0.5)
    note = "values are clipped as theirs are, but not rounded to 8 bits"
    return Released(config=config, weights=own, embeddings=[embedding], notes=(f"images of sensor {sensor.name}", note))
