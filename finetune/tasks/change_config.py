"""The settings tree of a change detection run. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

from dataclasses import dataclass, field

from alliance.ranges import MANY, ranged
from datasets.labelled.augment import AugmentConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.dense.losses import DenseLossConfig
from finetune.dense.model import DenseConfig
from finetune.sweep.experiment import SeedsConfig
from finetune.tasks.dense_config import NONE, TileDataConfig


@dataclass(frozen=True, kw_only=True)
class ChangeDataConfig(TileDataConfig):
    """Pairs of images of two dates with a map of change: two classes, of which the second is change."""

    before: str = "before"
    """Role of the earlier image in the description."""
    after: str = "after"
    """Role of the later image; it may be of another sensor."""


@dataclass(frozen=True, kw_only=True)
class ChangeConfig(SeedsConfig):
    """Everything that defines a run."""

    run: RunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: ChangeDataConfig
    """What it reads."""
    augment: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(resize=(1.0, 1.0), crop=128, cat_max_ratio=1.0)
    )
    """What may happen to a training pair."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder that the network begins with; empty: an untrained one."""
    model: DenseConfig = field(default_factory=DenseConfig)
    """The network; the images are called before and after."""
    loss: DenseLossConfig = field(default_factory=lambda: DenseLossConfig(dice=1.0, balance="log"))
    """What is minimised."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(batch=16, lr=1e-4))
    """How it learns."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(zero=0))
    """How steps are computed; ZeRO stage 0, so autocast on GPUs and float32 norms."""
    evaluate_every: int = ranged(500, 1, MANY)
    """Steps between two evaluations."""
    evaluate_without: str = NONE
    """Image that the kept network is scored without at the end: before, after, all of both in turn, or none."""
    seeds: str | list[int] = ""
    """Runs with these seeds in place of run.seed, such as 0,1,2 or 0-9, and one table of all; empty: one run."""
