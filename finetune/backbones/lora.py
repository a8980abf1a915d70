"""Low-rank adapters beside the linear layers of an encoder (LoRA: Hu et al., arXiv 2106.09685, section 4)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from alliance.encoder import AllianceEncoder
from alliance.ranges import LARGE, Ranged, ranged

ATTENTION, MLP = ("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2")  # of a block, by timm's names


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Ranged):
    """Size of the adapters, and where they are."""

    rank: int = ranged(8, 1, 65536)
    """Rank of the matrices that the adapters add."""
    alpha: float = ranged(16.0, 0, LARGE, above=True)
    """What the adapters add is multiplied by alpha / rank."""
    mlp: bool = False
    """Adapters also in the MLPs, not in the attention alone."""


class LoraLinear(nn.Linear):
    """W x + b + (alpha / rank) U D x with U = 0 at the start. `weight` and `bias` are those of the given layer."""

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.gain = config.alpha / config.rank
        self.down = nn.Parameter(torch.empty(config.rank, layer.in_features))  # D
        self.up = nn.Parameter(torch.zeros(layer.out_features, config.rank))  # U
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        adapted = functional.linear(functional.linear(input, self.down), self.up)
        return super().forward(input) + self.gain * adapted

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight + self.gain * self.up @ self.down)
        layer.bias = self.bias
        return layer


def add_adapters(encoder: AllianceEncoder, config: LoraConfig) -> None:
    """Freeze an encoder and put adapters beside its layers; names of its weights stay as they are."""
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for name in ATTENTION + (MLP if config.mlp else ()):
            layer = block.get_submodule(name)
            assert isinstance(layer, nn.Linear), f"timm's block has a linear layer {name}"
            block.set_submodule(name, LoraLinear(layer, config))


def merge_adapters(encoder: AllianceEncoder) -> None:
    """Fold the adapters into the layers they stand beside."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoraLinear):
            encoder.set_submodule(name, module.merged())
