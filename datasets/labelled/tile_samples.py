"""Training micro-batches of pairs: read, augmented, standardised; a pair that cannot be read has no labels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.labelled.augment import Draw, PairAugmentConfig, augment, draw_augmentations
from datasets.labelled.tiles import Pair, PairTiles, blank_pair
from datasets.sampling.faults import Fault
from datasets.sampling.loader import Place


class PairBatch(NamedTuple):
    """optical (b, c, h, w) and sar (b, c, h, w) standardised float32, 0 where missing; label (b, h, w) int64."""

    optical: Tensor
    sar: Tensor
    label: Tensor
    keys: Sequence[str]
    faults: Sequence[Fault]


class PairSamples:
    """Makes micro-batches of a split; what it makes depends on the seed and the place alone."""

    def __init__(self, tiles: PairTiles, config: PairAugmentConfig, seed: int) -> None:
        self.tiles, self.config, self.seed = tiles, config, seed

    def __call__(self, place: Place) -> PairBatch:
        draws = draw_augmentations(self.seed, place.step, place.positions)
        faults: list[Fault] = []
        taken = [self._take(number, draw, faults) for number, draw in zip(place.samples.tolist(), draws, strict=True)]
        optical, sar, label = (torch.stack(column) for column in zip(*taken, strict=True))
        pairs = self.tiles.pairs
        keys = [self.tiles.keys[number] for number in place.samples]
        return PairBatch(pairs.optical.standardise(optical), pairs.sar.standardise(sar), label, keys, faults)

    def _take(self, number: int, draw: Draw, faults: list[Fault]) -> Pair:
        try:
            return augment(self.tiles[number], draw, self.config)
        except InputError as error:
            faults.append(Fault("pair", self.tiles.split, self.tiles.keys[number], str(error)))
            return blank_pair(self.tiles.pairs, self.config.crop)
