"""Random weights in the formats of released encoders, plausible images for them, and the command that converts them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alliance.checkpoint import load_encoder
from alliance.encoder import AllianceEncoder
from alliance.sensors import Sensor
from finetune.conversion import main


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, with random values in all of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def image_of(sensor: Sensor, side: int, *, b: int = 2, spread: float = 0.3, seed: int = 0) -> Tensor:
    """Smooth-free but plausible images (b, c, h, w) in the sensor's units."""
    generator = torch.Generator().manual_seed(seed)
    noise = spread * torch.randn(b, len(sensor.bands), side, side, generator=generator).clamp(-2.9, 2.9)
    mean, std = (
        torch.tensor([getattr(band, name) for band in sensor.bands])[:, None, None] for name in ("mean", "std")
    )
    return mean + std * noise


def standardised(image: Tensor, sensor: Sensor) -> Tensor:
    mean, std = (
        torch.tensor([getattr(band, name) for band in sensor.bands])[:, None, None] for name in ("mean", "std")
    )
    return (image - mean) / std


def converted(format: str, content: Mapping[str, Any], folder: Path, *arguments: str) -> AllianceEncoder:
    """The encoder that the command makes of a file with this content."""
    torch.save(content, folder / "file.pth")
    main([format, str(folder / "file.pth"), str(folder / "out"), *arguments])
    return load_encoder(folder / "out")


def sines(places: Tensor, width: int) -> Tensor:
    """[sin; cos] of places (n,) at width / 2 frequencies: (n, width), as MAE and DOFA have it."""
    omega = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = places.double()[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def mae_positions(side: int, width: int) -> Tensor:
    """Positions of a square grid in raster order, (side * side, width): half the channels for x, half for y."""
    y, x = (each.flatten() for each in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    return torch.cat([sines(x, width // 2), sines(y, width // 2)], 1)


def block(x: Tensor, weights: Mapping[str, Tensor], name: str, heads: int, eps: float) -> Tensor:
    """A transformer block (b, n, d) -> (b, n, d) from weights with timm's names, written out."""

    def norm(values: Tensor, which: str) -> Tensor:
        own = f"{name}.{which}"
        return nn.functional.layer_norm(
            values, values.shape[-1:], weights[f"{own}.weight"], weights[f"{own}.bias"], eps
        )

    def linear(values: Tensor, which: str) -> Tensor:
        return values @ weights[f"{name}.{which}.weight"].T + weights[f"{name}.{which}.bias"]

    b, n, d = x.shape
    q, k, v = linear(norm(x, "norm1"), "attn.qkv").reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    share = ((q @ k.transpose(-1, -2)) * (d // heads) ** -0.5).softmax(-1)
    x = x + linear((share @ v).transpose(1, 2).reshape(b, n, d), "attn.proj")
    return x + linear(nn.functional.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


def blocks(x: Tensor, weights: Mapping[str, Tensor], depth: int, heads: int, eps: float = 1e-6) -> Tensor:
    """All blocks and the last norm: (b, n, d) -> (b, n, d)."""
    for index in range(depth):
        x = block(x, weights, f"blocks.{index}", heads, eps)
    return nn.functional.layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"], eps)


def block_weights(d: int, depth: int, seed: int = 1) -> dict[str, Tensor]:
    """Random weights of blocks and the last norm, by timm's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    own = {}
    for index in range(depth):
        for name in ("norm1", "norm2"):
            own[f"blocks.{index}.{name}.weight"] = 1 + 0.1 * torch.randn(d, generator=generator)
            own[f"blocks.{index}.{name}.bias"] = 0.1 * torch.randn(d, generator=generator)
        for name, shape in shapes.items():
            own[f"blocks.{index}.{name}.weight"] = 0.1 * torch.randn(shape, generator=generator)
            own[f"blocks.{index}.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    own["norm.weight"] = 1 + 0.1 * torch.randn(d, generator=generator)
    own["norm.bias"] = 0.1 * torch.randn(d, generator=generator)
    return own


def random(*shape: int, seed: int = 2) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
