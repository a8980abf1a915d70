"""What several modules of the network share: convolution with norm, pooling, spectra of feature maps, the high-pass."""

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from alliance.frequency import radial_frequency, token_grid, token_spectrum


def conv_norm(c: int, d: int, kernel: int) -> nn.Sequential:
    """BN(Conv(x)) at the same size, (b, c, h, w) -> (b, d, h, w)."""
    return nn.Sequential(nn.Conv2d(c, d, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(d))


def conv_norm_gelu(c: int, d: int, kernel: int) -> nn.Sequential:
    """GELU(BN(Conv(x))) at the same size, (b, c, h, w) -> (b, d, h, w)."""
    return conv_norm(c, d, kernel).append(nn.GELU())


def pooled(features: Tensor) -> Tensor:
    """Mean and maximum over the patch, side by side: (b, d, h, w) -> (b, 2 d)."""
    return torch.cat([reduce(features, "b d h w -> b d", kind) for kind in ("mean", "max")], dim=1)


def logit(share: float) -> float:
    """The scalar whose sigmoid is `share`."""
    return math.log(share / (1 - share))


class Spectrum(NamedTuple):
    """Orthonormal half spectrum of feature maps."""

    real: Tensor  # (b, h * (w // 2 + 1), d) float32
    imaginary: Tensor

    def scaled(self, gain: Tensor) -> "Spectrum":
        """Every bin times a real gain that broadcasts to (b, bins, d); a gain above 0 keeps the phase."""
        return Spectrum(gain * self.real, gain * self.imaginary)

    def power(self) -> Tensor:
        """Squared amplitude of every bin, (b, bins, d) float32."""
        return self.real.square() + self.imaginary.square()

    def features(self, like: Tensor) -> Tensor:
        """Feature maps (b, d, h, w) of the size and dtype of `like`."""
        h, w = like.shape[-2:]
        return rearrange(token_grid(self.real, self.imaginary, h, w), "b (h w) d -> b d h w", h=h).to(like.dtype)


def spectrum(features: Tensor) -> Spectrum:
    """Spectrum of feature maps (b, d, h, w) of any float dtype, computed in float32."""
    return Spectrum(*token_spectrum(rearrange(features, "b d h w -> b (h w) d"), *features.shape[-2:]))


class HighPass(nn.Module):
    """Soft radial high-pass with a trainable cut-off: M = s((R - rho) / T), R = sqrt((f_u^2 + f_v^2) / 2), rho = s(.)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.cutoff = nn.Parameter(torch.tensor([logit(0.31)]))

    def mask(self, h: int, w: int) -> Tensor:
        """M of every bin: (h * (w // 2 + 1), 1) float32."""
        radius = math.sqrt(2) * radial_frequency(h, w, half=True, device=self.cutoff.device)
        ramp = (radius - self.cutoff.float().sigmoid()) / self.temperature
        return rearrange(ramp.sigmoid(), "i j -> (i j) 1")

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(b, d, h, w) -> low and high part, which sum to it."""
        high = spectrum(features).scaled(self.mask(*features.shape[-2:])).features(features)
        return features - high, high

    def frequency_parameters(self) -> list[nn.Parameter]:
        return [self.cutoff]

    def readings(self) -> dict[str, float]:
        return {"cutoff": self.cutoff.sigmoid().item()}
