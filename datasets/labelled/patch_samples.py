"""Training micro-batches of labelled patches: gathered and mirrored, the same way for all images of a pixel."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from datasets.labelled.patches import Inputs, PatchSet
from datasets.sampling.faults import Fault
from datasets.sampling.loader import Place
from datasets.sampling.splits import Indices

STREAM = 4  # keeps these draws apart from those of other modules with the same seed


class PatchBatch(NamedTuple):
    inputs: Inputs
    label: Tensor  # (b,) int64
    keys: Sequence[str]
    faults: Sequence[Fault] = ()


class PatchSamples:
    """Makes micro-batches of some pixels; what it makes depends on the seed and the place alone."""

    def __init__(self, patches: PatchSet, pixels: Indices, seed: int) -> None:
        self.patches, self.pixels, self.seed = patches, pixels, seed

    def __call__(self, place: Place) -> PatchBatch:
        pixels = self.pixels[place.samples]
        inputs, label = self.patches.batch(pixels)
        raw = np.random.Philox(np.random.SeedSequence([STREAM, self.seed, place.step]))
        turned = torch.from_numpy(raw.random_raw(int(place.positions.max()) + 1)[place.positions] >> 62).to(torch.uint8)
        return PatchBatch(Inputs(*(mirrored(image, turned) for image in inputs)), label, [str(p) for p in pixels])


def mirrored(image: Tensor, which: Tensor) -> Tensor:
    """Mirror images (n, c, h, w): left to right where bit 0 of `which` (n,) is set, upside down where bit 1 is."""
    for bit, axis in ((1, 3), (2, 2)):
        chosen = rearrange((which & bit) > 0, "n -> n 1 1 1")
        image = torch.where(chosen, image.flip(axis), image)
    return image
