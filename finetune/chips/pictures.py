"""Pictures of labelled images: what was shown, what is true, what the network said; and where it errs over all."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from datasets.figures import save_figure
from finetune.pictures import stretch_limits, stretched

COLUMNS = 4
RIGHT, WRONG = "#2a7f3e", "#c0392b"
NUMBERED = 20  # classes, at most, whose confusions are written as numbers
LINE = 26  # characters of a line below an image


class Shown(NamedTuple):
    """One image of a picture."""

    image: Tensor  # (1 or 3, h, w), any numbers, NaN where missing
    truth: Sequence[str]
    predicted: Sequence[str]


def draw_chips(path: Path, shown: Sequence[Shown], record: Mapping[str, Any] | None, *, title: str) -> None:
    """Write a PNG with images, true and predicted labels (green where right); beside them, the scores of all images.

    All images are stretched alike. The scores are the confusion matrix where an image has one label, the average precision
    of each class where it has several.

    Args:
        record: of scores.json; None: not known yet.
    """
    rows = max(math.ceil(len(shown) / COLUMNS), 1)
    classes = record["classes"] if record else []
    side = min(max(4.0, 0.32 * len(classes)), 12.0) if record else 0.0
    height = max(2.5 * rows, side) + 0.5
    figure = plt.figure(figsize=(2.1 * COLUMNS + 1.5 * side, height), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(2.1 * COLUMNS, 1.5 * side)) if record else (figure, None)
    axes = halves[0].subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    limits = stretch_limits([each.image for each in shown])
    for axis, each in zip(axes.flat, shown, strict=False):
        axis.imshow(stretched(each.image, limits), interpolation="nearest")
        colour = RIGHT if set(each.truth) == set(each.predicted) else WRONG
        axis.set_title(f"{_names(each.truth)}\n→ {_names(each.predicted)}", fontsize=7, color=colour, loc="left")
    if record:
        (_draw_precision if "ap" in record else _draw_confusion)(halves[1].subplots(), record)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _names(labels: Sequence[str]) -> str:
    return textwrap.fill(", ".join(labels) or "none", LINE, max_lines=3, placeholder=" ...")


def _draw_confusion(axis: Axes, record: Mapping[str, Any]) -> None:
    classes, counts = record["classes"], np.array(record["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= NUMBERED:
        for row, col in np.argwhere(counts > 0).tolist():
            dark = "white" if shares[row, col] > 0.5 else "black"
            axis.text(col, row, f"{counts[row, col]:.0f}", ha="center", va="center", fontsize=7, color=dark)
    names = [textwrap.shorten(name, LINE, placeholder="...") for name in classes]
    axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(classes)), names, fontsize=7)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"OA {record['oa']} % of {record['images']} images of {record['split']}", fontsize=9)


def _draw_precision(axis: Axes, record: Mapping[str, Any]) -> None:
    names = [textwrap.shorten(name, 2 * LINE, placeholder="...") for name in record["classes"]]
    values = [value if value is not None else 0.0 for value in record["ap"].values()]
    places = np.arange(len(names))
    axis.barh(places, values, color="#2f6fd6")
    for place, (value, count) in enumerate(zip(record["ap"].values(), record["positives"].values(), strict=True)):
        told = "no image" if value is None else f"{value:.1f} ({count})"
        axis.text(1, place, told, va="center", fontsize=7)
    axis.set_yticks(places, names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("average precision, % (images with the class)")
    told = f"mAP micro {record['map_micro']} %, macro {record['map_macro']} %"
    axis.set_title(f"{told} of {record['images']} images of {record['split']}", fontsize=9)
