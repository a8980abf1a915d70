"""The training loop: one optimiser step is one sensor's global batch, dealt out over ranks and passes."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.losses import STAGES, Losses
from alliance.sensors import Sensor
from alliance.tokens import draw_groups, mask_noise, token_grid_shape
from datasets.shards.loader import Batch, ShardLoader
from engine.build import set_learning_rate, take_step
from engine.log import duration, logger, peak_memory_gb
from engine.optim import learning_rate
from engine.ranks import AgreedError, World, everywhere, gather, mean_over_ranks
from pretrain.config import PretrainConfig

PATIENCE = 10  # steps in a row whose loss is not finite before the run gives up


class StepReport(NamedTuple):
    sensor: Sensor
    losses: Tensor  # (1 + k,) total and stages, mean over ranks and passes
    grad_norm: float | None
    skipped: list[str]  # samples that could not be read, on this rank


@dataclass
class Clock:
    """Time since the last logged step, and the share of it spent waiting for data."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
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


def mask_inputs(
    batch: Batch, sensor: Sensor, config: PretrainConfig, step: int, world: World
) -> tuple[Tensor, Tensor, list]:
    """A batch on the device: physical image, mask noise and the band groups of this step."""
    seed, masking, patch = config.run.seed, config.model.masking, config.model.encoder.patch
    groups = list(draw_groups(sensor.group_indices, masking.max_groups, seed, step))
    image = sensor.to_physical(batch.stored.to(world.device))
    h, w = token_grid_shape(image, patch)
    count = len(groups) * h * w
    noise = mask_noise(seed, step, batch.positions.tolist(), count)
    return image, noise.to(world.device), groups


def run_step(
    engine: Any, batches: Iterator[Batch], sensors: Mapping[str, Sensor], config: PretrainConfig,
    *, step: int, world: World, clock: Clock, due: bool,
) -> StepReport | None:  # fmt: skip
    """One optimiser step; None when a loss was not finite and all ranks left the step out together."""
    passes = engine.gradient_accumulation_steps()
    set_learning_rate(engine, learning_rate(step, config.run.steps, config.optim))
    reports, skipped, sensor, norm = [], [], None, None
    for index in range(passes):
        batch = clock.next(batches)
        skipped += map(str, batch.faults)
        sensor = sensors[batch.sensor.name]
        image, noise, groups = mask_inputs(batch, sensor, config, step, world)
        losses: Losses = engine(image, sensor, noise, step / config.run.steps, groups)
        if not everywhere(bool(torch.isfinite(losses.total)), world.device):
            _drop_step(batch, losses, index, passes, step, batches)
            return None
        engine.backward(losses.total)
        norm = take_step(engine, norm=due)
        reports.append(torch.cat([losses.total.detach()[None], losses.stages]))
    assert sensor is not None, "a step has at least one pass"
    return StepReport(sensor, mean_over_ranks(torch.stack(reports).mean(0)), norm, skipped)


def _drop_step(batch: Batch, losses: Losses, index: int, passes: int, step: int, batches: Iterator[Batch]) -> None:
    """Name what was not finite and leave the rest of the step's batches out."""
    own = None if torch.isfinite(losses.total) else (losses.stages.tolist(), batch.keys)
    for rank, found in enumerate(gather(own)):
        if found:
            logger.warning("step %d: loss of rank %d is not finite: stages %s, samples %s", step, rank, *found)
    if index:
        raise AgreedError(
            f"step {step}: a loss became not finite after gradients had been accumulated; "
            f"set engine.micro_batch so that a rank's share is one pass, or lower optim.lr"
        )
    for _ in range(passes - 1):
        next(batches)


def train(
    engine: Any, loader: ShardLoader, sensors: Mapping[str, Sensor], config: PretrainConfig,
    *, start: int, world: World, write: Callable[..., None], after_step: Callable[[int], None],
) -> None:  # fmt: skip
    """Run optimiser steps start .. steps - 1. `write` takes metric records, `after_step` saves and draws when due."""
    engine.train()
    batches, clock, failed = iter(loader), Clock(), 0
    for step in range(start, config.run.steps):
        due = (step + 1) % config.run.log_every == 0 or step in (start, config.run.steps - 1)
        report = run_step(engine, batches, sensors, config, step=step, world=world, clock=clock, due=due)
        clock.steps += 1
        failed = failed + 1 if report is None else 0
        if report is None:
            write(event="nonfinite", step=step, in_a_row=failed)
        if failed >= PATIENCE or (failed and step == config.run.steps - 1):
            raise AgreedError(
                f"step {step}: the last {failed} steps had no finite loss; lower optim.lr or check the data, then "
                f"go on from the last good checkpoint with --run.resume auto"
            )
        if report is not None and report.skipped:
            write(event="skipped", step=step, samples=report.skipped)
            logger.warning("step %d: %d samples could not be read: %s", step, len(report.skipped), report.skipped[:3])
        if report is not None and due and world.is_main:
            write(**_record(report, loader, config, step, clock, world))
        if not failed:  # the weights may be spoilt: keep the checkpoints from before
            clock.stand_still(partial(after_step, step + 1))


def _record(
    report: StepReport, loader: ShardLoader, config: PretrainConfig, step: int, clock: Clock, world: World
) -> dict[str, Any]:
    """The metrics of a logged step; also says them on the screen."""
    seconds, waiting = clock.lap()
    total, *stages = report.losses.tolist()
    names = STAGES if len(stages) == len(STAGES) else STAGES[-1:]
    record = {
        "step": step,
        "epoch": loader.epoch(),
        "sensor": report.sensor.name,
        "loss": total,
        **{f"loss_{name}": value for name, value in zip(names, stages, strict=True)},
        "lr": learning_rate(step, config.run.steps, config.optim),
        "grad_norm": report.grad_norm,
        "samples_per_s": config.optim.batch / seconds,
        "data_wait": waiting,
        "memory_gb": peak_memory_gb(world.device),
        "sample_digest": digest(loader.global_keys(step)),
    }
    logger.info(
        "step %d/%d  epoch %.2f  eta %s  %s  loss %.4f (%s)  lr %.2e  grad %s  %.0f samples/s  wait %.0f%%  %.1f GB",
        step + 1, config.run.steps, record["epoch"], duration(seconds * (config.run.steps - step - 1)),
        report.sensor.name, total, "  ".join(f"{n} {v:.4f}" for n, v in zip(names, stages, strict=True)),
        record["lr"], "-" if report.grad_norm is None else f"{report.grad_norm:.2f}",
        record["samples_per_s"], 100 * waiting, record["memory_gb"],
    )  # fmt: skip
    return record


def digest(keys: list[str]) -> str:
    """Short fingerprint of a global batch's sample keys, in order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
