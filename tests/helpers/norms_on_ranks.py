"""Run on every rank by a test: batch norms measure each rank's samples, are averaged, and are written with the weights."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from engine.build import Batching, EngineConfig, build_engine, take_step
from engine.checkpoints import full_weights
from engine.optim import OptimConfig, parameter_groups
from engine.ranks import World, average_running_statistics, finish, gather, start

MOMENTUM = 0.1  # torch's
CHANNELS = 4


class Normed(nn.Module):
    """A batch norm of the input itself; one that measures nothing; a counter that is not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS, track_running_stats=False)
        self.head = nn.Sequential(nn.Linear(CHANNELS, 3), nn.BatchNorm1d(3))
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.plain(self.norm(x))) - 1).square().mean()


def samples(rank: int) -> Tensor:
    """Ten samples whose mean and variance differ from rank to rank and channel to channel."""
    drawn = torch.randn(10, CHANNELS, generator=torch.Generator().manual_seed(rank))
    return drawn * (rank + 1) + torch.arange(CHANNELS) + 5 * rank


def check_plain(world: World) -> None:
    """Set by hand: rank r holds mean r and variance 1 + 2 r, so their means over ranks are known."""
    model = Normed()
    for norm in (model.norm, model.head[1]):
        norm.running_mean.fill_(world.rank)
        norm.running_var.fill_(1 + 2 * world.rank)
    average_running_statistics(model)
    middle = (world.size - 1) / 2
    for norm in (model.norm, model.head[1]):
        assert norm.running_mean.eq(middle).all() and norm.running_var.eq(1 + 2 * middle).all()
    assert model.plain.running_mean is None


def check_trained(world: World, zero: int) -> None:
    """After one step: mean over ranks of what torch documents, (1 - m) old + m new, the new variance unbiased."""
    torch.manual_seed(0)
    model, optim = Normed(), OptimConfig(batch=10 * world.size)
    engine = build_engine(model, parameter_groups(model, optim), optim, EngineConfig(zero=zero), world, Batching(10, 1))
    engine.backward(engine(samples(world.rank)))
    take_step(engine)
    own = engine.module.norm.running_mean.clone()
    average_running_statistics(engine.module)
    each = [samples(rank) for rank in range(world.size)]
    mean = torch.stack([MOMENTUM * x.mean(dim=0) for x in each])
    variance = torch.stack([1 - MOMENTUM + MOMENTUM * x.var(dim=0) for x in each])
    torch.testing.assert_close(own, mean[world.rank])
    torch.testing.assert_close(engine.module.norm.running_mean, mean.mean(dim=0))
    torch.testing.assert_close(engine.module.norm.running_var, variance.mean(dim=0))
    states = gather(dict(engine.module.named_buffers()))
    assert all(value.equal(states[0][name]) for state in states for name, value in state.items()), "ranks differ"
    check_weights(world, engine, Normed())


def check_weights(world: World, engine: Any, fresh: Normed) -> None:
    """The written weights make a plain network of the same kind, running statistics and counters included."""
    weights, head = full_weights(engine, ""), full_weights(engine, "head.")
    assert (weights is None) == (head is None) == (not world.is_main)
    if weights is None or head is None:
        return
    fresh.load_state_dict(weights)  # strict: no name more or less
    module = engine.module
    assert fresh.norm.running_mean.equal(module.norm.running_mean) and fresh.norm.num_batches_tracked.item() == 1
    assert set(head) == set(fresh.head.state_dict()) and head["1.running_var"].equal(module.head[1].running_var)


def main() -> None:
    world = start()
    check_plain(world)
    for zero in map(int, sys.argv[1:]):
        check_trained(world, zero)
    finish(world)


if __name__ == "__main__":
    main()
