"""scores.json: percent, two decimals, named as the papers name them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.runs import write_whole
from finetune.scores import Scores
from finetune.segmentation_scores import SegmentationScores


def segmentation_record(scores: SegmentationScores, classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent; per class by name; null where nothing defines a score."""
    record: dict[str, Any] = {name: percent(getattr(scores, name)) for name in ("oa", "miou", "mf1", "mkappa", "kappa")}
    for name in ("iou", "f1", "recall", "precision"):
        record[name] = per_class(getattr(scores, name), classes)
    return record | {"confusion": scores.confusion.tolist(), "classes": list(classes)}


def classification_record(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent; per class by name; null where nothing defines a score."""
    record: dict[str, Any] = {name: percent(getattr(scores, name)) for name in ("oa", "aa", "kappa")}
    return record | {"per_class": per_class(scores.per_class, classes), "confusion": scores.confusion.tolist()}


def per_class(values: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    return {name: percent(value) for name, value in zip(classes, values.tolist(), strict=True)}


def percent(share: float) -> float | None:
    return round(100 * share, 2) if math.isfinite(share) else None


def write_scores(path: Path, record: Mapping[str, Any]) -> None:
    """Write scores.json whole or not at all; what is not defined must be None, not nan."""
    write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
