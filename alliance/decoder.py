"""Progressive frequency decoder: low -> mid -> high, a gated frequency token entering at every stage (docs/model.md 6)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from alliance.blocks import FusionBlock, FusionConfig, Grid, behind_cls
from alliance.embedding import GroupKernels, PositionLayout, TokenPosition, reference_bands
from alliance.encoder import Embedded, LayerNorm, initialise_linear, run_block
from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from alliance.sensors import Sensor
from alliance.tokens import Groups, Mask

HEAD_GAIN = 0.1  # of the head's initial kernels: the first prediction is nearly zero, the first loss nearly one


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Ranged):
    """Size and options of the decoder (docs/model.md 6)."""

    embed_dim: int = ranged(256, 4, 65536)
    """Width E of the decoder, a multiple of 4 and of `heads`."""
    depth: int = ranged(3, 1, 1024)
    """Number of blocks over all stages."""
    heads: int = ranged(8, 1, 1024)
    """Attention heads of every block."""
    stages: Literal[1, 3] = 3
    """3: low, mid, high, one after the other; 1: the whole image at once."""
    attention: Literal["fusion", "plain"] = "fusion"
    """Triple-domain fusion attention (docs/model.md 7), or a plain ViT block."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Options of triple-domain fusion attention."""
    injection: Literal["stage", "every"] = "stage"
    """Frequency tokens enter at the first block of their stage, or before every block."""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    """How much a place takes of its stage's frequency token as published, or a mix of the three by normalised scores
    (docs/model.md 6.3).
    """
    blend: Literal["additive", "convex"] = "additive"
    """Add the frequency tokens, or pull the masked places towards them as in the published file."""
    mask_tokens: Literal["encoded", "bypass"] = "encoded"
    """Frequency tokens as the encoder leaves them, or straight from their projectors."""
    position: PositionLayout = "add"
    """Spatial and spectral position added, or side by side as in the published file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_dim % self.heads or self.embed_dim % 4:
            raise InputError(f"decoder.embed_dim {self.embed_dim} is not a multiple of 4 and of heads {self.heads}")
        if self.depth < self.stages:
            raise InputError(f"decoder.depth {self.depth} is less than decoder.stages {self.stages}")


class Transposed(nn.Linear):
    """A linear layer the other way round: x W in place of x W^T."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., out_features) -> (..., in_features)."""
        return input @ self.weight


class FrequencyScore(nn.Module):
    """How well a frequency token fits each place: <W_q z, W_k m> / sqrt(d) + beta, as <z, W_q^T W_k m>."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.query, self.key = Transposed(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, band: Tensor) -> Tensor:
        """Tokens (b, n, d), or (1, n, d) for the whole batch, and one frequency token (b, d) -> (b, n)."""
        wanted = self.query(self.key(band))
        if len(tokens) == 1:
            score = nn.functional.linear(wanted, tokens[0].to(wanted.dtype))
        else:
            score = rearrange(tokens.to(wanted.dtype) @ rearrange(wanted, "b d -> b d 1"), "b n 1 -> b n")
        return score / math.sqrt(tokens.shape[-1]) + self.bias


class FrequencyGates(nn.ModuleList):
    """Frequency selective gate: how much of each frequency token a place takes (docs/model.md 6.3).

    sigmoid: s(score_k), each by itself. softmax: softmax over k of the scores of LN z and LN m, a mix of them.
    """

    def __init__(self, d: int, bands: int, kind: str) -> None:
        super().__init__(FrequencyScore(d) for _ in range(bands))
        self.kind = kind

    def forward(self, tokens: Tensor, bands: Tensor, chosen: Sequence[int]) -> list[Tensor]:
        """Tokens (b, n, d) or (1, n, d) and frequency tokens (b, k, d) -> gates of the `chosen` ones, (b, n, 1) each."""
        if self.kind == "sigmoid":
            return [rearrange(torch.sigmoid(self[k](tokens, bands[:, k])), "b n -> b n 1") for k in chosen]
        tokens, bands = (nn.functional.layer_norm(each, each.shape[-1:], eps=1e-6) for each in (tokens, bands))
        scores = torch.stack([score(tokens, bands[:, k]) for k, score in enumerate(self)], dim=-1)
        gates = scores.float().softmax(-1).to(scores.dtype)
        return [gates[..., k : k + 1] for k in chosen]


class BandHead(nn.Module):
    """Tokens -> pixels of whatever bands the group holds, by kernels generated from their codes."""

    def __init__(self, d: int, patch: int, tokenizer: str, sensors: Sequence[Sensor]) -> None:
        super().__init__()
        self.kernels = GroupKernels(tokenizer, sensors, d, patch**2, bias=True)

    def forward(self, tokens: Tensor, code: Tensor, sensor: Sensor, groups: Groups) -> Tensor:
        """(b, g, n, d) -> (b, g, n, m, p)."""
        weight, bias, _ = self.kernels(code, sensor, groups)
        assert bias is not None
        flat = rearrange(tokens, "b g n d -> g (b n) d").to(weight.dtype)
        pixels = flat @ rearrange(weight, "g m d p -> g d (m p)") + rearrange(bias, "g m p -> g 1 (m p)")
        return rearrange(pixels, "g (b n) (m p) -> b g n m p", b=tokens.shape[0], m=weight.shape[1])


class ProgressiveDecoder(nn.Module):
    """Visible tokens -> predictions of every stage, low to high.

    Masked places start as zero. Stage 1 fills them with gated m_low before positions are added (so they keep their
    place, docs/model.md 6.2); stages 2 and 3 add gated m_mid and m_high. Each stage ends in its own norm and the shared head.
    """

    def __init__(
        self, config: DecoderConfig, encoder_dim: int, patch: int, *, frequency: bool, tokenizer: str,
        sensors: Sequence[Sensor],
    ) -> None:  # fmt: skip
        super().__init__()
        d = config.embed_dim
        self.config = config
        self.activation_checkpointing = False
        self.enter = nn.Linear(encoder_dim, d)
        self.cls_position = nn.Parameter(torch.empty(d))
        self.mask_token = None if frequency else nn.Parameter(torch.empty(d))
        self.position = TokenPosition(d, config.position)
        bands = 3 if frequency else 0
        self.gates = FrequencyGates(d, bands, config.gate)
        plain = config.attention == "plain"
        self.blocks = nn.ModuleList(
            Block(d, config.heads, qkv_bias=True, norm_layer=LayerNorm)
            if plain
            else FusionBlock(d, config.heads, config.fusion)
            for _ in range(config.depth)
        )
        self.norms = nn.ModuleList(LayerNorm(d) for _ in range(config.stages))
        self.head = BandHead(d, patch, tokenizer, sensors)

    def reset_parameters(self, encoder_code: nn.Module) -> None:
        """Initialise; the head is scaled on the codes that the encoder's band code gives to reference bands."""
        initialise_linear(self)
        nn.init.normal_(self.cls_position, std=0.02)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        for block in self.blocks:
            if isinstance(block, FusionBlock):
                block.attn.reset_parameters()
        with torch.no_grad():
            self.head.kernels.reset_parameters(encoder_code(reference_bands()), HEAD_GAIN)

    def stage_starts(self) -> list[int]:
        """First block of every stage: depth // stages blocks each, the remainder in the last."""
        return [self.config.depth // self.config.stages * stage for stage in range(self.config.stages)]

    def forward(
        self, encoded: Tensor, embedded: Embedded, mask: Mask, sensor: Sensor, groups: Groups, h: int, w: int
    ) -> Tensor:
        """
        Args:
            encoded: (b, prefix + v, d) output of the encoder.
        Returns:
            (k, b, g, n, m, p) predictions, low to high, k = `stages`.
        """
        grid = Grid(len(groups), h, w)
        prefix = sum(map(len, embedded.special))
        decoded = self.enter(encoded)
        first = len(embedded.special.cls)
        cls = decoded[:, :1] if first else decoded[:, prefix:].mean(1, keepdim=True)  # a layout without cls
        bands = decoded[:, first : first + len(embedded.special.frequency)]
        if self.config.mask_tokens == "bypass":
            bands = repeat(self.enter(embedded.special.frequency), "k d -> b k d", b=len(decoded))
        position = self.position(embedded.code, groups, h, w).expand(grid.g, h * w, -1)
        position = rearrange(position, "g n d -> 1 (g n) d")
        tokens = self._fill(decoded[:, prefix:], bands, position, mask) + position
        sequence = torch.cat([cls + self.cls_position, tokens], dim=1)

        ends, starts = [], self.stage_starts()
        for index, block in enumerate(self.blocks):
            stage = sum(start <= index for start in starts) - 1
            first_block = index in starts
            if len(bands) and bands.shape[1] and index > 0 and (first_block or self.config.injection == "every"):
                sequence = self._inject(sequence, bands, stage, index, mask)
            sequence = self._run(block, sequence, grid)
            if index + 1 in [*starts[1:], len(self.blocks)]:
                ends.append(self.norms[stage](sequence)[:, 1:])
        patches = rearrange(torch.cat(ends), "kb (g n) d -> kb g n d", g=grid.g)
        return self.head(patches, embedded.code, sensor, groups).unflatten(0, (len(ends), -1))

    def _fill(self, visible: Tensor, bands: Tensor, position: Tensor, mask: Mask) -> Tensor:
        """Visible tokens at their places, (b, g * n, d); what a masked place starts from elsewhere."""
        if self.mask_token is not None:
            start = rearrange(self.mask_token, "d -> 1 1 d")
        else:
            start = self._taken(position, bands, stage=0, block=0)
        slots = start.to(visible.dtype).expand(len(visible), mask.masked.shape[1], -1)
        return slots.scatter(1, repeat(mask.visible, "b v -> b v d", d=visible.shape[-1]), visible)

    def _inject(self, sequence: Tensor, bands: Tensor, stage: int, block: int, mask: Mask) -> Tensor:
        """Let masked places take from the stage's frequency token."""
        taken = self._taken(sequence[:, 1:], bands, stage, block)
        return sequence + behind_cls(rearrange(mask.masked, "b n -> b n 1") * taken)

    def _taken(self, tokens: Tensor, bands: Tensor, stage: int, block: int) -> Tensor:
        """alpha gamma_k m_k (additive) or alpha gamma_k (m_k - z) (convex).

        One stage takes the mean of the three; gates by softmax, which share one, take their sum at every stage.
        """
        alpha = 1 - 0.5 * block / len(self.blocks)
        shared = self.config.gate == "softmax"
        chosen = range(3) if shared or self.config.stages == 1 else [stage]
        convex = self.config.blend == "convex" and block > 0
        total = torch.zeros((), device=tokens.device, dtype=tokens.dtype)
        for k, gate in zip(chosen, self.gates(tokens, bands, chosen), strict=True):
            wide = rearrange(bands[:, k], "b d -> b 1 d")
            total = total + gate * (wide - tokens if convex else wide)
        return alpha * total / (1 if shared else len(chosen))

    def _run(self, block: nn.Module, sequence: Tensor, grid: Grid) -> Tensor:
        arguments = (sequence, grid) if isinstance(block, FusionBlock) else (sequence,)
        return run_block(block, *arguments, recompute=self.activation_checkpointing and self.training)
