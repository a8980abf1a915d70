"""The settings tree of a classification run. Defaults < YAML (`--config`) < command line (`--model.width 96`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from datasets.labelled import SplitConfig
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import FolderConfig
from finetune.s2fin.network import S2FinConfig
from finetune.sweep.experiment import SeedsConfig


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(Ranged):
    """Scenes with labelled pixels, and which of them serve for what."""

    set: str
    """Description of the scenes: a name of configs/labelled/, or a YAML file of one's own."""
    path: str
    """Folder of the scenes, or file of ready patches."""
    components: int = ranged(30, 0, 65536)
    """Principal components of the passive image for its spatial branch."""
    drop_classes: list[str | int] = field(default_factory=list)
    """Classes that are left out, by name or by number in the files: their pixels count as unlabelled."""
    split: str = ""
    """FILE.npz[:PREFIX] of arrays `train` and `test`, {seed} replaced; empty: drawn by `protocol`."""
    protocol: SplitConfig = field(default_factory=SplitConfig)
    """How labelled pixels are split."""


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(SeedsConfig):
    """Everything that defines the runs of one command, one per seed."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "network.encoder.checkpoint": "checkpoint", "model.encoder.checkpoint": "checkpoint", "network": "model",
        "data.benchmark": "data.set", "data.protocol.file": "data.split", "data.root": "data.path", "data.pairs": "data.set",
        "run.seed": "seeds", "run.steps": "epochs", "run.picture_every": "maps", "evaluate_every": "epochs",
    }  # fmt: skip

    run: FolderConfig
    """Where the runs live and how often they report."""
    data: LabelledDataConfig
    """Which scenes, and which of their pixels serve for what."""
    method: Literal["s2fin", "svm", "rf"] = "s2fin"
    """The network, or a classical reference alone under the same splits: support vector machine, random forest."""
    model: S2FinConfig = field(default_factory=S2FinConfig)
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
    """Run, folder or file of an Alliance encoder that `model.encoder` begins with; empty: an untrained one."""
    epochs: int = ranged(100, 1, MANY)
    """Passes over the training pixels."""
    references: bool = True
    """Score classical models under the same splits in the same table."""
    maps: Literal["first", "all", "none"] = "first"
    """Seeds whose scenes are mapped and whose filters are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seed_list:
            raise InputError("seeds are empty; give whole numbers such as 0,1,2 or 0-9")
        if self.checkpoint and self.model.encoder is None:
            raise InputError(
                "--checkpoint is of an Alliance encoder, the network has none; name the sensor of an image, such as "
                "--model.encoder '{sensors: {active: {sensor: sentinel1-grd-db}}}'"
            )
