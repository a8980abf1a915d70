"""HFRM, the high-frequency resonance mask: sharpen the frequencies on whose phase two modalities agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from finetune.s2fin.layers import HighPass, Spectrum, conv_norm, spectrum


@dataclass(frozen=True, kw_only=True)
class ResonanceConfig:
    """Options of HFRM; the paper says that phase similarity makes the mask, not how it is taken."""

    mask: Literal["phase", "high-pass", "none"] = "phase"
    """Mask by phase similarity above a high-pass, by the high-pass alone, or none: no module."""
    pooled: bool = False
    """One similarity for all channels, their mean."""
    window: bool = False
    """Compare phases of Hann-windowed patches, so that opposite edges do not meet."""


def phase_similarity(one: Spectrum, other: Spectrum) -> Tensor:
    """Cosine of the phase difference, near 0 where either spectrum is empty: (b, bins, d) float32 in [-1, 1].

    Re(X conj Y) / sqrt((|X|^2 + eps) (|Y|^2 + eps)), eps 1e-6: smooth everywhere, no angle is taken.
    """
    product = one.real * other.real + one.imaginary * other.imaginary
    return product / ((one.power() + 1e-6).sqrt() * (other.power() + 1e-6).sqrt())


def hann(features: Tensor) -> Tensor:
    """Feature maps (b, d, h, w) tapered towards the border of the patch."""
    rows, columns = (
        torch.hann_window(size, periodic=False, dtype=features.dtype, device=features.device)
        for size in features.shape[-2:]
    )
    return features * torch.outer(rows, columns)


class HighFrequencyResonance(nn.Module):
    """F_i <- GELU(F_i + BN(Conv(irfft2(X_i (1 + softplus(lambda_i) R))))), R = M s(4 softplus(kappa) (S - s0)).

    X_i = rfft2 F_i, M a high-pass, S the phase similarity of the two modalities. The cosine is even in frequency, so
    the mask keeps Hermitian symmetry. Two feature maps (b, d, h, w) -> two of the same shape.
    """

    def __init__(self, d: int, temperature: float, config: ResonanceConfig) -> None:
        super().__init__()
        self.config = config
        self.high_pass = HighPass(temperature)
        self.sharpness = nn.Parameter(torch.tensor([1.5])) if config.mask == "phase" else None  # kappa
        self.offset = nn.Parameter(torch.tensor([0.0])) if config.mask == "phase" else None  # s0
        self.strength = nn.Parameter(torch.full((2, d), -1.0))  # lambda
        self.project = nn.ModuleList(conv_norm(d, d, 1) for _ in range(2))

    def similarity(self, features: Sequence[Tensor]) -> Tensor:
        """Phase similarity of two feature maps (b, d, h, w): (b, bins, d), or (b, bins, 1) pooled."""
        spectra = (spectrum(hann(one) if self.config.window else one) for one in features)
        similarity = phase_similarity(*spectra)
        return reduce(similarity, "b f d -> b f 1", "mean") if self.config.pooled else similarity

    def mask(self, features: Sequence[Tensor]) -> Tensor:
        """R in (0, 1) of two feature maps (b, d, h, w), float32, broadcasts to (b, bins, d)."""
        high = self.high_pass.mask(*features[0].shape[-2:])
        if self.sharpness is None or self.offset is None:
            return high
        slope = 4 * functional.softplus(self.sharpness.float())
        return high * (slope * (self.similarity(features) - self.offset.float())).sigmoid()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Two feature maps (b, d, h, w) -> two of the same shape."""
        mask = self.mask(features)
        strengths = functional.softplus(rearrange(self.strength.float(), "k d -> k 1 d"))
        sharper = [spectrum(one).scaled(1 + s * mask).features(one) for one, s in zip(features, strengths, strict=True)]
        projected = (project(one) for project, one in zip(self.project, sharper, strict=True))
        return [functional.gelu(one + new) for one, new in zip(features, projected, strict=True)]

    def frequency_parameters(self) -> list[nn.Parameter]:
        return [value for value in (self.sharpness, self.offset, self.strength) if value is not None]

    def readings(self) -> dict[str, float]:
        """Slope of the mask over similarity, the similarity at its middle, and the mean gain where it is 1."""
        found = {"gain": 1 + functional.softplus(self.strength).mean().item()}
        if self.sharpness is not None and self.offset is not None:
            found |= {"slope": 4 * functional.softplus(self.sharpness).item(), "offset": self.offset.item()}
        return found
