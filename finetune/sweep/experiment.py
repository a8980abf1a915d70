"""What a task brings to be run with several seeds, and the settings of that."""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from alliance.errors import InputError
from alliance.json_files import read_json
from alliance.ranges import SEEDS, Ranged, ranged
from alliance.records import as_type
from engine.job import Job
from engine.ranks import World
from engine.runs import FolderConfig, RunConfig
from finetune.sweep.seeds import SeedScores
from finetune.task import SCORES

MOST = 10_000  # seeds of a command


@dataclass(frozen=True, kw_only=True)
class SeedsConfig(Ranged):
    """The seeds of a command."""

    seeds: str | list[int] = "0"
    """Runs, such as 0,1,2 or 0-9; each draws its weights, its batches and, where there is one, its split anew."""
    jobs: int | None = ranged(None, 1, 1024)
    """Seeds trained at once, each in a process; null: one per CPU core, one on GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seeds = self.seed_list
        if len(set(seeds)) < len(seeds):
            raise InputError(f"seeds are {self.seeds}; give different whole numbers, such as 0,1,2 or 0-9")

    @property
    def seed_list(self) -> list[int]:
        """The seeds one by one.

        Raises:
            InputError: one is no whole number of the range, or there are too many.
        """
        parts = self.seeds.split(",") if isinstance(self.seeds, str) and self.seeds else self.seeds or ()
        found: list[int] = []
        for part in map(str, parts):
            span = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
            first, last = (int(span[1]), int(span[2] or span[1])) if span else (-1, -1)
            if not 0 <= first <= last <= SEEDS:
                raise InputError(f"seeds are {self.seeds!r}; give whole numbers such as 0,1,2 or 0-9")
            if len(found) + last - first >= MOST:
                raise InputError(f"seeds are {self.seeds!r}, more than {MOST}; give fewer")
            found.extend(range(first, last + 1))
        return found

    @property
    def processes(self) -> int:
        """How many seeds are trained at once."""
        usual = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
        return min(self.jobs or usual, len(self.seed_list))


class SweepSettings(Protocol):
    """The settings tree of a task with seeds has these beside its own."""

    @property
    def run(self) -> FolderConfig: ...
    @property
    def data(self) -> Any: ...
    @property
    def seed_list(self) -> list[int]: ...
    @property
    def processes(self) -> int: ...


Config = TypeVar("Config", bound=SweepSettings)


class Experiment(ABC, Generic[Config]):
    """A task as a sweep over seeds sees it. An instance holds nothing, so that it travels to other processes.

    Attributes:
        settings: the class of its settings tree.
        same: settings, beside those of the data, that all runs in a folder must share.
    """

    settings: ClassVar[type[Any]]
    same: ClassVar[tuple[str, ...]]

    def open(self, config: Config) -> Any:
        """Data that all seeds share."""
        return None

    def contents(self, config: Config, data: Any) -> dict[str, str]:
        """Checksums of what all seeds read; scores of other contents are not taken for theirs."""
        return {}

    def check(self, config: Config, data: Any) -> None:  # noqa: B027
        """See to it that mistakes show before the first seed is trained."""

    @abstractmethod
    def job(self, config: Any, world: World, data: Any) -> Job[Any]:
        """The run of one seed, `config.run.seed`; `config.run` is a `RunConfig`."""

    @abstractmethod
    def variants(self, config: Config) -> dict[str, Config]:
        """Settings of everything that is trained, by name, the one that the experiment is about first."""

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        """Whether the scores.json of a seed is that of its end."""
        return True

    @abstractmethod
    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        """From the scores.json of a finished seed."""

    @abstractmethod
    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""

    def splits(self, config: Config, data: Any) -> dict[int, dict[str, Any]]:
        """What there is to say of the split of every seed; empty where all seeds share one."""
        return {}

    def references(self, config: Config, data: Any) -> dict[str, list[SeedScores]]:
        """Scores of classical models under the same splits, by name."""
        return {}

    def draw(self, config: Config, data: Any, device: torch.device) -> None:  # noqa: B027
        """Draw finished seeds."""


class ScoredSeeds(Experiment[Config]):
    """Seeds of a task whose scores.json holds its scores in percent.

    Attributes:
        overall: names there of the scores of the table.
        by_class: name there of those per class.
    """

    overall: ClassVar[tuple[str, ...]]
    by_class: ClassVar[str]

    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        overall = {name: _share(record[name]) for name in self.overall}
        per_class = [_share(score) for score in record[self.by_class].values()]
        return SeedScores(seed, overall, per_class, torch.tensor(record["confusion"]))


def _share(percent: float | None) -> float:
    """From 0 to 1; nan where a score is not defined."""
    return math.nan if percent is None else percent / 100


def of_seed(config: Any, seed: int) -> Any:
    """The settings of the run of one seed."""
    given = asdict(config.run) | {"dir": str(Path(config.run.dir) / f"seed_{seed}"), "seed": seed, "resume": "auto"}
    return replace(config, run=RunConfig(**given))


def finished_record(experiment: Experiment[Any], config: Any, seed: int) -> dict[str, Any] | None:
    """The scores.json of a seed; None where it is not finished."""
    path = Path(config.run.dir) / f"seed_{seed}" / SCORES
    if not path.is_file():
        return None
    record = as_type(dict[str, Any], read_json(path), f"{path}, which is to be removed,")
    return record if experiment.is_finished(config, record) else None
