"""Several seeds of a task that labels whole images: one run for each, one table of all."""

from collections.abc import Mapping
from typing import Any, TypeVar

from datasets.chips.labels import find_chips
from finetune.sweep.experiment import ScoredSeeds
from finetune.tasks.chips_config import ChipTaskConfig

Config = TypeVar("Config", bound=ChipTaskConfig)


class ChipSeeds(ScoredSeeds[Config]):
    """The same images and splits with other seeds, which also choose the few images to learn from."""

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        return "chosen on" in record or record.get("last", record)["step"] == config.run.steps

    def variants(self, config: Config) -> dict[str, Config]:
        return {f"encoder, {config.model.readout}, {config.model.head}": config}

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return find_chips(config.data, several=self.by_class == "ap").classes
