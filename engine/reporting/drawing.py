"""Curves, bars and matrices as pictures inside a page. Text of files is drawn as it is, never taken for a formula."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

POINTS = 1000  # of a curve at most
WIDEST = 1400  # pixels of a picture
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "alliance", "text.parse_math": False, "font.size": 9}
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)
Curve = Sequence[tuple[float, float]]


def curves(title: str, drawn: Mapping[str, Curve], *, log: bool = False) -> str:
    """Curves by name over the step, as the address of an SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0))
        axes = figure.add_subplot(title=title, xlabel="step")
        figure.subplots_adjust(left=0.13, right=0.97, bottom=0.16, top=0.9)  # the same place for all curves
        for name, points in drawn.items():
            kept = points[:: -(-len(points) // POINTS)] if len(points) > POINTS else points
            axes.plot(*zip(*kept, strict=True), label=name, lw=1.2, marker="." if len(kept) < 20 else None)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # plain text: formulas are not drawn
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes.grid(alpha=0.3)
        if len(drawn) > 1:
            axes.legend(fontsize=7)
        return _as_svg(figure, whole=False)


def bars(title: str, values: Mapping[str, float]) -> str:
    """A bar per name, in per cent, as the address of an SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.6 + 0.24 * len(values)))
        axes = figure.add_subplot(title=title, xlim=(0, 100))
        axes.barh(range(len(values)), list(values.values()), color="#5b8db8")
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        return _as_svg(figure)


def matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix (k, k), rows truth, shaded by the share of its row, as the address of an SVG."""
    with rc_context(STYLE):
        side = 1.6 + 0.32 * len(counts)
        figure = Figure(figsize=(side, side))
        axes = figure.add_subplot(title="confusion: rows truth, columns predicted")
        axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        return _as_svg(figure)


def picture(file: Path) -> str:
    """A picture of a run as the address of a JPEG.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(file, formats=["PNG"]) as image:
            shown = image.convert("RGB")
    except UNREADABLE as error:
        raise OSError(f"{file.name} cannot be read ({type(error).__name__})") from error
    shown.thumbnail((WIDEST, 4 * WIDEST))
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=82)
    return _address("jpeg", content)


def _as_svg(figure: Figure, *, whole: bool = True) -> str:
    """The address of a figure; `whole`: it grows with its texts."""
    content = io.BytesIO()
    figure.savefig(
        content, format="svg", bbox_inches="tight" if whole else None, metadata={"Date": None, "Creator": None}
    )
    return _address("svg+xml", content)


def _address(kind: str, content: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
