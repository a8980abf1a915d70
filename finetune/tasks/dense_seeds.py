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
        overall = {name: share_of(record[name]) for name in self.overall}
        per_class = [share_of(score) for score in record[self.by_class].values()]
        return SeedScores(seed, overall, per_class, torch.tensor(record["confusion"]))

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return tuple(config.data.find().classes)


def share_of(percent: float | None) -> float:
    """A share from 0 to 1 of a score in percent; nan where it is not defined."""
    return math.nan if percent is None else percent / 100
