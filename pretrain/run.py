"""Pretrain Alliance on shards: from settings to an exported encoder."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alliance.checkpoint import SavedDecoder, save_encoder
from alliance.losses import STAGES
from alliance.model import Alliance
from alliance.passwords import holds_password
from alliance.tokens import draw_groups, mask_noise, token_grid_shape
from alliance.words import counted
from datasets.shards.loader import Batch
from datasets.shards.stream import is_remote
from engine.checkpoints import full_weights
from engine.command import run_command
from engine.errors import AgreedError
from engine.job import Job, Running
from engine.log import logger, read_metrics, report_disk_errors
from engine.loop import digest
from engine.ranks import World
from engine.runs import due
from engine.settings import to_record
from engine.summary import summarise
from engine.training import count_parameters, run_job
from pretrain.config import PretrainConfig
from pretrain.data import Inputs
from pretrain.pictures import band_psnr, draw_reconstruction
from pretrain.probe import Probe
from pretrain.start import open_start

PROBE_SEED = 1
ALLOW_PIPE = "--data.allow_pipe"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of launch/pretrain.py."""
    given = sys.argv[1:] if arguments is None else arguments
    by_hand = any(each.partition("=")[0] == ALLOW_PIPE for each in given)
    run_command(PretrainConfig, __doc__, partial(pretrain, pipes_by_hand=by_hand), arguments)


def pretrain(config: PretrainConfig, world: World, *, pipes_by_hand: bool = True) -> Callable[[], None]:
    """One run on this rank; how to close it.

    Args:
        pipes_by_hand: whether it is the command line that allows commands as sources, which a file of settings must not.
    """
    if config.data.allow_pipe and not pipes_by_hand:
        raise AgreedError(
            f"a file of settings says data.allow_pipe; give {ALLOW_PIPE} true on the command line, if you mean it"
        )
    return run_job(Pretraining, config, world)


class Pretraining(Job[PretrainConfig]):
    """Masked reconstruction; one step is one sensor's global batch."""

    def __init__(self, config: PretrainConfig, world: World) -> None:
        self.start = open_start(config)
        config = self.start.settle(config) if self.start else config
        self.config, self.world = config, world
        self.inputs = Inputs(config, world, self.start.encoder.sensors if self.start else {})
        sensors, patch = self.inputs.sensors, config.model.encoder.patch
        self.probe = Probe(config.probe, sensors, patch) if config.probe.data else None
        self.batching = self.inputs.batching
        self.identity = self.inputs.identity(config) | {"init": self.start.digest if self.start else None}
        self.max_broken = config.data.max_broken

    def make_model(self) -> Alliance:
        """The model with the sensors of the shards, and with the weights that the run begins with."""
        if self.start is None:
            return Alliance(self.config.model, list(self.inputs.sensors.values()))
        model = Alliance(self.config.model, self.start.sensors(self.inputs.sensors))
        self.start.load(model)
        return model

    def batches(self) -> Iterator[Batch]:
        """Micro-batches of this rank without end, from the first step that was not taken whole."""
        return iter(self.inputs.loader)

    def losses(self, engine: Any, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The total, the loss of every stage and that of the summary of one micro-batch (b, c, h, w), scalars."""
        seed, model = self.config.run.seed, self.config.model
        sensor = self.inputs.sensors[batch.sensor.name]
        groups = list(draw_groups(sensor.group_indices, model.masking.max_groups, seed, step))
        image = sensor.to_physical(batch.stored.to(self.world.device))
        h, w = token_grid_shape(image, model.encoder.patch)
        noise = mask_noise(seed, step, batch.positions.tolist(), len(groups) * h * w).to(self.world.device)
        losses = engine(image, sensor, noise, step / self.config.run.steps, groups)
        names = STAGES if len(losses.stages) == len(STAGES) else STAGES[-1:]  # a one-stage decoder has the last alone
        stages = {f"loss_{name}": loss for name, loss in zip(names, losses.stages, strict=True)}
        stages |= {} if losses.summary is None else {"loss_summary": losses.summary}
        return {"loss": losses.total, **stages}

    def progress(self, step: int) -> dict[str, Any]:
        """Sensor, epoch and digest of the sample keys of a step, for its log line."""
        loader = self.inputs.loader
        traffic = loader.traffic()
        asked = {f"store_{name}": count for name, count in asdict(traffic).items()} if traffic else {}
        return {
            "epoch": loader.epoch(),
            "sensor": loader.sensor(step),
            "sample_digest": digest(loader.global_keys(step)),
            **asked,
        }

    def state_dict(self) -> dict[str, Any]:
        return self.inputs.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inputs.loader.load_state_dict(state)

    def begin(self, run: Running) -> None:
        encoder = sum(map(count_parameters, run.engine.module.encoder.parameters())) / 1e6
        logger.info("the encoder has %.2f M of them; sensors %s", encoder, ", ".join(self.inputs.sensors))
        batch = self.config.optim.batch
        for source in self.inputs.loader.sources:
            logger.info("%s: %s in %s, %.1f steps an epoch; none is dropped, a batch may span two epochs",
                        source.folder, counted(source.samples, "sample"), counted(len(source.counts), "shard"), source.samples / batch)  # fmt: skip
        for place in dict.fromkeys(source.shards for source in self.config.data.sources):
            if is_remote(place) and holds_password(place):
                logger.warning("%s holds a password as it is, which launchers print and `ps` shows; write ${NAME} in its "
                               "place, and export NAME", place)  # fmt: skip
        for fault in self.inputs.missing:
            logger.warning("%s; its samples will be left out", fault)

    @torch.no_grad()
    def report(self, run: Running, done: int, *, last: bool) -> None:
        """Draw and probe what is due, on all ranks; the main one writes."""
        if due(done, self.config.run.picture_every, last=last):
            self._draw(run, done)
        if self.probe is not None and self.probe.due(done, last=last):
            found = self.probe.run(run.engine.module.encoder, is_main=self.world.is_main)
            run.write(event="probe", step=done - 1, **found)
            if found:
                logger.info("probe of %s, %s on %s: %.1f (%.1f to %.1f); raw statistics %.1f", found["data"], found["kind"],
                            found["readout"], found["accuracy"], found["low"], found["high"], found["raw_statistics"])  # fmt: skip

    def _draw(self, run: Running, done: int) -> None:
        """Reconstruct the fixed samples of every sensor on all ranks; the main one draws them."""
        model, patch, loss = run.engine.module, self.config.model.encoder.patch, self.config.model.loss
        model.eval()
        for name, image in self.inputs.probes.items():
            sensor = self.inputs.sensors[name]
            h, w = token_grid_shape(image, patch)
            count = len(sensor.group_indices) * h * w
            noise = mask_noise(PROBE_SEED, 0, range(len(image)), count).to(self.world.device)
            result = model.reconstruct(image.to(self.world.device), sensor, noise)
            if self.world.is_main:
                path = run.folder.pictures / f"step_{done:08d}_{name}.png"
                with report_disk_errors(f"picture {path.name}"):
                    draw_reconstruction(path, result, sensor, title=f"{name}, step {done}")
                    run.write(event="picture", step=done - 1, sensor=name, path=path.name)
                run.write(event="probe", step=done - 1, sensor=name, **band_psnr(result, patch, loss))
        model.train()

    def export(self, run: Running, *, must: bool) -> None:
        weights = full_weights(run.engine, "encoder.")
        kept = full_weights(run.engine, "decoder.") if self.config.run.export_decoder else None
        if weights is not None:
            decoder = None if kept is None else SavedDecoder(to_record(self.config.model.decoder), kept)
            with report_disk_errors("the encoder", must=must):
                save_encoder(run.engine.module.encoder, run.folder.encoder, weights, decoder)

    def conclude(self, run: Running) -> None:
        for line in summarise(read_metrics(run.folder.metrics)):
            logger.info(line)
        if self.config.run.picture_every is not None:
            logger.info("pictures are in %s", run.folder.pictures)
        where = run.folder.encoder
        logger.info("the encoder is in %s; load it with alliance.load_encoder(%r)", where, str(where))
