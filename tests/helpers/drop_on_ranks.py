"""Run on every rank by a test: dropped gradients leave no trace, and parameters without one get none."""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from engine.build import Batching, EngineConfig, build_engine, take_step
from engine.checkpoints import full_weights
from engine.deepspeed_internals import forget_gradients
from engine.optim import OptimConfig, parameter_groups
from engine.ranks import World, finish, start


class Squares(nn.Module):
    """A model whose output is its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def trained(world: World, zero: int, *, dropped: int, spoilt: bool = False) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights after three steps of two passes, with `dropped` passes given up before the second step."""
    torch.manual_seed(0)
    model, optim = Squares(), OptimConfig(batch=8)
    engine = build_engine(model, parameter_groups(model, optim), optim, EngineConfig(zero=zero), world, Batching(2, 2))
    inputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1 + world.rank))
    norms = []
    for number, x in enumerate(inputs):
        if number == 2:
            for _ in range(dropped):
                engine.backward(engine(100 * x))
                if dropped > 1:
                    break
                norms.append(take_step(engine))
            if dropped:
                engine(x)  # the pass whose loss is not finite: forward only
                forget_gradients(engine)
            if spoilt:
                for factor in (1.0, float("inf")):
                    engine.backward(engine(x) * factor)
                    norms.append(take_step(engine))
        engine.backward(engine(x))
        norms.append(take_step(engine))
    return full_weights(engine, "") or {}, norms


class Two(nn.Module):
    """Two layers; the second has a part in the loss only where it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y = self.first(x)
        return (self.second(y) if both else y).square().mean()


def check_absent_gradients(world: World, zero: int) -> None:
    """Steps with and without the second layer, against torch's AdamW with gradients of zero where there is none."""
    optim = OptimConfig(batch=2 * world.size)
    torch.manual_seed(0)
    plain = Two()
    model = copy.deepcopy(plain)
    engine = build_engine(model, parameter_groups(model, optim), optim, EngineConfig(zero=zero), world, Batching(2, 1))
    optimiser = torch.optim.AdamW(parameter_groups(plain, optim), lr=optim.lr, betas=optim.betas)
    for step, both in enumerate((True, False, True, False, False)):
        x = torch.randn(2, 5, generator=torch.Generator().manual_seed(step))  # the same on all ranks
        engine.backward(engine(x, both))
        take_step(engine)
        optimiser.zero_grad(set_to_none=False)
        plain(x, both).backward()
        for parameter in plain.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        nn.utils.clip_grad_norm_(plain.parameters(), optim.clip)
        optimiser.step()
    found = full_weights(engine, "") or {}
    expected = dict(plain.named_parameters())
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.items()), "stale gradients"


def main() -> None:
    world, zero = start(), int(sys.argv[1])
    straight, norms = trained(world, zero, dropped=0)
    assert [norm is None for norm in norms] == [True, False] * 3, norms
    dropped, _ = trained(world, zero, dropped=1)
    assert all(torch.equal(dropped[name], straight[name]) for name in straight), "a dropped pass left a trace"
    spoilt, norms = trained(world, zero, dropped=0, spoilt=True)
    assert not torch.isfinite(torch.tensor(norms[3])), norms
    assert all(torch.equal(spoilt[name], straight[name]) for name in straight), "an infinite gradient left a trace"
    check_absent_gradients(world, zero)
    finish(world)


if __name__ == "__main__":
    main()
