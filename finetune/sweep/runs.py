"""The runs of some seeds: their data, their splits, one after the other."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets.labelled import PatchSet, SplitConfig, find_set, make_split, open_patches
from datasets.sampling.splits import Split
from engine.ranks import World, gather
from engine.training import run_job
from finetune.tasks.classification import Classification
from finetune.tasks.classification_config import ClassifyConfig


def train_seeds(config: ClassifyConfig, seeds: Sequence[int], patches: PatchSet, world: World) -> None:
    """One run after the other, until a signal asks to stop."""
    for seed in seeds:
        if any(gather(bool(world.stop))):
            return
        run = dataclasses.replace(config.run, dir=str(Path(config.run.dir) / f"seed_{seed}"), seed=seed, resume="auto")
        split = draw_split(patches, config, seed)
        make = partial(Classification, patches=patches, split=split)
        close = run_job(make, dataclasses.replace(config, run=run), world)
        gather(None)
        close()


def open_data(config: ClassifyConfig) -> PatchSet:
    """The patches that the settings name."""
    data, patch = config.data, config.network.patch
    return open_patches(find_set(data.benchmark, data.path), patch=patch, components=data.components)


def draw_split(patches: PatchSet, config: ClassifyConfig, seed: int) -> Split:
    """The split of a seed: from the file, if one is given, else drawn."""
    file = config.data.split or config.data.protocol.file
    protocol: SplitConfig = dataclasses.replace(config.data.protocol, file=file)
    return make_split(patches, protocol, seed)
