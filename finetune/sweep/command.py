"""Classify the pixels of scenes with few labels: one run per seed, several at once, one table of all."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from alliance.errors import InputError
from datasets.labelled import PatchSet
from engine.command import run_command
from engine.log import setup_logging
from engine.ranks import World, from_main, together
from engine.runs import RunFolder, write_whole
from engine.settings import to_record
from engine.training import refuse_another_run
from finetune.records import write_scores
from finetune.scores import classification_scores
from finetune.sweep.classical import Model
from finetune.sweep.drawing import draw_maps
from finetune.sweep.processes import train_in_processes
from finetune.sweep.runs import draw_split, open_data, train_seeds
from finetune.sweep.seeds import SeedScores, Summary, class_table, collect, score_table, summarise, to_json
from finetune.tasks.classification import SCORES
from finetune.tasks.classification_config import CONFIG, ClassifyConfig

CLASSICAL: dict[str, tuple[Model, ...]] = {"s2fin": ("svm", "forest"), "svm": ("svm",), "rf": ("forest",)}
SAME = ("network", "optim", "epochs")  # beside the data: what a command that goes on must share with finished seeds


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of finetune/classify.py."""
    run_command(ClassifyConfig, __doc__, classify, arguments)


def classify(config: ClassifyConfig, world: World) -> Callable[[], None]:
    """Train every seed that has no scores yet, with plain stems too if there is an encoder; then the table of all."""
    config = with_checkpoint(config)
    variants = networks_of(config)
    setup_logging(None, level=logging.INFO if world.is_main else None)
    patches = together(lambda: open_data(config))
    together(lambda: [draw_split(patches, config, seed) for seed in config.seed_list])  # mistakes show at the start
    together(lambda: [_claim(each) for each in variants.values()] if world.is_main else None)
    for each in variants.values():
        _train(each, patches, world)

    def finish() -> None:
        """When the ranks have ended: maps and references may take longer than ranks wait for each other."""
        left = [seed for each in variants.values() for seed in _unfinished(each)]
        if world.is_main and left:
            print("stopped as asked; give the same command with --run.resume auto to go on", flush=True)
        elif world.is_main:
            for each in variants.values():
                draw_maps(each, patches, world.device)
            print(conclude(config, variants, patches), flush=True)

    return finish


def with_checkpoint(config: ClassifyConfig) -> ClassifyConfig:
    """The settings with `checkpoint` as that of the network's encoder.

    Raises:
        InputError: there is no encoder to load it into.
    """
    if not config.checkpoint:
        return config
    encoder = config.network.encoder
    if encoder is None:
        raise InputError(
            "--checkpoint is of an Alliance encoder, the network has none; name the sensor of an image, such as "
            "--network.encoder '{sensors: {active: {sensor: sentinel1-grd-db}}}'"
        )
    encoder = dataclasses.replace(encoder, checkpoint=config.checkpoint)
    return dataclasses.replace(config, checkpoint="", network=dataclasses.replace(config.network, encoder=encoder))


def networks_of(config: ClassifyConfig) -> dict[str, ClassifyConfig]:
    """Settings by name of what is trained: the network, and beside an encoder the same one with plain stems."""
    if config.model != "s2fin":
        return {}
    if config.network.encoder is None:
        return {"S2Fin": config}
    plain = dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, encoder=None),
        run=dataclasses.replace(config.run, dir=str(Path(config.run.dir) / "plain_stems")),
    )
    return {"S2Fin with Alliance": config, "S2Fin with plain stems": plain}


def conclude(config: ClassifyConfig, variants: Mapping[str, ClassifyConfig], patches: PatchSet) -> str:
    """Write scores.json of all seeds, with the references under the same splits; the tables of it."""
    splits = {seed: draw_split(patches, config, seed) for seed in config.seed_list}
    networks: dict[str, Summary] = {}
    for name, each in variants.items():
        records = [json.loads(_scores_of(each, seed).read_text()) for seed in splits]
        networks[name] = summarise([_seed_scores(record) for record in records], records[0]["parameters"])
    references = CLASSICAL[config.model] if config.references or not networks else ()
    results = collect(patches, splits, networks, references)
    path = Path(config.run.dir) / SCORES
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, to_json(results))
    return f"{score_table(results)}\n\n{class_table(results)}\n\nscores are in {path}"


def _train(config: ClassifyConfig, patches: PatchSet, world: World) -> None:
    """The seeds without scores: in processes of their own if there are several, else one after the other."""
    left = from_main(_unfinished(config))
    if world.size == 1 and min(config.processes, len(left)) > 1:
        train_in_processes(config, left, world)
    else:
        train_seeds(config, left, patches, world)


def _unfinished(config: ClassifyConfig) -> list[int]:
    return [seed for seed in config.seed_list if not _scores_of(config, seed).is_file()]


def _scores_of(config: ClassifyConfig, seed: int) -> Path:
    return Path(config.run.dir) / f"seed_{seed}" / SCORES


def _seed_scores(record: Mapping[str, Any]) -> SeedScores:
    scores = classification_scores(torch.tensor(record["confusion"]))
    return SeedScores(record["seed"], scores, record["split"]["leakage"] / 100, record["seconds"])


def _claim(config: ClassifyConfig) -> None:
    """Make the folder ours; what is in it must be of the same runs.

    Raises:
        InputError: it holds runs and is not to go on, or runs of other settings, or cannot be written.
    """
    folder, now = Path(config.run.dir), to_record(config)
    if config.run.resume == "never" and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"run folder {folder} already holds runs; go on with --run.resume auto, or choose another --run.dir"
        )
    ours = RunFolder(folder)  # or refused, for it holds what is no run
    ours.claim("auto")
    ours.release()  # every seed has a folder and a lock of its own
    if (folder / CONFIG).is_file():
        saved = yaml.safe_load((folder / CONFIG).read_text())
        data = {name: value for name, value in now["data"].items() if name != "path"}
        refuse_another_run(saved, {**{name: now[name] for name in SAME}, "data": data})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, yaml.safe_dump(now, sort_keys=False))
    except OSError as error:
        raise InputError(
            f"run folder {folder} cannot be written ({error.strerror}); choose another --run.dir"
        ) from error
