"""Train S2Fin on the training pixels of one split, and score it."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.labelled import PatchSet, split_report, write_split
from datasets.labelled.patch_samples import PatchBatch, PatchSamples
from datasets.sampling.loader import Dealing, IndexedLoader
from datasets.sampling.splits import Indices, Split
from engine.build import deal_batch
from engine.checkpoints import full_weights
from engine.job import Job, Running
from engine.log import logger, report_disk_errors
from engine.loop import digest
from engine.ranks import World, gather
from engine.settings import to_record
from engine.training import count_parameters
from finetune.mapping.pixels import predict_places
from finetune.records import classification_record, write_scores
from finetune.s2fin.checkpoint import save_network
from finetune.s2fin.network import S2Fin, classification_loss
from finetune.scores import Scores, classification_scores, confusion_matrix
from finetune.tasks.classification_config import ClassifyConfig

SCORES = "scores.json"


class Classification(Job[ClassifyConfig]):
    """S2Fin on the training pixels of one split; the network of the last step is scored."""

    def __init__(self, config: ClassifyConfig, world: World, patches: PatchSet, split: Split) -> None:
        self.patches, self.split, self.world = patches, split, world
        given, batch = config, min(config.optim.batch, len(split.train) // world.size * world.size)
        steps = math.ceil(config.epochs * len(split.train) / batch)
        self.config = config = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, steps=steps),
            optim=dataclasses.replace(config.optim, batch=batch),
        )
        self.batching = deal_batch(batch, config.engine.micro_batch, world.size)
        self.loader = IndexedLoader(
            [str(pixel) for pixel in split.train], PatchSamples(patches, split.train, config.run.seed),
            Dealing(micro=self.batching.micro, accumulation=self.batching.accumulation, rank=world.rank, world=world.size),
            seed=config.run.seed,
        )  # fmt: skip
        report = split_report(patches, split)
        self.splits = report | {"leakage": 100 * report["leakage"]}  # percent, as all scores
        record = to_record(given)  # with the batch that was asked for
        self.identity = {
            **{name: record[name] for name in ("network", "optim", "epochs")},
            "data": {"benchmark": config.data.benchmark, "components": config.data.components},
            "split": {part: digest(list(map(str, pixels))) for part, pixels in split._asdict().items()},
            "seed": config.run.seed,
        }
        self.began = time.perf_counter()
        self.earlier = 0.0  # seconds of the same run before it was interrupted

    def make_model(self) -> S2Fin:
        channels = {role: max(count, 1) for role, count in self.patches.channels.items()}  # an image may not be there
        return S2Fin(
            self.config.network, bands=channels["spectral"], components=channels["passive"],
            channels=channels["active"], classes=len(self.patches.classes),
        )  # fmt: skip

    def batches(self) -> Iterator[PatchBatch]:
        return iter(self.loader)

    def losses(self, engine: Any, batch: PatchBatch, step: int) -> Mapping[str, Tensor]:
        device = self.world.device
        prediction = engine(*(image.to(device) for image in batch.inputs))
        return {"loss": classification_loss(prediction, batch.label.to(device), self.config.network)}

    def progress(self, step: int) -> dict[str, Any]:
        return {"epoch": self.loader.epoch(), "sample_digest": digest(self.loader.global_keys(step))}

    def state_dict(self) -> dict[str, Any]:
        return {**self.loader.state_dict(), "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self.earlier = state["seconds"]

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    def begin(self, run: Running) -> None:
        if self.world.is_main:
            with report_disk_errors("split.npz"):
                write_split(run.folder.path / "split.npz", self.split, self.patches)
        for name, count in self.patches.dropped.items():
            left = (
                int((self.patches.label == self.patches.classes.index(name)).sum())
                if name in self.patches.classes
                else 0
            )
            logger.warning(
                "%d of %d labelled pixels of %s are left out, as an image has no value there", count, count + left, name
            )
        logger.info("seed %d: %d pixels to train on, %d for validation, %d for test; patches of %.1f %% of the test pixels "
                    "overlap one of training", self.config.run.seed, *map(len, self.split), self.splits["leakage"])  # fmt: skip

    def report(self, run: Running, done: int, *, last: bool) -> None:
        if not last:
            return
        model = run.engine.module
        records = {
            part: classification_record(self.score(model, pixels), self.patches.classes)
            for part, pixels in self.split._asdict().items()
            if part != "train" and len(pixels)
        }
        record = {
            "seed": self.config.run.seed,
            **records["test"],
            "validation": records.get("validation"),
            "split": self.splits,
            "parameters": sum(map(count_parameters, model.parameters())),
            "seconds": round(self._seconds(), 1),
            "readings": model.readings(),
        }
        run.write(event="scores", step=done - 1, **{name: record[name] for name in ("oa", "aa", "kappa")})
        logger.info("seed %d: OA %.2f  AA %.2f  kappa %.2f, leaking test pixels %.1f %%",
                    *(record[name] for name in ("seed", "oa", "aa", "kappa")), self.splits["leakage"])  # fmt: skip
        self._export(run)
        if self.world.is_main:
            with report_disk_errors("scores", must=True):
                write_scores(run.folder.path / SCORES, record)

    def _export(self, run: Running) -> None:
        weights = full_weights(run.engine, "")
        if weights is not None:
            with report_disk_errors("the network", must=True):
                save_network(run.engine.module, weights, run.folder.path / "model", classes=list(self.patches.classes))

    def score(self, model: nn.Module, pixels: Indices) -> Scores:
        """Scores on labelled pixels, each rank predicting its part."""
        share = math.ceil(len(pixels) / self.world.size)
        start = min(self.world.rank * share, len(pixels))
        own = pixels[start : start + share]
        padded = np.append(own, np.repeat(pixels[:1], share - len(own)))  # ranks that share weights go forward together
        predicted = predict_places(model, self.patches, self.patches.place[padded], device=self.world.device)[
            : len(own)
        ]
        truth = torch.from_numpy(self.patches.label[own])
        found = gather(confusion_matrix(truth, predicted, len(self.patches.classes)))
        return classification_scores(torch.stack(list(found)).sum(dim=0))
