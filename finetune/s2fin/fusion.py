"""SSAF, spatial-spectral attention fusion: the spectral branch gates channels, the spatial branches gate places."""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from finetune.s2fin.layers import pooled


class SpatialSpectralFusion(nn.Module):
    """F_i <- F_i (1 + e), e = s(MLP[GAP Z; GMP Z]);  Z <- Z (1 + a), a = s(Conv5x5[mean_c F_i, max_c F_i for each i])."""

    def __init__(self, d: int, modalities: int) -> None:
        super().__init__()
        self.spectral = Mlp(2 * d, d // 4, d)
        self.spatial = nn.Conv2d(2 * modalities, 1, 5, padding=2)

    def gates(self, z: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Spectral gate e (b, d, 1, 1) and spatial gate a (b, 1, h, w), both in (0, 1)."""
        profiles = [reduce(one, "b d h w -> b 1 h w", kind) for one in features for kind in ("mean", "max")]
        spectral = rearrange(self.spectral(pooled(z)), "b d -> b d 1 1").sigmoid()
        return spectral, self.spatial(torch.cat(profiles, dim=1)).sigmoid()

    def forward(self, z: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Spectral features (b, d, h, w) and k spatial ones -> the same, each gated by the other kind."""
        spectral, spatial = self.gates(z, features)
        return z * (1 + spatial), [one * (1 + spectral) for one in features]
