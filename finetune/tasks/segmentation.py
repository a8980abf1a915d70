"""Train PAD on registered pairs, choose the network by its mIoU, and score it."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alliance.errors import InputError
from datasets.labelled.checks import LabelCounts, check_values, count_labels, refuse_shared
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set
from datasets.labelled.tile_samples import TileBatch, TileSamples
from datasets.labelled.tiles import Tiles, channels, stacked
from engine.command import run_command
from engine.job import Running
from engine.log import logger
from engine.loop import digest
from engine.ranks import World, gather, together
from engine.settings import to_record
from engine.training import run_job
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.inputs import MODALITIES, describe
from finetune.pad.losses import composite_loss
from finetune.pad.model import Pad, PadConfig
from finetune.pad.start import load_start
from finetune.pictures import colour_channels, draw_segmentation
from finetune.scores import OVERALL, SegmentationScores, segmentation_record, segmentation_scores
from finetune.sweep.command import sweep
from finetune.sweep.experiment import Experiment
from finetune.sweep.seeds import SeedScores
from finetune.task import Task
from finetune.tasks.evaluate import evaluate, predict
from finetune.tasks.segmentation_config import SegmentConfig

PICTURES = 4  # images in every picture
NOT_LEARNT = ("set", "path", "workers", "max_broken")  # of the data settings: may change when a run goes on
LOSSES = {"segmentation": "loss_seg", "auxiliary": "loss_aux", "amplitude": "loss_amp"}
LEARNT = ("augment", "start", "checkpoint", "model", "loss", "optim", "evaluate_every")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/segment.py."""
    run_command(SegmentConfig, __doc__, segment, arguments)


def segment(config: SegmentConfig, world: World) -> Callable[[], None]:
    """One run on this rank, or one for each of `seeds`; how to close it."""
    if config.seed_list:
        return sweep(SegmentationSeeds(), config, world)
    return run_job(Segmentation, config, world)


class Segmentation(Task[SegmentConfig]):
    """PAD's recipe: composite loss, the best mIoU of all evaluations kept."""

    headline = {"miou": "mIoU", "oa": "OA", "mf1": "mF1", "mkappa": "mKappa"}

    def __init__(self, config: SegmentConfig, world: World) -> None:
        self.pairs = pairs = with_statistics_known(find_set(config.data.set, config.data.path))
        own = dataclasses.replace(config, model=for_data(config.model, pairs))
        super().__init__(own, world, evaluate_every=config.evaluate_every, picture_every=config.run.picture_every)
        if self.batching.micro < 2 and (world.size == 1 or world.device.type == "cpu"):
            raise InputError(
                f"a pass of {self.batching.micro} sample has no variance for batch normalisation; raise optim.batch or "
                f"engine.micro_batch to 2 samples per rank at least"
            )
        self.parts = [config.data.evaluate, *([config.data.test] if config.data.test else [])]
        self.tiles = {split: Tiles(pairs, split) for split in (config.data.train, *self.parts)}
        if config.data.overlap == "refuse":
            for split in self.parts:
                refuse_shared(self.tiles[config.data.train], self.tiles[split])
        for tiles in self.tiles.values():
            for index in {0, len(tiles) // 2, len(tiles) - 1}:  # mistakes of the description show at the start
                tiles[index]
        train, seed = self.tiles[config.data.train], config.run.seed
        self.loader = self.deal(
            train.keys, TileSamples(train, config.augment, seed), seed=seed, workers=config.data.workers
        )
        self.max_broken = config.data.max_broken
        self.identity = self._identity()

    def make_model(self) -> Pad:
        model = Pad(self.config.model, checkpoint=self.config.checkpoint)
        load_start(model, self.config.start)
        return model

    def losses(self, engine: Any, batch: TileBatch, step: int) -> Mapping[str, Tensor]:
        device = self.world.device
        images = {name: batch.images[role].to(device) for name, role in MODALITIES.items() if role in batch.images}
        losses = composite_loss(engine(**images), batch.label.to(device), self.config.loss)
        return {"loss": losses.total, **{name: getattr(losses, field) for field, name in LOSSES.items()}}

    def begin(self, run: Running) -> None:
        if not self.loader.step:
            self._check_labels()
        for tiles in self.tiles.values():
            logger.info("%s: %d pairs of %s", tiles.split, len(tiles), self.pairs.name)
            for reason in tiles.skipped[:3]:
                logger.warning("%s lacks %d pairs, such as %s", tiles.split, len(tiles.skipped), reason)
        if len(self.parts) == 1:
            logger.info("the best network is chosen on %s, the pairs that are reported, as PAD does; give data.evaluate "
                        "and data.test two splits to choose without looking at those", self.parts[0])  # fmt: skip
        super().begin(run)

    def score(self, model: nn.Module, part: str) -> dict[str, Any]:
        tiles, broken = self.tiles[part], set()
        record = segmentation_record(self.scores(model, tiles, broken), list(self.pairs.classes))
        left_out = len(set().union(*gather(broken)))
        record |= {"broken": left_out} if left_out else {}
        return {"split": part, "pairs": len(tiles) - left_out, **record}

    def scores(self, model: nn.Module, tiles: Tiles, broken: set[str]) -> SegmentationScores:
        """Scores of all images of a split, each rank predicting its part; what cannot be read is said and put in `broken`."""
        assert isinstance(model, Pad), "what make_model makes"
        rank, size, count = self.world.rank, self.world.size, len(tiles)
        own = list(range(rank, count, size))
        padded = own + [0] * (math.ceil(count / size) - len(own))  # ranks that share weights go forward together

        def say(error: InputError) -> None:
            logger.error("not scored: %s", error)
            broken.add(str(error))

        found = evaluate(model, tiles, padded, device=self.world.device, on_broken=say)[: len(own)]
        return segmentation_scores(torch.cat(list(gather(found))))

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        assert isinstance(model, Pad), "what make_model makes"
        save_pad(self.config.model, weights, folder, encoder=model.transferred, **describe(self.pairs))

    def load(self, folder: Path) -> Pad:
        return load_pad(folder, device=self.world.device)

    def picture(self, model: nn.Module) -> Callable[[Path], None] | None:
        assert isinstance(model, Pad), "what make_model makes"
        tiles, chosen = self.tiles[self.parts[0]], []
        for index in sorted({index * len(tiles) // PICTURES for index in range(PICTURES)}):
            with suppress(InputError):  # the evaluation says it
                chosen.append(tiles[index])
        if not chosen:
            return None
        found = [predict(model, sample, self.pairs, device=self.world.device) for sample in chosen]
        h, w = (min(sample.label.shape[axis] for sample in chosen) for axis in (0, 1))  # images may differ in size
        shown = stacked([sample.map(lambda image: image[..., :h, :w]) for sample in chosen])
        predicted = torch.cat([classes[..., :h, :w] for classes in found])
        title, rgb = f"{self.pairs.name}, step {self.loader.step}", colour_channels(self.pairs.image("optical"))
        return partial(
            draw_segmentation, sample=shown, predicted=predicted, classes=self.pairs.classes, title=title, rgb=rgb
        )

    def _check_labels(self) -> None:
        """Read every label map once, each rank a part: another numbering of classes shows before the first step."""
        counts = {}
        for tiles in self.tiles.values():
            own = count_labels(tiles, range(self.world.rank, len(tiles), self.world.size))
            counts[tiles.split] = LabelCounts()
            for each in gather(own):
                counts[tiles.split].add(each)
        for line in together(lambda: check_values(self.pairs, counts)):
            logger.warning("%s: %s", self.pairs.name, line)

    def _identity(self) -> dict[str, Any]:
        record = to_record(self.config)
        data = {key: value for key, value in record["data"].items() if key not in NOT_LEARNT}
        keys = {split: digest(tiles.keys) for split, tiles in self.tiles.items()}
        values = {str(stored): index for stored, index in self.pairs.label.table(len(self.pairs.classes)).items()}
        data |= {"pairs of each split": keys, "label values": values, **json.loads(json.dumps(describe(self.pairs)))}
        return {**{name: record[name] for name in LEARNT}, "data": data, "seed": self.config.run.seed}


class SegmentationSeeds(Experiment[SegmentConfig]):
    """The same pairs and splits with other seeds."""

    settings = SegmentConfig
    same = LEARNT

    def job(self, config: SegmentConfig, world: World, data: Any) -> Segmentation:
        return Segmentation(config, world)

    def variants(self, config: SegmentConfig) -> dict[str, SegmentConfig]:
        return {"PAD": config}

    def is_finished(self, config: SegmentConfig, record: Mapping[str, Any]) -> bool:
        return "chosen on" in record if config.data.test else record["last"]["step"] == config.run.steps

    def scores(self, seed: int, record: Mapping[str, Any]) -> SeedScores:
        overall = {name: _share(record[name]) for name in OVERALL}
        return SeedScores(
            seed, overall, [_share(iou) for iou in record["iou"].values()], torch.tensor(record["confusion"])
        )

    def classes(self, config: SegmentConfig, data: Any) -> tuple[str, ...]:
        return tuple(find_set(config.data.set, config.data.path).classes)


def for_data(model: PadConfig, pairs: LabelledSet) -> PadConfig:
    """The network with the classes and channels of a set of pairs."""
    counts = {f"{name}_channels": channels(role, pairs) for name, role in MODALITIES.items() if role in pairs.images}
    return dataclasses.replace(model, classes=len(pairs.classes), **counts)


def with_statistics_known(pairs: LabelledSet) -> LabelledSet:
    """The pairs, refused without the mean and deviation of every band."""
    for role, source in pairs.images.items():
        try:
            source.moments  # noqa: B018 - refused where they are not known
        except InputError:
            raise InputError(
                f"{pairs.name}: mean and std of {role} are missing in the description; `python launch/prepare.py check` "
                f"prints them"
            ) from None
    return pairs


def _share(percent: float | None) -> float:
    return math.nan if percent is None else percent / 100
