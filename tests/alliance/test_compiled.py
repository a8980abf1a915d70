"""A training step makes no tensors of its own from numbers of Python, and its blocks compile to a graph for each kind and grid."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alliance.model import Alliance
from alliance.sensors import Sensor
from alliance.tokens import draw_groups
from tests.helpers.models import ABLATIONS, FOUR_BANDS, FOUR_SAR, natural_image, noise_for, sensor_of, tiny_model

MANY_BANDS = sensor_of(50, name="fifty")  # four groups of 12 or 13
SENSORS = (FOUR_BANDS, MANY_BANDS)
LIFTS = ("aten.lift_fresh", "aten.lift")  # of torch.tensor(numbers), and of a constant of a graph


class Calls(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


# What the compiler looks at in a tensor that is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


class Inputs(NamedTuple):
    """What one step is given."""

    image: Tensor
    sensor: Sensor
    noise: Tensor
    progress: float
    groups: Sequence[Sequence[int]]  # a random subset


def inputs_of(sensor: Sensor, seed: int) -> Inputs:
    image = natural_image(2, len(sensor.bands), 16, 16, seed=seed)
    groups = draw_groups(sensor.group_indices, 2, 0, seed)
    return Inputs(image, sensor, noise_for(image, len(groups), seed=seed), 0.3 * seed, groups)


def step(model: Alliance, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Total and gradient."""
    total = model(*inputs).total
    model.zero_grad()
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_tensors_made_from_numbers_are_counted() -> None:
    with Calls() as calls:
        torch.tensor([1.0, 2.0])
    assert any(name in LIFTS for name in calls.names)


@pytest.mark.parametrize(
    "name",
    ["default", "increments as targets", "bump schedule", "spectral loss", "summary of the image", "baseline"],
)
@pytest.mark.parametrize("sensor", [FOUR_BANDS, FOUR_SAR], ids=lambda sensor: sensor.name)
def test_a_second_step_of_a_sensor_makes_no_tensor_from_numbers(name: str, sensor: Sensor) -> None:
    model, (first, second) = tiny_model(ABLATIONS[name], [sensor]), (inputs_of(sensor, seed) for seed in (0, 1))
    step(model, first)
    with Calls() as calls:
        step(model, second)
    assert not [name for name in calls.names if name in LIFTS]


def test_blocks_of_a_kind_share_a_graph_and_a_step_equals_the_eager_one() -> None:
    deep = {"encoder": {"depth": 4}, "decoder": {"depth": 6}}
    eager, compiled = tiny_model(deep, sensors=SENSORS), tiny_model(deep, sensors=SENSORS)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled.compile(backend=keep, fullgraph=True, dynamic=False)
    found = 0
    for seed in range(3):
        for sensor in SENSORS:
            inputs = inputs_of(sensor, seed)
            torch.testing.assert_close(step(compiled, inputs), step(eager, inputs), atol=2e-6, rtol=2e-6)
        found = found or len(graphs)
    assert len(graphs) == found == 2  # encoder, decoder: of either sensor two groups are drawn, on one grid
    called = {str(getattr(node.target, "__name__", node.target)) for graph in graphs for node in graph.graph.nodes}
    assert "linear" in called
    assert not {name for name in called if "fft" in name or name in ("eye", "tensor", "logspace", "bucketize")}


def test_blocks_of_the_baseline_compile_too() -> None:
    (eager, compiled), inputs = (tiny_model(ABLATIONS["baseline"]) for _ in range(2)), inputs_of(FOUR_BANDS, 1)
    compiled.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(step(compiled, inputs), step(eager, inputs), atol=2e-6, rtol=2e-6)
