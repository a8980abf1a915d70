"""Overlapping windows over an image of any size, whose numbers are blended into one without seams.

Weights are products of one weight per row and one per column, so they are made to sum to one along each side alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cover(NamedTuple):
    """Windows along one side of an image, from its first pixel to its last."""

    length: int  # of the side, pixels
    size: int  # of a window; the whole side where that is shorter
    starts: list[int]  # first pixel of each; the last is shifted inwards
    weights: (
        Tensor  # (n, size) float32, of a window's pixels; positive, and those of all windows sum to 1 at every pixel
    )


def cover(length: int, window: int, overlap: int) -> Cover:
    """Windows that share `overlap` pixels with their neighbours, over which their weights fall linearly to the edge.

    Args:
        overlap: at most half the window.
    """
    assert 0 <= 2 * overlap <= window, f"overlap {overlap} of windows of {window}"
    size = min(window, length)
    starts = [*range(0, length - size, window - overlap), length - size]
    place = torch.arange(size)
    ramp = ((torch.minimum(place, place.flip(0)) + 0.5) / max(overlap, 0.5)).clamp(max=1)
    sums = torch.zeros(length)
    for start in starts:
        sums[start : start + size] += ramp
    return Cover(length, size, starts, torch.stack([ramp / sums[start : start + size] for start in starts]))


class Strip:
    """Blended numbers of the rows that one row of windows covers, over the whole width of the image.

    `values` is (planes, rows.size, cols.length) float32, `missing` (rows.size, cols.length) boolean. Memory is
    4 x planes x window x width bytes, whatever the height.
    """

    def __init__(self, planes: int, rows: Cover, cols: Cover, device: str | torch.device = "cpu") -> None:
        self.rows, self.cols, self.device = rows, cols, torch.device(device)
        self.values = torch.zeros(planes, rows.size, cols.length, device=device)
        self.missing = torch.zeros(rows.size, cols.length, dtype=torch.bool)

    def add(self, row: int, col: int, values: Tensor) -> None:
        """Blend in a window (planes, rows.size, cols.size), by its numbers down and along."""
        weight = self.rows.weights[row][:, None] * self.cols.weights[col]
        self.values[:, :, self.span(col)] += weight.to(self.device) * values

    def span(self, col: int) -> slice:
        """The columns of a window."""
        return slice(self.cols.starts[col], self.cols.starts[col] + self.cols.size)

    def advance(self, count: int) -> None:
        """Drop the first rows, which no further window covers, and make room for as many below."""
        for plane in (*self.values, self.missing):
            plane[:-count] = plane[count:].clone()
            plane[-count:] = 0
