"""Per-band statistics that can be merged exactly, in one pass, in any partition of the tiles."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

FIGURES = ("count", "mean", "std", "min", "max")


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each band; float64 (c,)."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls, bands: int) -> "Moments":
        """Of no pixel yet."""
        zero, infinite = np.zeros(bands), np.full(bands, np.inf)
        return cls(zero, zero, zero, infinite, -infinite)

    @classmethod
    def of(cls, physical: Tensor) -> "Moments":
        """Of an image (c, h, w); values that are not finite do not count."""
        value = physical.double().flatten(1).numpy()
        present = np.isfinite(value)
        count = present.sum(1).astype(float)
        mean = np.where(present, value, 0.0).sum(1) / np.maximum(count, 1)
        squares = (np.where(present, value - mean[:, None], 0.0) ** 2).sum(1)
        low, high = np.where(present, value, np.inf).min(1), np.where(present, value, -np.inf).max(1)
        return cls(count, mean, squares, low, high)

    def merge(self, other: "Moments") -> "Moments":
        """Of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        part = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        squares = self.squares + other.squares + step**2 * self.count * part
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Moments(count, self.mean + step * part, squares, low, high)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation (c,)."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))

    def to_array(self) -> np.ndarray:
        """(5, c), as it is stored."""
        return np.stack([self.count, self.mean, self.squares, self.low, self.high])

    def to_dict(self) -> dict[str, list[float]]:
        """JSON-ready: count, mean, std, min, max, each one number per band."""
        columns = (self.count, self.mean, self.std, self.low, self.high)
        return {name: column.tolist() for name, column in zip(FIGURES, columns, strict=True)}
