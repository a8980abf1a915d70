"""Several seeds of a task on tiles: one run for each, one table of all."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch

from datasets.labelled.tiles import Tiles
from finetune.sweep.experiment import Experiment, SweepSettings
from finetune.sweep.seeds import SeedScores
from finetune.tasks.dense import contents_of

Config = TypeVar("Config", bound=SweepSettings)


class DenseSeeds(Experiment[Config]):
    """The same images and splits with other seeds.

    Attributes:
        overall: names in scores.json of the scores of the table.
        by_class: name in scores.json of those per class.
    """

    overall: ClassVar[tuple[str, ...]]
    by_class: ClassVar[str] = "iou"

    def contents(self, config: Config, data: Any) -> dict[str, str]:
        described, splits = config.data.find(), (config.data.train, config.data.evaluate, config.data.test)
        return {split: contents_of(Tiles(described, split)) for split in splits if split}

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        steps: int = getattr(config.run, "steps")  # noqa: B009 - runs of tiles have them
        if config.data.test:
            return "chosen on" in record
        last = record.get("last", record)
        return isinstance(last, dict) and last.get("step") == steps

    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        overall = {name: _share(record[name]) for name in self.overall}
        per_class = [_share(score) for score in record[self.by_class].values()]
        return SeedScores(seed, overall, per_class, torch.tensor(record["confusion"]))

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return tuple(config.data.find().classes)


def _share(percent: float | None) -> float:
    return math.nan if percent is None else percent / 100
