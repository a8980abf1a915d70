"""Classify the pixels of scenes with few labels: one run per seed, several at once, one table of all."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alliance.checkpoint import digest_of
from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.labelled import PatchSet, find_set, make_split, open_patches, split_report
from datasets.labelled.description import LabelledSet
from datasets.labelled.normalise import Preprocessing
from datasets.sampling.splits import Split
from engine.command import run_command
from engine.log import logger, report_disk_errors
from engine.ranks import World
from engine.reporting.page import refresh_page
from engine.runs import RunFolder
from finetune.backbones.standardising import encoder_statistics, warn_per_scene
from finetune.mapping.map_pictures import write_maps
from finetune.s2fin.checkpoint import load_network
from finetune.scores import Scores, classification_scores
from finetune.studies.frequencies import frequencies
from finetune.studies.frequency_pictures import draw_frequencies
from finetune.sweep.classical import Model, reference_scores
from finetune.sweep.command import sweep
from finetune.sweep.experiment import Experiment
from finetune.sweep.seeds import SeedScores
from finetune.task import MODEL
from finetune.tasks.classification import Classification, network_for
from finetune.tasks.classification_config import ClassifyConfig

CLASSICAL: dict[str, tuple[Model, ...]] = {"s2fin": ("svm", "forest"), "svm": ("svm",), "rf": ("forest",)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of finetune/classify.py."""
    run_command(ClassifyConfig, __doc__, partial(sweep, ClassificationSeeds()), arguments)


class ClassificationSeeds(Experiment[ClassifyConfig]):
    """One split per seed; plain stems beside an encoder; classical references under the same splits; maps."""

    settings = ClassifyConfig
    same = ("model", "checkpoint", "optim", "epochs")

    def open(self, config: ClassifyConfig) -> PatchSet:
        return open_data(config)

    def contents(self, config: ClassifyConfig, data: PatchSet) -> dict[str, str]:
        return {"data": data.digest} | ({"checkpoint": digest_of(config.checkpoint)} if config.checkpoint else {})

    def check(self, config: ClassifyConfig, data: PatchSet) -> None:
        network_for(config.model, data)
        for seed in config.seed_list:
            draw_split(data, config, seed)

    def job(self, config: ClassifyConfig, world: World, data: PatchSet) -> Classification:
        seed: int = config.run.seed  # pyright: ignore[reportAttributeAccessIssue] - of one seed
        return Classification(config, world, data, draw_split(data, config, seed))

    def variants(self, config: ClassifyConfig) -> dict[str, ClassifyConfig]:
        """The network, and beside an encoder the same one with plain stems."""
        if config.method != "s2fin":
            return {}
        if config.model.encoder is None:
            return {"S2Fin": config}
        plain = dataclasses.replace(
            config,
            checkpoint="",
            model=dataclasses.replace(config.model, encoder=None),
            run=dataclasses.replace(config.run, dir=str(Path(config.run.dir) / "plain_stems")),
        )
        return {"S2Fin with Alliance": config, "S2Fin with plain stems": plain}

    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        scores = classification_scores(torch.tensor(record["confusion"]))
        return seed_scores(seed, scores, record["split"]["leakage"] / 100, record["seconds"])

    def classes(self, config: ClassifyConfig, data: PatchSet) -> tuple[str, ...]:
        return data.classes

    def splits(self, config: ClassifyConfig, data: PatchSet) -> dict[int, dict[str, Any]]:
        return {seed: split_report(data, draw_split(data, config, seed)) for seed in config.seed_list}

    def references(self, config: ClassifyConfig, data: PatchSet) -> dict[str, list[SeedScores]]:
        if config.method == "s2fin" and not config.references:
            return {}
        splits = {seed: draw_split(data, config, seed) for seed in config.seed_list}
        return reference_records(data, splits, CLASSICAL[config.method])

    def draw(self, config: ClassifyConfig, data: PatchSet, device: torch.device) -> None:
        """Maps of all scenes and what the network does to frequencies, of the seeds that `config.maps` asks for."""
        chosen = {"none": [], "first": config.seed_list[:1], "all": config.seed_list}[config.maps]
        for seed in chosen:
            folder = Path(config.run.dir) / f"seed_{seed}"
            pictures = folder / "pictures"
            if (pictures / "frequencies.png").is_file():
                continue
            logger.info("mapping the scenes by the network of seed %d; --maps none does without", seed)
            network, split = load_network(folder / MODEL, device=device), draw_split(data, config, seed)
            with report_disk_errors("maps and pictures"):
                write_maps(pictures, network, data, split=split, device=device)
                found = frequencies(network, data, split.test, device=device)
                draw_frequencies(pictures / "frequencies.png", found, network, data, title=f"seed {seed}")
            if config.run.page:
                refresh_page(RunFolder(folder))


def open_data(config: ClassifyConfig) -> PatchSet:
    """The patches that the settings name."""
    data, patch = config.data, config.model.patch
    described = find_set(data.set, data.path)
    given = _of_sensors(config, described)
    return open_patches(described, patch=patch, components=data.components, given=given).without(data.drop_classes)


def _of_sensors(config: ClassifyConfig, described: LabelledSet) -> dict[str, Preprocessing]:
    """Means and deviations of the encoder's sensors, for the images that it reads band by band; the others' are their scene's."""
    encoder, checkpoint = config.model.encoder, config.checkpoint
    if encoder is None:
        return {}
    if "passive" in encoder.sensors and encoder.statistics == "sensor":
        raise InputError(
            "encoder.statistics is sensor, but the input passive is of principal components; name spectral, or data"
        )
    roles = {name: role for name, role in (("spectral", "passive"), ("active", "active")) if name in encoder.sensors}
    images = {name: described.images.get(role, ImageSource()) for name, role in roles.items()}
    found = encoder_statistics(encoder, checkpoint, images)
    given = {name: each for name, each in found.items() if each is not images[name]}
    warn_per_scene(encoder, checkpoint, [name for name in encoder.sensors if name not in given])
    return {
        roles[name]: Preprocessing(mean=np.array(each.mean), std=np.array(each.std)) for name, each in given.items()
    }


def draw_split(patches: PatchSet, config: ClassifyConfig, seed: int) -> Split:
    """The split of a seed: from the file, if one is given, else drawn."""
    return make_split(patches, config.data.protocol, seed, file=config.data.split)


def reference_records(
    patches: PatchSet, splits: Mapping[int, Split], models: tuple[Model, ...] = ("svm", "forest")
) -> dict[str, list[SeedScores]]:
    """Scores of all classical references on the split of every seed; their seconds are those of all together."""
    records: dict[str, list[SeedScores]] = {}
    for seed, split in splits.items():
        start = time.monotonic()
        found = reference_scores(patches, split, seed=seed, models=models)
        seconds = time.monotonic() - start
        leak = split_report(patches, split)["leakage"]
        for name, scores in found.items():
            records.setdefault(name, []).append(seed_scores(seed, scores, leak, seconds))
    return records


def seed_scores(seed: int, scores: Scores, leakage: float, seconds: float) -> SeedScores:
    """Scores of a classification as a row of the table."""
    overall = {"oa": scores.oa, "aa": scores.aa, "kappa": scores.kappa, "leakage": leakage}
    return SeedScores(seed, overall, scores.per_class.tolist(), scores.confusion, seconds)
