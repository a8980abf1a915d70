"""Read all samples of a split once: how many there are of what, statistics of the bands, and what cannot be used."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.imagery.scenes import Skipped
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import Tiles, channels
from datasets.sampling.moments import Moments


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one split holds."""

    tiles: int  # that can be read
    pixels: Tensor  # (k,) int64 of each class
    ignored: int  # pixels
    all_ignored: tuple[str, ...]  # tiles without a labelled pixel
    skipped: tuple[Skipped, ...]  # samples that lack a file or cannot be used
    images: dict[str, Moments]  # by role, of one entry per channel, in the unit of its source

    def describe(self, classes: Iterable[str]) -> list[str]:
        """Lines for people."""
        total = max(int(self.pixels.sum()), 1)
        shares = ", ".join(
            f"{name} {100 * n / total:.2f} %" for name, n in zip(classes, self.pixels.tolist(), strict=True)
        )
        lines = [f"{self.tiles} tiles; labelled pixels: {shares}; {self.ignored} ignored"]
        if self.all_ignored:
            lines.append(f"{len(self.all_ignored)} tiles without a labelled pixel, the first {self.all_ignored[0]}")
        return lines


def survey(tiles: Tiles) -> Survey:
    """Read every sample of a split; those that cannot be used are counted, not raised."""
    described = tiles.described
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    images = {role: Moments.empty(channels(role, described)) for role in described.images}
    skipped, all_ignored = list(tiles.skipped), []
    for index, key in enumerate(tqdm(tiles.keys, desc=f"reading {tiles.split}", unit="tile", disable=None)):
        try:
            sample = tiles[index]
        except InputError as error:
            skipped.append(Skipped(key, str(error)))
            continue
        images = {role: images[role].merge(Moments.of(image)) for role, image in sample.images.items()}
        counts += torch.bincount(sample.label.flatten(), minlength=len(counts))
        if (sample.label == IGNORE).all():
            all_ignored.append(key)
    return Survey(
        tiles=len(tiles) - (len(skipped) - len(tiles.skipped)),
        pixels=counts[: len(described.classes)],
        ignored=int(counts[IGNORE]),
        all_ignored=tuple(all_ignored),
        skipped=tuple(skipped),
        images=images,
    )


def with_statistics(described: LabelledSet, surveyed: Iterable[Survey]) -> LabelledSet:
    """The description with the means and deviations of these splits; a constant band gets deviation 1."""
    surveyed = list(surveyed)
    measured = {}
    for role, source in described.images.items():
        merged = surveyed[0].images[role]
        for each in surveyed[1:]:
            merged = merged.merge(each.images[role])
        std = tuple(value if value > 0 else 1.0 for value in merged.std.tolist())
        measured[role] = replace(source, mean=tuple(merged.mean.tolist()), std=std)
    return described.with_images(**measured)
