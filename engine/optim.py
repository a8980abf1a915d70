"""Optimiser settings, parameter groups and the learning-rate schedule, all functions of the step."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from alliance.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay (alliance.md d.11)."""

    batch: int = 256  # samples per step over all ranks; the same for any number of them
    lr: float = 1e-4  # peak; the papers use 1e-4 * batch / 256
    min_lr: float = 0.0  # at the last step
    warmup: float = 0.05  # share of the steps with a rising rate
    weight_decay: float = 0.05  # none on biases, norms and learned tokens
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest norm of the gradient; 0: no limit

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.lr > 0 or not 0 <= self.warmup < 1:
            raise InputError(
                f"optim needs batch >= 1, lr > 0 and 0 <= warmup < 1, got {self.batch}, {self.lr}, {self.warmup}"
            )


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rate of step 0 .. steps - 1: linear warm-up, then half a cosine from `lr` to `min_lr`."""
    rising = math.ceil(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / rising
    share = (step - rising) / max(steps - rising, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; vectors and learned tokens without."""
    tokens = {"waves", "modality", "cls", "mask_token", "cls_position"}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    free = [p for name, p in named if p.ndim < 2 or name.rpartition(".")[2] in tokens or "bias" in name]
    chosen = {id(parameter) for parameter in free}
    decayed = [parameter for _, parameter in named if id(parameter) not in chosen]
    return [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
