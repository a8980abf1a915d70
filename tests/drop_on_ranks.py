"""Run on every rank by a test: a step whose gradients are dropped between two passes changes nothing."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from engine.build import Batching, EngineConfig, build_engine, drop_gradients, take_step
from engine.checkpoints import full_weights
from engine.optim import OptimConfig
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
    engine = build_engine(Squares(), OptimConfig(batch=8), EngineConfig(zero=zero), world, Batching(2, 2))
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
                drop_gradients(engine)
            if spoilt:
                for factor in (1.0, float("inf")):
                    engine.backward(engine(x) * factor)
                    norms.append(take_step(engine))
        engine.backward(engine(x))
        norms.append(take_step(engine))
    return full_weights(engine, "") or {}, norms


def main() -> None:
    world, zero = start(), int(sys.argv[1])
    straight, norms = trained(world, zero, dropped=0)
    assert [norm is None for norm in norms] == [True, False] * 3, norms
    dropped, _ = trained(world, zero, dropped=1)
    assert all(torch.equal(dropped[name], straight[name]) for name in straight), "a dropped pass left a trace"
    spoilt, norms = trained(world, zero, dropped=0, spoilt=True)
    assert not torch.isfinite(torch.tensor(norms[3])), norms
    assert all(torch.equal(spoilt[name], straight[name]) for name in straight), "an infinite gradient left a trace"
    finish(world)


if __name__ == "__main__":
    main()
