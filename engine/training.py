"""A run from its first step to its last, whatever it trains: claim the folder, go on or start, save, report, end."""

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from alliance.errors import InputError
from datasets.memory import keep_heap
from engine import checkpoints
from engine.build import build_engine, refuse_broken_weights, refuse_rounded_norms
from engine.checkpoints import Layout, NotSaved
from engine.deepspeed_internals import count_checkpoint, count_parameters
from engine.errors import AgreedError
from engine.estimate import Rehearsed, estimate, memory_of_machine
from engine.job import Config, Job, Running
from engine.log import Metrics, logger, open_mirrors, peak_memory_gb, require_tensorboard, setup_logging
from engine.loop import Trainer
from engine.ranks import World, average_running_statistics, gather, refuse_different_ranks, together
from engine.reporting.page import refresh_page
from engine.restore import begin_or_restore
from engine.runs import RunFolder
from engine.settings import to_record

REHEARSED = 2  # steps of a dry run


def run_job(make: Callable[[Config, World], Job[Config]], config: Config, world: World) -> Callable[[], None]:
    """One run on this rank, or its rehearsal; how to close it.

    Args:
        make: opens the data; needs no other rank, so that a mistake seen by one can be raised by all.
    """
    keep_heap()
    folder = RunFolder(config.run.dir)
    together(lambda: require_tensorboard(config.run) if world.is_main else None)
    if config.run.dry_run:
        together(lambda: folder.refuse_used(config.run.resume) if world.is_main else None)
        setup_logging(None, level=logging.INFO if world.is_main else None)
        Rehearsal(together(lambda: make(config, world)), folder, world).take()
        return lambda: None
    together(lambda: folder.claim(config.run.resume) if world.is_main else None)
    setup_logging(folder if world.is_main else None)
    run = Run(together(lambda: make(config, world)), folder, world)
    run.train()
    return run.close


class Prepared(NamedTuple):
    """What there is before the first step of a run, wherever it begins."""

    layout: Layout
    model: nn.Module
    build: Callable[[], Any]  # makes the engine of the model


def prepare(job: Job[Any], world: World) -> Prepared:
    """The model of a job, drawn from the run's seed, on all ranks.

    Raises:
        AgreedError: the ranks were started with different settings or data, or these settings cannot be.
    """
    config = job.config
    layout = together(lambda: config.engine.layout(world))
    refuse_different_ranks({"settings": to_record(config), "data": job.identity})
    torch.manual_seed(config.run.seed)
    model = together(job.make_model)
    together(lambda: refuse_rounded_norms(model, layout))
    groups = job.parameter_groups(model)
    return Prepared(
        layout, model, partial(build_engine, model, groups, config.optim, config.engine, world, job.batching)
    )


class Rehearsal:
    """The beginning of a run that writes nothing: a dry run."""

    def __init__(self, job: Job[Any], folder: RunFolder, world: World) -> None:
        self.job, self.folder, self.world = job, folder, world
        self.layout, _, build = prepare(job, world)
        self.engine = build()

    def take(self) -> None:
        """Take the first steps, and say what the whole run would take."""
        run = self.job.config.run
        _introduce(self, self.job, self.layout)
        self.job.begin(self)
        seconds = Trainer(self.engine, self.job, self.world, self.write).rehearse(min(REHEARSED, run.steps))
        if not seconds:
            logger.info("stopped as asked; a dry run leaves nothing behind")
            return
        memory = gather(peak_memory_gb(self.world.device))
        on_gpu = self.world.device.type == "cuda"
        seen = Rehearsed(
            steps=len(seconds), seconds=seconds[-1], memory=max(memory),
            available=torch.cuda.mem_get_info(self.world.device)[1] / 2**30 if on_gpu else memory_of_machine(),
            ranks=len(memory), on_gpu=on_gpu, checkpoint=sum(gather(count_checkpoint(self.engine))),
            weights=4 * sum(map(count_parameters, self.engine.module.parameters())),
            free=shutil.disk_usage(self.folder.nearest()).free,
        )  # fmt: skip
        for line in estimate(run, seen):
            logger.info(line)

    def write(self, **record: Any) -> None:
        """Nothing: there is no metrics.jsonl."""


class Run:
    """What a run holds: its job, the engine, and its records."""

    def __init__(self, job: Job[Any], folder: RunFolder, world: World) -> None:
        self.job, self.folder, self.world = job, folder, world
        self.config = job.config
        self.drawn = False  # since the last page
        self.layout, model, build = prepare(job, world)
        self.engine, state = begin_or_restore(
            folder.checkpoints, model, build, self.layout, world,
            accept=lambda state: refuse_another_run(state["run"], job.identity),
        )  # fmt: skip
        self.trainer = Trainer(self.engine, job, world, self.write)
        self.start = self.saved = self._go_on_from(state) if state else 0
        self.metrics = self._open_metrics() if world.is_main else None

    def train(self) -> None:
        """Train to the last step, unless asked to stop."""
        steps = self.config.run.steps
        _introduce(self, self.job, self.layout)
        self.job.begin(self)
        if self.start < steps:
            finished = self.trainer.train(self.start, self._after_step)
        else:  # a run killed between its last checkpoint and the export
            logger.info("the run already has its %d steps; raise run.steps to train longer", steps)
            refuse_broken_weights(self.engine, self.start, self.world.device)
            self._report(self.start, last=True)
            self.job.export(self, must=True)
            finished = True
        if self.world.is_main and finished:
            self.job.conclude(self)
        elif self.world.is_main:
            logger.info("stopped as asked, after step %d; go on with --run.resume auto", self.saved)
            self.write(event="stopped", step=self.saved - 1)

    def write(self, **record: Any) -> None:
        """One object of metrics.jsonl; nothing on ranks other than the main one."""
        self.drawn |= record.get("event") == "picture"
        if self.metrics is not None:
            self.metrics.write(**record)

    def close(self) -> None:
        """Close the log and let go of the folder."""
        if self.metrics is not None:
            self.metrics.close()
        self.folder.release()

    def _go_on_from(self, state: dict[str, Any]) -> int:
        """Put the data and the counters where the checkpoint left them; the first step to take."""
        self.job.load_state_dict(state["loader"])
        self.trainer.faults.load_state_dict(state["faults"])
        if state["steps"] != self.config.run.steps:
            logger.warning("run.steps was %d and is %d: learning rates and loss weights follow the new length",
                           state["steps"], self.config.run.steps)  # fmt: skip
        return state["step"]

    def _open_metrics(self) -> Metrics:
        self.folder.write_config(to_record(self.config))
        self.job.describe(self.folder)
        mirrors = open_mirrors(self.config.run, self.folder, to_record(self.config), self.start)
        again = self.start >= self.config.run.steps
        metrics = Metrics(self.folder.metrics, resume_step=self.start, report_again=again, mirrors=mirrors)
        if self.start:
            metrics.write(event="resume", step=self.start, **self.layout._asdict())
            logger.info("going on from step %d: same samples and random draws as without the stop", self.start)
        return metrics

    def _after_step(self, done: int, stop: bool) -> None:
        """Reports, checkpoint and export when they are due after `done` steps."""
        run = self.config.run
        last = done == run.steps
        save = last or stop or done % run.save_every == 0 or self._stays(done)
        if save or self.job.reports(done):
            average_running_statistics(self.engine.module)
            refuse_broken_weights(self.engine, done, self.world.device)
        if last or not stop:
            self._report(done, last=last)
        if save and self._save(done, must=last or stop):
            self.job.export(self, must=last)

    def _report(self, done: int, *, last: bool) -> None:
        """What is due after `done` steps, and the page of the run, which shows it."""
        self.job.report(self, done, last=last)
        if self.world.is_main and self.config.run.page and (last or self.drawn):
            refresh_page(self.folder)
        self.drawn = False

    def _stays(self, done: int) -> bool:
        """Whether the checkpoint after `done` steps stays for good."""
        every = self.config.run.keep_every
        return every > 0 and done % every == 0

    def _save(self, done: int, *, must: bool) -> bool:
        """Write a checkpoint; when that fails, go on with the earlier one or stop, as run.unsaved says."""
        state = {
            "step": done, "steps": self.config.run.steps, "loader": self.job.state_dict(),
            "faults": self.trainer.faults.state_dict(), "run": self.job.identity,
        }  # fmt: skip
        folder, keep = self.folder.checkpoints, self.config.run.keep
        try:
            path = checkpoints.save(
                self.engine, folder, state, self.layout, keep=keep, stays=self._stays(done), world=self.world
            )
        except NotSaved as error:
            rest = f"the newest one is of step {self.saved}" if self.saved else "there is none"
            said = f"checkpoint of step {done} is not saved ({error}); {rest}"
            self.write(event="unsaved", step=done - 1, reason=str(error))
            if must or self.config.run.unsaved == "stop":
                raise AgreedError(f"{said}; make room, then go on with --run.resume auto") from error
            logger.warning(said)
            return False
        self.saved = done
        self.write(event="checkpoint", step=done - 1, path=path.name)
        return True


def _introduce(run: Running, job: Job[Any], layout: Layout) -> None:
    """Say how large the network is, and on what it learns."""
    parameters = list(run.engine.module.parameters())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    count, learnt = (sum(map(count_parameters, each)) / 1e6 for each in (parameters, learning))
    logger.info("%.2f M parameters, %s learn, batch %d on %s (%s), process %d", count,
                "all" if len(learning) == len(parameters) else f"{learnt:.2f} M of them", job.config.optim.batch, layout,
                run.world.device, os.getpid())  # fmt: skip


def refuse_another_run(saved: dict[str, Any], now: dict[str, Any], place: str = "") -> None:
    """Compare two identities; name the first difference. A part of the model that came later, and is off, leaves a run as it was."""
    for key in now:
        old, new, name = saved.get(key), now[key], f"{place}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            refuse_another_run(old, new, f"{name}.")
        elif key not in saved and place.startswith("model.") and isinstance(new, int | float):
            if new:
                off = "false" if isinstance(new, bool) else "0"
                raise InputError(
                    f"the checkpoint belongs to a run from before there was {name} ({new} now); --{name} {off} goes on where that "
                    f"leaves it out, or start anew in another --run.dir"
                )
        elif old != new:
            seen = "" if key == "shards" else f" ({old} then, {new} now)"
            raise InputError(
                f"the checkpoint belongs to a run with another {name}{seen}; give the same data and settings, which stand in config.yaml of the run, "
                f"or start anew in another --run.dir"
            )
