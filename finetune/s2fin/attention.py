"""Sparse attention: each token looks at few others."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from alliance.ranges import Ranged, ranged


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Ranged):
    """How attention is made sparse; the paper says that it is, not how."""

    kind: Literal["top-k", "relu2", "plain"] = "top-k"
    """top-k keeps the largest scores of a row (as in DRSformer), relu2 mixes in squared ones (as in AST), plain
    keeps all.
    """
    kept: float = ranged(0.5, 0, 1, above=True)
    """Share of a row's scores that top-k keeps."""


def keep_largest(scores: Tensor, kept: float) -> Tensor:
    """All but the ceil(kept * m) largest scores of each row of m become -inf: (..., m) -> (..., m)."""
    count = math.ceil(kept * scores.shape[-1] - 1e-9)  # 0.28 * 25 is 7.000000000000001
    largest, place = scores.topk(count, dim=-1)
    return torch.full_like(scores, -torch.inf).scatter(-1, place, largest)


class SparseAttention(nn.Module):
    """softmax(A) V over the largest scores of A = Q K^T / sqrt(d), Q K V without bias: (b, m, c) -> (b, m, d).

    relu2 instead mixes a1 softmax(A) + a2 relu(A)^2, (a1, a2) the softmax of two free scalars.
    """

    def __init__(self, c: int, d: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(c, 3 * d, bias=False)
        self.mix = nn.Parameter(torch.zeros(2)) if config.kind == "relu2" else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, m, c) -> (b, m, d)."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        return self.weights(query @ key.mT / math.sqrt(key.shape[-1])).to(value.dtype) @ value

    def weights(self, scores: Tensor) -> Tensor:
        """Attention map of the scores: (b, m, m) -> (b, m, m)."""
        if self.config.kind == "top-k":
            scores = keep_largest(scores, self.config.kept)
        weights = scores.softmax(dim=-1)
        if self.mix is None:
            return weights
        dense, sparse = self.mix.softmax(dim=0)
        return dense * weights + sparse * scores.relu().square()
