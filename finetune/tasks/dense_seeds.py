"""Several seeds of a task on tiles: one run for each, one table of all."""

from collections.abc import Mapping
from typing import Any, TypeVar

from alliance.checkpoint import digest_of
from datasets.labelled.tiles import Tiles
from finetune.sweep.experiment import ScoredSeeds, SweepSettings
from finetune.tasks.dense import contents_of

Config = TypeVar("Config", bound=SweepSettings)


class DenseSeeds(ScoredSeeds[Config]):
    """The same images and splits with other seeds."""

    by_class = "iou"

    def contents(self, config: Config, data: Any) -> dict[str, str]:
        described, splits = config.data.find(), (config.data.train, config.data.evaluate, config.data.test)
        told = {split: contents_of(Tiles(described, split)) for split in splits if split}
        checkpoint: str = getattr(config, "checkpoint", "")
        return told | ({"checkpoint": digest_of(checkpoint)} if checkpoint else {})

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        steps: int = getattr(config.run, "steps")  # noqa: B009 - runs of tiles have them
        if config.data.test:
            return "chosen on" in record
        last = record.get("last", record)
        return isinstance(last, dict) and last.get("step") == steps

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return tuple(config.data.find().classes)
