"""The training loop: one optimiser step is one sensor's global batch, dealt out over ranks and passes."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.losses import STAGES, Losses
from alliance.sensors import Sensor
from alliance.tokens import draw_groups, mask_noise, token_grid_shape
from datasets.shards.loader import Batch
from engine.build import drop_gradients, set_learning_rate, take_step
from engine.errors import AgreedError
from engine.faults import FaultLog
from engine.log import duration, logger, peak_memory_gb
from engine.optim import learning_rate
from engine.ranks import World, count_over_ranks, gather, mean_over_ranks
from pretrain.config import PretrainConfig
from pretrain.data import Inputs

PATIENCE = 10  # steps in a row that are not finite before the run gives up
SLOW = 30.0  # seconds of waiting for one batch that are worth a warning


class StepReport(NamedTuple):
    sensor: Sensor
    losses: Tensor | None  # (1 + k,) total and stages, mean over ranks and passes; None: not finite, step left out
    grad_norm: float | None
    stop: bool  # some rank was asked to save and leave


@dataclass
class Clock:
    """Time since the last logged step, and the share of it spent waiting for data."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - before
        self.waited += waited
        if waited > SLOW:
            logger.error("step %d: waited %.0f s for a batch of %s", batch.step, waited, batch.sensor.name)
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

    def __init__(
        self, engine: Any, inputs: Inputs, config: PretrainConfig, world: World, write: Callable[..., None]
    ) -> None:
        """
        Args:
            write: takes metric records; does nothing on ranks other than the main one.
        """
        self.engine, self.inputs, self.config, self.world, self.write = engine, inputs, config, world, write
        self.faults = FaultLog(config.data.max_broken, write)
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
        steps, batches = self.config.run.steps, iter(self.inputs.loader)
        for step in range(start, steps):
            self.world.watch.step = step
            report = self._step(step, batches)
            self.clock.steps += 1
            if self.failed >= PATIENCE:
                raise AgreedError(
                    f"step {step}: the last {self.failed} steps were not finite ({self.trouble}); lower optim.lr or check "
                    f"the data, then go on from the last good checkpoint with --run.resume auto"
                )
            due = (step + 1) % self.config.run.log_every == 0 or step in (start, steps - 1)
            if due and self.world.is_main and report.losses is not None:
                self.write(**self._record(step, report, report.losses))
            if not self.failed or report.stop or step == steps - 1:  # it may be diverging: keep the earlier checkpoints
                self.clock.stand_still(partial(after_step, step + 1, report.stop))
            if report.stop and step < steps - 1:
                self.faults.report(step)
                return False
        self.faults.report(steps - 1)
        return True

    def _step(self, step: int, batches: Iterator[Batch]) -> StepReport:
        """All passes of a step; not finite on any rank, it is left out on all."""
        passes = self.engine.gradient_accumulation_steps()
        set_learning_rate(self.engine, learning_rate(step, self.config.run.steps, self.config.optim))
        reports, faults, stop, norm, sensor = [], [], 0, None, None
        for index in range(passes):
            batch = self.clock.next(batches)
            faults += batch.faults
            sensor = self.inputs.sensors[batch.sensor.name]
            losses = self._forward(batch, sensor, step)
            fine = bool(torch.isfinite(losses.total))
            spoilt, asked = count_over_ranks(not fine, bool(self.world.stop), device=self.world.device)
            stop += asked
            if spoilt:
                self._name_trouble(step, batch, None if fine else losses)
                drop_gradients(self.engine)
                for _ in range(index + 1, passes):
                    faults += next(batches).faults
                reports = []
                break
            self.engine.backward(losses.total)
            norm = take_step(self.engine)
            reports.append(torch.cat([losses.total.detach()[None], losses.stages]))
        if count_over_ranks(len(faults), device=self.world.device)[0]:
            read = (step + 1) * self.config.optim.batch
            self.faults.add((fault for own in gather(faults) for fault in own), step=step, read=read)
        if norm is not None and not math.isfinite(norm):
            self.trouble = f"the norm of the gradient is {norm}"
            logger.warning("step %d is left out: %s", step, self.trouble)
            self.write(event="nonfinite", step=step, grad_norm=norm)
            reports = []
        self.failed = 0 if reports else self.failed + 1
        losses = mean_over_ranks(torch.stack(reports).mean(0)) if reports else None
        assert sensor is not None, "a step has at least one pass"
        return StepReport(sensor, losses, norm, bool(stop))

    def _forward(self, batch: Batch, sensor: Sensor, step: int) -> Losses:
        seed, model = self.config.run.seed, self.config.model
        groups = list(draw_groups(sensor.group_indices, model.masking.max_groups, seed, step))
        image = sensor.to_physical(batch.stored.to(self.world.device))
        h, w = token_grid_shape(image, model.encoder.patch)
        noise = mask_noise(seed, step, batch.positions.tolist(), len(groups) * h * w).to(self.world.device)
        return self.engine(image, sensor, noise, step / self.config.run.steps, groups)

    def _name_trouble(self, step: int, batch: Batch, losses: Losses | None) -> None:
        """Say which ranks, stages and samples were not finite."""
        stages = losses and [name for name, value in zip(_stages(losses.stages), losses.stages, strict=True)
                             if not torch.isfinite(value)]  # fmt: skip
        found = [(rank, *own) for rank, own in enumerate(gather(losses and (stages, batch.keys))) if own]
        self.trouble = "; ".join(f"rank {rank}: stages {', '.join(names)}" for rank, names, _ in found)
        for rank, names, keys in found:
            logger.warning("step %d: loss of rank %d is not finite: stages %s, samples %s", step, rank, names, keys)
        self.write(event="nonfinite", step=step, ranks={rank: {"stages": n, "samples": k} for rank, n, k in found})

    def _record(self, step: int, report: StepReport, losses: Tensor) -> dict[str, Any]:
        """The metrics of a logged step; also says them on the screen."""
        config, loader = self.config, self.inputs.loader
        seconds, waiting = self.clock.lap()
        total, *stages = losses.tolist()
        named = dict(zip(_stages(losses[1:]), stages, strict=True))
        record = {
            "step": step,
            "epoch": loader.epoch(),
            "sensor": report.sensor.name,
            "loss": total,
            **{f"loss_{name}": value for name, value in named.items()},
            "lr": learning_rate(step, config.run.steps, config.optim),
            "grad_norm": report.grad_norm,
            "samples_per_s": config.optim.batch / seconds,
            "data_wait": waiting,
            "memory_gb": peak_memory_gb(self.world.device),
            "sample_digest": digest(loader.global_keys(step)),
        }
        logger.info(
            "step %d/%d  epoch %.2f  eta %s  %s  loss %.4f (%s)  lr %.2e  grad %.2f  %.0f samples/s  wait %.0f%%  %.1f GB",
            step + 1, config.run.steps, record["epoch"], duration(seconds * (config.run.steps - step - 1)),
            report.sensor.name, total, "  ".join(f"{n} {v:.4f}" for n, v in named.items()), record["lr"],
            report.grad_norm, record["samples_per_s"], 100 * waiting, record["memory_gb"],
        )  # fmt: skip
        return record


def _stages(values: Tensor) -> tuple[str, ...]:
    """Names of a model's stages: all three, or only the last of a one-stage decoder."""
    return STAGES if len(values) == len(STAGES) else STAGES[-1:]


def digest(keys: list[str]) -> str:
    """Short fingerprint of a global batch's sample keys, in order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
