"""Classify whole scenes: one label for each image, by an Alliance encoder with a small head.

The network with the best overall accuracy of all evaluations is kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from datasets.chips.reading import ChipBatch
from engine.command import run_command
from engine.ranks import World
from engine.training import run_job
from finetune.chips.losses import scene_loss
from finetune.chips.scores import Labelled, scene_record
from finetune.sweep.command import sweep
from finetune.tasks.chips import ChipTask
from finetune.tasks.chips_config import SceneConfig
from finetune.tasks.chips_seeds import ChipSeeds


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/scene.py."""
    run_command(SceneConfig, __doc__, scene, arguments)


def scene(config: SceneConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    return sweep(SceneSeeds(), config, world) if config.seed_list else run_job(Scene, config, world)


class Scene(ChipTask[SceneConfig]):
    """One label of each image: cross-entropy, overall accuracy."""

    kind = "scene"
    headline = {"oa": "OA", "aa": "mean accuracy of classes", "kappa": "kappa"}
    learnt = (*ChipTask.learnt, "smoothing")

    def record(self, found: Labelled) -> dict[str, Any]:
        return scene_record(found, self.classes, resamples=self.config.resamples)

    def losses(self, engine: Any, batch: ChipBatch, step: int) -> Mapping[str, Tensor]:
        image, target, weight = (each.to(self.world.device) for each in (batch.image, batch.target, batch.weight))
        return {"loss": scene_loss(engine(image).logits, target, weight, self.config.smoothing)}


class SceneSeeds(ChipSeeds[SceneConfig]):
    """The same images and splits with other seeds."""

    settings = SceneConfig
    same = Scene.learnt
    overall = ("oa", "aa", "kappa")
    by_class = "per_class"

    def job(self, config: SceneConfig, world: World, data: Any) -> Scene:
        return Scene(config, world)
