"""The released PAD checkpoint, written again from its description: its manifest, and what its network computes.

Names are those of the release; the network is in double precision with numpy's transforms.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SHAPES = {"atto": ((2, 2, 6, 2), (40, 80, 160, 320)), "large": ((3, 3, 27, 3), (192, 384, 768, 1536))}


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv_norm(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    width = shape[:1]
    statistics = {
        f"{name}.bn.running_mean": width,
        f"{name}.bn.running_var": width,
        f"{name}.bn.num_batches_tracked": (),
    }
    return {f"{name}.conv.weight": shape, **layer(f"{name}.bn", *width), **statistics}


def encoder_manifest(prefix: str, depths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    keys = layer(f"{prefix}downsample_layers.0.0", widths[0], 3, 4, 4)
    keys |= layer(f"{prefix}downsample_layers.0.1", widths[0])
    for i, (depth, c) in enumerate(zip(depths, widths, strict=True)):
        if i:
            keys |= layer(f"{prefix}downsample_layers.{i}.0", widths[i - 1])
            keys |= layer(f"{prefix}downsample_layers.{i}.1", c, widths[i - 1], 2, 2)
        for block in (f"{prefix}stages.{i}.{j}." for j in range(depth)):
            keys |= layer(f"{block}depthwise_conv", c, 1, 7, 7) | layer(f"{block}norm", c)
            keys |= layer(f"{block}pointwise_conv1", 4 * c, c) | layer(f"{block}pointwise_conv2", c, 4 * c)
            keys |= {f"{block}grn.gamma": (4 * c,), f"{block}grn.beta": (4 * c,)}
        keys |= layer(f"{prefix}norm{i}", c)
    return keys


def fusion_manifest(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}radius": (),
        **layer(f"{prefix}residual", d, 2 * d, 1, 1),
        **layer(f"{prefix}fc", 1, 2 * d, 1, 1),
        **layer(f"{prefix}catconv1", d, 2 * d, 1, 1),
        **layer(f"{prefix}psc.attention.0", d // 8, d, 1, 1),
        **layer(f"{prefix}psc.attention.2", 1, d // 8, 1, 1),
        **layer(f"{prefix}asf.layers.0", d, d),
        **layer(f"{prefix}asf.layers.2", 2 * d, d),
        **layer(f"{prefix}asf.layers.4", d, 2 * d),
        **layer(f"{prefix}mix_conv", d, 2 * d, 1, 1),
    }


def head_manifest(widths: tuple[int, ...], classes: int) -> dict[str, tuple[int, ...]]:
    keys = layer("decode_head.conv_seg", classes, 256, 1, 1) | layer("auxiliary_head.conv_seg", classes, 128, 1, 1)
    keys |= conv_norm("auxiliary_head.convs.0", 128, widths[2], 3, 3)
    keys |= conv_norm("decode_head.bottleneck", 256, widths[3] + 4 * 256, 3, 3)
    keys |= conv_norm("decode_head.fpn_bottleneck", 256, 4 * 256, 3, 3)
    for i in range(4):
        keys |= conv_norm(f"decode_head.psp_modules.{i}.1", 256, widths[3], 1, 1)
    for i in range(3):
        keys |= conv_norm(f"decode_head.lateral_convs.{i}", 256, widths[i], 1, 1)
        keys |= conv_norm(f"decode_head.fpn_convs.{i}", 256, 256, 3, 3)
    return keys


def manifest(size: str = "atto", classes: int = 3) -> dict[str, tuple[int, ...]]:
    depths, widths = SHAPES[size]
    keys = encoder_manifest("backbone.backbone.", depths, widths)
    keys |= encoder_manifest("backbone.backbone2.", depths, widths)
    for i, width in enumerate(widths):
        keys |= fusion_manifest(f"backbone.FFMs.{i}.0.", width)
    return keys | head_manifest(widths, classes)


def released(size: str = "atto", classes: int = 3) -> collections.OrderedDict[str, Tensor]:
    """Weights of a released file: random ones of a sensible scale."""
    generator = torch.Generator().manual_seed(0)
    weights: collections.OrderedDict[str, Tensor] = collections.OrderedDict()
    for name, shape in manifest(size, classes).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(1000)
        elif name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) > 1:
            value = value / float(np.prod(shape[1:])) ** 0.5
        else:
            value = 0.2 * value + float(name.endswith("weight"))
        weights[name] = value
    return weights


def weightless(size: str = "large", classes: int = 7) -> dict[str, Tensor]:
    """Tensors of the right shapes that all show the same single number, so that their file is small."""
    return {name: torch.zeros(()).expand(shape) for name, shape in manifest(size, classes).items()}


Part = Callable[[str], Tensor]


def part(weights: Mapping[str, Tensor], prefix: str) -> Part:
    return lambda name: weights[prefix + name]


def conv(get: Part, name: str, x: Tensor, **options: Any) -> Tensor:
    weight = get(f"{name}.weight")
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    return functional.conv2d(x, weight, get(f"{name}.bias"), **options)


def norm(get: Part, name: str, x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return x * get(f"{name}.weight")[:, None, None] + get(f"{name}.bias")[:, None, None]


def encode(get: Part, x: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    maps = []
    for i, depth in enumerate(depths):
        first, second = f"downsample_layers.{i}.0", f"downsample_layers.{i}.1"
        x = conv(get, second, norm(get, first, x), stride=2) if i else norm(get, second, conv(get, first, x, stride=4))
        for block in (f"stages.{i}.{j}." for j in range(depth)):
            y = conv(get, f"{block}depthwise_conv", x, padding=3, groups=x.shape[1])
            y = conv(get, f"{block}pointwise_conv1", norm(get, f"{block}norm", y))
            y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
            energy = y.square().sum((2, 3), keepdim=True).sqrt()
            response = energy / (energy.mean(1, keepdim=True) + 1e-6)
            gamma, beta = get(f"{block}grn.gamma")[:, None, None], get(f"{block}grn.beta")[:, None, None]
            x = x + conv(get, f"{block}pointwise_conv2", gamma * y * response + beta + y)
        x = norm(get, f"norm{i}", x)
        maps.append(x)
    return maps


def fuse(get: Part, rgb: Tensor, sar: Tensor) -> tuple[Tensor, float]:
    both = torch.cat([rgb, sar], 1)
    gate, residual = conv(get, "fc", both).sigmoid(), conv(get, "residual", both)
    x = conv(get, "catconv1", torch.cat([gate * rgb, (1 - gate) * sar], 1)) + residual
    h, w = x.shape[-2:]
    spectrum = np.fft.rfft2(x.numpy(), norm="ortho")
    for u in {0, h // 2}:
        for v in {0, w // 2}:
            spectrum[..., u, v] = spectrum[..., u, v].real  # as it is but for rounding, for even h and w
    spectrum = np.fft.fftshift(spectrum, (-2, -1))
    amplitude, phase = torch.from_numpy(abs(spectrum)), torch.from_numpy(np.angle(spectrum))
    rows, columns = np.mgrid[:h, : w // 2 + 1]
    distance = np.hypot(rows - h // 2, columns - (w // 2 + 1) // 2)
    mask = torch.sigmoid(10 * (torch.from_numpy(distance / distance.max()) - get("radius").sigmoid()))
    high = functional.leaky_relu(conv(get, "asf.layers.0", mask * amplitude))
    high = conv(get, "asf.layers.4", functional.leaky_relu(conv(get, "asf.layers.2", high)))
    changed = conv(get, "mix_conv", torch.cat([amplitude, high], 1)) + amplitude
    attention = conv(get, "psc.attention.2", functional.leaky_relu(conv(get, "psc.attention.0", phase)))
    phase = phase * (1 + attention.sigmoid())
    spectrum = np.fft.ifftshift(changed.numpy() * np.exp(1j * phase.numpy()), (-2, -1))
    x = torch.from_numpy(np.fft.irfft2(spectrum, s=(h, w), norm="ortho")) + residual
    return x, (changed - amplitude).square().mean().item()


def conv_relu(get: Part, name: str, x: Tensor) -> Tensor:
    weight = get(f"{name}.conv.weight")
    x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    mean, variance, scale, shift = (
        get(f"{name}.bn.{key}")[:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.relu((x - mean) / (variance + 1e-5).sqrt() * scale + shift)


def upsample(x: Tensor, size: Any) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def decode(get: Part, maps: list[Tensor]) -> Tensor:
    last = maps[3]
    pooled = [
        upsample(conv_relu(get, f"psp_modules.{i}.1", functional.adaptive_avg_pool2d(last, scale)), last.shape[2:])
        for i, scale in enumerate((1, 2, 3, 6))
    ]
    levels = [conv_relu(get, f"lateral_convs.{i}", maps[i]) for i in range(3)]
    levels.append(conv_relu(get, "bottleneck", torch.cat([last, *pooled], 1)))
    for i in (3, 2, 1):
        levels[i - 1] = levels[i - 1] + upsample(levels[i], levels[i - 1].shape[2:])
    levels = [conv_relu(get, f"fpn_convs.{i}", levels[i]) for i in range(3)] + levels[3:]
    joined = torch.cat([upsample(level, maps[0].shape[2:]) for level in levels], 1)
    return conv(get, "conv_seg", conv_relu(get, "fpn_bottleneck", joined))


def reference(weights: Mapping[str, Tensor], rgb: Tensor, sar: Tensor) -> tuple[Tensor, Tensor, float]:
    """Logits, auxiliary logits and penalty of the released network in evaluation mode."""
    double = {name: value.double() for name, value in weights.items()}
    depths = SHAPES["atto"][0]
    optical = encode(part(double, "backbone.backbone."), rgb.double(), depths)
    radar = encode(part(double, "backbone.backbone2."), sar.double(), depths)
    fused = [fuse(part(double, f"backbone.FFMs.{i}.0."), optical[i], radar[i]) for i in range(4)]
    maps = [x for x, _ in fused]
    logits = decode(part(double, "decode_head."), maps)
    head = part(double, "auxiliary_head.")
    auxiliary = conv(head, "conv_seg", conv_relu(head, "convs.0", maps[2]))
    size = rgb.shape[2:]
    return upsample(logits, size), upsample(auxiliary, size), sum(penalty for _, penalty in fused)
