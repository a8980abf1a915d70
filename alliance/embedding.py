"""From pixels to tokens: wavelength-conditioned kernels, patch embedding, and the frequency-aware cls and mask tokens."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.frequency import patch_log_amplitude
from alliance.positions import CODE_WIDTH, BandCode, Resampling, SpatialCode, coded_position, resampled_table
from alliance.sensors import MODALITIES, Band, Sensor
from alliance.tokens import Groups, group_table

RANK = 32
HIDDEN = 128

PositionLayout = Literal["add", "concat"]


def reference_bands() -> list[Band]:
    """Bands on which the kernels are scaled to unit gain: 400-2500 nm, and each modality without a wavelength."""
    optical = [Band(name=str(nm), wavelength=float(nm), bandwidth=20.0) for nm in range(400, 2501, 20)]
    return optical + [Band(name=modality, modality=modality) for modality in MODALITIES[1:]]


class BandKernels(nn.Module):
    """Kernels of any band, generated from its code as a mix of RANK shared ones (docs/model.md 3.2).

    W_c = sum_r a_r(code_c) U_r, so that sum_c W_c x_c equals the mix of virtual channels of docs/model.md 3.2 at less cost.
    """

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool) -> None:
        super().__init__()
        self.mixer = Mlp(CODE_WIDTH, HIDDEN, RANK)
        self.basis = nn.Parameter(torch.empty(RANK, fan_in, fan_out))
        self.basis_bias = nn.Parameter(torch.empty(RANK, fan_out)) if bias else None

    def reset_parameters(self, reference: Tensor, gain: float = 1.0) -> None:
        """Xavier for each basis kernel; the mixer scaled so that sum_r a_r^2 is 1 on average over `reference`.

        Args:
            reference: codes (c, CODE_WIDTH).
        """
        bound = gain * math.sqrt(6 / (self.basis.shape[1] + self.basis.shape[2]))
        nn.init.uniform_(self.basis, -bound, bound)
        if self.basis_bias is not None:
            nn.init.zeros_(self.basis_bias)
        with torch.no_grad():
            norm = self.mixer(reference).square().sum(-1).mean().sqrt()
            for parameter in self.mixer.fc2.parameters():
                parameter /= norm

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (c, CODE_WIDTH) -> kernels (c, fan_in, fan_out) and biases (c, fan_out) or None."""
        mix = self.mixer(code.to(self.basis.dtype))
        bias = None if self.basis_bias is None else torch.einsum("cr,ro->co", mix, self.basis_bias)
        return torch.einsum("cr,rio->cio", mix, self.basis), bias


class FixedKernels(nn.Module):
    """One learned kernel per band of each known sensor: the tokenizer of the published file, for comparison."""

    def __init__(self, sensors: Sequence[Sensor], fan_in: int, fan_out: int, *, bias: bool) -> None:
        super().__init__()
        counts = {sensor.name: len(sensor.bands) for sensor in sensors}
        self.bands = {sensor.name: sensor.band_names for sensor in sensors}
        if not counts:
            raise InputError("encoder.tokenizer 'fixed' has one kernel per band: build the model with its sensors")
        self.kernels = nn.ParameterDict({name: torch.empty(c, fan_in, fan_out) for name, c in counts.items()})
        self.biases = nn.ParameterDict({name: torch.zeros(c, fan_out) for name, c in counts.items()} if bias else {})

    def reset_parameters(self, gain: float = 1.0) -> None:
        """Xavier for every band's kernel, times `gain`."""
        for kernel in self.kernels.values():
            bound = gain * math.sqrt(6 / (kernel.shape[1] + kernel.shape[2]))
            nn.init.uniform_(kernel, -bound, bound)

    def forward(self, sensor: Sensor) -> tuple[Tensor, Tensor | None]:
        """Kernels (c, fan_in, fan_out) and biases (c, fan_out) or None of a known sensor with all its bands.

        Raises:
            InputError: another sensor, or other bands.
        """
        if self.bands.get(sensor.name) != sensor.band_names:
            raise InputError(
                f"a fixed tokenizer knows {', '.join(self.bands)} with all their bands in order, not sensor "
                f"{sensor.name} with {', '.join(sensor.band_names)}; use encoder.tokenizer 'wavelength' for any sensor"
            )
        return self.kernels[sensor.name], self.biases[sensor.name] if self.biases else None


class GroupKernels(nn.Module):
    """Kernels of a sensor arranged by band group, from codes ('wavelength') or learned one by one ('fixed')."""

    def __init__(
        self, tokenizer: str, sensors: Sequence[Sensor], fan_in: int, fan_out: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.source = (
            FixedKernels(sensors, fan_in, fan_out, bias=bias)
            if tokenizer == "fixed"
            else BandKernels(fan_in, fan_out, bias=bias)
        )

    def reset_parameters(self, reference: Tensor, gain: float = 1.0) -> None:
        """Xavier at some gain, over the codes (c, CODE_WIDTH) of reference bands where kernels come from codes."""
        if isinstance(self.source, BandKernels):
            self.source.reset_parameters(reference, gain)
        else:
            self.source.reset_parameters(gain)

    def forward(self, code: Tensor, sensor: Sensor, groups: Groups) -> tuple[Tensor, Tensor | None, Tensor]:
        """-> kernels (g, m, fan_in, fan_out), zero beyond a group's bands; biases (g, m, fan_out); real (g, m)."""
        kernels, bias = self.source(code) if isinstance(self.source, BandKernels) else self.source(sensor)
        table = group_table(groups, kernels.device)
        kernels = kernels[table.channels] * rearrange(table.real, "g m -> g m 1 1").to(kernels.dtype)
        return kernels, None if bias is None else bias[table.channels], table.real


class SpectralPosition(nn.Module):
    """Learned code of a band group: an MLP of the mean code of its bands, (g, d)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mlp = Mlp(CODE_WIDTH, d, d)

    def forward(self, code: Tensor, groups: Groups) -> Tensor:
        """Codes of all bands (c, CODE_WIDTH) -> (g, d)."""
        table = group_table(groups, code.device)
        real = rearrange(table.real, "g m -> g m 1").to(code.dtype)
        mean = (code[table.channels] * real).sum(1) / real.sum(1)
        return self.mlp(mean.to(self.mlp.fc1.weight.dtype))


class TokenPosition(nn.Module):
    """Spatial plus spectral position of every token, (g, n, d): added, or side by side as in the published file.

    Args:
        code: which fixed spatial code.
        table: rows and columns of a learned table of spatial positions in place of the code; 0: none.
    """

    def __init__(
        self,
        d: int,
        layout: PositionLayout,
        code: SpatialCode | None = None,
        table: int = 0,
        resampling: Resampling = "plain",
    ) -> None:
        super().__init__()
        beside = (d // 3 if d % 3 == 0 else d // 4) // 4 * 4  # 256 of 768 and 128 of 512, as in the file
        self.spectral_width = d if layout == "add" else beside
        self.spatial_width = d if layout == "add" else d - self.spectral_width
        self.layout = layout
        self.spatial_code = code or SpatialCode()
        self.resampling: Resampling = resampling
        self.spectral = SpectralPosition(self.spectral_width)
        self.table = nn.Parameter(torch.empty(table, table, self.spatial_width)) if table else None

    def reset_parameters(self) -> None:
        """A table starts normal with deviation 0.02, as in ViT."""
        if self.table is not None:
            nn.init.normal_(self.table, std=0.02)

    def forward(self, code: Tensor, groups: Groups, h: int, w: int, unit: float = 1.0) -> Tensor:
        """Codes of all bands (c, CODE_WIDTH) -> (g, n, d), n = h * w tokens, each `unit` long in the spatial code."""
        spectral = rearrange(self.spectral(code, groups), "g d -> g 1 d")
        if self.table is not None:
            spatial = resampled_table(self.table, h, w, self.resampling).to(spectral.dtype)
        else:
            spatial = coded_position(h, w, self.spatial_width, code.device, self.spatial_code, unit).to(spectral.dtype)
        if self.layout == "add":
            return spatial + spectral
        n = h * w
        return torch.cat([spatial.expand(len(groups), -1, -1), spectral.expand(-1, n, -1)], dim=-1)


class PatchEmbedding(nn.Module):
    """Standardised patches of any bands -> tokens, with the in-patch log-amplitude beside the pixels (docs/model.md 3)."""

    def __init__(
        self,
        d: int,
        patch: int,
        *,
        tokenizer: str,
        amplitude: bool,
        position: TokenPosition,
        sensors: Sequence[Sensor],
    ) -> None:
        super().__init__()
        self.patch, self.amplitude = patch, amplitude
        self.code = BandCode()
        self.kernels = GroupKernels(tokenizer, sensors, patch**2, d)
        self.amplitude_kernels = GroupKernels(tokenizer, sensors, patch**2, d) if amplitude else None
        self.bias = nn.Parameter(torch.empty(d))
        self.position = position

    def reset_parameters(self) -> None:
        """Kernels at unit gain over the reference bands, no bias."""
        nn.init.zeros_(self.bias)
        self.position.reset_parameters()
        self.code.reset_parameters()
        with torch.no_grad():
            reference = self.code(reference_bands())
        for kernels in (self.kernels, self.amplitude_kernels):
            if kernels is not None:
                kernels.reset_parameters(reference)

    def forward(self, patches: Tensor, sensor: Sensor, groups: Groups, h: int, w: int) -> tuple[Tensor, Tensor]:
        """
        Args:
            patches: (b, c, n, p) float32, standardised, zero where data is missing.
            groups: channel indices of each band group; groups left out make no tokens.
        Returns:
            Tokens (b, g, n, d) and the codes of all bands (c, CODE_WIDTH).
        """
        code = self.code(sensor.bands)
        index = group_table(groups, patches.device).channels
        tokens = self._project(patches[:, index], self.kernels, code, sensor, groups)
        if self.amplitude_kernels is not None:
            amplitude = patch_log_amplitude(patches, self.patch)[:, index]
            tokens = tokens + self._project(amplitude, self.amplitude_kernels, code, sensor, groups)
        unit = self.position.spatial_code.unit(self.patch, sensor.gsd_m)
        return tokens + self.bias + self.position(code, groups, h, w, unit), code

    def _project(self, values: Tensor, kernels: GroupKernels, code: Tensor, sensor: Sensor, groups: Groups) -> Tensor:
        """Values (b, g, m, n, p) times the kernels of their bands, |g|^-1/2 sum over each group's bands."""
        weight, _, real = kernels(code, sensor, groups)
        weight = weight * rearrange(real.sum(1), "g -> g 1 1 1").to(weight.dtype).rsqrt()
        flat = rearrange(values.to(weight.dtype), "b g m n p -> g (b n) (m p)")
        tokens = flat @ rearrange(weight, "g m p d -> g (m p) d")
        return rearrange(tokens, "g (b n) d -> b g n d", b=values.shape[0]).contiguous()


class SpecialTokens(NamedTuple):
    """Tokens that stand before those of the image, the same for every image."""

    cls: Tensor  # (1, d); (0, d) for a layout without it
    frequency: Tensor  # (k, d), low to high; k = 0 for plain tokens
    registers: Tensor  # (r, d), learned tokens that carry no feature of their own


class FrequencyEmbedding(nn.Module):
    """Frequency-aware cls and mask tokens: three learned waves, refined and projected (docs/model.md 3.5).

    tau_k holds 0.1 cos(pi m_k i / length) on its own third and is zero elsewhere, plus small noise; m = 1, 3, 6.
    q_k = P_k(tau_k + MLP_k(LN tau_k));  cls = LN(GELU(W_f LN[q_1; q_2; q_3])).
    """

    HALF_PERIODS = (1, 3, 6)

    def __init__(self, d: int, jumbo: int) -> None:
        super().__init__()
        wide, bands = jumbo * d, len(self.HALF_PERIODS)
        self.waves = nn.Parameter(torch.empty(bands, wide))
        self.refine = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(wide, eps=1e-6), nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))
            for _ in range(bands)
        )
        self.project = nn.ModuleList(nn.Linear(wide, d) for _ in range(bands))
        self.fuse = nn.Sequential(
            nn.LayerNorm(bands * d, eps=1e-6), nn.Linear(bands * d, d), nn.GELU(), nn.LayerNorm(d, eps=1e-6)
        )

    def reset_parameters(self) -> None:
        """Every wave on its own third of the width, with a little noise."""
        bands, wide = self.waves.shape
        edges = [wide // bands * band for band in range(bands)] + [wide]
        with torch.no_grad():
            self.waves.normal_(std=0.01)
            for band, periods in enumerate(self.HALF_PERIODS):
                start, stop = edges[band], edges[band + 1]
                place = torch.arange(stop - start, device=self.waves.device)
                self.waves[band, start:stop] += 0.1 * torch.cos(math.pi * periods * place / (stop - start))

    def forward(self) -> SpecialTokens:
        """cls (1, d) and frequency tokens (3, d), low to high."""
        parts = zip(self.waves, self.refine, self.project, strict=True)
        frequency = torch.cat([project(wave[None] + refine(wave[None])) for wave, refine, project in parts])
        return SpecialTokens(self.fuse(rearrange(frequency, "k d -> 1 (k d)")), frequency, frequency[:0])


class PlainTokens(nn.Module):
    """A learned cls token as in MAE, or none, and learned registers as in DINOv2."""

    def __init__(self, d: int, *, cls: bool = True, registers: int = 0) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, d)) if cls else None
        self.registers = nn.Parameter(torch.empty(registers, d)) if registers else None
        self.register_buffer("nothing", torch.empty(0, d), persistent=False)

    def reset_parameters(self) -> None:
        """Normal with deviation 0.02, as in MAE."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self) -> SpecialTokens:
        """cls (1, d) or (0, d), no frequency tokens (0, d), registers (r, d)."""
        nothing = self.get_buffer("nothing")
        parts = (self.cls, None, self.registers)
        return SpecialTokens(*(nothing if part is None else part for part in parts))
