"""HFSET, the high-frequency sparse enhancement transformer: attention sets a high-frequency filter on signatures."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, reduce
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional

from alliance.frequency import half_frequencies, token_grid, token_spectrum
from alliance.ranges import Ranged, ranged
from finetune.s2fin.attention import AttentionConfig, SparseAttention
from finetune.s2fin.layers import conv_norm_gelu

FEWEST_BANDS = 4  # fewer have no high frequency to speak of: the filter is left out
START = -1.0  # bias of threshold and gain: tau about 0.29, gain about 0.31


@dataclass(frozen=True, kw_only=True)
class EnhancementConfig(Ranged):
    """Filter and transformer of HFSET; the paper says only that the threshold is trainable."""

    filter: bool = True
    """High-frequency filter along the bands."""
    threshold: Literal["trainable", "fixed"] = "trainable"
    """Threshold of the filter set by attention, or fixed where the trainable one starts."""
    anchors: int = ranged(8, 2, 65536)
    """Number of frequencies at which the gain of the filter is given."""
    groups: int = ranged(32, 1, 65536)
    """Most band groups seen by the spectral attention."""
    descriptor: int = ranged(32, 1, 65536)
    """Width of either attention that describes the patch."""
    blocks: int = ranged(1, 0, 1024)
    """Number of spatial-spectral transformer blocks."""


def high_frequency_response(threshold: Tensor, gain: Tensor, bands: int, temperature: float) -> Tensor:
    """h(f) = 1 + s((f - tau) / T) g(f) at the bins of a real FFT: real and positive, so phases stay.

    Args:
        threshold: (b,) tau in units of Nyquist.
        gain: (b, j), at j frequencies evenly spaced from zero to the last bin, linear in between.
    Returns:
        (b, bands // 2 + 1) float32.
    """
    frequency = 2 * half_frequencies(bands, gain.device)
    mask = ((frequency - rearrange(threshold.float(), "b -> b 1")) / temperature).sigmoid()
    curve = rearrange(gain.float(), "b j -> b 1 j")
    curve = functional.interpolate(curve, size=len(frequency), mode="linear", align_corners=True)
    return 1 + mask * rearrange(curve, "b 1 f -> b f")


def filter_bands(image: Tensor, response: Tensor) -> Tensor:
    """Filter every signature along its bands: (b, c, h, w) by (b, c // 2 + 1) -> (b, c, h, w), in float32."""
    c, h = image.shape[1:3]
    real, imaginary = token_spectrum(rearrange(image, "b c h w -> b c (h w)"), 1, c)
    response = rearrange(response, "b f -> b f 1")
    return rearrange(token_grid(response * real, response * imaginary, 1, c), "b c (h w) -> b c h w", h=h).to(image)


class HighFrequencyFilter(nn.Module):
    """High-frequency filter of signatures whose threshold and gain come from sparse spatial-spectral attention.

    q = [mean SA(LN U_s); mean SA(LN U_b)], U_s one signature per pixel, U_b one map per band group;
    tau = 0.05 + 0.90 s(w q + beta);  g = softplus(W q + beta_g) at the anchors.
    """

    def __init__(
        self, bands: int, pixels: int, temperature: float, attention: AttentionConfig, config: EnhancementConfig
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.groups = min(bands, config.groups)
        d = config.descriptor
        self.spatial = nn.Sequential(nn.LayerNorm(bands), SparseAttention(bands, d, attention))
        self.spectral = nn.Sequential(nn.LayerNorm(pixels), SparseAttention(pixels, d, attention))
        self.threshold = nn.Linear(2 * d, 1) if config.threshold == "trainable" else None
        self.gain = nn.Linear(2 * d, config.anchors)
        for layer in filter(None, (self.threshold, self.gain)):
            nn.init.normal_(layer.weight, std=0.01)  # not zero, or the attention gets no gradient at first
            nn.init.constant_(layer.bias, START)

    def settings(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Threshold (b,) in units of Nyquist and gain at the anchors (b, j) of signatures (b, c, h, w), float32."""
        maps = rearrange(image, "b c h w -> b (h w) c")
        grouped = functional.adaptive_avg_pool1d(maps, self.groups)
        parts = self.spatial(maps), self.spectral(grouped.mT)
        descriptor = torch.cat([reduce(part, "b m d -> b d", "mean") for part in parts], dim=1)
        gain = functional.softplus(self.gain(descriptor).float())
        if self.threshold is None:
            score = torch.full_like(gain[:, 0], START)
        else:
            score = rearrange(self.threshold(descriptor).float(), "b 1 -> b")
        return 0.05 + 0.90 * score.sigmoid(), gain

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) -> enhanced signatures (b, c, h, w) and threshold (b,)."""
        threshold, response = self.response(image)
        return filter_bands(image, response), threshold

    def response(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Threshold (b,) and filter h(f) (b, c // 2 + 1) of signatures (b, c, h, w), float32."""
        threshold, gain = self.settings(image)
        return threshold, high_frequency_response(threshold, gain, image.shape[1], self.temperature)

    def frequency_parameters(self) -> list[nn.Parameter]:
        return [] if self.threshold is None else list(self.threshold.parameters())

    def readings(self) -> dict[str, float]:
        """The threshold of a patch without features."""
        bias = torch.tensor(START) if self.threshold is None else self.threshold.bias
        return {"threshold": 0.05 + 0.90 * bias.float().sigmoid().item()}


class SpatialSpectralBlock(nn.Module):
    """Z += W_p (SA(Y) + SA(Y^T)^T), Y = LN Z: attention over pixels and over channels; Z += MLP(LN Z)."""

    def __init__(self, d: int, pixels: int, attention: AttentionConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.spatial = SparseAttention(d, d, attention)
        self.spectral = SparseAttention(pixels, pixels, attention)
        self.proj = nn.Linear(d, d)
        self.mlp = Mlp(d, 2 * d)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        y = self.norm1(tokens)
        tokens = tokens + self.proj(self.spatial(y) + self.spectral(y.mT).mT)
        return tokens + self.mlp(self.norm2(tokens))


class Enhanced(NamedTuple):
    features: Tensor  # (b, d, h, w)
    threshold: Tensor | None  # (b,) tau of every patch, in units of Nyquist; None without filter


class HighFrequencyEnhancement(nn.Module):
    """HFSET: filter the signatures, embed every pixel, transform: (b, c, h, w) -> (b, d, h, w)."""

    def __init__(
        self, bands: int, d: int, pixels: int, temperature: float, attention: AttentionConfig, config: EnhancementConfig
    ) -> None:
        super().__init__()
        filtered = config.filter and bands >= FEWEST_BANDS
        self.filter = HighFrequencyFilter(bands, pixels, temperature, attention, config) if filtered else None
        self.embed = conv_norm_gelu(bands, d, 1)
        self.blocks = nn.Sequential(*(SpatialSpectralBlock(d, pixels, attention) for _ in range(config.blocks)))

    def forward(self, image: Tensor) -> Enhanced:
        """Signatures (b, c, h, w) -> features (b, d, h, w) and the threshold (b,)."""
        threshold = None
        if self.filter is not None:
            image, threshold = self.filter(image)
        features = self.embed(image)
        tokens = self.blocks(rearrange(features, "b d h w -> b (h w) d"))
        return Enhanced(rearrange(tokens, "b (h w) d -> b d h w", h=image.shape[-2]), threshold)
