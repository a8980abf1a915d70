"""Heads that label pixels: UPerHead and the auxiliary FCNHead with the parts and the names of mmsegmentation; others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alliance.kept import exporting

POOL_SCALES = (1, 2, 3, 6)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(b, c, h, w) -> (b, c, *size), bilinear, corners not aligned."""
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class AveragePool(nn.AdaptiveAvgPool2d):
    """Means of s x s parts of maps (b, c, h, w), which may overlap: (b, c, s, s)."""

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        """In an exported graph, where sizes may be symbols, as products with the weights of rows and columns."""
        if not exporting():
            return super().forward(input)
        down, along = (part_weights(size, self.parts, input.device) for size in input.shape[-2:])
        return down @ input @ along.mT


def part_weights(size: int, parts: int, device: torch.device) -> Tensor:
    """Weights (parts, size) of means over the parts of a side, as `nn.AdaptiveAvgPool1d` cuts it."""
    part, place = torch.arange(parts, device=device)[:, None], torch.arange(size, device=device)[None]
    start, stop = part * size // parts, ((part + 1) * size + parts - 1) // parts
    return ((place >= start) & (place < stop)).float() / (stop - start)


class ConvNormReLU(nn.Module):
    """Convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w)."""
        return torch.relu(self.bn(self.conv(x)))


class Head(nn.Module):
    """What the two heads share: dropout of whole channels and the 1 x 1 classifier."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)

    def classify(self, x: Tensor) -> Tensor:
        """(b, width, h, w) -> logits (b, classes, h, w)."""
        return self.conv_seg(self.dropout(x))


class UPerHead(Head):
    """Pyramid pooling on the last map, top-down pathway, all levels joined at the finest (UPerNet).

    Args:
        channels: widths of the four maps.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(width, classes, dropout)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AveragePool(scale), ConvNormReLU(channels[-1], width, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = ConvNormReLU(channels[-1] + len(POOL_SCALES) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(inputs, width, 1) for inputs in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvNormReLU(len(channels) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (b, channels[i], h_i, w_i), finest first -> logits (b, classes, h_0, w_0)."""
        last = maps[-1]
        pooled = [resize(module(last), last.shape[-2:]) for module in self.psp_modules]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))
        levels = [top]
        for lateral, finer in zip(reversed(self.lateral_convs), reversed(maps[:-1]), strict=True):
            levels.insert(0, lateral(finer) + resize(levels[0], finer.shape[-2:]))
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        joined = [resize(level, maps[0].shape[-2:]) for level in [*smooth, top]]
        return self.classify(self.fpn_bottleneck(torch.cat(joined, dim=1)))


class LinearHead(Head):
    """The classifier alone, on the coarsest map.

    Args:
        channels: widths of the maps.
        width: not used.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(channels[-1], classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (b, channels[i], h_i, w_i) -> logits (b, classes, h, w) of the last one."""
        return self.classify(maps[-1])


class FPNHead(Head):
    """Top-down pathway, each level smoothed and brought to the finest size, their sum (Kirillov et al., arXiv 1901.02446).

    Args:
        channels: widths of the four maps.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(width, classes, dropout)
        self.lateral_convs = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in channels)
        self.fpn_convs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (b, channels[i], h_i, w_i), finest first -> logits (b, classes, h_0, w_0)."""
        levels: list[Tensor] = []
        for lateral, one in zip(reversed(self.lateral_convs), reversed(maps), strict=True):
            above = [resize(levels[0], one.shape[-2:])] if levels else []
            levels.insert(0, sum(above, start=lateral(one)))
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=True)]
        return self.classify(sum((resize(level, maps[0].shape[-2:]) for level in smooth[1:]), start=smooth[0]))


class ResidualUnit(nn.Module):
    """x + two 3 x 3 convolutions of it, each behind a ReLU, with batch norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [
            part
            for _ in range(2)
            for part in (nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) -> the same shape."""
        return x + self.layers(x)


class DPTHead(Head):
    """Residual units that fuse the maps from the coarsest to the finest (Ranftl et al., arXiv 2103.13413).

    Args:
        channels: widths of the four maps.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(width, classes, dropout)
        self.lateral_convs = nn.ModuleList(nn.Conv2d(inputs, width, 3, padding=1, bias=False) for inputs in channels)
        self.inner = nn.ModuleList(ResidualUnit(width) for _ in channels)
        self.outer = nn.ModuleList(ResidualUnit(width) for _ in channels)
        self.last = ConvNormReLU(width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (b, channels[i], h_i, w_i), finest first -> logits (b, classes, 2 h_0, 2 w_0)."""
        fused: list[Tensor] = []
        for number in reversed(range(len(maps))):
            level = self.inner[number](self.lateral_convs[number](maps[number]))
            above = [resize(each, level.shape[-2:]) for each in fused]
            fused = [self.outer[number](sum(above, start=level))]
        finest = fused[0]
        return self.classify(self.last(resize(finest, [2 * side for side in finest.shape[-2:]])))


class FCNHead(Head):
    """One 3 x 3 convolution and the classifier."""

    def __init__(self, channels: int, classes: int, *, width: int = 128, dropout: float = 0.1) -> None:
        super().__init__(width, classes, dropout)
        self.convs = nn.ModuleList([ConvNormReLU(channels, width, 3)])

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) -> logits (b, classes, h, w)."""
        return self.classify(self.convs[0](x))
