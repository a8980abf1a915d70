"""Segment registered images: PAD on an optical and a SAR one, or an Alliance encoder with a head on one or several.

The network with the best mIoU of all evaluations is kept.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.tile_samples import TileBatch
from datasets.labelled.tiles import Tiles, channels
from engine.command import run_command
from engine.ranks import World
from engine.training import run_job
from finetune.model_files import Inputs, image_input
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.inputs import MODALITIES
from finetune.pad.losses import composite_loss
from finetune.pad.model import Pad, PadConfig
from finetune.pad.start import load_start, start_digests
from finetune.scores import OVERALL
from finetune.sweep.command import sweep
from finetune.tasks.dense import DenseTask, refuse_single
from finetune.tasks.dense_seeds import DenseSeeds
from finetune.tasks.encoder_task import EncoderTask
from finetune.tasks.moments import with_encoder_statistics, with_statistics_known
from finetune.tasks.segmentation_config import SegmentConfig

LOSSES = {"segmentation": "loss_seg", "auxiliary": "loss_aux", "amplitude": "loss_amp"}
LEARNT = ("augment", "checkpoint", "method", "optim", "evaluate_every")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/segment.py."""
    run_command(SegmentConfig, __doc__, segment, arguments)


def segment(config: SegmentConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    if config.seed_list:
        return sweep(SegmentationSeeds(), config, world)
    return run_job(segmentation, config, world)


def segmentation(config: SegmentConfig, world: World) -> DenseTask[SegmentConfig]:
    """The run of one seed."""
    return Segmentation(config, world) if config.method == "pad" else EncoderSegmentation(config, world)


class Segmentation(DenseTask[SegmentConfig]):
    """PAD's recipe: composite loss, the best mIoU of all evaluations kept."""

    learnt = (*LEARNT, "start", "model", "loss")
    noun = "pairs"

    def __init__(self, config: SegmentConfig, world: World) -> None:
        found = config.data.find()
        absent = [role for role in config.model.roles.values() if role not in found.images]
        if absent:
            raise InputError(
                f"{found.name} has no image {absent[0]!r}, which PAD takes; it has {', '.join(found.images)}: set model.input to "
                f"the one of rgb and sar that is there, or method to encoder, which takes any images"
            )
        pairs = found.only({role: role for role in MODALITIES.values() if role in found.images})
        names = encoder_names(config.model, pairs)
        if names:
            pairs = with_encoder_statistics(pairs, config.model.encoder, config.checkpoint, names)
        pairs = with_statistics_known(pairs, lambda: Tiles(pairs, config.data.train))
        own = dataclasses.replace(config, model=for_data(config.model, pairs))
        self.roles = own.model.roles
        super().__init__(own, world, pairs, evaluate_every=config.evaluate_every)
        refuse_single(self.batching, world)

    @property
    def inputs(self) -> Inputs:
        return Inputs(
            classes=self.described.classes,
            images={role: image_input(source) for role, source in self.described.images.items()},
        )

    def make_model(self) -> Pad:
        model = Pad(self.config.model, checkpoint=self.config.checkpoint)
        load_start(model, self.config.start)
        return model

    def losses(self, engine: Any, batch: TileBatch, step: int) -> Mapping[str, Tensor]:
        output = engine(**self.given(batch.images))
        losses = composite_loss(output, batch.label.to(self.world.device), self.config.loss)
        return {"loss": losses.total, **{name: getattr(losses, field) for field, name in LOSSES.items()}}

    def begins_with(self) -> dict[str, str]:
        return super().begins_with() | start_digests(self.config.start)

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        assert isinstance(model, Pad), "what make_model makes"
        save_pad(self.config.model, weights, folder, encoder=model.transferred, **self.inputs.to_record())

    def load(self, folder: Path) -> Pad:
        return load_pad(folder, device=self.world.device)


class EncoderSegmentation(EncoderTask[SegmentConfig]):
    """An Alliance encoder with a head on one image or several."""

    learnt = (*LEARNT, "dense", "dense_loss")

    def __init__(self, config: SegmentConfig, world: World) -> None:
        found = config.data.find()
        images = found.only({role: role for role in config.dense.images or found.images})
        images = with_encoder_statistics(images, config.dense.encoder, config.checkpoint)
        described = with_statistics_known(images, lambda: Tiles(images, config.data.train))
        super().__init__(
            config, world, described, model=config.dense, loss=config.dense_loss, evaluate_every=config.evaluate_every
        )


class SegmentationSeeds(DenseSeeds[SegmentConfig]):
    """The same images and splits with other seeds."""

    settings = SegmentConfig
    same = tuple(dict.fromkeys((*Segmentation.learnt, *EncoderSegmentation.learnt)))
    overall = OVERALL

    def contents(self, config: SegmentConfig, data: Any) -> dict[str, str]:
        return super().contents(config, data) | start_digests(config.start)

    def job(self, config: SegmentConfig, world: World, data: Any) -> DenseTask[SegmentConfig]:
        return segmentation(config, world)

    def variants(self, config: SegmentConfig) -> dict[str, SegmentConfig]:
        return {"PAD" if config.method == "pad" else f"encoder, {config.dense.head}": config}


def for_data(model: PadConfig, pairs: LabelledSet) -> PadConfig:
    """The network with the classes and channels of a set of pairs."""
    counts = {f"{name}_channels": channels(role, pairs) for name, role in MODALITIES.items() if role in pairs.images}
    return dataclasses.replace(model, classes=len(pairs.classes), **counts)


def encoder_names(model: PadConfig, pairs: LabelledSet) -> dict[str, str]:
    """Role of each image that an Alliance encoder in PAD standardises by its sensor if it can, by the network's name.

    Beside ConvNeXt V2, which reads the same numbers with weights of its own, only where the settings say so.
    """
    alone = model.backbone == "alliance" or (model.backbone != "convnext" and model.encoder.statistics == "sensor")
    return {
        name: role
        for name, role in model.roles.items()
        if alone and role in pairs.images and name in model.encoder.sensors
    }
