"""Several seeds of a task that labels whole images: one run for each, one table of all."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch

from datasets.chips.labels import find_chips
from finetune.sweep.experiment import Experiment
from finetune.sweep.seeds import SeedScores
from finetune.tasks.chips_config import ChipTaskConfig
from finetune.tasks.dense_seeds import share_of

Config = TypeVar("Config", bound=ChipTaskConfig)


class ChipSeeds(Experiment[Config]):
    """The same images and splits with other seeds, which also choose the few images to learn from.

    Attributes:
        overall: names in scores.json of the scores of the table.
        by_class: name in scores.json of those per class.
    """

    overall: ClassVar[tuple[str, ...]]
    by_class: ClassVar[str]

    def is_finished(self, config: Config, record: Mapping[str, Any]) -> bool:
        return "chosen on" in record or record.get("last", record)["step"] == config.run.steps

    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        overall = {name: share_of(record[name]) for name in self.overall}
        per_class = [share_of(score) for score in record[self.by_class].values()]
        return SeedScores(seed, overall, per_class, torch.tensor(record["confusion"]))

    def variants(self, config: Config) -> dict[str, Config]:
        return {f"encoder, {config.model.readout}, {config.model.head}": config}

    def classes(self, config: Config, data: Any) -> tuple[str, ...]:
        return find_chips(config.data, several=self.by_class == "ap").classes
