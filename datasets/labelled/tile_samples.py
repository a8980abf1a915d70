"""Training micro-batches of tiles: read, augmented, standardised; a tile that cannot be read has no labels."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from alliance.errors import InputError
from datasets.labelled.augment import AugmentConfig, Draw, augment, draw_augmentations
from datasets.labelled.tiles import Sample, Tiles, blank_sample, stacked
from datasets.sampling.faults import Fault
from datasets.sampling.loader import Place


class TileBatch(NamedTuple):
    """images (b, c, h, w) by role, standardised float32, 0 where missing; label (b, h, w) int64."""

    images: dict[str, Tensor]
    label: Tensor
    keys: Sequence[str]
    faults: Sequence[Fault]


class TileSamples:
    """Makes micro-batches of a split; what it makes depends on the seed and the place alone."""

    def __init__(self, tiles: Tiles, config: AugmentConfig, seed: int) -> None:
        self.tiles, self.config, self.seed = tiles, config, seed

    def __call__(self, place: Place) -> TileBatch:
        draws = draw_augmentations(self.seed, place.step, place.positions)
        faults: list[Fault] = []
        taken = [self._take(number, draw, faults) for number, draw in zip(place.samples.tolist(), draws, strict=True)]
        batch, sources = stacked(taken), self.tiles.described.images
        keys = [self.tiles.keys[number] for number in place.samples]
        images = {role: sources[role].standardise(image) for role, image in batch.images.items()}
        return TileBatch(images, batch.label, keys, faults)

    def _take(self, number: int, draw: Draw, faults: list[Fault]) -> Sample:
        try:
            return augment(self.tiles[number], draw, self.config)
        except InputError as error:
            faults.append(Fault("pair", self.tiles.split, self.tiles.keys[number], str(error)))
            return blank_sample(self.tiles.described, self.config.crop)
