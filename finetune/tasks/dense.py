"""What every task has that gives each pixel a class: labelled tiles in, label maps checked, whole tiles scored and drawn.

PAD, the segmentation with an encoder, change detection and the segmentation across domains are such tasks.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alliance.checkpoint import digest_of
from alliance.errors import InputError
from datasets.contents import digest_files
from datasets.labelled.checks import LabelCounts, check_values, count_labels, refuse_shared
from datasets.labelled.corrupt import without
from datasets.labelled.description import LabelledSet
from datasets.labelled.tile_samples import TileBatch, TileSamples
from datasets.labelled.tiles import Cut, Sample, Tiles, stacked
from datasets.sampling.loader import IndexedLoader
from engine.job import Config, Running
from engine.log import logger
from engine.loop import digest
from engine.ranks import World, gather, together
from engine.settings import to_record
from finetune.model_files import Inputs
from finetune.pictures import colour_channels, draw_segmentation
from finetune.pixel_network import PixelNetwork
from finetune.scores import SegmentationScores, segmentation_record, segmentation_scores
from finetune.task import MODEL, Task
from finetune.tasks.dense_config import NONE, TileDataConfig
from finetune.tasks.evaluate import evaluate, predict
from finetune.tasks.left_out import sources_left_out, told_without

PICTURES = 4  # images in every picture
NOT_LEARNT = ("set", "path", "workers", "max_broken")  # of the data settings: may change when a run goes on


class DenseTask(Task[Config]):
    """A task on tiles with label maps.

    The settings tree has `data` (`TileDataConfig`), `augment`, `evaluate_without`, and those of every run.

    Attributes:
        learnt: settings, beside those of the data, that must be the same when a run goes on.
        noun: what a sample is called.
        roles: of the images that the network takes, by its names for them.
    """

    headline = {"miou": "mIoU", "oa": "OA", "mf1": "mF1", "mkappa": "mKappa"}
    learnt: ClassVar[tuple[str, ...]]
    noun: ClassVar[str] = "tiles"
    roles: Mapping[str, str]

    def __init__(self, config: Config, world: World, described: LabelledSet, *, evaluate_every: int) -> None:
        """
        Args:
            described: with mean and deviation of every band.
        """
        super().__init__(config, world, evaluate_every=evaluate_every, picture_every=config.run.picture_every)
        self.data: TileDataConfig = getattr(config, "data")  # noqa: B009 - of every settings tree of such a task
        self.described = described
        self.parts = [self.data.evaluate, *([self.data.test] if self.data.test else [])]
        self.tiles = {split: self.open(split) for split in (self.data.train, *self.parts)}
        if self.data.overlap == "refuse":
            for split in self.parts:
                refuse_shared(self.tiles[self.data.train], self.tiles[split])
        for tiles in self.tiles.values():
            for index in {0, len(tiles) // 2, len(tiles) - 1}:  # mistakes of the description show at the start
                tiles[index]
        self.left_out = sources_left_out(self.evaluate_without, list(self.roles.values()))
        self.loader = self.deal_tiles(self.tiles[self.data.train])
        self.max_broken = self.data.max_broken
        self.identity = self._identity()

    @property
    @abstractmethod
    def inputs(self) -> Inputs:
        """Classes and images of the network, for its file."""

    @property
    def evaluate_without(self) -> str:
        """The setting of this name."""
        return getattr(self.config, "evaluate_without", NONE)

    def network(self, model: nn.Module) -> PixelNetwork:
        """The part of what is trained that predicts."""
        assert isinstance(model, PixelNetwork), "what make_model makes"
        return model

    def record(self, scores: SegmentationScores) -> dict[str, Any]:
        """What scores.json says of them."""
        return segmentation_record(scores, list(self.described.classes))

    def open(self, split: str, *, labelled: bool = True) -> Tiles:
        """The tiles of a split; of the one that is learnt from, a share of the images, whose windows may overlap."""
        data, learnt = self.data, split == self.data.train
        stride = data.stride or data.window
        cut = Cut(data.window, stride if learnt or not labelled else None) if data.window and stride else None
        share = {"share": data.share, "seed": self.config.run.seed} if learnt else {}
        return Tiles(self.described, split, cut=cut, labelled=labelled, **share)

    def deal_tiles(self, tiles: Tiles, seed: int | None = None) -> IndexedLoader[TileBatch]:
        """A loader of augmented, standardised tiles, drawn by a seed (None: that of the run)."""
        seed = self.config.run.seed if seed is None else seed
        make = TileSamples(tiles, getattr(self.config, "augment"), seed)  # noqa: B009 - see `data`
        return self.deal(tiles.keys, make, seed=seed, workers=self.data.workers)

    def given(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images of a batch by role -> on the device, by the network's names."""
        return {name: images[role].to(self.world.device) for name, role in self.roles.items()}

    def begin(self, run: Running) -> None:
        if not self.loader.step:
            self._check_labels()
        for tiles in self.tiles.values():
            logger.info("%s: %d %s of %s", tiles.split, len(tiles), self.noun, self.described.name)
            for reason in tiles.skipped[:3]:
                logger.warning("%s lacks %d %s, such as %s", tiles.split, len(tiles.skipped), self.noun, reason)
        if len(self.parts) == 1 and self.evaluate_every:
            logger.info("the best network is chosen on %s, the %s that are reported; give data.evaluate and data.test two "
                        "splits to choose without looking at those; %s has %s", self.parts[0], self.noun,
                        self.described.name, ", ".join(self.described.splits))  # fmt: skip
        super().begin(run)

    def score(self, model: nn.Module, part: str) -> dict[str, Any]:
        tiles, broken = self.tiles[part], set()
        record = self.record(self.scores(model, tiles, broken))
        left_out = len(set().union(*gather(broken)))
        record |= {"broken": left_out} if left_out else {}
        return {"split": part, self.noun: len(tiles) - left_out, **record}

    def scores(
        self, model: nn.Module, tiles: Tiles, broken: set[str], lacking: str | None = None
    ) -> SegmentationScores:
        """Scores of all tiles of a split, each rank predicting its part.

        Args:
            broken: gets what cannot be read, which is said.
            lacking: role of an image that the network gets nothing of but means.
        """
        rank, size, count = self.world.rank, self.world.size, len(tiles)
        own = list(range(rank, count, size))
        padded = own + [0] * (math.ceil(count / size) - len(own))  # ranks that share weights go forward together

        def say(error: InputError) -> None:
            logger.error("not scored: %s", error)
            broken.add(str(error))

        corrupt = None if lacking is None else lambda sample, _: without(sample, lacking)
        options = {"device": self.world.device, "on_broken": say, "corrupt": corrupt}
        found = evaluate(self.network(model), tiles, padded, **options)[: len(own)]
        return segmentation_scores(torch.cat(list(gather(found))))

    def report(self, run: Running, done: int, *, last: bool) -> None:
        super().report(run, done, last=last)
        if last and self.left_out and self.best is not None:
            self._score_without(run)

    def picture(self, model: nn.Module) -> Callable[[Path], None] | None:
        tiles, chosen = self.tiles[self.parts[0]], []
        for index in sorted({index * len(tiles) // PICTURES for index in range(PICTURES)}):
            with suppress(InputError):  # the evaluation says it
                chosen.append(tiles[index])
        if not chosen:
            return None
        network, described = self.network(model), tiles.described
        found = [predict(network, sample, described, device=self.world.device) for sample in chosen]
        h, w = (min(sample.label.shape[axis] for sample in chosen) for axis in (0, 1))  # images may differ in size
        shown = stacked([sample.map(lambda image: image[..., :h, :w]) for sample in chosen])
        shown = Sample({role: shown.images[role] for role in self.roles.values()}, shown.label)
        return partial(
            draw_segmentation,
            sample=shown,
            predicted=torch.cat([classes[..., :h, :w] for classes in found]),
            classes=described.classes,
            title=f"{described.name}, step {self.loader.step}",
            channels={role: colour_channels(described.image(role)) for role in shown.images},
        )

    def _score_without(self, run: Running) -> None:
        """Score the kept network once more without each source, and say how much of the scores is lost."""
        network, tiles = together(lambda: self.load(run.folder.path / MODEL)), self.tiles[self.parts[-1]]
        records = {}
        for role in self.left_out:
            scores = self.record(self.scores(network, tiles, set(), lacking=role))
            records[role] = told_without(role, scores, self.written, self.headline)
        self._write(run, {**self.written, "without": records})

    def _check_labels(self) -> None:
        """Read every label map once, each rank a part: another numbering of classes shows before the first step."""
        whole, counts = self.data.find(whole=True), {}
        for tiles in self.tiles.values():
            own = count_labels(tiles, range(self.world.rank, len(tiles), self.world.size), whole)
            counts[tiles.split] = LabelCounts()
            for each in gather(own):
                counts[tiles.split].add(each)
        for line in together(lambda: check_values(whole, counts, whole.class_names(self.data.drop_classes))):
            logger.warning("%s: %s", self.described.name, line)

    def _identity(self) -> dict[str, Any]:
        record = to_record(self.config)
        data = {key: value for key, value in record["data"].items() if key not in NOT_LEARNT}
        keys = {split: digest(tiles.keys) for split, tiles in self.tiles.items()}
        values = {
            str(stored): index for stored, index in self.described.label.table(len(self.described.classes)).items()
        }
        contents = {split: contents_of(tiles) for split, tiles in self.tiles.items()}
        data |= {
            "pairs of each split": keys,
            "contents of each split": contents,
            "label values": values,
            **json.loads(json.dumps(self.inputs.to_record())),
        }
        settings = {name: record[name] for name in self.learnt}
        return {**settings, "data": data, "weights": self.begins_with(), "seed": self.config.run.seed}

    def begins_with(self) -> dict[str, str]:
        """Checksums of the weights that the network begins with, by setting."""
        checkpoint: str = getattr(self.config, "checkpoint", "")
        return {"checkpoint": digest_of(checkpoint)} if checkpoint else {}


def contents_of(tiles: Tiles) -> str:
    """One checksum of all files of a split."""
    return digest_files({f"{files.key}/{role}": path for files in tiles.images for role, path in files.paths.items()})


def refuse_single(batching: Any, world: World) -> None:
    """Refuse passes of one sample on one rank, which batch normalisation cannot learn from.

    Raises:
        InputError: they are.
    """
    if batching.micro < 2 and (world.size == 1 or world.device.type == "cpu"):
        raise InputError(
            f"a pass of {batching.micro} sample has no variance for batch normalisation; raise optim.batch or "
            f"engine.micro_batch to 2 samples per rank at least"
        )
