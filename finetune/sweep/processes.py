"""Seeds trained at the same time, each process with a part of them and of the cores."""

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from alliance.errors import InputError
from datasets.children import end_with_parent
from datasets.descriptors import append_to
from engine.command import run_command
from engine.log import logger
from engine.ranks import World, forget_launcher
from finetune.sweep.experiment import Experiment, finished_record

CONFIG = "config.yaml"  # of all seeds of a command
POLL = 0.5  # seconds between two looks at the processes


def train_in_processes(
    experiment: Experiment[Any],
    config: Any,
    seeds: Sequence[int],
    world: World,
    body: Callable[..., Callable[[], None]],
) -> None:
    """Deal the seeds to processes and wait for them.

    Args:
        body: what each does with the experiment, its settings and its world; a function of a module.
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
        append_to(log).close()
        process = context.Process(target=train_part, args=(experiment, body, given, str(log), threads))
        process.start()
        started.append((process, log))
    logger.info("%d seeds in %d processes of %d threads; what they say is in %s", len(seeds), count, threads,
                folder / "process_*.log")  # fmt: skip
    _wait(started, lambda seed: finished_record(experiment, config, seed) is not None, seeds, world)
    for process, log in started:
        if process.exitcode and not world.stop:  # asked to stop, it may end in many ways
            last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
            raise InputError(f"a process of seeds ended with code {process.exitcode}: {last}; see {log}")


def _wait(
    started: Sequence[tuple[BaseProcess, Path]], is_done: Callable[[int], bool], seeds: Sequence[int], world: World
) -> None:
    told: set[int] = set()
    asked = False
    while True:
        alive = [process for process, _ in started if process.is_alive()]
        for seed in seeds:
            if seed not in told and is_done(seed):
                told.add(seed)
                logger.info("seed %d is done, %d of %d", seed, len(told), len(seeds))
        if not alive:
            return
        if world.stop and not asked:
            asked = True
            for process in alive:
                process.terminate()  # SIGTERM: they save and leave
        alive[0].join(POLL)


def train_part(
    experiment: Experiment[Any],
    body: Callable[..., Callable[[], None]],
    arguments: Sequence[str],
    log: str,
    threads: int,
) -> None:
    """What a process of its own does: some of the seeds. Its screen is a file."""
    with io.TextIOWrapper(append_to(log), line_buffering=True, write_through=True) as screen:
        sys.stdout = sys.stderr = screen
        os.dup2(screen.fileno(), 1)
        os.dup2(screen.fileno(), 2)
        torch.set_num_threads(threads)
        end_with_parent()
        forget_launcher()
        run_command(experiment.settings, __doc__, partial(body, experiment), arguments)
