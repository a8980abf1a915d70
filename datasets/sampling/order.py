"""The order of samples: a pure function of (seed, epoch), looked up anywhere without walking there."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Cache(OrderedDict[Hashable, T]):
    """The most recently used values, at most `size` of them."""

    def __init__(self, size: int, discard: Callable[[T], object] = id) -> None:
        super().__init__()
        self.size = size
        self.discard = discard

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key, made if it is not there."""
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make()
        if len(self) > self.size:
            self.discard(self.popitem(last=False)[1])
        return value


class Places(NamedTuple):
    """Where samples lie: shard number and number within the shard, int64 (n,) each."""

    shard: np.ndarray
    sample: np.ndarray


class _Epoch(NamedTuple):
    shards: np.ndarray  # permuted
    starts: np.ndarray  # position of each group's first sample, and the end


def shuffled(count: int, *key: int) -> np.ndarray:
    """A permutation (count,) of 0 .. count - 1 that depends on the key alone, on every machine and numpy version."""
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable")


class SampleOrder:
    """An endless stream of samples: epoch after epoch, shards permuted, then samples within groups of shards.

    Every epoch holds each sample once. A batch is any slice of the stream; nothing is dropped between epochs.
    Memory is proportional to the shards and to one group, whatever the number of samples.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int, group: int = 16) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        self.seed = seed
        self.group = group
        self._epochs: Cache[_Epoch] = Cache(2)
        self._groups: Cache[Places] = Cache(4)

    def epoch(self, position: int) -> float:
        """Epochs passed before this position of the stream."""
        return position / self.samples

    def locate(self, positions: np.ndarray) -> Places:
        """Where the samples at these positions (b,) of the stream lie: two arrays (b,)."""
        positions = np.asarray(positions, dtype=np.int64)
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        found = np.zeros(positions.shape, bool)
        while not found.all():
            first, content = self._group_of(int(positions[found.argmin()]))
            inside = positions - first
            here = (inside >= 0) & (inside < len(content.shard))
            inside = inside[here]
            shard[here], sample[here] = content.shard[inside], content.sample[inside]
            found |= here
        return Places(shard, sample)

    def _group_of(self, position: int) -> tuple[int, Places]:
        """The group that holds this position of the stream, and the position of its first sample."""
        epoch, place = divmod(position, self.samples)
        starts = self._epoch(epoch).starts
        group = int(starts.searchsorted(place, side="right")) - 1
        return epoch * self.samples + int(starts[group]), self._group(epoch, group)

    def _epoch(self, epoch: int) -> _Epoch:
        return self._epochs.get_or_make(epoch, lambda: self._permute_shards(epoch))

    def _group(self, epoch: int, group: int) -> Places:
        return self._groups.get_or_make((epoch, group), lambda: self._permute_group(epoch, group))

    def _permute_shards(self, epoch: int) -> _Epoch:
        shards = shuffled(len(self.counts), self.seed, epoch)
        sizes = np.add.reduceat(self.counts[shards], np.arange(0, len(shards), self.group))
        return _Epoch(shards, np.concatenate([[0], np.cumsum(sizes)]))

    def _permute_group(self, epoch: int, group: int) -> Places:
        shards = self._epoch(epoch).shards[group * self.group : (group + 1) * self.group]
        counts = self.counts[shards]
        order = shuffled(int(counts.sum()), self.seed, epoch, group + 1)
        shard = np.repeat(shards, counts)
        sample = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Places(shard[order], sample[order])
