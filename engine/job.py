"""What one kind of training brings to the frame that all share: `engine.training.Run`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from datasets.sampling.faults import Fault
from engine.build import Batching, EngineConfig
from engine.optim import OptimConfig, parameter_groups
from engine.ranks import World
from engine.runs import RunConfig, RunFolder


class Settings(Protocol):
    """The settings tree of a run has these three branches beside its own."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def engine(self) -> EngineConfig: ...


Config = TypeVar("Config", bound=Settings)


class Batch(Protocol):
    """What one rank takes for one pass."""

    @property
    def keys(self) -> Sequence[str]:
        """Names of its samples."""
        ...

    @property
    def faults(self) -> Sequence[Fault]:
        """Samples that could not be used."""
        ...


class Running(Protocol):
    """What a job sees of its run."""

    @property
    def engine(self) -> Any:
        """DeepSpeed's; `engine.module` is the model."""
        ...

    @property
    def folder(self) -> RunFolder:
        """Where it writes."""
        ...

    @property
    def world(self) -> World:
        """The ranks that take part."""
        ...

    def write(self, **record: Any) -> None:
        """Add an object to metrics.jsonl, on the main rank."""
        ...


class Job(ABC, Generic[Config]):
    """One kind of training: its data, its model, its loss, and what it reports. Built on every rank alike.

    Attributes:
        config: the settings tree.
        batching: how a global batch is dealt out.
        identity: what must be the same on all ranks and in a resumed run, JSON-ready.
        max_broken: largest share of broken samples.
    """

    config: Config
    batching: Batching
    identity: dict[str, Any]
    max_broken: float = 1.0

    @abstractmethod
    def make_model(self) -> nn.Module:
        """The model before training; torch's generator has the run's seed."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimiser; `lr_scale` of a group multiplies the learning rate."""
        return parameter_groups(model, self.config.optim)

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Endless micro-batches of this rank (`Batch`), from the place of `load_state_dict` on."""

    @abstractmethod
    def losses(self, engine: Any, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Named scalars of one pass; the first one, `loss`, is what is minimised."""

    @abstractmethod
    def progress(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of a step beside the losses; `epoch` and `sensor` stand on the screen as well."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where it is, JSON-ready and the same on every rank."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def describe(self, folder: RunFolder) -> None:  # noqa: B027 - nothing to do is the usual case
        """Write what belongs beside the settings; called on the main rank before `begin`."""

    def begin(self, run: Running) -> None:  # noqa: B027
        """Say what runs; called on all ranks before the first step, also of a run that goes on. A dry run calls it too:
        it writes nothing before that step.
        """

    def reports(self, done: int) -> bool:
        """Whether a report is due after `done` steps that uses the network as it is then."""
        return False

    def report(self, run: Running, done: int, *, last: bool) -> None:  # noqa: B027
        """Evaluate and draw what is due after `done` steps; called on all ranks."""

    def export(self, run: Running, *, must: bool) -> None:  # noqa: B027
        """Write the model for its users, after a checkpoint; called on all ranks. `must`: it is the last one."""

    def conclude(self, run: Running) -> None:  # noqa: B027
        """Say what came out; called on the main rank after the last step."""
