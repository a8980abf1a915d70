"""The settings tree of a segmentation run. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-4`)."""

from dataclasses import dataclass, field

from alliance.errors import InputError
from datasets.labelled.augment import AugmentConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from finetune.pad.losses import LossConfig
from finetune.pad.model import PadConfig


@dataclass(frozen=True, kw_only=True)
class PairDataConfig:
    """Registered pairs of optical image, SAR image and label map."""

    pairs: str  # description, made by launch/prepare.py or by hand: configs/pairs/ has examples
    root: str | None = None  # folder of the files, if not the one in the description
    train: str = "train"  # split
    evaluate: str = "test"  # split on which the best network is chosen and scored; PAD has no other one than its test
    test: str | None = None  # split that the chosen network is scored on once, after the last step
    workers: int = 2  # threads per rank that read ahead; 0 reads when a batch is asked for
    max_broken: float = 0.05  # the run stops when a larger share of the pairs is broken (judged from 1,000 read on)


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Weights to begin with; without any, the network begins at random."""

    network: str | None = None  # folder of a converted release or of another run's `model`
    convnext: str | None = None  # file of timm's convnextv2_<size> weights (.safetensors, .pth), for both encoders


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Everything that defines a run. The defaults of `optim` are PAD's; classes and channels follow the data."""

    run: RunConfig
    data: PairDataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    start: StartConfig = field(default_factory=StartConfig)
    checkpoint: str = ""  # of an Alliance encoder: a short name of model.encoder.checkpoint
    model: PadConfig = field(default_factory=PadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            batch=4, lr=1e-4, warmup=0.0, weight_decay=0.05, betas=(0.9, 0.999), clip=0.0, decay_vectors=True
        )
    )
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(zero=0))  # autocast on GPUs: norms stay float32
    evaluate_every: int = 8000  # steps

    def __post_init__(self) -> None:
        if self.evaluate_every < 1:
            raise InputError(f"evaluate_every must be at least 1 step, got {self.evaluate_every}")
