"""Train S2Fin on the training pixels of one split, and score it."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alliance.checkpoint import digest_of
from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE
from datasets.labelled import PatchSet, split_report, write_split
from datasets.labelled.patch_samples import PatchBatch, PatchSamples
from datasets.sampling.splits import Indices, Split
from engine.job import Running
from engine.log import logger, report_disk_errors
from engine.loop import digest
from engine.ranks import World, gather
from engine.runs import RunFolder
from engine.settings import to_record
from finetune.mapping.pixels import class_colours, predict_places
from finetune.model_files import Inputs, image_input
from finetune.s2fin.checkpoint import load_network, save_network
from finetune.s2fin.network import S2Fin, S2FinConfig, classification_loss
from finetune.scores import Scores, classification_record, classification_scores, confusion_matrix
from finetune.task import Task, parameters_of
from finetune.tasks.classification_config import ClassifyConfig


class Classification(Task[Any]):
    """S2Fin on the training pixels of one split; the network of the last step is scored and kept."""

    headline = {"oa": "OA", "aa": "AA", "kappa": "kappa"}
    parts = ("test",)

    def __init__(self, config: ClassifyConfig, world: World, patches: PatchSet, split: Split) -> None:
        self.patches, self.split = patches, split
        self.model = network_for(config.model, patches)
        batch = min(config.optim.batch, len(split.train) // world.size * world.size)
        steps = math.ceil(config.epochs * len(split.train) / batch)
        run = dataclasses.replace(config.run, steps=steps)
        own = dataclasses.replace(config, run=run, optim=dataclasses.replace(config.optim, batch=batch))
        super().__init__(own, world)
        self.seed: int = getattr(own.run, "seed")  # noqa: B009 - of one seed
        keys = [str(pixel) for pixel in split.train]
        self.loader = self.deal(keys, PatchSamples(patches, split.train, self.seed), seed=self.seed)
        report = split_report(patches, split)
        self.untrained = [name for name, count in report["train"].items() if not count]
        self.splits = report | {"leakage": 100 * report["leakage"]}  # percent, as all scores
        record = to_record(config)  # with the batch that was asked for
        self.identity = {
            **{name: record[name] for name in ("model", "checkpoint", "optim", "epochs")},
            "data": {name: record["data"][name] for name in ("set", "components", "drop_classes")}
            | {"contents": patches.digest},
            "weights": {"checkpoint": digest_of(config.checkpoint)} if config.checkpoint else {},
            "split": {part: digest(list(map(str, pixels))) for part, pixels in split._asdict().items()},
            "seed": self.seed,
        }

    def make_model(self) -> S2Fin:
        channels = {role: max(count, 1) for role, count in self.patches.channels.items()}  # an image may not be there
        return S2Fin(
            self.model, bands=channels["spectral"], components=channels["passive"], channels=channels["active"],
            classes=len(self.patches.classes), checkpoint=self.config.checkpoint,
        )  # fmt: skip

    def losses(self, engine: Any, batch: PatchBatch, step: int) -> Mapping[str, Tensor]:
        device = self.world.device
        prediction = engine(*(image.to(device) for image in batch.inputs))
        return {"loss": classification_loss(prediction, batch.label.to(device), self.model)}

    def describe(self, folder: RunFolder) -> None:
        with report_disk_errors("split.npz"):
            write_split(folder.path / "split.npz", self.split, self.patches)

    def begin(self, run: Running) -> None:
        for name, count in self.patches.dropped.items():
            left = (
                int((self.patches.label == self.patches.classes.index(name)).sum())
                if name in self.patches.classes
                else 0
            )
            logger.warning(
                "%d of %d labelled pixels of %s are left out, as an image has no value there", count, count + left, name
            )
        if self.patches.excluded:
            counts = ", ".join(f"{name} ({count} pixels)" for name, count in self.patches.excluded.classes.items())
            logger.info("left out as data.drop_classes says: %s", counts)
        if self.untrained:
            logger.warning("no training pixel is labelled %s: that cannot be learnt, and its test pixels count as wrong; "
                           "data.drop_classes leaves it out", ", ".join(self.untrained))  # fmt: skip
        logger.info("seed %d: %d pixels to train on, %d for validation, %d for test; patches of %.1f %% of the test pixels "
                    "overlap one of training", self.seed, *map(len, self.split), self.splits["leakage"])  # fmt: skip
        super().begin(run)

    def score(self, model: nn.Module, part: str) -> dict[str, Any]:
        """Scores on the test pixels, and on those of validation; what else there is to say of the seed."""
        records = {
            each: classification_record(self.scores(model, pixels), self.patches.classes)
            for each, pixels in self.split._asdict().items()
            if each != "train" and len(pixels)
        }
        return {
            "seed": self.seed,
            **records[part],
            "validation": records.get("validation"),
            "split": self.splits,
            **({"untrained": self.untrained} if self.untrained else {}),
            "parameters": parameters_of(model),
            "seconds": round(self.seconds, 1),
            "readings": model.readings() if isinstance(model, S2Fin) else {},
        }

    def scores(self, model: nn.Module, pixels: Indices) -> Scores:
        """Scores on labelled pixels, each rank predicting its part."""
        share = math.ceil(len(pixels) / self.world.size)
        start = min(self.world.rank * share, len(pixels))
        own = pixels[start : start + share]
        padded = np.append(own, np.repeat(pixels[:1], share - len(own)))  # ranks that share weights go forward together
        places = self.patches.place[padded]
        predicted = predict_places(model, self.patches, places, device=self.world.device)[: len(own)]
        truth = torch.from_numpy(self.patches.label[own])
        found = gather(confusion_matrix(truth, predicted, len(self.patches.classes)))
        return classification_scores(torch.stack(list(found)).sum(dim=0))

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        assert isinstance(model, S2Fin), "what make_model makes"
        save_network(model, weights, folder, inputs_of(self.patches))

    def load(self, folder: Path) -> nn.Module:
        return load_network(folder, device=self.world.device)


def inputs_of(patches: PatchSet) -> Inputs:
    """What a network that is trained on these patches needs to know of other scenes."""
    known = {role: each for role, each in patches.preprocessing.items() if len(each.mean)}
    images = {role: image_input(patches.sources.get(role, ImageSource()), each) for role, each in known.items()}
    return Inputs(classes=class_colours(patches), images=images)


def network_for(config: S2FinConfig, patches: PatchSet) -> S2FinConfig:
    """The network with the inputs that a set of patches has: of both, the one that there is.

    Raises:
        InputError: the set lacks the only image of the network, has one class alone, or more than a map can hold.
    """
    count = len(patches.classes)
    if not 2 <= count < IGNORE:
        listed = f", {patches.classes[0]!r}" if count == 1 else ""
        raise InputError(f"the labelled pixels are of {count} class{'es' if count > 1 else ''}{listed}; a classification "
                         f"tells 2 to {IGNORE - 1} apart: label others too, or put rare ones together")  # fmt: skip
    there = [role for role in ("passive", "active") if patches.channels[role]]
    if config.inputs != "both" and config.inputs not in there:
        raise InputError(f"model.inputs is {config.inputs}, the data set has the {' and '.join(there)} image alone; set it "
                         f"to {there[0]}")  # fmt: skip
    if config.inputs == "both" and len(there) == 1:
        logger.info("the data set has the %s image alone; the network takes that", there[0])
        return dataclasses.replace(config, inputs="passive" if there[0] == "passive" else "active")
    return config
