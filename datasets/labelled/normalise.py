"""Images as tables of pixels: standardised bands, and whitened principal components of them. No label is looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.ranges import GREATEST, REQUIRED, SMALLEST, Ranged, ranged
from alliance.records import as_type, require_present

Numbers = NDArray[np.float64]
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing(Ranged):
    """What becomes of an image before a network gets it: its bands standardised, and principal components of them.

    Fitted on training images; the same pixel of any other image of these bands becomes the same numbers.
    """

    mean: NDArray[np.float64] = ranged(REQUIRED, -GREATEST, GREATEST)
    """(c,), of each band."""
    std: NDArray[np.float64] = ranged(REQUIRED, SMALLEST, GREATEST)
    """(c,)."""
    axes: NDArray[np.float64] | None = ranged(None, -GREATEST, GREATEST)
    """(c, k), a whitened principal component per column; None: all bands."""
    offsets: NDArray[np.float64] | None = ranged(None, -GREATEST, GREATEST)
    """(k,), taken from the components."""

    @classmethod
    def of(cls, images: Sequence[NDArray]) -> "Preprocessing":
        """Fit means and deviations to images (c, h, w), nan where missing."""
        mean, std = band_statistics(images)
        return cls(mean=mean, std=std)

    def table(self, images: Sequence[NDArray]) -> Table:
        """The pixels of images (c, h, w), row by row, each band standardised; missing values (nan) are 0."""
        rows = np.concatenate([rearrange(image, "c h w -> (h w) c") for image in images]).astype(np.float32, copy=False)
        rows -= self.mean.astype(np.float32)
        rows /= self.std.astype(np.float32)
        rows[np.isnan(rows)] = 0
        return rows

    def with_components(self, table: Table, count: int) -> "Preprocessing":
        """The same with the first principal components of a standardised table, each with mean 0 and deviation 1.

        All bands are kept where there are no more than `count`. Every axis points to where its largest weight is
        positive. Components that are nothing but rounding are left out.
        """
        if table.shape[1] <= count:
            return self
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
        return replace(self, axes=weights, offsets=mean @ weights)

    def components(self, table: Table) -> Table:
        """The principal components of a standardised table: (pixels, components); the table itself where all bands stay."""
        if self.axes is None or self.offsets is None:
            return table
        return (table @ self.axes.astype(np.float32)) - self.offsets.astype(np.float32)

    def to_record(self) -> dict[str, Any]:
        """Ready for JSON, exact to the last bit; what is not used is left out."""
        arrays = {name: getattr(self, name) for name in ("mean", "std", "axes", "offsets")}
        return {name: array.tolist() for name, array in arrays.items() if array is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """What `to_record` gave.

        Raises:
            InputError: statistics that are missing, no numbers, or do not fit each other.
        """
        names = (
            ("mean", "std", "axes", "offsets") if isinstance(record, Mapping) and "axes" in record else ("mean", "std")
        )
        try:
            record = as_type(dict[str, Any], record, "image")
            require_present(record, names, "image")
            arrays = {name: as_type(Numbers, record[name], name) for name in names}
        except InputError as error:
            raise InputError(f"mean and std of every band, or the axes, are missing or damaged ({error})") from error
        bands, components = arrays["mean"].shape, arrays.get("offsets", np.zeros(0)).shape
        shapes = {"mean": bands, "std": bands, "axes": (*bands, *components), "offsets": components}
        wrong = [name for name, array in arrays.items() if array.shape != shapes[name]]
        if wrong or len(bands) != 1 or not bands[0]:
            raise InputError(f"{(wrong or ['mean'])[0]} does not fit the {arrays['mean'].size} means of bands")
        return cls(**arrays)
