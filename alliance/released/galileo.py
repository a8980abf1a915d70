"""Galileo on one date of Sentinel-1, Sentinel-2 and NDVI (docs/weights.md): a kernel per band group, no cls."""

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
    size,
    stack_qkv,
    width_of,
)
from alliance.sensors.catalog import find_sensor

GROUPS = {"S1": 2, "S2_RGB": 3, "S2_Red_Edge": 3, "S2_NIR_10m": 1, "S2_NIR_20m": 1, "S2_SWIR": 2, "NDVI": 1}  # bands
DATES = 24  # most of a series
BASE_M = 10.0  # metres of one unit of positions


def expected(weights: Weights, options: Options) -> Shapes:
    """Names and shapes of what Galileo needs for one date of those images."""
    d = width_of(weights, 128)
    patch = size(weights, tuple(f"space_time_embed.{group}.proj.weight" for group in GROUPS), 3, 8)
    shapes: Shapes = {"pos_embed": (DATES, d // 4), "s_t_channel_embed": (len(GROUPS), d // 4)}
    shapes["month_embed.weight"] = (12, d // 4)
    for group, bands in GROUPS.items():
        shapes |= {f"space_time_embed.{group}.proj.weight": (d, bands, patch, patch)}
        shapes |= {f"space_time_embed.{group}.proj.bias": (d,)}
    for name, shape in block_shapes(d, depth_of(weights)).items():
        parts = ("q", "k", "v") if ".attn.qkv." in name else ("qkv",)
        for part in parts:
            shapes[name.replace(".attn.qkv.", f".attn.{part}.")] = (d, *shape[1:]) if part != "qkv" else shape
    return shapes


def build(weights: Weights, options: Options) -> Released:
    """A quarter of the channels each for the group, the date, the month and the place; values moved by two deviations."""
    d = weights["norm.weight"].shape[0]
    sensor = one_sensor(options, find_sensor("galileo"), sum(GROUPS.values()))
    if tuple(map(len, sensor.group_indices)) != tuple(GROUPS.values()):
        raise InputError(f"sensor {sensor.name} has not the band groups {', '.join(GROUPS)} that these kernels read")
    kernel = torch.zeros(d, len(sensor.bands), *weights["space_time_embed.S1.proj.weight"].shape[2:])
    constants = torch.zeros(len(GROUPS), d)
    for index, (group, members) in enumerate(zip(GROUPS, sensor.group_indices, strict=True)):
        kernel[:, list(members)] = weights[f"space_time_embed.{group}.proj.weight"].float()
        told = [
            weights["s_t_channel_embed"][index],
            weights["pos_embed"][0],
            weights["month_embed.weight"][options.month - 1],
        ]
        constants[index] = weights[f"space_time_embed.{group}.proj.bias"].float()
        constants[index, : 3 * (d // 4)] += torch.cat(told).float()
    config = EncoderConfig(
        embed_dim=d, depth=depth_of(weights), heads=heads_of(d, options), patch=kernel.shape[-1], amplitude=False,
        tokens="none", spatial_order="x_first", spatial_frequencies="galileo", spatial_channels=(3 * (d // 4), d),
        spatial_unit_m=BASE_M, norm_eps=1e-5,
    )  # fmt: skip
    own = block_weights(stack_qkv(weights))
    embedding = embed(sensor, kernel, constants, 0.25, 0.5)
    notes = (f"images of sensor {sensor.name} or some of its bands, one date, in month {options.month}",)
    return Released(config=config, weights=own, embeddings=[embedding], notes=notes)
