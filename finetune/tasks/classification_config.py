"""The settings tree of a classification run. Defaults < YAML (`--config`) < command line (`--network.width 96`)."""

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from alliance.errors import InputError
from datasets.labelled import SplitConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.s2fin.network import S2FinConfig

CONFIG = "config.yaml"  # of all seeds of a command


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig:
    """Scenes with labelled pixels, and which of them serve for what."""

    benchmark: str
    """Name of a layout in configs/labelled/, or a YAML file of one's own."""
    path: str
    """Folder of the scenes, or file of ready patches."""
    components: int = 30
    """Principal components of the passive image for its spatial branch."""
    split: str = ""
    """FILE.npz[:PREFIX] of arrays `train` and `test`, {seed} replaced; empty: drawn by `protocol`."""
    protocol: SplitConfig = field(default_factory=SplitConfig)
    """How labelled pixels are split."""


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Everything that defines the runs of one command, one per seed. `run.steps` and `run.seed` follow from `epochs`
    and `seeds`.
    """

    run: RunConfig
    """Where the runs live and how often they report."""
    data: LabelledDataConfig
    """Which scenes, and which of their pixels serve for what."""
    model: Literal["s2fin", "svm", "rf"] = "s2fin"
    """The network, or a classical reference alone under the same splits: support vector machine, random forest."""
    network: S2FinConfig = field(default_factory=S2FinConfig)
    """Network and loss (docs/model.md 14)."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            batch=64, lr=1e-3, warmup=0.0, weight_decay=1e-2, betas=(0.9, 0.999), clip=0.0, decay_vectors=True
        )
    )
    """How the network learns."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(precision="fp32"))
    """How steps are computed; fp32, as so small a network gains nothing by less."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder: a short name of network.encoder.checkpoint."""
    epochs: int = 100
    """Passes over the training pixels."""
    seeds: str | list[int] = "0"
    """Runs, such as 0,1,2 or 0-9; each draws a split, weights and batches of its own."""
    jobs: int | None = None
    """Seeds trained at once, each in a process; null: one per CPU core, one on GPUs."""
    references: bool = True
    """Score classical models under the same splits in the same table."""
    maps: Literal["first", "all", "none"] = "first"
    """Seeds whose scenes are mapped and whose filters are drawn."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.jobs is not None and self.jobs < 1):
            raise InputError(f"epochs and jobs must be at least 1, got {self.epochs}, {self.jobs}")
        if not self.seed_list or min(self.seed_list) < 0 or len(set(self.seed_list)) < len(self.seed_list):
            raise InputError(f"seeds are {self.seeds}; give different whole numbers from 0 on, such as 0,1,2 or 0-9")

    @property
    def seed_list(self) -> list[int]:
        if isinstance(self.seeds, list):
            return self.seeds
        found: list[int] = []
        for part in self.seeds.split(","):
            first, _, last = part.strip().partition("-")
            if not (first.isdigit() and (not last or last.isdigit())):
                raise InputError(f"seeds are {self.seeds!r}; give whole numbers such as 0,1,2 or 0-9")
            found.extend(range(int(first), int(last or first) + 1))
        return found

    @property
    def processes(self) -> int:
        """How many seeds are trained at once."""
        usual = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
        return min(self.jobs or usual, len(self.seed_list))
