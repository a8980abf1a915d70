"""Endless micro-batches of samples that are found by number: the same ones for any number of ranks and threads."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from datasets.sampling.order import SampleOrder

T = TypeVar("T")
AHEAD = 2  # micro-batches that a thread may be ahead of the training


class Place(NamedTuple):
    """Which samples make a micro-batch."""

    step: int
    positions: np.ndarray  # (b,) int64, places in the step's global batch
    samples: np.ndarray  # (b,) int64, numbers of the samples


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How global batches are dealt out: batch = micro * accumulation * world."""

    micro: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    @property
    def batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.micro * self.accumulation * self.world


class IndexedLoader(Generic[T]):
    """Samples epoch after epoch, each epoch permuted anew by (seed, epoch); a batch may span two epochs.

    Args:
        keys: names of the samples, in the order of their numbers.
        make: a micro-batch of its place; called in `workers` threads, or, if 0, when the batch is asked for.
    """

    def __init__(
        self, keys: Sequence[str], make: Callable[[Place], T], dealing: Dealing, *, seed: int, workers: int = 0
    ) -> None:
        self.keys, self.make, self.dealing, self.workers = keys, make, dealing, workers
        self.order = SampleOrder([len(keys)], seed)
        self.step = 0  # the first one that was not taken whole

    def __iter__(self) -> Iterator[T]:
        for number, made in enumerate(self._read_ahead(self._places(self.step)), start=1):
            if number % self.dealing.accumulation == 0:
                self.step += 1
            yield made

    def global_keys(self, step: int) -> list[str]:
        """Names of the samples of a whole global batch, in order."""
        return [self.keys[int(number)] for number in self._samples(step, np.arange(self.dealing.batch)).tolist()]

    def epoch(self) -> float:
        """Epochs that were taken."""
        return self.order.epoch(self.step * self.dealing.batch)

    def state_dict(self) -> dict[str, Any]:
        """The first step that was not taken whole."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; iterate anew afterwards."""
        self.step = int(state["step"])

    def _samples(self, step: int, positions: np.ndarray) -> np.ndarray:
        return self.order.locate(step * self.dealing.batch + positions).sample

    def _places(self, first: int) -> Iterator[Place]:
        deal = self.dealing
        for step in itertools.count(first):
            for micro in range(deal.accumulation):
                positions = (micro * deal.world + deal.rank) * deal.micro + np.arange(deal.micro)
                yield Place(step, positions, self._samples(step, positions))

    def _read_ahead(self, places: Iterator[Place]) -> Iterator[T]:
        if not self.workers:
            yield from map(self.make, places)
            return
        threads = ThreadPoolExecutor(self.workers, "reader")
        begun = deque(threads.submit(self.make, place) for place in itertools.islice(places, AHEAD * self.workers))
        try:
            for place in places:
                ready = begun.popleft()
                begun.append(threads.submit(self.make, place))
                yield ready.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
