"""What families of released encoders have in common: names and shapes, what a file says, and what becomes of it."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.files import regular
from alliance.positions import SpatialCode, coded_position
from alliance.ranges import Ranged, ranged
from alliance.sensors import Sensor

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}  # of the usual vision transformers, by width
EQUAL = 1e-4  # largest difference of a stored position from the code that made it
LARGEST_RECORD = 1_000_000  # bytes of a config.json beside the weights

Shapes = dict[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options(Ranged):
    """What a file may not say."""

    heads: int | None = ranged(None, 1, 1024)
    """Attention heads; None: those usual for the width."""
    sensors: tuple[Sensor, ...] = ()
    """Whose images it shall read; empty: those it was trained on."""
    month: int = ranged(6, 1, 12)
    """Of the images, 1 to 12, where the encoder asks for it."""
    record: Mapping[str, Any] | None = None
    """Of the config.json beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What the first layer makes of the images of one sensor."""

    sensor: Sensor
    kernels: Tensor  # (c, p * p, d), of standardised pixels, in the order of the sensor's bands
    constants: Tensor  # (g, d), added to the tokens of each band group


@dataclass(frozen=True, kw_only=True)
class Released:
    """An encoder as its file gives it, in our terms."""

    config: EncoderConfig
    weights: dict[str, Tensor]  # by our names, all but the embedding of pixels
    embeddings: Sequence[Embedding]
    notes: tuple[str, ...] = ()  # what was assumed, for the report


def read_record(path: Path) -> Mapping[str, Any]:
    """The config.json beside a file of weights; empty where there is none that can be read."""
    record = path.with_name("config.json")
    try:
        content = json.loads(regular(record).read_text()) if record.stat().st_size < LARGEST_RECORD else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def find(record: Any, key: str) -> Any:
    """The first value under a key anywhere in nested mappings; None: there is none."""
    if not isinstance(record, Mapping):
        return None
    if key in record:
        return record[key]
    return next((found for value in record.values() if (found := find(value, key)) is not None), None)


def heads_of(width: int, options: Options) -> int:
    """Attention heads, which no weight shows.

    Raises:
        InputError: nothing says how many, or the width is no multiple of them.
    """
    told = find(options.record, "num_heads")
    heads = (
        options.heads or (told if isinstance(told, int) and not isinstance(told, bool) else None) or HEADS.get(width)
    )
    if heads is None:
        raise InputError(f"the weights do not show how many attention heads share a width of {width}; pass --heads N")
    if heads < 1 or width % heads:
        raise InputError(f"{heads} attention heads do not divide the width {width}; pass --heads N")
    return heads


def size(weights: Weights, names: Sequence[str], axis: int, default: int) -> int:
    """Length of an axis of the first of these weights that there is; a table of differences follows a wrong one."""
    found = next((weights[name].shape for name in names if name in weights), ())
    return (int(found[axis]) if -len(found) <= axis < len(found) else 0) or default


NORMS = r"(blocks\.\d+\.norm[12]|norm)\.(weight|bias)"


def width_of(weights: Weights, default: int, pattern: str = NORMS) -> int:
    """The width of the tokens: that of most layer norms, so that a single wrong one is told as such."""
    lengths = Counter(len(value) for name, value in weights.items() if re.fullmatch(pattern, name) and value.ndim == 1)
    return next((length for length, _ in lengths.most_common(1) if length), default)


def depth_of(weights: Weights, pattern: str = r"blocks\.(\d{1,4})\.") -> int:
    """Number of blocks, by their highest number."""
    return 1 + max((int(found[1]) for name in weights if (found := re.match(pattern, name))), default=0)


def block_shapes(d: int, depth: int) -> Shapes:
    """Names and shapes of transformer blocks and the last norm, as timm has them."""
    own: Shapes = {"norm1.weight": (d,), "norm1.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,)}
    own |= {
        "attn.qkv.weight": (3 * d, d),
        "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d),
        "attn.proj.bias": (d,),
    }
    own |= {"mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,)}
    own |= {"mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,)}
    shapes = {f"blocks.{index}.{name}": shape for index in range(depth) for name, shape in own.items()}
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def block_weights(weights: Weights) -> dict[str, Tensor]:
    """Those of the blocks and the last norm under timm's names, layer scale folded into the layers before it."""
    own = {name: value for name, value in weights.items() if re.match(r"blocks\.|norm\.", name)}
    for layer, gamma in (("attn.proj", "ls1.gamma"), ("mlp.fc2", "ls2.gamma")):
        for name in [name for name in own if name.endswith(gamma)]:
            scale, before = own.pop(name).float(), name.removesuffix(gamma) + layer
            own[f"{before}.weight"] = own[f"{before}.weight"].float() * scale[:, None]
            own[f"{before}.bias"] = own[f"{before}.bias"].float() * scale
    return own


def stack_qkv(weights: Weights) -> dict[str, Tensor]:
    """The weights with separate queries, keys and values (`attn.q`, `.k`, `.v`) put into one `attn.qkv`."""
    stacked = dict(weights)
    for name in [name for name in weights if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
        parts = [stacked.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        stacked[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return stacked


def positions_of(table: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of stored positions of a square grid (n, d): a code that makes them, else a learned table."""
    count, d = table.shape
    side = math.isqrt(count)
    for order in ("x_first", "sin_first"):
        code = coded_position(side, side, d, torch.device("cpu"), SpatialCode(order=order)) if d % 4 == 0 else None
        if code is not None and (table.float() - code).abs().max() < EQUAL:
            return {"spatial_order": order}, {}
    return {"table": side}, {"patch_embed.position.table": table.float().reshape(side, side, d)}


def embed(sensor: Sensor, kernel: Tensor, constants: Tensor, scale: Tensor | float, shift: Tensor | float) -> Embedding:
    """The first layer for standardised pixels, where its authors gave it `scale * standardised + shift`.

    Args:
        kernel: (d, c, p, p) for the sensor's bands in their order.
        constants: (g, d), or (1, d) for all groups.
        scale, shift: one number, or one per band (c,).
    """
    c = len(sensor.bands)
    values = kernel.float().flatten(2).permute(1, 2, 0).double()  # (c, p * p, d)
    scales, shifts = (torch.as_tensor(each, dtype=torch.float64).expand(c) for each in (scale, shift))
    moved = values.sum(1) * shifts[:, None]
    groups = sensor.group_indices
    constant = torch.stack([moved[list(group)].sum(0) for group in groups]) + constants.double()
    sizes = torch.ones(c, dtype=torch.float64)
    for group in groups:
        sizes[list(group)] = len(group)
    return Embedding(sensor=sensor, kernels=values * (scales * sizes.sqrt())[:, None, None], constants=constant)


def one_sensor(options: Options, default: Sensor, channels: int) -> Sensor:
    """The sensor whose bands are the channels of fixed kernels.

    Raises:
        InputError: several are given, or one with other bands or without statistics.
    """
    if len(options.sensors) > 1:
        raise InputError("these kernels are of one set of bands; give one --sensor")
    sensor = options.sensors[0] if options.sensors else default
    if len(sensor.bands) != channels:
        raise InputError(
            f"the kernels read {channels} bands, sensor {sensor.name} has {len(sensor.bands)} "
            f"({', '.join(sensor.band_names)}); give the one they were trained on with --sensor"
        )
    if not sensor.has_statistics:
        raise InputError(f"sensor {sensor.name} has no mean and std; give a YAML file that has them with --sensor")
    return sensor
