"""Targets in frequency bands, losses on masked tokens, and how their weights move from low to high (docs/model.md 8)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from alliance.errors import InputError
from alliance.frequency import Edge, Extension, low_pass
from alliance.ranges import LARGE, Ranged, ranged
from alliance.sensors import Sensor
from alliance.tokens import Groups, group_table, patchify

STAGES = ("low", "mid", "high")
LEAST_SHARE = 0.1  # of present pixels around one, by which a low-passed image is divided


@dataclass(frozen=True, kw_only=True)
class LossConfig(Ranged):
    """Targets, losses and schedule (docs/model.md 8)."""

    targets: Literal["cumulative", "disjoint", "increments"] = "cumulative"
    """Targets of the stages: cumulative bands, disjoint bands, or increments, which are disjoint bands over their
    rms.
    """
    cutoffs: tuple[float, float] | None = ranged(None, 0, 1, above=True)
    """Borders of the bands, cycles per pixel; null: 1 / (2 patch) and 1 / patch."""
    edge: Edge = "raised_cosine"
    """Edge of the low-pass: a raised cosine, or a step."""
    extension: Extension = "mirror"
    """What continues the image beyond its border: its mirror image, or the image itself."""
    normalise: Literal["none", "patch_group"] | None = None
    """patch_group: the last target has mean 0 and deviation 1 in every patch and band group; null: that with cumulative targets,
    none with others.
    """
    schedule: Literal["linear", "rbf", "constant"] = "linear"
    """How the weights of the stages move over the run (docs/model.md 8.4)."""
    sar_high: float = ranged(1 / 3, 0, LARGE)
    """Largest weight of the high stage for SAR, whose high frequencies are mostly speckle."""
    fft: float = ranged(0.0, 0, LARGE)
    """Weight of the spectral distance of the last stage; 0.1 where used, 0: left out."""
    summary: float = ranged(0.1, 0, LARGE)
    """Weight of the error of cls and the frequency tokens in telling band means and radial log-power of the image (docs/model.md
    8.6); 0, or without such tokens: they are asked for nothing.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cutoffs is not None and not 0 < self.cutoffs[0] < self.cutoffs[1] <= math.sqrt(0.5):
            raise InputError(f"loss.cutoffs must rise within (0, 0.707] cycles per pixel, got {self.cutoffs}")
        if self.normalise == "patch_group" and self.targets != "cumulative":
            raise InputError("loss.normalise 'patch_group' needs loss.targets 'cumulative'; leave one of the two out")

    @property
    def normalises(self) -> bool:
        """Whether the last target is normalised."""
        return self.targets == "cumulative" if self.normalise is None else self.normalise == "patch_group"

    def cutoffs_for(self, patch: int) -> tuple[float, float]:
        """Borders of the bands for a patch side in pixels, cycles per pixel."""
        return self.cutoffs or (1 / (2 * patch), 1 / patch)


class Losses(NamedTuple):
    """What a step is trained on, and what it reports."""

    total: Tensor  # scalar float32
    stages: Tensor  # (k,) float32, low to high, before weighting
    summary: Tensor | None = None  # scalar float32, before weighting; None: nothing is asked (`loss.summary`)


def frequency_bands(
    image: Tensor, cutoffs: Sequence[float], edge: Edge, extension: Extension, valid: Tensor | None = None
) -> Tensor:
    """Standardised image (b, c, h, w) -> its disjoint bands low, mid, high, (3, b, c, h, w), which sum to it.

    Args:
        valid: pixels that are there, (b, 1, h, w); the image is 0 elsewhere. The low-passed image is divided by these,
            low-passed, so that what is missing does not pull its neighbours towards 0 (normalised convolution).
    """
    passed = low_pass(image, cutoffs, edge=edge, extension=extension)
    if valid is not None:
        share = low_pass(valid.float(), cutoffs, edge=edge, extension=extension).clamp(min=LEAST_SHARE)
        passed = torch.where(valid.all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), passed, passed / share)
    low, mid = passed
    return torch.stack([low, mid - low, image.float() - mid])


def stage_targets(
    image: Tensor, sensor: Sensor, patch: int, stages: int, config: LossConfig, valid: Tensor | None = None
) -> Tensor:
    """What each stage shall predict: (k, b, c, h, w) float32; `image` is standardised, `valid` as of `frequency_bands`."""
    if stages == 1:
        return image.float()[None]
    bands = frequency_bands(image, config.cutoffs_for(patch), config.edge, config.extension, valid)
    if config.targets == "cumulative":
        return bands.cumsum(0)
    return bands / band_spread(sensor, config, image.device)


def band_spread(sensor: Sensor, config: LossConfig, device: torch.device) -> Tensor:
    """Divisor of each disjoint band, (3, 1, c, 1, 1): its rms per channel, or 1."""
    if config.targets == "disjoint":
        return torch.ones((), device=device)
    missing = [band.name for band in sensor.bands if band.spread is None]
    if missing:
        raise InputError(
            f"loss.targets 'increments' needs the spread of every band of sensor {sensor.name}, and {missing[0]} has "
            f"none; add it with sensor.with_spread(measure_spread(images, ...))"
        )
    return sensor.compiled(_spread, device)


def _spread(sensor: Sensor, device: torch.device) -> Tensor:
    return rearrange(torch.tensor([band.spread for band in sensor.bands], device=device), "c k -> k 1 c 1 1")


def assemble(stages: Tensor, sensor: Sensor, config: LossConfig) -> Tensor:
    """Stage predictions (k, b, c, h, w) -> cumulative images, the last one the whole image."""
    if len(stages) == 1 or config.targets == "cumulative":
        return stages
    return (stages * band_spread(sensor, config, stages.device)).cumsum(0)


def measure_spread(image: Tensor, patch: int, config: LossConfig) -> Tensor:
    """Rms of each disjoint band and channel of standardised images (b, c, h, w): (c, 3)."""
    bands = frequency_bands(image, config.cutoffs_for(patch), config.edge, config.extension)
    return reduce(bands.square(), "k b c h w -> c k", "mean").sqrt().clamp(min=1e-3)


def stage_weights(
    progress: float, stages: int, config: LossConfig, *, sar: bool = False, device: torch.device | None = None
) -> Tensor:
    """Weights of the stage losses at a fraction of the run, (k,) float32, sum 1.

    linear: a third each for a quarter of the run, then towards low 0.10, mid 1/3, high 0.57 (published file,
    renormalised). rbf: softmax of -(t - c_k)^2 / (2 * 0.45^2) with c = 0, 0.5, 1 (decay, hump, rise of the figure).
    """
    if stages == 1:
        return torch.ones(1, device=device)
    t = min(max(progress, 0.0), 1.0)
    if config.schedule == "linear":
        s = max((t - 0.25) / 0.75, 0.0)
        low, mid, high = (1 - s) / 3 + 0.10 * s, 1 / 3, (1 - s) / 3 + 0.57 * s
    elif config.schedule == "rbf":
        low, mid, high = (math.exp(-((t - centre) ** 2) / (2 * 0.45**2)) for centre in (0.0, 0.5, 1.0))
    else:
        low, mid, high = 1.0, 1.0, 1.0
    share = high / (low + mid + high)
    if sar:
        share = min(share, config.sar_high)
    rest = (1 - share) / (low + mid)
    return torch.stack([torch.full((), weight, device=device) for weight in (low * rest, mid * rest, share)])


def group_patches(image: Tensor, patch: int, groups: Groups) -> Tensor:
    """(..., c, h, w) -> (..., g, n, m, p); places beyond a group's bands repeat its first one."""
    index = group_table(groups, image.device).channels
    lead = image.shape[:-3]
    patches = patchify(image.flatten(0, -4), patch)[:, index].unflatten(0, lead)
    return rearrange(patches, "... g m n p -> ... g n m p")


def patch_statistics(patches: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch and band group over its real bands: (..., g, n, m, p) -> (..., g, n, 1, 1)."""
    share = rearrange(real.to(patches.dtype) / real.sum(1, keepdim=True), "g m -> g 1 m 1") / patches.shape[-1]
    mean = (patches * share).sum((-2, -1), keepdim=True)
    variance = ((patches - mean).square() * share).sum((-2, -1), keepdim=True)
    return mean, torch.sqrt(variance + 1e-6)


def token_errors(prediction: Tensor, target: Tensor, valid: Tensor, real: Tensor) -> Tensor:
    """Mean squared error of every token over its real bands and valid pixels.

    Args:
        prediction, target: (..., b, g, n, m, p).
        valid: (b, n, p) pixels.
        real: (g, m) bands of each group.
    Returns:
        (..., b, g, n) float32.
    """
    weight = rearrange(valid.float(), "b n p -> b 1 n 1 p") * rearrange(real.float(), "g m -> 1 g 1 m 1")
    squared = (prediction.float() - target).square() * weight
    return squared.sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)


def masked_mean(errors: Tensor, masked: Tensor, valid: Tensor) -> Tensor:
    """Mean over a sample's masked and valid tokens, then over samples: (k, b, g, n) -> (k,).

    Per sample first, so that the loss of a batch is the mean over its parts however it is dealt to ranks.
    """
    weight = (rearrange(masked, "b (g n) -> b g n", g=errors.shape[2]) & rearrange(valid, "b n -> b 1 n")).float()
    return ((errors * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)).mean(-1)


def spectral_distance(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of two images' spectra, (..., h, w) each: |F(x) - F(y)| with ortho norm."""
    difference = torch.fft.rfft2(prediction.float() - truth.float(), norm="ortho")
    return torch.sqrt(difference.real.square() + difference.imag.square() + 1e-6).mean()
