"""Several seeds of a task that labels whole images: one run for each, one table of all."""

from collections.abc import Mapping
from typing import Any, TypeVar

from alliance.checkpoint import digest_of
from datasets.chips.labels import find_chips
from datasets.chips.splits import given_splits
from finetune.sweep.experiment import ScoredSeeds
from finetune.tasks.chips_config import ChipTaskConfig
from finetune.tasks.chips_data import chip_contents, chip_labels

Config = TypeVar("Config", bound=ChipTaskConfig)


class ChipSeeds(ScoredSeeds[Config]):
    """The same images and splits with other seeds, which also choose the few images to learn from."""

    def contents(self, config: Config, data: Any) -> dict[str, str]:
        """Of all images of every split, of which a seed may learn from a few; where none are given, of all."""
        chips = find_chips(config.data, several=self.by_class == "ap").chips
        parts = given_splits(chips) or {"images": chips}
        told = {f"{name}, labels": chip_labels(each) for name, each in parts.items()}
        if config.data.overlap != "ignore":
            told |= {name: chip_contents(each) for name, each in parts.items()}
        return told | ({"checkpoint": digest_of(config.checkpoint)} if config.checkpoint else {})

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        return "chosen on" in record or record.get("last", record)["step"] == config.run.steps

    def variants(self, config: Config) -> dict[str, Config]:
        return {f"encoder, {config.model.readout}, {config.model.head}": config}

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return find_chips(config.data, several=self.by_class == "ap").classes
