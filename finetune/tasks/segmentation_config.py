"""The settings tree of a segmentation run. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from datasets.labelled.augment import AugmentConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.pad.losses import LossConfig
from finetune.pad.model import PadConfig
from finetune.pad.start import StartConfig
from finetune.sweep.experiment import SeedsConfig


@dataclass(frozen=True, kw_only=True)
class PairDataConfig(Ranged):
    """Registered pairs of optical image, SAR image and label map."""

    set: str
    """Description of the pairs, made by launch/prepare.py or by hand; configs/labelled/ has examples."""
    path: str | None = None
    """Folder of the files; null: the one in the description."""
    train: str = "train"
    """Split that is learnt from."""
    evaluate: str = "test"
    """Split on which the best network is chosen and scored; PAD has no other one than its test."""
    test: str | None = None
    """Split that the chosen network is scored on once, after the last step; null: none."""
    overlap: Literal["refuse", "count"] = "refuse"
    """What to do with test samples that also stand in training: refuse them, or count them in the log."""
    workers: int = ranged(2, 0, 1024)
    """Threads per rank that read ahead; 0 reads when a batch is asked for."""
    max_broken: float = ranged(0.05, 0, 1)
    """The run stops when a larger share of the pairs is broken (judged from 1,000 read on)."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SeedsConfig):
    """Everything that defines a run. The defaults of `optim` are PAD's; classes and channels follow the data."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "model.encoder.checkpoint": "checkpoint", "network": "model", "data.pairs": "data.set", "data.root": "data.path",
        "epochs": "run.steps", "maps": "run.picture_every",
    }  # fmt: skip

    run: RunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: PairDataConfig
    """What it reads."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What may happen to a training pair."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights to begin with."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder that `model.encoder` begins with; empty: an untrained one."""
    model: PadConfig = field(default_factory=PadConfig)
    """The network (docs/model.md 13)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses (docs/model.md 13.6)."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            batch=4, lr=1e-4, warmup=0.0, weight_decay=0.05, betas=(0.9, 0.999), clip=0.0, decay_vectors=True
        )
    )
    """How it learns."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(zero=0))
    """How steps are computed; ZeRO stage 0, so autocast on GPUs and float32 norms."""
    evaluate_every: int = ranged(8000, 1, MANY)
    """Steps between two evaluations."""
    seeds: str | list[int] = ""
    """Runs with these seeds in place of run.seed, such as 0,1,2 or 0-9, and one table of all; empty: one run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint and self.model.backbone == "convnext":
            raise InputError(
                "--checkpoint is of an Alliance encoder, model.backbone is convnext; give a second --config of "
                "configs/finetune/backbones/, or start.network for the weights of a PAD network"
            )
