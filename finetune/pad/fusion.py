"""The fusion of one stage: spatial complementary fusion, then amplitude and phase each corrected on its own."""

from dataclasses import dataclass
from typing import get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from finetune.pad.spectrum import SpectrumLayout, bin_distance, decouple, high_pass, recouple

STAGES = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Ranged):
    """What is fused, and how. The defaults are the release's; its departures from the paper are named."""

    stages: tuple[int, ...] = ranged(STAGES, 1, 4)
    """Stages with a fusion block, of 1 to 4; at the others the two maps are added."""
    asf: bool = True
    """Amplitude spectrum fusion; off leaves the amplitude, so its penalty is 0."""
    psc: bool = True
    """Phase spectrum correction; off leaves the phase. With both off no transform is done."""
    spectrum_layout: SpectrumLayout = "release"
    """Distance of the bins for the high-pass: as released, or the true radial frequency (docs/model.md 13.5)."""
    radius: float = ranged(0.1, -100, 100)
    """Edge rho of the high-pass before its sigmoid: 0.1 is r = 0.525 as in the release, -2.197 is r = 0.1."""
    radius_trainable: bool = True
    """The edge of the high-pass learns."""
    second_residual: bool = True
    """Add the residual path once more after the inverse transform, as the release does and the paper does not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.stages) <= set(STAGES) or len(set(self.stages)) != len(self.stages):
            raise InputError(f"fusion.stages {list(self.stages)} are not different ones of {list(STAGES)}")
        if self.spectrum_layout not in get_args(SpectrumLayout):
            choices = " or ".join(get_args(SpectrumLayout))
            raise InputError(f"fusion.spectrum_layout {self.spectrum_layout!r} is not {choices}")


class PhaseCorrection(nn.Module):
    """PSC (equation 14): P (1 + sigmoid(attention(P))), one mask for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 8, 1)
        self.attention = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.LeakyReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, phase: Tensor) -> Tensor:
        """Phase (b, c, h, v) float32 -> the same shape and dtype, each value times 1 to 2, not wrapped again."""
        mask = self.attention(phase.to(_dtype(self))).float().sigmoid()
        return phase * (1 + mask)


class AmplitudeFusion(nn.Module):
    """ASF (equations 16 to 18): mix([A; MLP(high-pass(A))]) + A, the edge of the high-pass trainable."""

    def __init__(self, channels: int, radius: float = 0.1, *, trainable: bool = True) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor([radius]), requires_grad=trainable)
        self.layers = nn.Sequential(
            nn.Linear(channels, channels),
            nn.LeakyReLU(),
            nn.Linear(channels, 2 * channels),
            nn.LeakyReLU(),
            nn.Linear(2 * channels, channels),
        )
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, amplitude: Tensor, distance: Tensor) -> Tensor:
        """Amplitude (b, c, h, v) float32 and `bin_distance` (h, v) -> the same shape and dtype; may be negative."""
        dtype = _dtype(self)
        passed = (high_pass(distance, self.radius) * amplitude).to(dtype)
        high = rearrange(self.layers(rearrange(passed, "b c h v -> b h v c")), "b h v c -> b c h v")
        return self.mix(torch.cat([amplitude.to(dtype), high.to(dtype)], dim=1)) + amplitude


class FusionBlock(nn.Module):
    """Fusion of the optical and the SAR map of one stage (equations 5 to 9)."""

    def __init__(self, channels: int, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Conv2d(2 * channels, 1, 1)
        self.residual = nn.Conv2d(2 * channels, channels, 1)
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.psc = PhaseCorrection(channels) if config.psc else None
        self.asf = AmplitudeFusion(channels, config.radius, trainable=config.radius_trainable) if config.asf else None

    def forward(self, rgb: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (b, c, h, w) -> the fused map (b, c, h, w), and the amplitude penalty () float32."""
        both = torch.cat([rgb, sar], dim=1)
        gate = self.gate(both).sigmoid()  # M, 5b
        residual = self.residual(both)  # R, 5c
        fused = self.merge(torch.cat([gate * rgb, (1 - gate) * sar], dim=1)) + residual  # F, 5d
        fused, penalty = self.correct(fused)
        return fused + residual if self.config.second_residual else fused, penalty

    def correct(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Decouple, correct amplitude and phase, recouple (equations 6 to 9).

        Returns:
            A map of the same shape and dtype; mean squared change of the amplitude, () float32 (equation 21, as a
            mean like the release's).
        """
        penalty = torch.zeros((), device=fused.device)
        if self.asf is None and self.psc is None:
            return fused, penalty
        h, w = fused.shape[-2:]
        amplitude, phase = decouple(fused)
        corrected = amplitude
        if self.asf is not None:
            corrected = self.asf(amplitude, bin_distance(h, w, self.config.spectrum_layout, fused.device))
            penalty = (corrected - amplitude).square().mean()
        if self.psc is not None:
            phase = self.psc(phase)
        return recouple(corrected, phase, w).to(fused.dtype), penalty


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
