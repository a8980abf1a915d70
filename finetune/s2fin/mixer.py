"""Long-range mixing of the pixels of a patch: a bidirectional selective scan in plain torch, or a GRU in its place."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from alliance.frequency import float32_island

HEAD = 16  # channels that decay together
STATE = 48  # values that a channel remembers; gives width 96 its 0.60 to 0.65 million parameters


def decay_matrix(rates: Tensor) -> Tensor:
    """What is left at t of what came at s, exp(sum of the rates after s up to t), 0 for s > t: (..., n) -> (..., n, n).

    Sums start behind s instead of being differences of one long sum, so they lose no digits; rates are not positive.
    """
    n = rates.shape[-1]
    since = torch.ones(n, n, dtype=torch.bool, device=rates.device).tril(-1)
    total = torch.where(since, rearrange(rates, "... n -> ... n 1"), 0.0).cumsum(dim=-2)
    past = torch.ones(n, n, dtype=torch.bool, device=rates.device).tril()
    return total.masked_fill(~past, -torch.inf).exp()


def selective_scan(x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """The recurrence h_t = exp(step_t decay) h_{t-1} + step_t write_t x_t^T, y_t = read_t h_t, for all t at once.

    As y = (decay matrix * read write^T) (step x), the dual form of T. Dao and A. Gu, arXiv 2405.21060, section 6: for a
    patch's few pixels one product of small matrices is faster than any scan. Computed in float32.

    Args:
        x: (b, n, e, p), p channels in each of e heads.
        step: (b, n, e), positive.
        decay: (e,), negative.
        write, read: (b, n, s).
    Returns:
        (b, n, e, p) float32.
    """
    with float32_island(x):
        x, step, write, read = x.float(), step.float(), write.float(), read.float()
        left = decay_matrix(rearrange(step * decay.float(), "b n e -> b e n"))
        mixing = left * rearrange(read @ write.mT, "b t s -> b 1 t s")
        return torch.einsum("bets,bsep->btep", mixing, rearrange(step, "b n e -> b n e 1") * x)


class SelectiveScan(nn.Module):
    """One direction of the scan: step, write and read vectors depend on the token; (b, n, d) -> (b, n, d) float32."""

    def __init__(self, d: int) -> None:
        super().__init__()
        heads = d // HEAD
        self.select = nn.Linear(d, 2 * STATE + heads, bias=False)
        steps = torch.logspace(-3, -1, heads)  # Mamba's range
        self.step = nn.Parameter(steps.expm1().log())  # softplus gives the steps back
        self.log_decay = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.skip = nn.Parameter(torch.ones(heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d) float32."""
        heads = len(self.step)
        write, read, step = self.select(tokens).split([STATE, STATE, heads], dim=-1)
        x = rearrange(tokens.float(), "b n (e p) -> b n e p", e=heads)
        step = functional.softplus(step.float() + self.step.float())
        y = selective_scan(x, step, -self.log_decay.float().exp(), write, read)
        return rearrange(y + rearrange(self.skip.float(), "e -> e 1") * x, "b n e p -> b n (e p)")


class GatedNorm(nn.Module):
    """Mamba-2's: y silu(g), divided by its rms over the channels, times a weight per channel; float32 like the scan."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Two of (b, n, d) -> (b, n, d) float32."""
        y = y.float() * functional.silu(gate.float())
        return y * (y.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * self.weight.float()


class ScanMixer(nn.Module):
    """Pre-norm residual mixer, raster order there and back: Z + W norm((scan(x) + reversed scan(x)) silu(g)), [x, g] = W' LN Z.

    A plain-torch stand-in for the Mamba blocks of the paper, whose variant is not known to us: Mamba-2's, with its RMS norm
    behind the gate, so that the update does not grow with the scan's sums over the pixels.

    Args:
        norm: that norm, and a projection W that starts at zero, so that the mixer begins as the identity; without it the
            update is several times as large as the tokens.
    """

    def __init__(self, d: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.inward = nn.Linear(d, 2 * d, bias=False)
        self.there, self.back = SelectiveScan(d), SelectiveScan(d)
        self.gated_norm = GatedNorm(d) if norm else None
        self.outward = nn.Linear(d, d, bias=False)
        if norm:
            nn.init.zeros_(self.outward.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        x, gate = self.inward(self.norm(tokens)).chunk(2, dim=-1)
        x = functional.silu(x)
        scanned = self.there(x) + self.back(x.flip(1)).flip(1)
        if self.gated_norm is None:
            return tokens + self.outward(scanned.to(gate.dtype) * functional.silu(gate))
        return tokens + self.outward(self.gated_norm(scanned, gate).to(gate.dtype))


class GruMixer(nn.Module):
    """Substitute for `ScanMixer` with the same interface: pre-norm residual bidirectional GRU of half the width."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.gru = nn.GRU(d, d // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        return tokens + self.gru(self.norm(tokens))[0]
