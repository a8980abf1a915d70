"""Tables (CSV) and figures (PNG) of what is measured on a trained PAD network."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from alliance.files import replace_file
from datasets.figures import save_figure
from datasets.imagery.labels import Colour
from finetune.scores import SegmentationScores
from finetune.studies.robustness import CLEAN, NO_RGB, NO_SAR, RobustnessConfig, cloudy


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns as CSV, numbers with four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, list(rows[0]), (row.values() for row in rows), digits=4)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]], *, digits: int) -> None:
    """Write a CSV, whole or not at all, numbers that are no whole ones with so many significant digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([f"{cell:.{digits}g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    replace_file(path, text.getvalue().encode())


def draw_features(
    path: Path,
    panels: Mapping[str, NDArray[np.floating]],
    labels: NDArray[np.int64],
    classes: Mapping[str, Colour],
) -> None:
    """Write a PNG: points (n, 2) in the colours of their classes, a panel per title."""
    shades = {index: [value / 255 for value in colour] for index, colour in enumerate(classes.values())}
    edge = {"edgecolors": "black", "linewidths": 0.15}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 5), layout="constrained", squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        # All at once, so that no class lies above the others.
        axis.scatter(*points.T, s=9, c=[shades[label] for label in labels.tolist()], **edge)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    drawn = [(name, shades[index]) for index, name in enumerate(classes) if (labels == index).any()]
    handles = [axes[0, 0].scatter([], [], s=40, color=shade, label=name, **edge) for name, shade in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    save_figure(figure, path)


def draw_clouds(
    path: Path, studies: Mapping[str, Mapping[str, SegmentationScores]], config: RobustnessConfig | None = None
) -> None:
    """Write a PNG: mIoU against the share of clouds, a line per network; dashed without RGB, dotted without SAR.

    Args:
        studies: what `robustness` gave, by the network's name.
        config: that it was called with.
    """
    shares = sorted((config or RobustnessConfig()).clouds)
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for network, scores in studies.items():
        miou = [100 * scores[name].miou for name in (CLEAN, *map(cloudy, shares))]
        (line,) = axis.plot([0, *(100 * share for share in shares)], miou, marker="o", ms=4, label=network)
        for name, style in ((NO_RGB, "--"), (NO_SAR, ":")):
            if name in scores and scores[name] is not scores[CLEAN]:
                level = 100 * scores[name].miou
                axis.axhline(level, color=line.get_color(), ls=style, lw=1, label=f"{network}, {name}")
    axis.set_xlabel("share of clouds, %")
    axis.set_ylabel("mIoU, %")
    axis.legend(fontsize=8)
    save_figure(figure, path)
