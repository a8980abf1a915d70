"""Spatial and spectral position codes: fixed functions of the token grid and of the bands' wavelengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from alliance.errors import InputError
from alliance.kept import kept
from alliance.sensors import MODALITIES, Band

PERIODS = 32  # of the Fourier code, log-spaced
LONGEST, SHORTEST = 14.0, 0.02  # decades of wavelength or bandwidth
MODALITY_WIDTH = 64
MODALITY_SLOTS = 16  # room for modalities to come without changing a checkpoint's shape
CODE_WIDTH = 4 * PERIODS + MODALITY_WIDTH
TEMPERATURE = 10_000.0  # longest wave of a spatial code, in radians per unit

Order = Literal["sin_first", "x_first"]
Frequencies = Literal["usual", "galileo", "clay"]
Resampling = Literal["plain", "antialiased", "offset"]


@dataclass(frozen=True, kw_only=True)
class SpatialCode:
    """Which fixed code of rows and columns an encoder has (docs/model.md 3.4)."""

    order: Order = "sin_first"
    frequencies: Frequencies = "usual"
    channels: tuple[int, int] | None = None  # first and one past the last; None: all
    unit_m: float = 0.0  # metres of one unit; 0: a token is one unit

    def unit(self, patch: int, gsd_m: float | None) -> float:
        """Length of a token in units of the code.

        Raises:
            InputError: the code is in metres and the sensor has no pixel size.
        """
        if not self.unit_m:
            return 1.0
        if gsd_m is None:
            raise InputError(
                "this encoder's positions are in metres, and the sensor has no pixel size; give it one, gsd_m in its YAML file"
            )
        return patch * gsd_m / self.unit_m


@kept(32)
def coded_position(h: int, w: int, d: int, device: torch.device, code: SpatialCode, unit: float = 1.0) -> Tensor:
    """The code of a token grid whose tokens are `unit` long: (h * w, d) float32, zero beyond its channels."""
    first, end = code.channels or (0, d)
    if (code.order, code.frequencies, unit) == ("sin_first", "usual", 1.0):
        own = spatial_position(h, w, end - first, device)
    else:
        own = _sines(h, w, (end - first) // 4, code, unit).float().to(device)
    return functional.pad(own, (first, d - end))


def _sines(h: int, w: int, count: int, code: SpatialCode, unit: float) -> Tensor:
    place = torch.arange(count, dtype=torch.float64)
    exponents = {
        "usual": place / count,
        "galileo": place / (4 * count),
        "clay": place / max(count - 1, 1) / (2 * count),
    }
    omega = unit * TEMPERATURE ** -exponents[code.frequencies]
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    parts = [x.sin(), x.cos(), y.sin(), y.cos()] if code.order == "x_first" else [y.sin(), x.sin(), y.cos(), x.cos()]
    return torch.cat(parts, dim=1)


def resampled_table(table: Tensor, h: int, w: int, resampling: Resampling) -> Tensor:
    """A learned table of positions (s, s, d) for another token grid, bicubic: (h * w, d).

    `offset` places the samples as DINOv2 does: as if the grid were a tenth of a token longer.
    """
    side = table.shape[0]
    if (h, w) == (side, side):
        return rearrange(table, "y x d -> (y x) d")
    grid = rearrange(table.float(), "y x d -> 1 d y x")
    if resampling == "offset":
        scale = [(h + 0.1) / side, (w + 0.1) / side]
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        grid = functional.interpolate(grid, size=(h, w), mode="bicubic", antialias=resampling == "antialiased")
    return rearrange(grid, "1 d y x -> (y x) d").to(table.dtype)


@kept(32)
def spatial_position(h: int, w: int, d: int, device: torch.device) -> Tensor:
    """Fixed 2-D sin-cos code of a token grid: (h * w, d) float32."""
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
        key = tuple((band.wavelength, band.bandwidth, MODALITIES.index(band.modality)) for band in bands)
        table = _band_table(key, self.modality.device)
        wavelength = torch.where(table.has_wavelength, table.wavelength, self.no_wavelength.float())
        bandwidth = torch.where(table.has_bandwidth, table.bandwidth, self.no_bandwidth.float())
        return torch.cat([wavelength, bandwidth, self.modality.float()[table.modality]], dim=-1)


class _BandTable(NamedTuple):
    """What of a code does not depend on weights."""

    wavelength: Tensor  # (c, 2 * PERIODS) float32; of 1 nm where there is none
    has_wavelength: Tensor  # (c, 1) bool
    bandwidth: Tensor
    has_bandwidth: Tensor
    modality: Tensor  # (c,) int64


@kept(256)
def _band_table(bands: Sequence[tuple[float | None, float | None, int]], device: torch.device) -> _BandTable:
    columns: list[Tensor] = []
    for values in ([band[0] for band in bands], [band[1] for band in bands]):
        known = torch.tensor([value is not None for value in values], device=device)
        decades = torch.tensor([math.log10(value) if value else 0.0 for value in values], device=device)
        columns += [fourier(decades), rearrange(known, "c -> c 1")]
    return _BandTable._make([*columns, torch.tensor([band[2] for band in bands], device=device)])
