"""Read all pairs of a split once: how many there are of what, statistics of the bands, and pairs that cannot be used."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.imagery.scenes import Skipped
from datasets.labelled.pair_set import ImageSource, PairSet
from datasets.labelled.tiles import PairTiles
from datasets.sampling.moments import Moments


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one split holds."""

    tiles: int  # that can be read
    pixels: Tensor  # (k,) int64 of each class
    ignored: int  # pixels
    all_ignored: tuple[str, ...]  # tiles without a labelled pixel
    skipped: tuple[Skipped, ...]  # pairs that lack a file or cannot be used
    optical: Moments  # of stored numbers, one per band of the description
    sar: Moments

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


def survey(tiles: PairTiles) -> Survey:
    """Read every pair of a split; those that cannot be used are counted, not raised."""
    classes = len(tiles.pairs.classes)
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    optical, sar = (Moments.empty(len(source.bands)) for source in (tiles.pairs.optical, tiles.pairs.sar))
    skipped, all_ignored = list(tiles.skipped), []
    for index, key in enumerate(tqdm(tiles.keys, desc=f"reading {tiles.split}", unit="tile", disable=None)):
        try:
            pair = tiles[index]
        except InputError as error:
            skipped.append(Skipped(key, str(error)))
            continue
        optical, sar = optical.merge(Moments.of(pair.optical)), sar.merge(Moments.of(pair.sar))
        counts += torch.bincount(pair.label.flatten(), minlength=len(counts))
        if (pair.label == IGNORE).all():
            all_ignored.append(key)
    return Survey(
        tiles=len(tiles) - (len(skipped) - len(tiles.skipped)),
        pixels=counts[:classes],
        ignored=int(counts[IGNORE]),
        all_ignored=tuple(all_ignored),
        skipped=tuple(skipped),
        optical=optical,
        sar=sar,
    )


def with_statistics(pairs: PairSet, surveyed: Iterable[Survey]) -> PairSet:
    """The description with the means and deviations of these splits; a constant band gets deviation 1."""
    surveyed = list(surveyed)
    return replace(
        pairs,
        optical=_with_moments(pairs.optical, [each.optical for each in surveyed]),
        sar=_with_moments(pairs.sar, [each.sar for each in surveyed]),
    )


def _with_moments(source: ImageSource, moments: list[Moments]) -> ImageSource:
    merged = moments[0]
    for each in moments[1:]:
        merged = merged.merge(each)
    std = [value if value > 0 else 1.0 for value in merged.std.tolist()]
    return replace(source, mean=tuple(merged.mean.tolist()), std=tuple(std))
