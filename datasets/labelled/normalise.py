"""Images as tables of pixels: standardised bands, and whitened principal components of them. No label is looked at."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from alliance.errors import InputError

Table = NDArray[np.float32]  # (pixels, columns)
CHUNK = 1 << 16  # rows that are turned to float64 at once


def check_bands(image: NDArray, name: str) -> None:
    """Refuse an image (c, h, w) with a band that has no valid value."""
    empty = np.flatnonzero(np.isnan(image).all(axis=(1, 2)))
    if len(empty):
        raise InputError(f"band {empty[0] + 1} of {name} has no valid value; leave it out")


def band_statistics(images: Sequence[NDArray]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every band over the valid pixels of images (c, h, w): two of (c,).

    The deviation of a constant band is 1, so that it is only shifted.
    """
    mean, std = np.zeros(len(images[0])), np.ones(len(images[0]))
    for band in range(len(mean)):
        values = np.concatenate([image[band].ravel() for image in images])
        values = values[np.isfinite(values)].astype(np.float64)
        mean[band], spread = values.mean(), values.std()
        if spread > 1e-6 * abs(mean[band]):  # less is rounding of float32
            std[band] = spread
    return mean, std


def standardised(images: Sequence[NDArray]) -> Table:
    """The pixels of images (c, h, w), row by row, each band with mean 0 and deviation 1; missing values are 0."""
    mean, std = band_statistics(images)
    table = np.concatenate([rearrange(image, "c h w -> (h w) c") for image in images]).astype(np.float32, copy=False)
    table -= mean.astype(np.float32)
    table /= std.astype(np.float32)
    table[np.isnan(table)] = 0
    return table


def principal_components(table: Table, count: int) -> Table:
    """The first `count` principal components, each with mean 0 and deviation 1: (pixels, components).

    A table that has no more columns is returned as it is. Every axis points to where its largest weight is positive.
    Components that are nothing but rounding are left out.
    """
    if table.shape[1] <= count:
        return table
    mean = table.mean(axis=0, dtype=np.float64)
    products = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), CHUNK):
        rows = table[start : start + CHUNK] - mean
        products += rows.T @ rows
    variance, axes = np.linalg.eigh(products / len(table))
    kept = np.flatnonzero(variance > 1e-10 * variance[-1])[::-1][:count]
    axes = axes[:, kept]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))])
    weights = axes / np.sqrt(variance[kept])
    return (table @ weights.astype(np.float32)) - (mean @ weights).astype(np.float32)
