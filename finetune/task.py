"""The frame of every task: train, score, keep the best or the last network, draw, write scores and network.

A task brings its data, its network, its loss and its scores; see `Task`.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from alliance.errors import InputError
from datasets.sampling.loader import Dealing, IndexedLoader
from engine.build import deal_batch
from engine.checkpoints import full_weights
from engine.job import Config, Job, Running
from engine.log import logger, report_disk_errors
from engine.loop import digest
from engine.ranks import World, from_main, together
from engine.runs import due
from engine.training import count_parameters
from finetune.scores import shown, write_scores

SCORES = "scores.json"
MODEL = "model"  # folder of the network


class Task(Job[Config]):
    """A job whose network is scored, and of which one network is kept.

    With `evaluate_every`, the network with the best first score of `headline` is kept, and at the end scored on a second
    part of the data if there is one; without it, that of the last step.

    Attributes:
        headline: titles of the scores that are logged, by their names in scores.json.
        parts: names of the parts of the data that are scored: the one that decides, and perhaps one after the last step.
        loader: of the training samples, see `deal`.
    """

    headline: ClassVar[Mapping[str, str]]
    parts: Sequence[str]
    loader: IndexedLoader[Any]

    def __init__(
        self, config: Config, world: World, *, evaluate_every: int = 0, picture_every: int | None = None
    ) -> None:
        """
        Args:
            evaluate_every: steps; 0: only after the last one.
            picture_every: steps; 0: only after the last one; None: never.
        """
        self.config, self.world = config, world
        self.evaluate_every, self.picture_every = evaluate_every, picture_every
        self.batching = deal_batch(config.optim.batch, config.engine.micro_batch, world.size)
        self.best: dict[str, Any] | None = None  # record of the best evaluation so far
        self.written: dict[str, Any] = {}  # what scores.json holds
        self.evaluated = 0  # steps done at the last evaluation
        self.began, self.earlier = time.perf_counter(), 0.0  # seconds of the same run before it was interrupted

    @abstractmethod
    def score(self, model: nn.Module, part: str) -> dict[str, Any]:
        """Scores on a part of the data, in percent, ready for scores.json; called on all ranks."""

    @abstractmethod
    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write the network for `finetune/predict.py`; called on the main rank."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """Read what `save` wrote, onto this rank's device."""

    def picture(self, model: nn.Module) -> Callable[[Path], None] | None:
        """Predict a few samples, on all ranks; what draws them, which the main one calls; None: there is nothing to draw."""
        raise NotImplementedError(f"{type(self).__name__} draws no pictures")

    def deal(self, keys: Sequence[str], make: Callable[..., Any], *, seed: int, workers: int = 0) -> IndexedLoader[Any]:
        """A loader that deals the samples with these names out to ranks and passes."""
        dealing = Dealing(micro=self.batching.micro, accumulation=self.batching.accumulation,
                          rank=self.world.rank, world=self.world.size)  # fmt: skip
        return IndexedLoader(keys, make, dealing, seed=seed, workers=workers)

    @property
    def seconds(self) -> float:
        """Of training and scoring, those before an interruption included."""
        return self.earlier + time.perf_counter() - self.began

    def batches(self) -> Iterator[Any]:
        return iter(self.loader)

    def progress(self, step: int) -> dict[str, Any]:
        return {"epoch": self.loader.epoch(), "sample_digest": digest(self.loader.global_keys(step))}

    def state_dict(self) -> dict[str, Any]:
        own = {"best": self.best, "evaluated": self.evaluated, "seconds": self.seconds}
        return {**self.loader.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self.best, self.evaluated, self.earlier = state["best"], state["evaluated"], state["seconds"]

    def begin(self, run: Running) -> None:
        done = self.loader.step
        if done and due(done, self.evaluate_every) and self.evaluated != done:
            self._evaluate(run, done)

    def reports(self, done: int) -> bool:
        return due(done, self.evaluate_every) or due(done, self.picture_every)

    def report(self, run: Running, done: int, *, last: bool) -> None:
        if due(done, self.evaluate_every, last=last):
            self._evaluate(run, done)
        if last and len(self.parts) > 1 and self.best is not None:
            network = together(lambda: self.load(run.folder.path / MODEL))
            record = self._record(run, network, self.parts[1], done)
            self._write(run, {**record, "step": self.best["step"], "chosen on": self.best})
        if due(done, self.picture_every, last=last):
            self._draw(run, done)

    def conclude(self, run: Running) -> None:
        if self.best is None:
            raise InputError(f"no network could be written into {run.folder.path}; make room, then give the command again "
                             f"with --run.resume auto")  # fmt: skip
        name, title = next(iter(self.headline.items()))
        logger.info("%s %s after step %d; scores are in %s, the network in %s", title, shown(self.written[name]),
                    self.written["step"], run.folder.path / SCORES, run.folder.path / MODEL)  # fmt: skip

    def _evaluate(self, run: Running, done: int) -> None:
        """Score the network, say it, and keep it if it is the best so far."""
        record = self._record(run, run.engine.module, self.parts[0], done)
        self.evaluated = done
        decisive = next(iter(self.headline))
        if (self.best is None or (record[decisive] or 0) > (self.best[decisive] or 0)) and self._export(run):
            self.best = record
        self._write(run, {**(self.best or {}), "last": record} if self.evaluate_every else record)

    def _record(self, run: Running, model: nn.Module, part: str, done: int) -> dict[str, Any]:
        """Score a part of the data and say it."""
        record = {**self.score(model, part), "step": done}
        told = "  ".join(f"{title} {shown(record[name])}" for name, title in self.headline.items())
        logger.info("step %d on %s: %s", done, part, told)
        run.write(event="scores", **{**record, "part": part, "step": done - 1})
        return record

    def _write(self, run: Running, record: Mapping[str, Any]) -> None:
        self.written = dict(record)
        if self.world.is_main:
            with report_disk_errors(SCORES, must=not self.evaluate_every):
                write_scores(run.folder.path / SCORES, record)

    def _export(self, run: Running) -> bool:
        """Write the network; whether it is there, on all ranks."""
        weights, written = full_weights(run.engine, ""), False
        if weights is not None:
            with report_disk_errors("the network", must=not self.evaluate_every):
                self.save(run.engine.module, weights, run.folder.path / MODEL)
                written = True
        return from_main(written)

    def _draw(self, run: Running, done: int) -> None:
        draw = self.picture(run.engine.module)
        if draw is None or not self.world.is_main:
            return
        path = run.folder.pictures / f"step_{done:08d}.png"
        with report_disk_errors(f"picture {path.name}"):
            draw(path)
            run.write(event="picture", step=done - 1, path=path.name)


def parameters_of(model: nn.Module) -> int:
    """How many values a network has, also where ranks share them."""
    return sum(map(count_parameters, model.parameters()))
