"""Detect change from two dates, which may be seen by two sensors: an Alliance encoder for both, their features compared.

The network with the best F1 of change of all evaluations is kept.
"""

from collections.abc import Callable
from typing import Any

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import Tiles
from engine.command import run_command
from engine.ranks import World
from engine.training import run_job
from finetune.scores import SegmentationScores, change_record
from finetune.sweep.command import sweep
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.dense_seeds import DenseSeeds
from finetune.tasks.encoder_task import EncoderTask
from finetune.tasks.moments import with_encoder_statistics, with_statistics_known


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/change.py."""
    run_command(ChangeConfig, __doc__, change, arguments)


def change(config: ChangeConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    if config.seed_list:
        return sweep(ChangeSeeds(), config, world)
    return run_job(Change, config, world)


class Change(EncoderTask[ChangeConfig]):
    """A Siamese encoder, the features of both dates and their difference, a head."""

    joining = "change"
    noun = "pairs"
    headline = {"f1": "F1", "precision": "precision", "recall": "recall", "iou": "IoU", "oa": "OA"}
    learnt = ("augment", "checkpoint", "model", "loss", "optim", "evaluate_every")

    def __init__(self, config: ChangeConfig, world: World) -> None:
        pairs = with_encoder_statistics(of_two_dates(config), config.model.encoder, config.checkpoint)
        pairs = with_statistics_known(pairs, lambda: Tiles(pairs, config.data.train))
        super().__init__(
            config, world, pairs, model=config.model, loss=config.loss, evaluate_every=config.evaluate_every
        )

    def record(self, scores: SegmentationScores) -> dict[str, Any]:
        return change_record(scores, list(self.described.classes))


class ChangeSeeds(DenseSeeds[ChangeConfig]):
    """The same pairs and splits with other seeds."""

    settings = ChangeConfig
    same = Change.learnt
    overall = tuple(Change.headline)
    by_class = "iou_by_class"

    def job(self, config: ChangeConfig, world: World, data: Any) -> Change:
        return Change(config, world)

    def variants(self, config: ChangeConfig) -> dict[str, ChangeConfig]:
        return {f"change, {config.model.head}": config}


def of_two_dates(config: ChangeConfig) -> LabelledSet:
    """The pairs, their images called before and after.

    Raises:
        InputError: the set has no such image, or not two classes.
    """
    data = config.data
    found = data.find()
    if len(found.classes) != 2:
        raise InputError(
            f"{found.name} has the classes {', '.join(found.classes)}; change is the second of two: put the values of all "
            f"kinds of change together in label.values"
        )
    if data.before == data.after:
        raise InputError(f"data.before and data.after are both {data.before}; there are {', '.join(found.images)}")
    if config.model.images:
        raise InputError("model.images are before and after; name those of the set with data.before and data.after")
    return found.only({"before": data.before, "after": data.after})
