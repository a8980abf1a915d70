"""Segment a domain that has no labels with what another one teaches: source only, minimum of entropy, or self-training.

The network of the last step is kept and scored on the target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled.checks import refuse_shared
from datasets.labelled.tile_samples import TileBatch
from datasets.labelled.tiles import Cut, Tiles
from datasets.sampling.faults import Fault
from engine.command import run_command
from engine.job import Running
from engine.log import logger
from engine.loop import digest
from engine.ranks import World
from engine.training import run_job
from finetune.backbones.standardising import warn_per_scene
from finetune.dense.adapting import Taught, entropy_loss, guess_labels, guessed_loss
from finetune.dense.losses import dense_loss
from finetune.pixel_network import PixelNetwork
from finetune.scores import OVERALL
from finetune.sweep.command import sweep
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.dense import contents_of
from finetune.tasks.dense_seeds import DenseSeeds
from finetune.tasks.encoder_task import EncoderTask
from finetune.tasks.moments import with_encoder_statistics, with_statistics_known

WEIGHTS = {"source_only": 0.0, "entropy": 0.001, "self_training": 1.0}  # usual ones of the loss on the target
STUDENT = "student."  # before the names of the network's weights


class DomainBatch(NamedTuple):
    """Labelled tiles of the source, and as many of the target, whose `label` only says where they have pixels."""

    source: TileBatch
    target: TileBatch | None

    @property
    def keys(self) -> Sequence[str]:
        """Names of all tiles."""
        return [*self.source.keys, *(self.target.keys if self.target else ())]

    @property
    def faults(self) -> Sequence[Fault]:
        """Tiles that could not be used."""
        return [*self.source.faults, *(self.target.faults if self.target else ())]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/crossdomain.py."""
    run_command(CrossDomainConfig, __doc__, crossdomain, arguments)


def crossdomain(config: CrossDomainConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    if config.seed_list:
        return sweep(CrossDomainSeeds(), config, world)
    return run_job(CrossDomain, config, world)


class CrossDomain(EncoderTask[CrossDomainConfig]):
    """Both domains of one description; each is standardised by its own statistics unless the settings say otherwise."""

    learnt = ("augment", "checkpoint", "model", "loss", "optim", "method", "adapt")
    headline = {"miou": "mIoU on the target", "oa": "OA", "mf1": "mF1", "kappa": "kappa"}

    def __init__(self, config: CrossDomainConfig, world: World) -> None:
        data, method = config.data, config.method
        if method == "self_training":
            _refuse_rounding(config, world)
        found = data.find()
        images = found.only({role: role for role in config.model.images or found.images})
        images = with_encoder_statistics(images, config.model.encoder, config.checkpoint)
        adapt = data.adapt or data.evaluate
        cut = Cut(data.window) if data.window else None
        self.source = with_statistics_known(images, lambda: Tiles(images, data.train, cut=cut))
        target = self.source
        if data.statistics == "own":
            apart = [role for role, each in images.images.items() if each.statistics == "dataset" and not each.mean]
            warn_per_scene(config.model.encoder, config.checkpoint, apart)
            target = with_statistics_known(images, lambda: Tiles(images, adapt, cut=cut, labelled=False))
        super().__init__(config, world, target, model=config.model, loss=config.loss, evaluate_every=0)
        self.unlabelled = None if method == "source_only" else self.open(adapt, labelled=False)
        self.weight = WEIGHTS[method] if config.adapt.weight is None else config.adapt.weight
        self.followed = -1  # step for which the teacher's weights are
        if self.unlabelled is not None:
            refuse_shared(self.tiles[data.train], self.unlabelled)
            self.target_loader = self.deal_tiles(self.unlabelled, seed=config.run.seed ^ 1)
            self.identity["data"]["adapts to"] = [digest(self.unlabelled.keys), contents_of(self.unlabelled)]

    def open(self, split: str, *, labelled: bool = True) -> Tiles:
        tiles = super().open(split, labelled=labelled)
        if split == self.data.train:
            tiles.described = self.source
        return tiles

    def make_model(self) -> nn.Module:
        network = self.make_network()
        return Taught(network) if self.config.method == "self_training" else network

    def network(self, model: nn.Module) -> PixelNetwork:
        return super().network(model.student if isinstance(model, Taught) else model)

    def begin(self, run: Running) -> None:
        super().begin(run)
        if self.unlabelled is not None:
            logger.info("%s: %d %s without labels to adapt to", self.unlabelled.split, len(self.unlabelled), self.noun)

    def batches(self) -> Iterator[DomainBatch]:
        if self.unlabelled is None:
            return (DomainBatch(batch, None) for batch in self.loader)
        return (DomainBatch(*pair) for pair in zip(self.loader, self.target_loader, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.unlabelled is not None:
            self.target_loader.load_state_dict(state)

    def losses(self, engine: Any, batch: DomainBatch, step: int) -> Mapping[str, Tensor]:
        """The two domains go forward apart: in one batch, its norms would let the source's loss squeeze the target out."""
        logits = engine(**self.given(batch.source.images)).logits
        losses = dense_loss(logits, batch.source.label.to(self.world.device), self.loss, self.weights)
        if batch.target is None:
            return losses
        target = self.given(batch.target.images)
        seen = batch.target.label.to(self.world.device) != IGNORE
        own, others = losses["loss"], engine(**target).logits
        if self.config.method == "entropy":
            other, told = entropy_loss(others, seen), {}
        else:
            guess = guess_labels(self._taught(engine.module, target, step), seen, self.config.adapt.confidence)
            other, told = guessed_loss(others, guess), {"loss_guessed_share": guess.share}
        return {"loss": own + self.weight * other, "loss_source": own, "loss_target": other, **told}

    @torch.no_grad()
    def _taught(self, model: Taught, images: Mapping[str, Tensor], step: int) -> Tensor:
        """What the teacher says (b, k, h, w); at the first pass of a step it follows the network."""
        if self.followed != step:
            model.follow(self.config.adapt.momentum)
            self.followed = step
        return model.teacher(**images).logits

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        if isinstance(model, Taught):
            weights = {name.removeprefix(STUDENT): each for name, each in weights.items() if name.startswith(STUDENT)}
        super().save(model, weights, folder)


class CrossDomainSeeds(DenseSeeds[CrossDomainConfig]):
    """The same domains with other seeds."""

    settings = CrossDomainConfig
    same = CrossDomain.learnt
    overall = OVERALL

    def job(self, config: CrossDomainConfig, world: World, data: Any) -> CrossDomain:
        return CrossDomain(config, world)

    def variants(self, config: CrossDomainConfig) -> dict[str, CrossDomainConfig]:
        return {config.method: config}


def _refuse_rounding(config: CrossDomainConfig, world: World) -> None:
    """Refuse weights that cannot hold the small steps of a running mean, or that no rank has whole.

    Raises:
        InputError: they are such.
    """
    precision, stage = config.engine.resolve(on_cpu=world.device.type == "cpu")
    if precision == "bf16" or stage == 3:
        raise InputError(
            f"self_training averages weights in float32, each rank all of them; engine.precision is {precision}, "
            f"engine.zero {stage}: set engine.precision to fp32 or autocast, and engine.zero to 0"
        )
