"""Pretrain Alliance on shards: from settings to an exported encoder."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from alliance.checkpoint import save_encoder
from alliance.losses import STAGES
from alliance.model import Alliance
from alliance.tokens import mask_noise, token_grid_shape
from engine import checkpoints
from engine.build import build_engine
from engine.checkpoints import NotSaved
from engine.command import run_command
from engine.errors import AgreedError
from engine.log import Metrics, WandbMirror, logger, read_metrics, report_disk_errors, setup_logging
from engine.pictures import band_psnr, draw_reconstruction
from engine.ranks import World, refuse_different_ranks, together
from engine.restore import begin_or_restore
from engine.runs import RunFolder
from engine.settings import to_record
from pretrain.config import PretrainConfig
from pretrain.data import Inputs, refuse_another_run
from pretrain.loop import Trainer

PROBE_SEED = 1


def main(arguments: list[str] | None = None) -> None:
    """Entry point of launch/pretrain.py."""
    run_command(PretrainConfig, __doc__, pretrain, arguments)


def pretrain(config: PretrainConfig, world: World) -> Callable[[], None]:
    """One run on this rank: claim the folder, open the data, build, go on or start, train, export; how to close it."""
    folder = RunFolder(config.run.dir)
    together(lambda: folder.claim(config.run.resume) if world.is_main else None)
    setup_logging(folder if world.is_main else None)
    inputs = together(lambda: Inputs(config, world))
    run = Run(config, folder, world, inputs)
    run.train()
    return run.close


class Run:
    """What a run holds: its inputs, the engine, and its reports."""

    def __init__(self, config: PretrainConfig, folder: RunFolder, world: World, inputs: Inputs) -> None:
        self.config, self.folder, self.world, self.inputs = config, folder, world, inputs
        self.layout = together(lambda: config.engine.layout(world))
        self.identity = inputs.identity(config)
        refuse_different_ranks({"settings": to_record(config), "shards": self.identity["shards"]})
        torch.manual_seed(config.run.seed)
        model = Alliance(config.model, list(inputs.sensors.values()))
        build = partial(build_engine, model, config.optim, config.engine, world, inputs.batching)
        self.engine, state = begin_or_restore(
            folder.checkpoints, model, build, self.layout, world,
            accept=lambda state: refuse_another_run(state["run"], self.identity),
        )  # fmt: skip
        self.trainer = Trainer(self.engine, inputs, config, world, self._write)
        self.start = self.saved = self._go_on_from(state) if state else 0
        self.metrics = self._open_metrics() if world.is_main else None

    def train(self) -> None:
        """Train to the last step, unless asked to stop; export the encoder and say where everything is."""
        self._say_what_runs()
        if self.start < self.config.run.steps:
            finished = self.trainer.train(self.start, self._after_step)
        else:  # a run killed between its last checkpoint and the export
            logger.info("the run already has its %d steps; raise run.steps to train longer", self.config.run.steps)
            self._draw(self.start)
            self._export(must=True)
            finished = True
        if not self.world.is_main:
            return
        if not finished:
            logger.info("stopped as asked, after step %d; go on with --run.resume auto", self.saved)
            self._write(event="stopped", step=self.saved - 1)
            return
        for line in summarise(read_metrics(self.folder.metrics)):
            logger.info(line)
        logger.info("pictures are in %s", self.folder.pictures)
        where = self.folder.encoder
        logger.info("the encoder is in %s; load it with alliance.load_encoder(%r)", where, str(where))

    def _go_on_from(self, state: dict[str, Any]) -> int:
        """Put the reader and the counters where the checkpoint left them; the first step to take."""
        self.inputs.loader.load_state_dict(state["loader"])
        self.trainer.faults.load_state_dict(state["faults"])
        if state["steps"] != self.config.run.steps:
            logger.warning("run.steps was %d and is %d: learning rates and loss weights follow the new length",
                           state["steps"], self.config.run.steps)  # fmt: skip
        return state["step"]

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self.folder.release()

    def _open_metrics(self) -> Metrics:
        self.folder.write_config(to_record(self.config))
        mirror = None
        if self.config.run.wandb != "off":
            mirror = WandbMirror(self.config.run, self.folder, to_record(self.config))
        metrics = Metrics(self.folder.metrics, resume_step=self.start, mirror=mirror)
        if self.start:
            metrics.write(event="resume", step=self.start, **self.layout._asdict())
            logger.info("going on from step %d: same samples, masks and learning rates", self.start)
        return metrics

    def _write(self, **record: Any) -> None:
        if self.metrics is not None:
            self.metrics.write(**record)

    def _say_what_runs(self) -> None:
        model, optim = self.engine.module, self.config.optim
        millions = sum(count_parameters(p) for p in model.parameters()) / 1e6
        encoder = sum(count_parameters(p) for p in model.encoder.parameters()) / 1e6
        logger.info(
            "%.1f M parameters (encoder %.1f M), batch %d on %s (%s), process %d, sensors %s",
            millions, encoder, optim.batch, self.layout, self.world.device, os.getpid(), ", ".join(self.inputs.sensors),
        )  # fmt: skip
        for source in self.inputs.loader.sources:
            logger.info("%s: %d samples in %d shards, %.1f steps an epoch; none is dropped, a batch may span two epochs",
                        source.folder, source.samples, len(source.counts), source.samples / optim.batch)  # fmt: skip
        for fault in self.inputs.missing:
            logger.warning("%s; its samples will be left out", fault)

    def _after_step(self, done: int, stop: bool) -> None:
        """Pictures, checkpoint and export when they are due after `done` steps."""
        run = self.config.run
        last = done == run.steps
        if last or (run.picture_every and done % run.picture_every == 0 and not stop):
            self._draw(done)
        if (last or stop or done % run.save_every == 0) and self._save(done, must=last or stop):
            self._export(must=last)

    def _save(self, done: int, *, must: bool) -> bool:
        """Write a checkpoint; when that fails, go on with the earlier one or stop, as run.unsaved says."""
        state = {
            "step": done, "steps": self.config.run.steps, "loader": self.inputs.loader.state_dict(),
            "faults": self.trainer.faults.state_dict(), "run": self.identity,
        }  # fmt: skip
        folder, keep = self.folder.checkpoints, self.config.run.keep
        try:
            path = checkpoints.save(self.engine, folder, state, self.layout, keep=keep, world=self.world)
        except NotSaved as error:
            rest = f"the newest one is of step {self.saved}" if self.saved else "there is none"
            said = f"checkpoint of step {done} is not saved ({error}); {rest}"
            self._write(event="unsaved", step=done - 1, reason=str(error))
            if must or self.config.run.unsaved == "stop":
                raise AgreedError(f"{said}; make room, then go on with --run.resume auto") from error
            logger.warning(said)
            return False
        self.saved = done
        self._write(event="checkpoint", step=done - 1, path=path.name)
        return True

    def _export(self, *, must: bool = False) -> None:
        weights = checkpoints.full_weights(self.engine, "encoder.")
        if weights is not None:
            with report_disk_errors("the encoder", must=must):
                save_encoder(self.engine.module.encoder, self.folder.encoder, weights)

    @torch.no_grad()
    def _draw(self, done: int) -> None:
        """Reconstruct the probe of every sensor on all ranks; the main one draws it."""
        model, patch, loss = self.engine.module, self.config.model.encoder.patch, self.config.model.loss
        model.eval()
        for name, image in self.inputs.probes.items():
            sensor = self.inputs.sensors[name]
            h, w = token_grid_shape(image, patch)
            count = len(sensor.group_indices) * h * w
            noise = mask_noise(PROBE_SEED, 0, range(len(image)), count).to(self.world.device)
            result = model.reconstruct(image.to(self.world.device), sensor, noise)
            if self.world.is_main:
                path = self.folder.pictures / f"step_{done:08d}_{name}.png"
                with report_disk_errors(f"picture {path.name}"):
                    draw_reconstruction(path, result, sensor, title=f"{name}, step {done}")
                self._write(event="picture", step=done - 1, sensor=name, path=path.name)
                self._write(event="probe", step=done - 1, sensor=name, **band_psnr(result, patch, loss))
        model.train()


def summarise(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far each sensor's stage losses fell: means over the first and the last fifth of its logged steps.

    The stages, not the total: the schedule moves the total's weights towards the harder high frequencies.
    """
    steps = [record for record in records if "event" not in record]
    lines = []
    for name in dict.fromkeys(record["sensor"] for record in steps):
        own = [record for record in steps if record["sensor"] == name]
        part = max(len(own) // 5, 1)
        falls = []
        for stage in (stage for stage in STAGES if f"loss_{stage}" in own[0]):
            losses = [record[f"loss_{stage}"] or 0.0 for record in own]
            first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
            falls.append(f"{stage} {first:.3f} -> {last:.3f} ({last / first - 1:+.0%})" if first else f"{stage} 0")
        lines.append(f"{name}: {', '.join(falls)}; means of the first and last fifth of the logged steps")
    return lines


def count_parameters(parameter: torch.nn.Parameter) -> int:
    """Number of values, also where ZeRO stage 3 keeps only a part here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
