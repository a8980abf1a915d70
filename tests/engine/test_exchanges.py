"""What ranks tell each other in a step: one exchange a pass, and the means of the losses where they are logged."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.loop import Trainer
from engine.optim import OptimConfig
from engine.ranks import count_over_ranks

CPU = torch.device("cpu")
PASSES = 2


class Engine:
    """What the loop asks of DeepSpeed, for one process without ZeRO."""

    def __init__(self) -> None:
        self.module, self.micro_steps = nn.Linear(3, 1, bias=False), 0
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)

    def train(self) -> None: ...

    def gradient_accumulation_steps(self) -> int:
        return PASSES

    def zero_optimization_stage(self) -> int:
        return 0

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.micro_steps % PASSES == PASSES - 1

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        if self.is_gradient_accumulation_boundary():
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.micro_steps += 1


class FakeJob:
    """Losses of a linear layer on given inputs."""

    def __init__(self, inputs: list[Tensor], log_every: int) -> None:
        run = SimpleNamespace(steps=len(inputs) // PASSES, log_every=log_every)
        self.config, self.inputs, self.max_broken = SimpleNamespace(run=run, optim=OptimConfig(batch=4)), inputs, 1.0

    def batches(self) -> Iterator[Any]:
        return iter([SimpleNamespace(keys=["key"], faults=[], x=x) for x in self.inputs])

    def losses(self, engine: Engine, batch: Any, step: int) -> dict[str, Tensor]:
        loss = engine.module(batch.x).square().mean()
        return {"loss": loss, "loss_high": 2 * loss.detach()}

    def progress(self, step: int) -> dict[str, Any]:
        return {"epoch": 0.0}


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lengths of the tensors that went through `all_reduce` in a group of one rank."""
    sizes: list[int] = []
    real = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return real(tensor, *arguments, **options)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(dist, "all_reduce", counted)
    yield sizes
    dist.destroy_process_group()


def train(inputs: list[Tensor], log_every: int = 1) -> tuple[Engine, list[dict[str, Any]]]:
    torch.manual_seed(0)
    engine, written = Engine(), []
    world: Any = SimpleNamespace(rank=0, size=1, device=CPU, is_main=True, watch=SimpleNamespace(step=0), stop=None)
    job: Any = FakeJob(inputs, log_every)
    trainer = Trainer(engine, job, world, lambda **record: written.append(record))
    assert trainer.train(0, lambda done, stop: None)
    return engine, written


def test_a_pass_has_one_exchange_and_unlogged_steps_the_same_results(exchanges: list[int]) -> None:
    inputs = list(torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(1)))
    every, all_logged = train(inputs)
    assert exchanges == [3] * len(inputs)  # broken, asked to stop, samples lost
    rarely, logged = train(inputs, log_every=4)
    assert torch.equal(every.module.weight, rarely.module.weight)
    assert [record["step"] for record in logged] == [0, 3, 5]
    kept = {record["step"]: record["loss"] for record in all_logged}
    assert all(record["loss"] == kept[record["step"]] for record in logged)
    assert all(record["loss_high"] == pytest.approx(2 * record["loss"]) for record in logged)


def test_a_step_that_is_not_finite_is_left_out_whether_it_is_logged_or_not(exchanges: list[int]) -> None:
    inputs = list(torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(1)))
    inputs[4] = inputs[4] * math.nan
    (first, all_logged), (second, _) = train(inputs), train(inputs, log_every=4)
    assert torch.equal(first.module.weight, second.module.weight)
    assert first.module.weight.isfinite().all()
    assert [record["step"] for record in all_logged if "loss" in record] == [0, 1, 3, 4, 5]
    (event,) = [record for record in all_logged if record.get("event") == "nonfinite"]
    assert event["step"] == 2


def test_counts_may_be_tensors_of_the_device(exchanges: list[int]) -> None:
    assert count_over_ranks(torch.tensor(True), False, 3, device=CPU) == [1, 0, 3]
    assert exchanges == [3]
