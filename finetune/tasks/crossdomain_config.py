"""The settings tree of a segmentation across domains. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

from dataclasses import dataclass, field
from typing import Literal

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from datasets.labelled.augment import AugmentConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.dense.losses import DenseLossConfig
from finetune.dense.model import DenseConfig
from finetune.sweep.experiment import SeedsConfig
from finetune.tasks.dense_config import EVERY, TileDataConfig


@dataclass(frozen=True, kw_only=True)
class DomainDataConfig(TileDataConfig):
    """A source domain with labels to learn from, and a target domain with labels for the scores alone."""

    train: str = "source"
    """Split of the source, whose labels are learnt from."""
    evaluate: str = "target"
    """Split of the target that the network of the last step is scored on."""
    adapt: str | None = None
    """Split whose images the network adapts to; their labels are not read; null: that of `evaluate`."""
    statistics: Literal["own", "source"] = "own"
    """What standardises target images where the set has its means measured: the target's own, or the source's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train == self.evaluate:
            raise InputError(f"data.train and evaluate are both {self.train}; give the source's split and the target's")
        if self.train == self.adapt:
            raise InputError(f"data.adapt is {self.adapt}, the source itself; give a split of the target, or null")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(Ranged):
    """How target images without labels are learnt from."""

    weight: float | None = ranged(None, 0, LARGE)
    """Weight of the loss on the target beside the 1 of the source's; null: 0.001 for entropy, 1 for self_training."""
    confidence: float = ranged(0.9, 0, 1, below=True)
    """Probability from which on the teacher's class is taken for a label, in self_training."""
    momentum: float = ranged(0.99, 0, 1, below=True)
    """Share of its own weights that the teacher keeps in a step, in self_training."""


@dataclass(frozen=True, kw_only=True)
class CrossDomainConfig(SeedsConfig):
    """Everything that defines a run. There is no choice of the best network: labels of the target would choose it."""

    run: RunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: DomainDataConfig
    """What it reads."""
    method: Literal["source_only", "entropy", "self_training"] = "source_only"
    """What is done with the target's images: nothing; the entropy of predictions is minimised; or a running mean of the
    network labels them where it is sure.
    """
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    """How target images are learnt from."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What may happen to a window."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder that the network begins with; empty: an untrained one."""
    model: DenseConfig = field(default_factory=DenseConfig)
    """The network."""
    loss: DenseLossConfig = field(default_factory=DenseLossConfig)
    """What is minimised on the source."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(batch=8, lr=1e-4))
    """How it learns; the batch is that of each domain."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(zero=0))
    """How steps are computed; ZeRO stage 0, so autocast on GPUs and float32 norms."""
    evaluate_without: str = EVERY
    """Source that the network is scored without at the end: the role of an image, all of several in turn, or none."""
    seeds: str | list[int] = ""
    """Runs with these seeds in place of run.seed, such as 0,1,2 or 0-9, and one table of all; empty: one run."""
