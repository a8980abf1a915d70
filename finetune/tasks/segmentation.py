"""Train PAD on registered pairs, choose the network by its mIoU, and score it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.labelled.checks import LabelCounts, check_values, count_labels, refuse_shared
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set
from datasets.labelled.tile_samples import TileBatch, TileSamples
from datasets.labelled.tiles import Tiles, channels, stacked
from datasets.sampling.loader import Dealing, IndexedLoader
from engine.build import deal_batch
from engine.checkpoints import full_weights
from engine.command import run_command
from engine.job import Job, Running
from engine.log import logger, report_disk_errors
from engine.loop import digest
from engine.ranks import World, from_main, gather, together
from engine.settings import to_record
from engine.training import run_job
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.inputs import MODALITIES, describe
from finetune.pad.losses import composite_loss
from finetune.pad.model import Pad, PadConfig
from finetune.pad.start import load_start
from finetune.pictures import colour_channels, draw_segmentation
from finetune.records import segmentation_record, write_scores
from finetune.segmentation_scores import SegmentationScores, segmentation_scores
from finetune.tasks.evaluate import evaluate, predict
from finetune.tasks.segmentation_config import SegmentConfig

PICTURES = 4  # images in every picture
NOT_LEARNT = ("pairs", "root", "workers", "max_broken")  # of the data settings: may change when a run goes on
LOSSES = {"segmentation": "loss_seg", "auxiliary": "loss_aux", "amplitude": "loss_amp"}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of finetune/segment.py."""
    run_command(SegmentConfig, __doc__, segment, arguments)


def segment(config: SegmentConfig, world: World) -> Callable[[], None]:
    """One run on this rank; how to close it."""
    return run_job(Segmentation, config, world)


class Segmentation(Job[SegmentConfig]):
    """PAD's recipe: composite loss, the best mIoU of all evaluations kept."""

    def __init__(self, config: SegmentConfig, world: World) -> None:
        self.pairs = pairs = with_statistics_known(find_set(config.data.pairs, config.data.root))
        self.config = dataclasses.replace(config, model=for_data(with_checkpoint(config), pairs))
        self.world = world
        self.batching = deal_batch(config.optim.batch, config.engine.micro_batch, world.size)
        if self.batching.micro < 2 and (world.size == 1 or world.device.type == "cpu"):
            raise InputError(
                f"a pass of {self.batching.micro} sample has no variance for batch normalisation; raise optim.batch or "
                f"engine.micro_batch to 2 samples per rank at least"
            )
        self.train, self.choose = (Tiles(pairs, split) for split in (config.data.train, config.data.evaluate))
        self.test = Tiles(pairs, config.data.test) if config.data.test else None
        for tiles in self._splits()[1:]:
            if config.data.overlap == "refuse":
                refuse_shared(self.train, tiles)
        for tiles in self._splits():
            for index in {0, len(tiles) // 2, len(tiles) - 1}:  # mistakes of the description show at the start
                tiles[index]
        self.loader = IndexedLoader(
            self.train.keys, TileSamples(self.train, config.augment, config.run.seed),
            Dealing(micro=self.batching.micro, accumulation=self.batching.accumulation, rank=world.rank, world=world.size),
            seed=config.run.seed, workers=config.data.workers,
        )  # fmt: skip
        self.max_broken = config.data.max_broken
        self.identity = self._identity()
        self.best: dict[str, Any] | None = None  # record of the best evaluation so far
        self.evaluated = 0  # steps done at the last evaluation

    def make_model(self) -> Pad:
        model = Pad(self.config.model)
        load_start(model, self.config.start)
        return model

    def batches(self) -> Iterator[TileBatch]:
        return iter(self.loader)

    def losses(self, engine: Any, batch: TileBatch, step: int) -> Mapping[str, Tensor]:
        device = self.world.device
        images = {name: batch.images[role].to(device) for name, role in MODALITIES.items() if role in batch.images}
        output = engine(**images)
        losses = composite_loss(output, batch.label.to(device), self.config.loss)
        return {"loss": losses.total, **{name: getattr(losses, field) for field, name in LOSSES.items()}}

    def progress(self, step: int) -> dict[str, Any]:
        return {"epoch": self.loader.epoch(), "sample_digest": digest(self.loader.global_keys(step))}

    def state_dict(self) -> dict[str, Any]:
        return {**self.loader.state_dict(), "best": self.best, "evaluated": self.evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self.best, self.evaluated = state["best"], state["evaluated"]

    def begin(self, run: Running) -> None:
        if not self.loader.step:
            self._check_labels()
        for tiles in self._splits():
            logger.info("%s: %d pairs of %s", tiles.split, len(tiles), self.pairs.name)
            for reason in tiles.skipped[:3]:
                logger.warning("%s lacks %d pairs, such as %s", tiles.split, len(tiles.skipped), reason)
        if self.test is None:
            logger.info("the best network is chosen on %s, the pairs that are reported, as PAD does; give data.evaluate "
                        "and data.test two splits to choose without looking at those", self.choose.split)  # fmt: skip
        done = self.loader.step
        if done and done % self.config.evaluate_every == 0 and self.evaluated != done:
            self._evaluate(run, done)

    def reports(self, done: int) -> bool:
        every = self.config.run.picture_every
        return done % self.config.evaluate_every == 0 or (every > 0 and done % every == 0)

    def report(self, run: Running, done: int, *, last: bool) -> None:
        if last or done % self.config.evaluate_every == 0:
            self._evaluate(run, done)
        if last:
            self._score_test(run, done)
        every = self.config.run.picture_every
        if last or (every and done % every == 0):
            self._draw(run, done)

    def conclude(self, run: Running) -> None:
        if self.best is None:
            raise InputError(f"no network could be written into {run.folder.path}; make room, then give the command again "
                             f"with --run.resume auto")  # fmt: skip
        logger.info("best mIoU %s after step %d; scores are in %s, the network in %s", self.best["miou"],
                    self.best["step"], run.folder.path / "scores.json", run.folder.path / "model")  # fmt: skip

    def score(self, model: Pad, tiles: Tiles) -> SegmentationScores:
        """Scores of all images of a split, each rank predicting its part."""
        rank, size, count = self.world.rank, self.world.size, len(tiles)
        own = list(range(rank, count, size))
        padded = own + [0] * (math.ceil(count / size) - len(own))  # ranks that share weights go forward together
        found = evaluate(model, tiles, padded, device=self.world.device, on_broken=_say_broken)[: len(own)]
        return segmentation_scores(torch.cat(list(gather(found))))

    def _evaluate(self, run: Running, done: int) -> None:
        """Score the network, say it, and keep it if it is the best so far."""
        record = self._record(run, run.engine.module, self.choose, done)
        self.evaluated = done
        if (self.best is None or (record["miou"] or 0) > (self.best["miou"] or 0)) and self._export(run):
            self.best = record
        self._write(run, {**(self.best or {}), "last": record})

    def _score_test(self, run: Running, done: int) -> None:
        """Score the chosen network on the pairs that had no part in the choice."""
        if self.test is None or self.best is None:
            return
        network = together(lambda: load_pad(run.folder.path / "model", device=self.world.device))
        record = self._record(run, network, self.test, done)
        self._write(run, {**record, "step": self.best["step"], "chosen on": self.best})

    def _record(self, run: Running, model: Pad, tiles: Tiles, done: int) -> dict[str, Any]:
        """Score a split and say it."""
        scores = self.score(model, tiles)
        logger.info("step %d on %s: mIoU %.2f  OA %.2f  mF1 %.2f  mKappa %.2f", done, tiles.split,
                    *(100 * each for each in (scores.miou, scores.oa, scores.mf1, scores.mkappa)))  # fmt: skip
        record = {
            "split": tiles.split,
            "pairs": len(tiles),
            "step": done,
            **segmentation_record(scores, list(self.pairs.classes)),
        }
        run.write(event="scores", **{**record, "step": done - 1})
        return record

    def _write(self, run: Running, record: Mapping[str, Any]) -> None:
        if self.world.is_main:
            with report_disk_errors("scores.json"):
                write_scores(run.folder.path / "scores.json", record)

    def _export(self, run: Running) -> bool:
        """Write the network; whether it is there, on all ranks."""
        weights, written = full_weights(run.engine, ""), False
        if weights is not None:
            with report_disk_errors("the network"):
                encoder = run.engine.module.transferred
                save_pad(self.config.model, weights, run.folder.path / "model", encoder=encoder, **describe(self.pairs))
                written = True
        return from_main(written)

    def _draw(self, run: Running, done: int) -> None:
        """Predict a few fixed images on all ranks; the main one draws them."""
        count = len(self.choose)
        chosen = [self.choose[index] for index in sorted({index * count // PICTURES for index in range(PICTURES)})]
        found = [predict(run.engine.module, pair, self.pairs, device=self.world.device) for pair in chosen]
        if not self.world.is_main:
            return
        h, w = (min(pair.label.shape[axis] for pair in chosen) for axis in (0, 1))  # images may differ in size
        shown = stacked([pair.map(lambda image: image[..., :h, :w]) for pair in chosen])
        predicted = torch.cat([classes[..., :h, :w] for classes in found])
        path = run.folder.pictures / f"step_{done:08d}.png"
        with report_disk_errors(f"picture {path.name}"):
            draw_segmentation(path, shown, predicted, self.pairs.classes,
                              title=f"{self.pairs.name}, step {done}", rgb=colour_channels(self.pairs.image("optical")))  # fmt: skip
        run.write(event="picture", step=done - 1, path=path.name)

    def _check_labels(self) -> None:
        """Read every label map once, each rank a part: another numbering of classes shows before the first step."""
        counts = {}
        for tiles in self._splits():
            own = count_labels(tiles, range(self.world.rank, len(tiles), self.world.size))
            counts[tiles.split] = LabelCounts()
            for each in gather(own):
                counts[tiles.split].add(each)
        for line in together(lambda: check_values(self.pairs, counts)):
            logger.warning("%s: %s", self.pairs.name, line)

    def _splits(self) -> list[Tiles]:
        return [self.train, self.choose, *([] if self.test is None else [self.test])]

    def _identity(self) -> dict[str, Any]:
        record = to_record(self.config)
        data = {key: value for key, value in record["data"].items() if key not in NOT_LEARNT}
        kept = {name: record[name] for name in ("augment", "start", "model", "loss", "optim", "evaluate_every")}
        keys = {tiles.split: digest(tiles.keys) for tiles in self._splits()}
        values = {str(stored): index for stored, index in self.pairs.label.table(len(self.pairs.classes)).items()}
        data |= {"pairs of each split": keys, "label values": values, **json.loads(json.dumps(describe(self.pairs)))}
        return {**kept, "data": data, "seed": self.config.run.seed}


def with_checkpoint(config: SegmentConfig) -> PadConfig:
    """The network, `checkpoint` being that of its encoder.

    Raises:
        InputError: there is no encoder to load it into.
    """
    model = config.model
    if not config.checkpoint:
        return model
    if model.backbone == "convnext":
        raise InputError(
            "--checkpoint is of an Alliance encoder, model.backbone is convnext; give a second --config of "
            "configs/finetune/backbones/, or start.network for the weights of a PAD network"
        )
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, checkpoint=config.checkpoint))


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


def _say_broken(error: InputError) -> None:
    logger.error("not scored: %s", error)
