"""Label whole images with any number of classes, by an Alliance encoder with a small head.

The network with the best mean average precision, micro, of all evaluations is kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from datasets.chips.reading import ChipBatch
from engine.command import run_command
from engine.ranks import World
from engine.training import run_job
from finetune.chips.losses import multilabel_loss
from finetune.chips.scores import Labelled, multilabel_record
from finetune.sweep.command import sweep
from finetune.tasks.chips import ChipTask
from finetune.tasks.chips_config import MultilabelConfig
from finetune.tasks.chips_seeds import ChipSeeds


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/multilabel.py."""
    run_command(MultilabelConfig, __doc__, multilabel, arguments)


def multilabel(config: MultilabelConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    return sweep(MultilabelSeeds(), config, world) if config.seed_list else run_job(Multilabel, config, world)


class Multilabel(ChipTask[MultilabelConfig]):
    """Several labels of each image: binary cross-entropy, average precision."""

    kind = "multilabel"
    headline = {"map_micro": "mAP micro", "map_macro": "mAP macro", "f1_micro": "F1 micro", "f1_macro": "F1 macro"}

    def record(self, found: Labelled) -> dict[str, Any]:
        return multilabel_record(found, self.classes, resamples=self.config.resamples)

    def losses(self, engine: Any, batch: ChipBatch, step: int) -> Mapping[str, Tensor]:
        image, target, weight = (each.to(self.world.device) for each in (batch.image, batch.target, batch.weight))
        return {"loss": multilabel_loss(engine(image).logits, target, weight)}


class MultilabelSeeds(ChipSeeds[MultilabelConfig]):
    """The same images and splits with other seeds."""

    settings = MultilabelConfig
    same = Multilabel.learnt
    overall = tuple(Multilabel.headline)
    by_class = "ap"

    def job(self, config: MultilabelConfig, world: World, data: Any) -> Multilabel:
        return Multilabel(config, world)
