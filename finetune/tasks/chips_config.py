"""The settings trees of tasks that label whole images. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from alliance.errors import InputError
from alliance.ranges import MANY, SEEDS, ranged
from datasets.chips.augment import ChipAugmentConfig
from datasets.chips.chip import ChipSet
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.chips.model import ChipConfig
from finetune.sweep.experiment import SeedsConfig
from finetune.tasks.dense_config import EVERY


@dataclass(frozen=True, kw_only=True)
class ChipDataConfig(ChipSet):
    """Which images serve for what, and how they are read."""

    split: tuple[float, float, float] = ranged((0.6, 0.2, 0.2), 0, 1)
    """Shares of training, validation and test, drawn where neither folders nor tables tell splits; every class alike."""
    split_seed: int = ranged(0, 0, SEEDS)
    """Number from which they are drawn; the seed of a run has no part in it."""
    train: str = "train"
    """Split that is learnt from."""
    evaluate: str = ""
    """Split on which the best network is chosen; empty: validation, or where there is none, test."""
    test: str = ""
    """Split that the chosen network is scored on after the last step; empty: test, unless it served to choose."""
    per_class: int | None = ranged(None, 1, MANY)
    """Training images of each class, drawn by the seed of the run; null: all."""
    share: float = ranged(1.0, 0, 1, above=True)
    """Share of the training images of each class, drawn by the seed of the run."""
    size: int | None = ranged(None, 8, 8192)
    """Side that images get, pixels, a multiple of the encoder's patch (see model.fit); null: about that of the first image."""
    overlap: Literal["refuse", "count", "ignore"] = "refuse"
    """What to do with images that also stand in training, byte for byte: refuse or count them; or ignore: no bytes are compared,
    neither with training nor, when a run goes on, with what it began with.
    """
    workers: int = ranged(2, 0, 1024)
    """Threads per rank that read ahead; 0 reads when a batch is asked for."""
    max_broken: float = ranged(0.05, 0, 1)
    """The run stops when a larger share of the samples is broken (judged from 1,000 read on)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "split", tuple(self.split))
        if len(self.split) != 3 or not math.isclose(sum(self.split), 1, abs_tol=1e-6) or self.split[0] in (0, 1):
            raise InputError(
                f"data.split is {list(self.split)}; give the shares of training, validation and test, which add up to 1, such as "
                f"[0.6, 0.2, 0.2]"
            )


@dataclass(frozen=True, kw_only=True)
class ChipTaskConfig(SeedsConfig):
    """Everything that defines a run."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "model.encoder.checkpoint": "checkpoint", "network": "model", "data.root": "data.path", "epochs": "run.steps",
        "maps": "run.picture_every", "model.size": "data.size",
    }  # fmt: skip

    run: RunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: ChipDataConfig
    """What it reads."""
    augment: ChipAugmentConfig = field(default_factory=ChipAugmentConfig)
    """What may happen to a training image."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder that the network begins with; empty: an untrained one."""
    model: ChipConfig = field(default_factory=ChipConfig)
    """The network."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(batch=64, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999))
    )
    """How it learns."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How steps are computed."""
    evaluate_every: int = ranged(1000, 1, MANY)
    """Steps between two evaluations."""
    evaluate_without: str = EVERY
    """Of two images, the one that the kept network is scored without at the end: image, beside, all in turn, or none."""
    resamples: int = ranged(1000, 0, 100_000)
    """Times that images are drawn anew for the 95 % interval of the first score; 0: no interval."""
    seeds: str | list[int] = ""
    """Runs with these seeds in place of run.seed, such as 0,1,2 or 0-9, and one table of all; empty: one run."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig(ChipTaskConfig):
    """One label of each image."""

    smoothing: float = ranged(0.1, 0, 1, below=True)
    """Share of each label that the loss deals out to all classes alike."""


@dataclass(frozen=True, kw_only=True)
class MultilabelConfig(ChipTaskConfig):
    """Any number of labels of each image."""
