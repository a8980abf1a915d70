"""Training micro-batches of chips: read, augmented, mixed; a chip that cannot be read has no weight."""

from typing import NamedTuple

import torch

from datasets.chips.augment import ChipAugmentConfig, draw_augmentations, mixture, view_of
from datasets.chips.reading import ChipBatch, Chips, batch_of
from datasets.sampling.loader import Place


class ChipSamples(NamedTuple):
    """Makes micro-batches of a part of the data; what it makes depends on the seed and the place alone."""

    chips: Chips
    config: ChipAugmentConfig
    size: int  # pixels
    seed: int

    def __call__(self, place: Place) -> ChipBatch:
        draws = draw_augmentations(self.seed, place.step, place.positions)
        size, config = self.size, self.config
        own = batch_of(
            self.chips,
            place.samples.tolist(),
            size,
            lambda index, image: view_of(image, draws[index].view, size, config),
        )
        if not config.mixes:
            return own
        partners = [int(draw.mix[0] * len(self.chips)) for draw in draws]
        others = batch_of(
            self.chips, partners, size, lambda index, image: view_of(image, draws[index].partner, size, config)
        )
        images, targets = [], []
        for index, draw in enumerate(draws):
            image, target = own.image[index], own.target[index]
            if others.weight[index]:
                mixed = mixture(draw.mix, size, config)
                image = mixed.of(image, others.image[index])
                target = mixed.share * target + (1 - mixed.share) * others.target[index]
            images.append(image)
            targets.append(target)
        return own._replace(image=torch.stack(images), target=torch.stack(targets))
