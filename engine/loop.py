"""The training loop: one optimiser step is one global batch, dealt out over ranks and passes."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.build import set_learning_rate, take_step
from engine.deepspeed_internals import forget_gradients
from engine.errors import AgreedError
from engine.faults import FaultLog
from engine.job import Batch, Job
from engine.log import duration, logger, peak_memory_gb
from engine.optim import learning_rate
from engine.ranks import World, count_over_ranks, gather, mean_over_ranks

PATIENCE = 10  # steps in a row that are not finite before the run gives up
SLOW = 30.0  # seconds of waiting for one batch that are worth a warning


class StepReport(NamedTuple):
    """What one optimiser step came to, the same on every rank."""

    losses: dict[str, float] | None  # means over ranks and passes, the total first; None: not asked for, or left out
    grad_norm: float | None
    stop: bool  # some rank was asked to save and leave


@dataclass
class Clock:
    """Time since the last logged step, and the share of it spent waiting for data."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it took counts as waiting."""
        before = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - before
        self.waited += waited
        if waited > SLOW:
            logger.error("waited %.0f s for a batch", waited)
        return batch

    def stand_still(self, action: Callable[[], None]) -> None:
        """Do something that is not training."""
        before = time.perf_counter()
        action()
        self.began += time.perf_counter() - before

    def lap(self) -> tuple[float, float]:
        """Seconds per step and share of waiting since the last lap."""
        now = time.perf_counter()
        elapsed, steps, waited = now - self.began, max(self.steps, 1), self.waited
        self.began, self.waited, self.steps = now, 0.0, 0
        return elapsed / steps, waited / elapsed


class Trainer:
    """Takes optimiser steps on every rank; all ranks decide alike, so that none waits for another one."""

    def __init__(self, engine: Any, job: Job[Any], world: World, write: Callable[..., None]) -> None:
        """
        Args:
            write: takes metric records; does nothing on ranks other than the main one.
        """
        self.engine, self.job, self.config, self.world, self.write = engine, job, job.config, world, write
        self.faults = FaultLog(job.max_broken, write)
        self.clock = Clock()
        self.failed = 0  # steps left out in a row
        self.trouble = ""  # why the last of them was

    def train(self, start: int, after_step: Callable[[int, bool], None]) -> bool:
        """Run optimiser steps start .. steps - 1.

        Args:
            after_step: saves and draws when due, given the number of steps done and whether the run is asked to stop.
        Returns:
            Whether the last step was taken; False: a signal asked to stop.
        Raises:
            AgreedError: too many steps were not finite, or too many samples broken.
        """
        self.engine.train()
        steps, batches = self.config.run.steps, self.job.batches()
        for step in range(start, steps):
            self.world.watch.step = step
            last = step == steps - 1
            due = (step + 1) % self.config.run.log_every == 0 or step == start or last
            report = self._step(step, batches, logged=due)
            self.clock.steps += 1
            if self.failed >= PATIENCE or (last and self.failed > min(step, 1)):  # one step left out is no harm
                raise AgreedError(
                    f"step {step}: the last {self.failed} steps were not finite ({self.trouble}); lower optim.lr or check "
                    f"the data, then go on from the last good checkpoint with --run.resume auto"
                )
            if self.world.is_main and report.losses is not None:
                self.write(**self._record(step, report, report.losses))
            if not self.failed or report.stop or last:  # it may be diverging: keep the earlier checkpoints
                self.clock.stand_still(partial(after_step, step + 1, report.stop))
            if report.stop and not last:
                self.faults.report(step)
                return False
        self.faults.report(steps - 1)
        return True

    def rehearse(self, steps: int) -> list[float]:
        """Take the first steps alone, without a word of their losses.

        Returns:
            Seconds of each; none, on all ranks, where a signal asked one of them to stop.
        Raises:
            AgreedError: not one of them was finite.
        """
        self.engine.train()
        batches, seconds = self.job.batches(), []
        for step in range(steps):
            self.world.watch.step = step
            if self._step(step, batches, logged=True).stop:
                return []
            seconds.append(self.clock.lap()[0])
        self.faults.report(len(seconds) - 1)
        if self.failed == len(seconds):
            raise AgreedError(f"the first steps are not finite ({self.trouble}); lower optim.lr or check the data")
        return seconds

    def _step(self, step: int, batches: Iterator[Batch], *, logged: bool) -> StepReport:
        """All passes of a step; not finite on any rank, it is left out on all. The losses are averaged if `logged`."""
        passes = self.engine.gradient_accumulation_steps()
        set_learning_rate(self.engine, learning_rate(step, self.config.run.steps, self.config.optim))
        reports, faults, lost, stop, norm, names = [], [], 0, 0, None, ()
        for index in range(passes):
            batch = self.clock.next(batches)
            faults += batch.faults
            losses = self.job.losses(self.engine, batch, step)
            names, total = tuple(losses), next(iter(losses.values()))
            broken = ~torch.isfinite(total.detach())
            spoilt, asked, found = count_over_ranks(
                broken, bool(self.world.stop), len(batch.faults), device=self.world.device
            )
            stop, lost = stop + asked, lost + found
            if spoilt:
                self._name_trouble(step, batch, losses if broken else None)
                forget_gradients(self.engine)
                rest = [fault for _ in range(index + 1, passes) for fault in next(batches).faults]
                faults, lost = faults + rest, lost + count_over_ranks(len(rest), device=self.world.device)[0]
                reports = []
                break
            self.engine.backward(total)
            norm = take_step(self.engine)
            reports.append(torch.stack([value.detach().float() for value in losses.values()]))
        if lost:
            read = (step + 1) * self.config.optim.batch
            self.faults.add((fault for own in gather(faults) for fault in own), step=step, read=read)
        if norm is not None and not math.isfinite(norm):
            self.trouble = f"the norm of the gradient is {norm}"
            logger.warning("step %d is left out: %s", step, self.trouble)
            self.write(event="nonfinite", step=step, grad_norm=norm)
            reports = []
        self.failed = 0 if reports else self.failed + 1
        means = None
        if reports and logged:
            averages = mean_over_ranks(torch.stack(reports).mean(0)).tolist()
            means = dict(zip(names, averages, strict=True))
        return StepReport(means, norm, bool(stop))

    def _name_trouble(self, step: int, batch: Batch, losses: Mapping[str, Tensor] | None) -> None:
        """Say which ranks, losses and samples were not finite."""
        parts = losses and {short(name): value for name, value in list(losses.items())[1:] or losses.items()}
        spoilt = parts and [name for name, value in parts.items() if not torch.isfinite(value)]
        found = [(rank, *own) for rank, own in enumerate(gather(spoilt and (spoilt, list(batch.keys)))) if own]
        self.trouble = "; ".join(f"rank {rank}: losses {', '.join(names)}" for rank, names, _ in found)
        for rank, names, keys in found:
            logger.warning("step %d: loss of rank %d is not finite: losses %s, samples %s", step, rank, names, keys)
        self.write(event="nonfinite", step=step, ranks={rank: {"losses": n, "samples": k} for rank, n, k in found})

    def _record(self, step: int, report: StepReport, losses: Mapping[str, float]) -> dict[str, Any]:
        """The metrics of a logged step; also says them on the screen."""
        config = self.config
        seconds, waiting = self.clock.lap()
        record = {
            "step": step,
            **self.job.progress(step),
            **losses,
            "lr": learning_rate(step, config.run.steps, config.optim),
            "grad_norm": report.grad_norm,
            "samples_per_s": config.optim.batch / seconds,
            "data_wait": waiting,
            "memory_gb": peak_memory_gb(self.world.device),
        }
        (_, total), *parts = losses.items()
        listed = f" ({'  '.join(f'{short(name)} {value:.4f}' for name, value in parts)})" if parts else ""
        logger.info(
            "step %d/%d  epoch %.2f  eta %s%s  loss %.4f%s  lr %.2e  grad %.2f  %.0f samples/s  wait %.0f%%  %.1f GB",
            step + 1, config.run.steps, record["epoch"], duration(seconds * (config.run.steps - step - 1)),
            f"  {record['sensor']}" if "sensor" in record else "", total, listed, record["lr"],
            report.grad_norm, record["samples_per_s"], 100 * waiting, record["memory_gb"],
        )  # fmt: skip
        return record


def short(name: str) -> str:
    """Name of a loss without its common beginning: loss_low -> low."""
    return name.removeprefix("loss_")


def digest(keys: Sequence[str]) -> str:
    """Short fingerprint of a global batch's sample keys, in order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
