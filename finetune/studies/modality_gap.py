"""How optical and SAR images of one place differ in space, amplitude and phase (PAD, section III-A).

Images and maps are (h, w) float64. Zero frequency stays in the corner; frequencies are in cycles per pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from alliance.frequency import radial_frequency
from alliance.ranges import LARGE, Ranged, ranged
from alliance.ranges import SMALLEST as TINY

Normaliser = Literal["optical", "sum"]
MAPS = ("rsd", "rad", "appd")
REGIONS = (("rsd", "whole"), *((name, band) for name in MAPS[1:] for band in ("low", "high", "whole")))
RATIO_EDGES = np.geomspace(1e-3, 1e3, 61)
EDGES = {"rsd": RATIO_EDGES, "rad": RATIO_EDGES, "appd": np.linspace(0, math.pi, 61)}
UNRELATED_APPD = math.pi / 2  # mean where the two phases have nothing in common: the gap is uniform in [0, pi]
FLAT = 1e-9  # deviations below this are rounding: the maps' values are of the order of 1
SMALLEST = 16  # pixels on a side of an image
SHAPIRO_LIMIT = 5000  # scipy's p-value is not accurate for more values


@dataclass(frozen=True, kw_only=True)
class GapConfig(Ranged):
    """What the paper leaves open."""

    normaliser: Normaliser = "optical"
    """Of RSD and RAD: the optical value, or the sum of both, which bounds them by 1."""
    pixel_epsilon: float = ranged(1 / 255, TINY, LARGE)
    """Added to RSD's normaliser: one grey level, or black pixels would rule the mean."""
    amplitude_epsilon: float = ranged(1e-6, TINY, LARGE)
    """Added to RAD's normaliser."""
    cutoff: float = ranged(0.25, 1 / SMALLEST, 0.5)
    """Between the low and the high band, cycles per pixel: half of the highest on an axis."""


class Gap(NamedTuple):
    """The three maps of one pair, (h, w) each."""

    rsd: np.ndarray  # relative spatial difference, per pixel
    rad: np.ndarray  # relative amplitude difference, per frequency
    appd: np.ndarray  # absolute difference of the phases, per frequency, radians in [0, pi]


class Normality(NamedTuple):
    """How far values are from a normal distribution, for which skewness and (excess) kurtosis are 0."""

    values: int
    mean: float
    std: float
    skewness: float
    kurtosis: float
    shapiro_w: float
    shapiro_p: float
    dagostino_p: float


def relative_difference(optical: np.ndarray, sar: np.ndarray, normaliser: Normaliser, epsilon: float) -> np.ndarray:
    """Of two arrays (h, w): |s - o| / (|o| + epsilon), or over |s| + |o| + epsilon: equation 1 of images, 2 of amplitudes."""
    size = np.abs(optical) + (np.abs(sar) if normaliser == "sum" else 0)
    return np.abs(sar - optical) / (size + epsilon)


def phase_difference(optical: np.ndarray, sar: np.ndarray) -> np.ndarray:
    """Equation 3, of two spectra (h, w): the phase gap wrapped into [0, pi], so that 2 pi - d counts as d."""
    return np.abs(np.angle(sar * optical.conj()))


def spectrum(image: np.ndarray) -> np.ndarray:
    """Orthonormal 2-D Fourier transform, (h, w) complex: amplitudes keep the images' units at every image size."""
    return np.fft.fft2(image, norm="ortho")


def modality_gap(optical: np.ndarray, sar: np.ndarray, config: GapConfig) -> Gap:
    """The maps of one registered pair (algorithm 1, before averaging)."""
    optical_spectrum, sar_spectrum = spectrum(optical), spectrum(sar)
    amplitudes = np.abs(optical_spectrum), np.abs(sar_spectrum)
    return Gap(
        rsd=relative_difference(optical, sar, config.normaliser, config.pixel_epsilon),
        rad=relative_difference(*amplitudes, config.normaliser, config.amplitude_epsilon),
        appd=phase_difference(optical_spectrum, sar_spectrum),
    )


def distinct_bins(h: int, w: int) -> np.ndarray:
    """One of each two bins that mirror each other in a real image's spectrum, (h, w) bool.

    Zero frequency and the other bins that mirror themselves, whose phase is 0 or pi, are left out.
    """
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :]
    return (fx > 0) | ((fx == 0) & (fy > 0))


@lru_cache(maxsize=4)
def frequency_bands(h: int, w: int, cutoff: float) -> dict[str, np.ndarray]:
    """Distinct bins up to the cut-off ("low"), beyond it ("high"), and all ("whole"): (h, w) bool each."""
    distinct, radius = distinct_bins(h, w), radial_frequency(h, w).numpy()
    return {"low": distinct & (radius <= cutoff), "high": distinct & (radius > cutoff), "whole": distinct}


@lru_cache(maxsize=4)
def _rings(h: int, w: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Distinct bins by flat index, the ring of each, and the number of whole rings below the highest frequency."""
    distinct = np.flatnonzero(distinct_bins(h, w))
    ring = np.rint(radial_frequency(h, w).numpy().ravel()[distinct] * min(h, w)).astype(int)
    return distinct, ring, (min(h, w) - 1) // 2


def radial_profile(spectral_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a map (h, w) in rings 1 / min(h, w) wide: frequencies (r,) and means (r,)."""
    h, w = spectral_map.shape
    distinct, ring, count = _rings(h, w)
    totals = np.bincount(ring, weights=spectral_map.ravel()[distinct])
    rings = slice(1, count + 1)
    return np.arange(1, count + 1) / min(h, w), totals[rings] / np.bincount(ring)[rings]


def growth(frequency: np.ndarray, profile: np.ndarray) -> float:
    """Spearman's rank correlation of a profile (m,) with frequency: 1 where it rises throughout; NaN of a flat one."""
    if np.ptp(profile) <= FLAT:
        return math.nan
    return float(np.corrcoef(stats.rankdata(frequency), stats.rankdata(profile))[0, 1])


def normality(values: np.ndarray, rng: np.random.Generator) -> Normality:
    """Normality statistics of values (n,); the tests see at most `SHAPIRO_LIMIT` of them, drawn at random."""
    mean, std = float(values.mean()), float(values.std())
    if std <= FLAT:
        return Normality(len(values), mean, std, *[math.nan] * 5)
    drawn = rng.choice(values, min(len(values), SHAPIRO_LIMIT), replace=False)
    shapiro = stats.shapiro(drawn)
    moments = float(stats.skew(values)), float(stats.kurtosis(values))
    return Normality(
        len(values), mean, std, *moments, float(shapiro.statistic), float(shapiro.pvalue), _dagostino(drawn)
    )


def _dagostino(values: np.ndarray) -> float:
    return float(stats.normaltest(values).pvalue) if len(values) >= 20 else math.nan  # scipy: fewer are unreliable


def sampled_moments(
    moments: np.ndarray, rates: Sequence[float], draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all values of randomly drawn pairs, against the share of pairs drawn.

    Args:
        moments: (n, m, 2) mean and mean square of m maps of n pairs.
        rates: shares in (0, 1]; those that give the same number of pairs count once.
        draws: random orders; within one, a smaller share is part of a larger one.
    Returns:
        Numbers of pairs (r,), and mean and variance (draws, r, m, 2).
    """
    n = len(moments)
    counts = np.unique(np.ceil(np.asarray(rates) * n - 1e-9).astype(int).clip(1, n))
    orders = [rng.permutation(n) for _ in range(draws)]
    sums = np.stack([np.cumsum(moments[order], axis=0)[counts - 1] for order in orders])
    mean, square = np.moveaxis(sums / counts[:, None, None], -1, 0)
    return counts, np.stack([mean, np.maximum(square - mean**2, 0)], axis=-1)


class Study:
    """Statistics over pairs of one size, a pair at a time: the memory is that of a few maps.

    Of every pair only its name and two numbers per entry of `REGIONS` are kept.
    """

    def __init__(self, shape: tuple[int, int], config: GapConfig) -> None:
        self.shape, self.config = shape, config
        self.names: list[str] = []
        self.first: tuple[np.ndarray, np.ndarray] | None = None  # optical and SAR of the first pair, to look at
        self.counts = np.zeros((len(REGIONS), len(RATIO_EDGES) - 1), dtype=np.int64)
        self._moments: list[list[tuple[float, float]]] = []
        self._total = np.zeros((len(MAPS), *shape))
        self._profiles = np.zeros((2, 2, _rings(*shape)[2]))  # sums over pairs of the profiles and of their squares

    def add(self, name: str, optical: np.ndarray, sar: np.ndarray) -> None:
        """Take in one pair, both (h, w)."""
        gap = modality_gap(optical, sar, self.config)
        self.first = self.first or (optical, sar)
        self.names.append(name)
        self._total += np.stack(gap)
        regions = [self.region(getattr(gap, name), name, band) for name, band in REGIONS]
        self._moments.append([(float(values.mean()), float(np.square(values).mean())) for values in regions])
        self.counts += np.stack([self._count(values, name) for values, (name, _) in zip(regions, REGIONS, strict=True)])
        profile = np.stack([radial_profile(spectral)[1] for spectral in gap[1:]])
        self._profiles += np.stack([profile, profile**2])

    def region(self, values: np.ndarray, name: str, band: str) -> np.ndarray:
        """Values (n,) of a map in a band; all pixels of the spatial map."""
        return values.ravel() if name == "rsd" else values[frequency_bands(*self.shape, self.config.cutoff)[band]]

    @property
    def moments(self) -> np.ndarray:
        """Mean and mean square of each pair: (n, len(REGIONS), 2)."""
        return np.array(self._moments)

    @property
    def maps(self) -> Gap:
        """The maps averaged over the pairs (algorithm 1)."""
        return Gap(*self._total / len(self.names))

    @property
    def profiles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frequencies (r,); mean and standard deviation over pairs of the RAD and APPD profiles, (2, r) each."""
        mean, square = self._profiles / len(self.names)
        return radial_profile(self.maps.rad)[0], mean, np.sqrt(np.maximum(square - mean**2, 0))

    @staticmethod
    def _count(values: np.ndarray, name: str) -> np.ndarray:
        edges = EDGES[name]
        return np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
