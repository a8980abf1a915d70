"""What tasks that label whole images share: the network, its scores, pictures and tables."""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from alliance.checkpoint import digest_of
from alliance.errors import InputError
from datasets.chips.reading import Chips, batch_of
from datasets.chips.samples import ChipSamples
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import palette_colour
from datasets.imagery.scenes import summarise
from engine.job import Running
from engine.log import logger, report_disk_errors
from engine.probing import evaluating
from engine.ranks import World, gather, together
from engine.runs import RunFolder
from engine.settings import to_record
from finetune.backbones.standardising import encoder_statistics
from finetune.chips.checkpoint import ChipTaskName, load_chips, probabilities, save_chips
from finetune.chips.model import BESIDE, IMAGE, ChipNetwork
from finetune.chips.pictures import Shown, draw_chips
from finetune.chips.scores import Labelled, label_names
from finetune.chips.tables import Line, write_labels
from finetune.model_files import Inputs, image_input
from finetune.pictures import colour_channels
from finetune.task import MODEL, Task
from finetune.tasks.chips_config import ChipTaskConfig
from finetune.tasks.chips_data import chip_labels, contents_of, open_parts, usual_size, write_splits
from finetune.tasks.left_out import sources_left_out, told_without

Config = TypeVar("Config", bound=ChipTaskConfig)
PREDICTIONS, SPLIT = "predictions.csv", "splits.csv"
PICTURES = 16  # images in every picture
BATCH = 64  # images at once, at most, that are evaluated
# Of the data settings: may change when a run goes on.
NOT_LEARNT = ("path", "beside_path", "workers", "max_broken", "overlap")


class Predicted(NamedTuple):
    """What a network said of a part of the data."""

    part: str
    numbers: NDArray[np.int64]  # (n,) of the images that could be read
    found: Labelled


class ChipTask(Task[Config]):
    """An Alliance encoder with a small head on whole images.

    Attributes:
        kind: of the task, in the file of the network.
    """

    kind: ClassVar[ChipTaskName]
    learnt: ClassVar[tuple[str, ...]] = ("augment", "checkpoint", "model", "optim", "evaluate_every")

    def __init__(self, config: Config, world: World) -> None:
        seed = config.run.seed

        def settle(images: Mapping[str, ImageSource]) -> Mapping[str, ImageSource]:
            return encoder_statistics(config.model.encoder, config.checkpoint, images)

        self.data = open_parts(config.data, several=self.several, seed=seed, settle=settle)
        self.train = self.data.train
        self.source, self.classes = self.train.source, self.train.classes
        self.images = {IMAGE: self.source} | ({BESIDE: self.train.second.source} if self.train.second else {})
        self.model = config.model.with_sensors(self.images)
        self.left_out = sources_left_out(config.evaluate_without, list(self.images))
        super().__init__(config, world, evaluate_every=config.evaluate_every, picture_every=config.run.picture_every)
        self.parts, self.max_broken = self.data.scored, config.data.max_broken
        self.size = config.data.size or usual_size(self.train, config)
        make = ChipSamples(self.train, config.augment, self.size, seed)
        self.loader = self.deal(self.train.keys, make, seed=seed, workers=config.data.workers)
        self.latest: Predicted | None = None
        self.scores: dict[str, Any] | None = None  # of the latest predictions
        self.identity = self._identity()

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.kind == "multilabel"

    @abstractmethod
    def record(self, found: Labelled) -> dict[str, Any]:
        """What scores.json says of predictions."""

    @property
    def inputs(self) -> Inputs:
        """Classes and image of the network, for its file."""
        colours = {name: palette_colour(number) for number, name in enumerate(self.classes)}
        return Inputs(classes=colours, images={name: image_input(each) for name, each in self.images.items()})

    def make_model(self) -> ChipNetwork:
        channels = {name: len(source.moments[0]) for name, source in self.images.items()}
        return ChipNetwork(self.model, channels, len(self.classes), self.size, checkpoint=self.config.checkpoint)

    def describe(self, folder: RunFolder) -> None:
        with report_disk_errors(SPLIT):
            write_splits(folder.path / SPLIT, self.data.chips)

    def begin(self, run: Running) -> None:
        found, counts = self.data.found, self.train.targets.sum(dim=0).long().tolist()
        for line in found.notes + [f"left out: {line}" for line in summarise(found.skipped)]:
            logger.warning(line)
        told = ", ".join(f"{name} {len(chips)}" for name, chips in self.data.chips.items())
        logger.info("%s images: %s; %d classes, of %d pixels (model.fit %s)", "drawn" if self.data.drawn else "given", told,
                    len(self.classes), self.size, self.model.fit)  # fmt: skip
        absent = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if absent:
            logger.warning("no training image is labelled %s: that cannot be learnt", ", ".join(absent))
        if len(self.parts) == 1:
            logger.info("the best network is chosen on %s, the images that are reported; three splits choose without looking "
                        "at those", self.parts[0])  # fmt: skip
        super().begin(run)

    def score(self, model: nn.Module, part: str) -> dict[str, Any]:
        self.latest = self.predict(model, part)
        count = len(self.latest.numbers)
        broken = len(self.data.chips[part]) - count
        told = {"images": count, "train_images": len(self.train)} | ({"broken": broken} if broken else {})
        self.scores = {"split": part, **told, **self.record(self.latest.found)}
        return self.scores

    def predict(self, model: nn.Module, part: str, *, lacking: str | None = None) -> Predicted:
        """Probabilities and truth of all images of a part that can be read, each rank predicting its share.

        Args:
            lacking: name of an image that the network gets nothing of but means.
        Raises:
            InputError: none can be read.
        """
        chips, size = self.data.chips[part], self.world.size
        share = math.ceil(len(chips) / size)
        own = list(range(self.world.rank, len(chips), size))
        padded = own + [0] * (share - len(own))  # ranks that share weights go forward together
        starts = range(0, share, BATCH)
        said = [self._chances(model, chips, padded[start : start + BATCH], lacking=lacking) for start in starts]
        rows = list(gather(tuple(np.concatenate(each)[: len(own)] for each in zip(*said, strict=True))))
        chances, weights = (np.concatenate(each) for each in zip(*rows, strict=True))
        numbers = np.concatenate([np.arange(rank, len(chips), size) for rank in range(size)])
        order = np.argsort(numbers)
        fine = order[weights[order] > 0]
        if not len(fine):
            raise InputError(f"none of the {len(chips)} images of {part} can be read; the log names the first of them")
        truth = chips.targets.numpy() > 0
        return Predicted(part, numbers[fine], Labelled(chances[fine].astype(np.float64), truth[numbers[fine]]))

    def _chances(
        self, model: nn.Module, chips: Chips, numbers: Sequence[int], *, say: bool = True, lacking: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities (b, k) of some images, and 0 for those that cannot be read, else 1: (b,); these are named if `say`."""
        batch = batch_of(chips, numbers, self.size, fit=self.model.fit)
        if lacking is not None:
            own = len(self.source.moments[0])
            batch.image[:, slice(None, own) if lacking == IMAGE else slice(own, None)] = 0
        for fault in batch.faults if say and lacking is None else ():
            logger.error("not scored: %s", fault)
        dtype = next(model.parameters()).dtype
        with evaluating(model):
            logits = model(batch.image.to(self.world.device, dtype)).logits
        return probabilities(logits, self.kind).cpu().numpy(), batch.weight.numpy()

    def report(self, run: Running, done: int, *, last: bool) -> None:
        super().report(run, done, last=last)
        if last and self.best is not None:
            self._write_predictions(run, done)
            if self.left_out:
                self._score_without(run)

    def _score_without(self, run: Running) -> None:
        """Score the kept network once more without each image, and say how much of the scores is lost."""
        network, part = together(lambda: self.load(run.folder.path / MODEL)), self.parts[-1]
        records = {}
        for name in self.left_out:
            found = self.record(self.predict(network, part, lacking=name).found)
            records[name] = told_without(name, found, self.written, self.headline)
        self._write(run, {**self.written, "without": records})

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        assert isinstance(model, ChipNetwork), "what make_model makes"
        save_chips(model, weights, folder, self.inputs, task=self.kind)

    def load(self, folder: Path) -> nn.Module:
        return load_chips(folder, device=self.world.device).network

    def picture(self, model: nn.Module) -> Callable[[Path], None]:
        chips = self.data.chips[self.parts[0]]
        chosen = sorted({number * len(chips) // PICTURES for number in range(PICTURES)})
        chances, weights = self._chances(model, chips, chosen, say=False)
        channels = colour_channels(self.source)
        channels = channels if len(set(channels)) > 1 else channels[:1]
        shown = [
            Shown(chips.read(number).numbers[channels], chips.chips[number].labels, self._labels(row))
            for number, row, weight in zip(chosen, chances, weights, strict=True)
            if weight
        ]
        title = f"images of {chips.part}, step {self.loader.step}"
        return partial(draw_chips, shown=shown, record=self.scores, title=title)

    def _labels(self, row: NDArray[np.floating]) -> list[str]:
        return label_names(row, self.classes, several=self.several)

    def _write_predictions(self, run: Running, done: int) -> None:
        """The table of the kept network on the last part."""
        latest, best = self.latest, self.best or {}
        if latest is None or latest.part != self.parts[-1] or (len(self.parts) == 1 and best["step"] != done):
            network = together(lambda: self.load(run.folder.path / MODEL))
            latest = self.predict(network, self.parts[-1])
        if self.world.is_main:
            with report_disk_errors(PREDICTIONS):
                path = run.folder.path / PREDICTIONS
                write_labels(path, self._lines(latest), self.classes, several=self.several)

    def _lines(self, said: Predicted) -> Iterator[Line]:
        chips = self.data.chips[said.part].chips
        for number, row in zip(said.numbers.tolist(), said.found.probabilities, strict=True):
            yield Line(chips[number].name, row, {"truth": ";".join(chips[number].labels)})

    def _identity(self) -> dict[str, Any]:
        record = to_record(self.config)
        data = {key: value for key, value in record["data"].items() if key not in NOT_LEARNT}
        told = {name: chip_labels(part.chips) for name, part in self.data.chips.items()}
        inputs = json.loads(json.dumps(self.inputs.to_record()))
        contents = contents_of(self.data, self.config.data)
        data |= {"images of each split": told, "contents of each split": contents, "resized to": self.size, **inputs}
        weights = {"checkpoint": digest_of(self.config.checkpoint)} if self.config.checkpoint else {}
        settings = {name: record[name] for name in self.learnt}
        return {**settings, "data": data, "weights": weights, "seed": self.config.run.seed}
