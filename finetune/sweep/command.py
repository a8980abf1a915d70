"""A task with several seeds: one run per seed, several at once, one table of all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alliance.errors import InputError
from alliance.yaml_files import read_yaml
from engine.log import logger, setup_logging
from engine.ranks import World, from_main, gather, together
from engine.runs import RunFolder, write_whole
from engine.settings import to_record
from engine.training import refuse_another_run, run_job
from finetune.scores import write_scores
from finetune.sweep.experiment import Experiment, finished_record, of_seed
from finetune.sweep.processes import CONFIG, train_in_processes
from finetune.sweep.seeds import Summary, class_table, collect, score_table, summarise, to_json
from finetune.task import SCORES

CONTENTS = "contents.yaml"  # checksums of what the seeds of a folder read


def sweep(experiment: Experiment[Any], config: Any, world: World) -> Callable[[], None]:
    """Train every seed that has no scores yet, of every variant; then the table of all."""
    variants = experiment.variants(config)
    setup_logging(None, level=logging.INFO if world.is_main else None)
    data = together(lambda: experiment.open(config))
    together(lambda: experiment.check(config, data))
    if config.run.dry_run:
        together(lambda: _refuse_used(config) if world.is_main else None)
        _rehearse(experiment, config, variants, data, world)
        return lambda: None
    together(lambda: [_claim(experiment, each, data) for each in variants.values()] if world.is_main else None)
    for each in variants.values():
        _train(experiment, each, data, world)

    def finish() -> None:
        """When the ranks have ended: maps and references may take longer than ranks wait for each other."""
        left = [seed for each in variants.values() for seed in _unfinished(experiment, each)]
        if world.is_main and left:
            print("stopped as asked; give the same command with --run.resume auto to go on", flush=True)
        elif world.is_main:
            for each in variants.values():
                experiment.draw(each, data, world.device)
            print(conclude(experiment, config, variants, data), flush=True)

    return finish


def conclude(experiment: Experiment[Any], config: Any, variants: Mapping[str, Any], data: Any) -> str:
    """Write scores.json of all seeds, with the references under the same splits; the tables of it."""
    networks: dict[str, Summary] = {}
    for name, each in variants.items():
        records = {seed: finished_record(experiment, each, seed) or {} for seed in config.seed_list}
        scores = [experiment.scores(seed, record) for seed, record in records.items()]
        networks[name] = summarise(scores, records[config.seed_list[0]].get("parameters"))
    references = experiment.references(config, data)
    results = collect(experiment.classes(config, data), experiment.splits(config, data), networks, references)
    path = Path(config.run.dir) / SCORES
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, to_json(results))
    return f"{score_table(results)}\n\n{class_table(results)}\n\nscores are in {path}"


def train_seeds(experiment: Experiment[Any], config: Any, seeds: Sequence[int], data: Any, world: World) -> None:
    """One run after the other, until a signal asks to stop."""
    for seed in seeds:
        if any(gather(bool(world.stop))):
            return
        close = run_job(lambda config, world: experiment.job(config, world, data), of_seed(config, seed), world)
        gather(None)
        close()


def train_some(experiment: Experiment[Any], config: Any, world: World) -> Callable[[], None]:
    """All seeds of a command, one after the other, and nothing else: what a process of several does."""
    train_seeds(experiment, config, config.seed_list, experiment.open(config), world)
    return lambda: None


def _rehearse(experiment: Experiment[Any], config: Any, variants: Mapping[str, Any], data: Any, world: World) -> None:
    """A dry run of the first seed, and how often its time is needed."""
    first = next(iter(variants.values()), None)
    if first is None:
        logger.info("dry run: nothing here is trained in steps, there is no estimate")
        return
    train_seeds(experiment, first, config.seed_list[:1], data, world)
    count = len(variants) * len(config.seed_list)
    logger.info("that was one run of %d, of which %d are trained at a time", count, min(config.processes, count))


def _train(experiment: Experiment[Any], config: Any, data: Any, world: World) -> None:
    """The seeds without scores: in processes of their own if there are several, else one after the other."""
    left = from_main(_unfinished(experiment, config))
    if world.size == 1 and min(config.processes, len(left)) > 1:
        train_in_processes(experiment, config, left, world, train_some)
    else:
        train_seeds(experiment, config, left, data, world)


def _unfinished(experiment: Experiment[Any], config: Any) -> list[int]:
    return [seed for seed in config.seed_list if finished_record(experiment, config, seed) is None]


def _refuse_used(config: Any) -> None:
    """Raise InputError where the folder holds anything and is not to go on."""
    folder = Path(config.run.dir)
    if config.run.resume == "never" and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"run folder {folder} already holds runs; go on with --run.resume auto, or choose another --run.dir"
        )


def _claim(experiment: Experiment[Any], config: Any, data: Any) -> None:
    """Make the folder ours; what is in it must be of the same runs.

    Raises:
        InputError: it holds runs and is not to go on, or runs of other settings or other data, or cannot be written.
    """
    folder, now = Path(config.run.dir), to_record(config)
    contents = experiment.contents(config, data)
    _refuse_used(config)
    ours = RunFolder(folder)  # or refused, for it holds what is no run
    ours.claim("auto")
    ours.release()  # every seed has a folder and a lock of its own
    if (folder / CONFIG).is_file():
        saved = read_yaml(folder / CONFIG)
        given = {name: value for name, value in now["data"].items() if name != "path"}
        refuse_another_run(saved, {**{name: now[name] for name in experiment.same}, "data": given})
    if (folder / CONTENTS).is_file():
        refuse_another_run(read_yaml(folder / CONTENTS), contents, "contents of ")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, yaml.safe_dump(now, sort_keys=False))
        write_whole(folder / CONTENTS, yaml.safe_dump(contents))
    except OSError as error:
        raise InputError(
            f"run folder {folder} cannot be written ({error.strerror}); choose another --run.dir"
        ) from error
