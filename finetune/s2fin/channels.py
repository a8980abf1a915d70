"""AFCM, the adaptive frequency channel module: shared structure and each modality's own detail, channel by channel."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange, reduce
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional

from finetune.s2fin.layers import HighPass, conv_norm, pooled


def shares(scores: Tensor, k: int) -> Tensor:
    """Weights of k parts that sum to 1 in every channel: scores (b, k d) -> (k, b, d, 1, 1)."""
    return rearrange(scores, "b (k d) -> k b d 1 1", k=k).softmax(dim=0)


class ChannelGains(NamedTuple):
    """What AFCM does to each of d channels of k modalities: (k, b, d) each."""

    structure: Tensor  # share of the modality in the low frequencies that all share; sums to 1 over k
    low: Tensor  # weight of those low frequencies in what the modality gets
    high: Tensor  # weight of its own high ones; low + high = 1
    detail: Tensor  # factor on its own high frequencies before that, 1 to 2


class ChannelChoice(nn.Module):
    """One modality's part of AFCM: enhance its detail, then choose low or high frequencies channel by channel."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.detail = Mlp(2 * d, d // 4, d)
        self.choice = Mlp(2 * d, d // 4, 2 * d)
        self.project = conv_norm(d, d, 1)

    def detail_gain(self, high: Tensor) -> Tensor:
        """1 + s(MLP[GAP |H|; GMP |H|]): (b, d, h, w) -> (b, d, 1, 1)."""
        return 1 + rearrange(self.detail(pooled(high.abs())).sigmoid(), "b d -> b d 1 1")

    def enhance(self, high: Tensor) -> Tensor:
        """H' = H times its gain: (b, d, h, w) -> (b, d, h, w)."""
        return high * self.detail_gain(high)

    def weights(self, low: Tensor, high: Tensor) -> Tensor:
        """Softmax of MLP[GAP |L|; GAP |H'|] over the two: w_L, w_H (2, b, d, 1, 1), which sum to 1."""
        sizes = [reduce(part.abs(), "b d h w -> b d", "mean") for part in (low, high)]
        return shares(self.choice(torch.cat(sizes, dim=1)), 2)

    def forward(self, features: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """(b, d, h, w) each: GELU(F + BN(Conv(2 (w_L L + w_H H')))) with the shared low and the own high part."""
        detail = self.enhance(high)
        low_weight, high_weight = self.weights(low, detail)
        return functional.gelu(features + self.project(2 * (low_weight * low + high_weight * detail)))


class AdaptiveFrequencyChannels(nn.Module):
    """AFCM: k feature maps (b, d, h, w) -> k of the same shape; each gets low frequencies that all modalities share."""

    def __init__(self, d: int, modalities: int, temperature: float) -> None:
        super().__init__()
        self.high_pass = nn.ModuleList(HighPass(temperature) for _ in range(modalities))
        self.structure = Mlp(modalities * d, d // 4, modalities * d) if modalities > 1 else None
        self.choices = nn.ModuleList(ChannelChoice(d) for _ in range(modalities))

    def structure_weights(self, lows: Sequence[Tensor]) -> Tensor:
        """Share of every modality in the structure, softmax of MLP[GAP L_i]: (k, b, d, 1, 1), sum 1 over k."""
        means = torch.cat([reduce(low, "b d h w -> b d", "mean") for low in lows], dim=1)
        scores = torch.zeros_like(means) if self.structure is None else self.structure(means)
        return shares(scores, len(lows))

    def parts(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Low and high part of every modality, (b, d, h, w) each."""
        pairs = [split(one) for split, one in zip(self.high_pass, features, strict=True)]
        return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)

    def shared(self, lows: Sequence[Tensor]) -> Tensor:
        """Low frequencies that all modalities share: k of (b, d, h, w) -> (b, d, h, w)."""
        return (self.structure_weights(lows) * torch.stack(tuple(lows))).sum(dim=0)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """k feature maps (b, d, h, w) -> k of the same shape."""
        lows, highs = self.parts(features)
        low = self.shared(lows)
        return [choice(one, low, high) for choice, one, high in zip(self.choices, features, highs, strict=True)]

    def gains(self, features: Sequence[Tensor]) -> ChannelGains:
        """What `forward` weighs and amplifies in k feature maps (b, d, h, w), to look at."""
        lows, highs = self.parts(features)
        low = self.shared(lows)
        choices = cast(Iterable[ChannelChoice], self.choices)
        pairs = list(zip(choices, highs, strict=True))
        low_weights, high_weights = zip(*(one.weights(low, one.enhance(high)) for one, high in pairs), strict=True)
        detail = [one.detail_gain(high) for one, high in pairs]
        stacks = (self.structure_weights(lows), *map(torch.stack, (low_weights, high_weights, detail)))
        return ChannelGains(*(rearrange(one, "k b d 1 1 -> k b d") for one in stacks))
