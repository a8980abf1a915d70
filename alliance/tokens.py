"""Patches, band groups and 3-D masks: pure functions that turn images into tokens and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from alliance.errors import InputError
from alliance.kept import kept
from alliance.ranges import Ranged, ranged

MASK_STREAM, GROUP_STREAM = 3, 4  # keep these draws apart from each other and from those of order and augmentation


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(Ranged):
    """Which tokens the encoder does not see (docs/model.md 4)."""

    ratio: float | None = ranged(None, 0, 1, above=True, below=True)
    """Share of hidden tokens; null: 0.75 up to three band groups, 0.90 above."""
    geometry: Literal["independent", "tube"] = "independent"
    """Every band group is hidden at its own places, or all at the same ones (tube)."""
    max_groups: int = ranged(6, 1, 1024)
    """Most band groups per step; a sensor with more, such as a hyperspectral one, shows a random subset."""

    def __post_init__(self) -> None:
        super().__post_init__()

    def ratio_for(self, groups: int) -> float:
        """Share of hidden tokens for a number of band groups."""
        return self.ratio if self.ratio is not None else 0.75 if groups <= 3 else 0.90


class Mask(NamedTuple):
    """Which tokens the encoder sees."""

    visible: Tensor  # (b, v) int64, indices into the g * n tokens, ascending noise
    masked: Tensor  # (b, g * n) bool, True where the encoder does not look


def token_grid_shape(image: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of tokens of an image (..., h, w); refuses sizes that the patch does not divide."""
    h, w = image.shape[-2:]
    if h % patch or w % patch:
        raise InputError(f"image is {h} x {w} pixels, not a multiple of patch {patch}; crop it or choose another patch")
    return h // patch, w // patch


def patchify(image: Tensor, patch: int) -> Tensor:
    """(b, c, h, w) -> (b, c, n, patch * patch), tokens in raster order."""
    token_grid_shape(image, patch)
    return rearrange(image, "b c (y i) (x j) -> b c (y x) (i j)", i=patch, j=patch)


def unpatchify(patches: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `patchify` for a token grid of h x w: (..., c, n, p) -> (..., c, h * patch, w * patch)."""
    patch = round(patches.shape[-1] ** 0.5)
    return rearrange(patches, "... c (y x) (i j) -> ... c (y i) (x j)", y=h, x=w, i=patch, j=patch)


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Band groups of unequal size as tensors; as long as there are groups."""

    channels: Tensor  # (g, m) int64, indices; beyond a group's bands its first one
    real: Tensor  # (g, m) bool, whether it is one of the group's bands
    places: Tensor  # of the real entries among the g * m, (c,) int64
    used: Tensor  # channels of all groups, ascending, (c,) int64

    def __len__(self) -> int:
        return len(self.channels)


Groups = Sequence[Sequence[int]] | GroupTable  # channel indices of every band group


def group_table(groups: Groups, device: torch.device, longest: int = 0) -> GroupTable:
    """The tensors of band groups, made once per device; a table is itself.

    Args:
        longest: least number m of its columns, so that other groups of one sensor have a table of the same shape.
    """
    if isinstance(groups, GroupTable):
        return groups
    key = tuple(tuple(group) for group in groups)
    return _make_table(key, device, max(longest, *map(len, key)))


@kept(1024)  # random subsets of a sensor's groups are drawn each step
def _make_table(groups: tuple[tuple[int, ...], ...], device: torch.device, longest: int) -> GroupTable:
    index = torch.tensor([[*group, *[group[0]] * (longest - len(group))] for group in groups], device=device)
    real = torch.tensor([[place < len(group) for place in range(longest)] for group in groups], device=device)
    places = [row * longest + place for row, group in enumerate(groups) for place in range(len(group))]
    used = sorted(index for group in groups for index in group)
    return GroupTable(index, real, torch.tensor(places, device=device), torch.tensor(used, device=device))


def ungroup(grouped: Tensor, groups: Groups, channels: int) -> Tensor:
    """Put grouped channels (..., g, n, m, p) back in order: (..., channels, n, p); channels of no group are NaN."""
    table = group_table(groups, grouped.device)
    flat = rearrange(grouped, "... g n m p -> ... (g m) n p")
    image = flat.new_full((*flat.shape[:-3], channels, *flat.shape[-2:]), torch.nan)
    image[..., rearrange(table.channels, "g m -> (g m)")[table.places], :, :] = flat[..., table.places, :, :]
    return image


def draw_groups(groups: Sequence[Sequence[int]], most: int, seed: int, step: int) -> Sequence[Sequence[int]]:
    """At most `most` of a sensor's band groups, the same for every rank at one step."""
    if len(groups) <= most:
        return groups
    order = np.argsort(_raw(len(groups), GROUP_STREAM, seed, step), kind="stable")
    return [groups[index] for index in sorted(order[:most])]


def mask_noise(seed: int, step: int, positions: Sequence[int], count: int) -> Tensor:
    """Uniform noise (b, count) that decides which tokens are masked.

    A pure function of the seed, the step and each sample's position in the global batch: the same masks for any number
    of ranks, and after a resume.
    """
    rows = [_raw(count, MASK_STREAM, seed, step, int(position)) for position in positions]
    return torch.from_numpy((np.stack(rows) >> np.uint64(40)).astype(np.float32) / 2**24)


def _raw(count: int, *key: int) -> np.ndarray:
    """Random 64-bit numbers that depend on the key alone, whatever the version of numpy."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def draw_mask(noise: Tensor, valid: Tensor, groups: int, config: MaskingConfig) -> Mask:
    """Choose the visible tokens: those with the least noise.

    Args:
        noise: (b, g * n) uniform.
        valid: (b, n) bool; invalid patches are masked first.
    """
    b, count = noise.shape
    ratio = config.ratio_for(groups)
    noise = noise.masked_fill(repeat(~valid, "b n -> b (g n)", g=groups), torch.inf)
    if config.geometry == "tube":
        keep = max(1, round((1 - ratio) * count / groups))
        places = noise[:, : count // groups].argsort(dim=1)[:, :keep]
        offsets = torch.arange(groups, device=noise.device) * (count // groups)
        visible = rearrange(places[:, None, :] + offsets[None, :, None], "b g v -> b (g v)")
    else:
        keep = max(1, round((1 - ratio) * count))
        visible = noise.argsort(dim=1)[:, :keep]
    masked = torch.ones(b, count, dtype=torch.bool, device=noise.device).scatter(1, visible, False)
    return Mask(visible, masked)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens (b, n, d) at index (b, v) -> (b, v, d)."""
    return tokens.gather(1, repeat(index, "b v -> b v d", d=tokens.shape[-1]))
