"""The settings tree of a segmentation run. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from alliance.errors import InputError
from alliance.ranges import MANY, ranged
from datasets.labelled.augment import AugmentConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.dense.losses import DenseLossConfig
from finetune.dense.model import DenseConfig
from finetune.pad.losses import LossConfig
from finetune.pad.model import PadConfig
from finetune.pad.start import StartConfig
from finetune.sweep.experiment import SeedsConfig
from finetune.tasks.dense_config import EVERY, TileDataConfig


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SeedsConfig):
    """Everything that defines a run. The defaults of `optim` are PAD's; classes and channels follow the data."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "model.encoder.checkpoint": "checkpoint", "network": "model", "data.pairs": "data.set", "data.root": "data.path",
        "epochs": "run.steps", "maps": "run.picture_every",
    }  # fmt: skip

    run: RunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: TileDataConfig
    """What it reads."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What may happen to a training sample."""
    method: Literal["pad", "encoder"] = "pad"
    """PAD on an optical and a SAR image (`model`, `loss`, `start`), or an Alliance encoder with a head on any images
    (`dense`, `dense_loss`).
    """
    start: StartConfig = field(default_factory=StartConfig)
    """Weights to begin with."""
    checkpoint: str = ""
    """Run, folder or file of an Alliance encoder that the network begins with; empty: an untrained one."""
    model: PadConfig = field(default_factory=PadConfig)
    """The network (docs/model.md 13)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of PAD's losses (docs/model.md 13.6)."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """The network of method encoder."""
    dense_loss: DenseLossConfig = field(default_factory=DenseLossConfig)
    """The loss of method encoder."""
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
    evaluate_without: str = EVERY
    """Source that the kept network is scored without at the end: its role, such as sar, all of several in turn, or none."""
    seeds: str | list[int] = ""
    """Runs with these seeds in place of run.seed, such as 0,1,2 or 0-9, and one table of all; empty: one run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = ("dense", "dense_loss") if self.method == "pad" else ("model", "loss", "start")
        for name in unused:
            kind = type(getattr(self, name))
            if getattr(self, name) != kind():
                other = "encoder" if self.method == "pad" else "pad"
                raise InputError(
                    f"{name} is of method {other}, method is {self.method}; set method to {other}, or leave {name} out"
                )
        if self.method == "pad" and self.checkpoint and self.model.backbone == "convnext":
            raise InputError(
                "--checkpoint is of an Alliance encoder, and method pad with model.backbone convnext has none; give --method "
                "encoder for a head on it, a second --config of configs/finetune/backbones/ for PAD on it, or start.network "
                "for the weights of a PAD network"
            )
