"""Classify the pixels of scenes with few labels: one run per seed, several at once, one table of all."""

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from alliance.errors import InputError
from datasets.labelled import PatchSet, SplitConfig, find_benchmark, make_split, open_patches
from datasets.splits import Split
from engine.command import run_command
from engine.log import logger, setup_logging
from engine.ranks import World, forget_launcher, gather, together
from engine.runs import write_whole
from engine.settings import to_record
from engine.training import run_job
from finetune.classical import Model
from finetune.s2fin.config import ClassifyConfig
from finetune.s2fin.train import SCORES, Classification
from finetune.scores import classification_scores
from finetune.seeds import SeedScores, Summary, class_table, collect, score_table, summarise, write_scores

CONFIG = "config.yaml"
CLASSICAL: dict[str, tuple[Model, ...]] = {"s2fin": ("svm", "forest"), "svm": ("svm",), "rf": ("forest",)}
POLL = 0.5  # seconds between two looks at the processes of seeds


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of finetune/classify.py."""
    run_command(ClassifyConfig, __doc__, classify, arguments)


def classify(config: ClassifyConfig, world: World) -> Callable[[], None]:
    """Train every seed that has no scores yet, in processes of their own if there are several; then the table of all."""
    folder = Path(config.run.dir)
    together(lambda: _claim(folder, config) if world.is_main else None)
    setup_logging(None)
    patches = together(lambda: open_data(config))
    together(lambda: [draw_split(patches, config, seed) for seed in config.seed_list])  # mistakes show at the start
    left = [seed for seed in config.seed_list if not (folder / f"seed_{seed}" / SCORES).is_file()]
    if config.model == "s2fin" and world.size == 1 and min(config.processes, len(left)) > 1:
        _train_in_processes(config, left, world)
    elif config.model == "s2fin":
        train_seeds(config, left, patches, world)
    stopped = any(gather(bool(world.stop)))

    def finish() -> None:  # after all ranks have ended: the references may take longer than ranks wait for each other
        if world.is_main and stopped:
            print("stopped as asked; give the same command with --run.resume auto to go on", flush=True)
        elif world.is_main:
            print(conclude(config, patches, folder), flush=True)

    return finish


def conclude(config: ClassifyConfig, patches: PatchSet, folder: Path) -> str:
    """Write scores.json of all seeds, with the references under the same splits; the tables of it."""
    splits = {seed: draw_split(patches, config, seed) for seed in config.seed_list}
    networks: dict[str, Summary] = {}
    if config.model == "s2fin":
        records = [json.loads((folder / f"seed_{seed}" / SCORES).read_text()) for seed in splits]
        networks["S2Fin"] = summarise([_seed_scores(record) for record in records], records[0]["parameters"])
    references = CLASSICAL[config.model] if config.references or not networks else ()
    results = collect(patches, splits, networks, references)
    write_scores(folder / SCORES, results)
    return f"{score_table(results)}\n\n{class_table(results)}\n\nscores are in {folder / SCORES}"


def _seed_scores(record: Mapping[str, Any]) -> SeedScores:
    scores = classification_scores(torch.tensor(record["confusion"]))
    return SeedScores(record["seed"], scores, record["split"]["leakage"], record["seconds"])


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
    return open_patches(find_benchmark(data.benchmark), Path(data.path), patch=patch, components=data.components)


def draw_split(patches: PatchSet, config: ClassifyConfig, seed: int) -> Split:
    """The split of a seed: from the file, if one is given, else drawn."""
    file = config.data.split or config.data.protocol.file
    protocol: SplitConfig = dataclasses.replace(config.data.protocol, file=file)
    return make_split(patches, protocol, seed)


def train_part(arguments: Sequence[str], log: str, threads: int) -> None:
    """What a process of its own does: some of the seeds. Its screen is a file."""
    with open(log, "a", buffering=1) as screen:
        sys.stdout = sys.stderr = screen
        os.dup2(screen.fileno(), 1)
        os.dup2(screen.fileno(), 2)
        torch.set_num_threads(threads)
        forget_launcher()
        run_command(ClassifyConfig, __doc__, _part, arguments)


def _part(config: ClassifyConfig, world: World) -> Callable[[], None]:
    train_seeds(config, config.seed_list, open_data(config), world)
    return lambda: None


def _claim(folder: Path, config: ClassifyConfig) -> None:
    if config.run.resume == "never" and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"run folder {folder} already holds runs; go on with --run.resume auto, or choose another --run.dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, yaml.safe_dump(to_record(config), sort_keys=False))
    except OSError as error:
        raise InputError(
            f"run folder {folder} cannot be written ({error.strerror}); choose another --run.dir"
        ) from error


def _train_in_processes(config: ClassifyConfig, seeds: Sequence[int], world: World) -> None:
    """Deal the seeds to processes and wait for them.

    Raises:
        InputError: a process failed; the others are let go on first.
    """
    folder, count = Path(config.run.dir), min(config.processes, len(seeds))
    context = multiprocessing.get_context("spawn")
    threads = max(len(os.sched_getaffinity(0)) // count, 1)
    started: list[tuple[BaseProcess, Path]] = []
    for number in range(count):
        own, log = seeds[number::count], folder / f"process_{number}.log"
        given = ["--config", str(folder / CONFIG), "--seeds", ",".join(map(str, own))]
        process = context.Process(target=train_part, args=(given, str(log), threads))
        process.start()
        started.append((process, log))
    logger.setLevel("INFO")
    logger.info(
        "%d seeds in %d processes of %d threads; what they say is in %s",
        len(seeds),
        count,
        threads,
        folder / "process_*.log",
    )
    _wait(started, seeds, folder, world)
    for process, log in started:
        if process.exitcode:
            last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
            raise InputError(f"a process of seeds ended with code {process.exitcode}: {last}; see {log}")


def _wait(started: Sequence[tuple[BaseProcess, Path]], seeds: Sequence[int], folder: Path, world: World) -> None:
    told: set[int] = set()
    asked = False
    while True:
        alive = [process for process, _ in started if process.is_alive()]
        for seed in seeds:
            if seed not in told and (folder / f"seed_{seed}" / SCORES).is_file():
                told.add(seed)
                logger.info("seed %d is done, %d of %d", seed, len(told), len(seeds))
        if not alive:
            return
        if world.stop and not asked:
            asked = True
            for process in alive:
                process.terminate()  # SIGTERM: they save and leave
        alive[0].join(POLL)
