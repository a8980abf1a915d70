"""How a trained PAD network does without one modality and under clouds (the experiments of the paper's figures 4, 5)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from alliance.ranges import SEEDS, Ranged, ranged
from datasets.labelled.corrupt import cloud_mask, cover, without
from datasets.labelled.tiles import Sample, Tiles
from finetune.pad.model import Pad
from finetune.scores import OVERALL, SegmentationScores, segmentation_scores
from finetune.tasks.evaluate import Corruption, evaluate

CLEAN, NO_RGB, NO_SAR = "clean", "no rgb", "no sar"


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Ranged):
    """What is done to the optical images."""

    clouds: tuple[float, ...] = ranged((0.1, 0.25, 0.5, 0.75), 0, 1, above=True)
    """Shares of every image that clouds cover, ours."""
    cloud_value: float | None = ranged(None)
    """Stored number under a cloud, 255 is opaque white in 8 bits; None: masked out."""
    seed: int = ranged(0, 0, SEEDS)
    """Of the clouds."""


class Condition(NamedTuple):
    """One way of spoiling pairs."""

    name: str
    modality: Literal["rgb", "sar"]  # the only one that it touches
    corrupt: Corruption


def cloudy(share: float) -> str:
    """Name of the condition of that share of clouds."""
    return f"clouds {share:.0%}"


def conditions(config: RobustnessConfig) -> Iterator[Condition]:
    """Each missing modality, and clouds from few to many."""
    yield Condition(NO_RGB, "rgb", lambda sample, _: without(sample, "optical"))
    yield Condition(NO_SAR, "sar", lambda sample, _: without(sample, "sar"))
    for share in sorted(config.clouds):
        yield Condition(
            cloudy(share), "rgb", lambda sample, index, share=share: _under_clouds(sample, index, share, config)
        )


def robustness(
    model: Pad,
    tiles: Tiles,
    indices: Iterable[int] | None = None,
    *,
    device: str | torch.device = "cpu",
    config: RobustnessConfig | None = None,
) -> dict[str, SegmentationScores]:
    """Scores with clean images and under every condition, by its name.

    A network of one modality keeps its clean scores where the other one is spoilt, and gets none without its own.

    Args:
        indices: which images of the split; None: all.
    Raises:
        InputError: as `evaluate`.
    """
    chosen = list(range(len(tiles)) if indices is None else indices)
    used = list(model.config.in_channels)
    scores = {CLEAN: segmentation_scores(evaluate(model, tiles, chosen, device=device))}
    for name, modality, corrupt in conditions(config or RobustnessConfig()):
        if modality not in used:
            scores[name] = scores[CLEAN]
        elif name not in (NO_RGB, NO_SAR) or len(used) > 1:
            scores[name] = segmentation_scores(evaluate(model, tiles, chosen, device=device, corrupt=corrupt))
    return scores


def score_rows(scores: Mapping[str, SegmentationScores], classes: Sequence[str]) -> list[dict[str, str | float]]:
    """A row per condition: its name, then percentages: overall scores and the IoU of every class."""
    return [
        {"condition": name}
        | {column: 100 * getattr(each, column) for column in OVERALL}
        | {f"iou_{label}": 100 * iou for label, iou in zip(classes, each.iou.tolist(), strict=True)}
        for name, each in scores.items()
    ]


def _under_clouds(sample: Sample, index: int, share: float, config: RobustnessConfig) -> Sample:
    height, width = sample.label.shape
    value = math.nan if config.cloud_value is None else config.cloud_value
    return cover(sample, "optical", cloud_mask((height, width), share, seed=config.seed, index=index), value)
