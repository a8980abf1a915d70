"""Optimiser settings, parameter groups and the learning-rate schedule, all functions of the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from alliance.ranges import LARGE, MANY, Ranged, ranged


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Ranged):
    """AdamW with warm-up and cosine decay (docs/model.md 10)."""

    batch: int = ranged(256, 1, MANY)
    """Samples per step over all ranks; the same for any number of them."""
    lr: float = ranged(1e-4, 0, LARGE, above=True)
    """Learning rate after the warm-up, the highest one; a usual start is 1e-4 * batch / 256."""
    min_lr: float = ranged(0.0, 0, LARGE)
    """Learning rate of the last step."""
    warmup: float = ranged(0.05, 0, 1, below=True)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = ranged(0.05, 0, LARGE)
    """Weight decay of matrices."""
    decay_vectors: bool = False
    """Weight decay also on biases, norms and learned tokens."""
    betas: tuple[float, float] = ranged((0.9, 0.95), 0, 1, below=True)
    """Decay of AdamW's running mean and of its running square, per step."""
    clip: float = ranged(1.0, 0, LARGE)
    """Largest norm of the gradient, larger ones are scaled down to it; 0: no limit."""


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rate of step 0 .. steps - 1: linear warm-up, then half a cosine from `lr` to `min_lr`."""
    rising = math.ceil(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / rising
    share = (step - rising) / max(steps - rising, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


class Rule(NamedTuple):
    """How the steps of a parameter differ from those of the others."""

    lr_scale: float = 1.0  # times the learning rate
    weight_decay: float | None = None  # None: as for all parameters of its kind


@runtime_checkable
class HasRules(Protocol):
    """A module some of whose parameters, or of those below it, have a rule of their own."""

    def parameter_rules(self) -> Iterable[tuple[nn.Parameter, Rule]]:
        """Parameters and the rule of each; the others have none."""
        ...


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters with one learning rate and weight decay each, for torch's optimisers.

    Matrices have weight decay, vectors and learned tokens have none unless `decay_vectors`. A module's
    `parameter_rules` (see `HasRules`) come before that; of two rules for one parameter, the outer module's holds.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, which `set_learning_rate` multiplies by the rate; those
        with the largest scale first, of these the ones with weight decay first.
    """
    rules: dict[int, Rule] = {}
    for module in model.modules():
        for parameter, rule in module.parameter_rules() if isinstance(module, HasRules) else ():
            rules.setdefault(id(parameter), rule)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale, decay = rules.get(id(parameter), Rule())
            if decay is None:
                decay = config.weight_decay if config.decay_vectors or _is_matrix(name, parameter) else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    tokens = {"waves", "modality", "cls", "mask_token", "cls_position"}
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in tokens and "bias" not in name
