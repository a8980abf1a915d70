"""Triple-domain fusion attention: amplitude, phase and spectral-spatial relations in one decoder block (docs/model.md 7)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from alliance.encoder import LayerNorm
from alliance.errors import InputError
from alliance.frequency import scale_partition, token_grid, token_spectrum
from alliance.ranges import Ranged, ranged


class Grid(NamedTuple):
    """Layout of the token sequence behind the cls token: g band groups of h x w tokens."""

    g: int
    h: int
    w: int


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Ranged):
    """Options of triple-domain fusion attention (docs/model.md 7)."""

    width: float = ranged(0.25, 0, 16, above=True)
    """Width F of the frequency branch in units of the decoder's width E."""
    fusion: Literal["scale", "mlp", "replace"] = "scale"
    """Join the branches by a scaled sum, by a scaled MLP, or by an MLP alone as in the published file (docs/model.md
    7.4).
    """
    shared_norm: bool = True
    """One LayerNorm for both branches."""
    amplitude: bool = True
    """Scale the amplitude of every bin."""
    phase: bool = True
    """Turn the phase of every bin."""
    phase_heads: int = ranged(0, 0, 1024)
    """Number of channel groups that turn together; 0: every channel by itself."""
    band_selection: bool = True
    """Weigh the scales of the token grid per image and band group."""
    cuts: tuple[float, float] = ranged((1 / 8, 1 / 4), 0, 1, above=True)
    """Borders between the scales, cycles per token."""
    floor: float = ranged(0.1, 0, 1)
    """Least amplitude in the phasor, relative to the rms amplitude."""
    spatial_spectral: Literal["joint", "factorised"] = "joint"
    """Attention over all tokens at once, or over space and then over the band groups."""


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero: it adds nothing until it has learnt to."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class SpectralOperator(nn.Module):
    """Scale amplitudes and turn phases of features on the token grid, bin by bin; the identity at initialisation.

    X = rfft2(u);  A = |X| with a relative floor;  gain = 3 sum_k beta_k M_k 2 sigmoid(MLP_A(log A / rms));
    delta = pi tanh(MLP_P(X / A));  v = irfft2(gain X exp(i delta)).
    No angle() and no complex parameter: finite gradients on constant, zero and tiny inputs (docs/model.md 9).
    """

    def __init__(self, f: int, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        hidden = max(f // 4, 1)
        turns = config.phase_heads or f
        if f % turns:
            raise InputError(f"fusion.phase_heads {turns} does not divide the {f} channels of the frequency branch")
        self.amplitude = Mlp(f, hidden, f) if config.amplitude else None
        self.phase = Mlp(2 * f, hidden, turns) if config.phase else None
        self.selection = nn.Linear(f, len(config.cuts) + 1) if config.band_selection else None

    def reset_parameters(self) -> None:
        """Zero last layers: gain 1 and no turn, whatever the input."""
        for last in (self.amplitude and self.amplitude.fc2, self.phase and self.phase.fc2, self.selection):
            if last is not None:
                zero(last)

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        """(b, g, h * w, f) -> the same shape and dtype."""
        if self.amplitude is None and self.phase is None and self.selection is None:
            return u
        real, imaginary = token_spectrum(u, grid.h, grid.w)
        power = real.square() + imaginary.square()
        rms = power.detach().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-4
        amplitude = torch.sqrt(power + (self.config.floor * rms).square())
        gain = self._gain((amplitude / rms).log().to(u.dtype), u, grid)
        if self.phase is not None:
            phasor = torch.cat([real / amplitude, imaginary / amplitude], dim=-1)
            turn = self._turn(self.phase, phasor.to(u.dtype))
            cosine, sine = turn.cos(), turn.sin()
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
        if gain is not None:
            real, imaginary = gain * real, gain * imaginary
        return token_grid(real, imaginary, grid.h, grid.w).to(u.dtype)

    def _gain(self, loudness: Tensor, u: Tensor, grid: Grid) -> Tensor | None:
        gain = None
        if self.amplitude is not None:
            gain = 2 * torch.sigmoid(self.amplitude(loudness).float())
        if self.selection is not None:
            beta = self.selection(u.mean(dim=2)).float().softmax(dim=-1)
            scales = scale_partition(grid.h, grid.w, self.config.cuts, u.device)
            weight = len(scales) * (rearrange(beta, "b g k -> b g 1 k") * rearrange(scales, "k i -> i k")).sum(-1)
            weight = rearrange(weight, "b g i -> b g i 1")
            gain = weight if gain is None else weight * gain
        return gain

    def _turn(self, phase: nn.Module, phasor: Tensor) -> Tensor:
        turn = math.pi * torch.tanh(phase(phasor).float())
        return repeat(turn, "b g i t -> b g i (t r)", r=phasor.shape[-1] // 2 // turn.shape[-1])


class GroupMixing(nn.Module):
    """Exchange between band groups: a gate towards their mean, then a convolution of three along the groups."""

    def __init__(self, f: int) -> None:
        super().__init__()
        self.gate = Mlp(2 * f, max(f // 4, 1), 1)
        self.convolution = nn.Conv1d(f, f, 3, padding=1, groups=f)

    def reset_parameters(self) -> None:
        """Zero the convolution: at first there is the gate alone."""
        zero(self.convolution)

    def forward(self, u: Tensor) -> Tensor:
        """(b, g, n, f) -> the same shape; a single group passes unchanged."""
        b, g, _, _ = u.shape
        if g == 1:
            return u
        mean = u.mean(dim=1, keepdim=True).expand_as(u)
        share = torch.sigmoid(self.gate(torch.cat([u, mean], dim=-1)))
        u = share * u + (1 - share) * mean
        along = self.convolution(rearrange(u, "b g n f -> (b n) f g"))
        return u + rearrange(along, "(b n) f g -> b g n f", b=b)


class FactorisedAttention(nn.Module):
    """Attention over space within each band group, then over the groups at each place: for very many tokens."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.spatial = Attention(d, heads, qkv_bias=True)
        self.spectral = Attention(d, heads, qkv_bias=True)

    def forward(self, sequence: Tensor, g: int) -> Tensor:
        """(b, 1 + g * n, d) -> the same shape; the cls token joins every group and is averaged over them."""
        b = sequence.shape[0]
        cls = repeat(sequence[:, :1], "b s d -> (b g) s d", g=g)
        tokens = rearrange(sequence[:, 1:], "b (g n) d -> (b g) n d", g=g)
        tokens = self.spatial(torch.cat([cls, tokens], dim=1))
        across = self.spectral(rearrange(tokens[:, 1:], "(b g) n d -> (b n) g d", g=g))
        cls = rearrange(tokens[:, :1], "(b g) s d -> b g s d", g=g).mean(1)
        return torch.cat([cls, rearrange(across, "(b n) g d -> b (g n) d", b=b)], dim=1)


class TripleDomainFusionAttention(nn.Module):
    """Spectral-spatial attention on all tokens beside a frequency branch on the token grid, fused (docs/model.md 7).

    Input is normalised outside for the attention; the frequency branch has its own norm unless `shared_norm`.
    """

    def __init__(self, d: int, heads: int, config: FusionConfig) -> None:
        super().__init__()
        f = max(round(d * config.width), 4)
        self.config = config
        joint = config.spatial_spectral == "joint"
        self.attention = Attention(d, heads, qkv_bias=True) if joint else FactorisedAttention(d, heads)
        self.norm = nn.Identity() if config.shared_norm else LayerNorm(d)
        self.enter = nn.Linear(d, f)
        self.mixing = GroupMixing(f)
        self.spectral = SpectralOperator(f, config)
        self.leave = nn.Linear(f, d)
        self.fuse = Mlp(2 * d, d, d) if config.fusion != "scale" else None
        self.fuse_norm = LayerNorm(d) if config.fusion == "replace" else None
        self.scale = nn.Parameter(torch.empty(d)) if config.fusion != "replace" else None

    def reset_parameters(self) -> None:
        """The frequency branch as the identity, and little of it."""
        self.mixing.reset_parameters()
        self.spectral.reset_parameters()
        if self.scale is not None:
            nn.init.constant_(self.scale, 1e-2)

    def forward(self, normed: Tensor, raw: Tensor, grid: Grid) -> Tensor:
        """Normalised and raw sequences (b, 1 + g * n, d) -> update of the sequence, same shape."""
        attention = self.attention
        related = attention(normed, grid.g) if isinstance(attention, FactorisedAttention) else attention(normed)
        source = normed if self.config.shared_norm else self.norm(raw)
        u = rearrange(self.enter(source)[:, 1:], "b (g n) f -> b g n f", g=grid.g)
        v = self.leave(self.spectral(self.mixing(u), grid))
        frequency = rearrange(v, "b g n d -> b (g n) d")
        if self.fuse is None:
            assert self.scale is not None
            return related + behind_cls(self.scale * frequency)
        fused = self.fuse(torch.cat([related, torch.cat([source[:, :1], frequency], dim=1)], dim=-1))
        return self.fuse_norm(fused) if self.fuse_norm is not None else related + self.scale * fused


def behind_cls(tokens: Tensor) -> Tensor:
    """Tokens (b, n, d) with a zero row before them, where the cls token stands: (b, 1 + n, d)."""
    return nn.functional.pad(tokens, (0, 0, 1, 0))


class FusionBlock(nn.Module):
    """Transformer block whose attention is triple-domain fusion attention."""

    def __init__(self, d: int, heads: int, config: FusionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(d)
        self.attn = TripleDomainFusionAttention(d, heads, config)
        self.norm2 = LayerNorm(d)
        self.mlp = Mlp(d, 4 * d, d)

    def forward(self, sequence: Tensor, grid: Grid) -> Tensor:
        """(b, 1 + g * n, d) -> the same shape."""
        sequence = sequence + self.attn(self.norm1(sequence), sequence, grid)
        return sequence + self.mlp(self.norm2(sequence))
