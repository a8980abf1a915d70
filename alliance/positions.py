"""Spatial and spectral position codes: fixed functions of the token grid and of the bands' wavelengths."""

import functools
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from alliance.sensors import MODALITIES, Band

PERIODS = 32  # of the Fourier code, log-spaced
LONGEST, SHORTEST = 14.0, 0.02  # decades of wavelength or bandwidth
MODALITY_WIDTH = 64
MODALITY_SLOTS = 16  # room for modalities to come without changing a checkpoint's shape
CODE_WIDTH = 4 * PERIODS + MODALITY_WIDTH


@functools.lru_cache(maxsize=32)
def spatial_position(h: int, w: int, d: int, device: torch.device) -> Tensor:
    """Fixed 2-D sin-cos code of a token grid: (h * w, d) float32."""
    with torch.inference_mode(False):
        return build_sincos2d_pos_embed([h, w], dim=d).float().to(device)


def fourier(decades: Tensor) -> Tensor:
    """Sine and cosine of log10 values at PERIODS periods: (...) -> (..., 2 * PERIODS) float32.

    In decades, not in nanometres: on periods of nanometres blue and short-wave infrared have one code (docs/model.md 3.1).
    """
    periods = torch.logspace(math.log10(LONGEST), math.log10(SHORTEST), PERIODS, device=decades.device)
    angle = 2 * math.pi * decades[..., None] / periods
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class BandCode(nn.Module):
    """Code of a band: Fourier code of wavelength and bandwidth, and a learned vector of its modality (docs/model.md 3.1)."""

    def __init__(self) -> None:
        super().__init__()
        assert len(MODALITIES) <= MODALITY_SLOTS, "append slots in a new checkpoint version"
        self.modality = nn.Parameter(torch.empty(MODALITY_SLOTS, MODALITY_WIDTH))
        self.no_wavelength = nn.Parameter(torch.empty(2 * PERIODS))
        self.no_bandwidth = nn.Parameter(torch.empty(2 * PERIODS))

    def reset_parameters(self) -> None:
        """Learned parts as strong as sines."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=math.sqrt(0.5))  # the rms of a sine

    def forward(self, bands: Sequence[Band]) -> Tensor:
        """-> (c, CODE_WIDTH) float32."""
        device = self.modality.device
        wavelength = _decades([band.wavelength for band in bands], self.no_wavelength)
        bandwidth = _decades([band.bandwidth for band in bands], self.no_bandwidth)
        kind = torch.tensor([MODALITIES.index(band.modality) for band in bands], device=device)
        return torch.cat([wavelength, bandwidth, self.modality.float()[kind]], dim=-1)


def _decades(values: Sequence[float | None], missing: Tensor) -> Tensor:
    known = torch.tensor([value is not None for value in values], device=missing.device)
    decades = torch.tensor([math.log10(value) if value else 0.0 for value in values], device=missing.device)
    return torch.where(rearrange(known, "c -> c 1"), fourier(decades), missing.float())
