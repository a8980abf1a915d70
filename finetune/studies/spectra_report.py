"""Tables (CSV) and figures (PNG) of a comparison of optical and SAR images."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from datasets.figures import save_figure
from finetune.studies.modality_gap import (
    EDGES,
    MAPS,
    REGIONS,
    UNRELATED_APPD,
    Normality,
    Study,
    normality,
    sampled_moments,
)
from finetune.studies.report import write_table

RATES = tuple(step / 20 for step in range(1, 21))
DRAWS = 50  # random orders of the pairs
SEED = 0
LABELS = ["_".join(region) for region in REGIONS]
WHOLE = [index for index, (_, band) in enumerate(REGIONS) if band == "whole"]
COLOURS = {"low": "tab:blue", "high": "tab:orange", "whole": "tab:gray"}
FLOOR = 1e-3  # of relative differences in figures


def write_tables(folder: Path, study: Study) -> None:
    """Write pairs.csv, bands.csv, profile.csv, sampling.csv and histograms.csv."""
    numbers = _mean_and_variance(study.moments)
    header = ["pair", *(f"{label}_{kind}" for label in LABELS for kind in ("mean", "variance"))]
    rows = ([name, *row.ravel()] for name, row in zip(study.names, numbers, strict=True))
    write_table(folder / "pairs.csv", header, rows, digits=6)
    shape = [field for field in Normality._fields if field != "mean"]
    header = ["map", "band", "mean", "variance", *(f"average_map_{field}" for field in shape)]
    pooled = _mean_and_variance(study.moments.mean(axis=0))
    rows = (
        [*region, *row, *(getattr(normal, field) for field in shape)]
        for region, row, normal in zip(REGIONS, pooled, normalities(study), strict=True)
    )
    write_table(folder / "bands.csv", header, rows, digits=6)
    frequency, mean, std = study.profiles
    header = ["cycles_per_pixel", "rad_mean", "rad_std_over_pairs", "appd_mean", "appd_std_over_pairs"]
    write_table(
        folder / "profile.csv", header, np.stack([frequency, mean[0], std[0], mean[1], std[1]], axis=1), digits=6
    )
    _write_sampling(folder / "sampling.csv", study)
    _write_histograms(folder / "histograms.csv", study)


def write_figures(folder: Path, study: Study) -> None:
    """Write maps.png, profile.png, sampling.png and histograms.png."""
    _draw_maps(study, folder / "maps.png")
    _draw_profiles(study, folder / "profile.png")
    _draw_sampling(study, folder / "sampling.png")
    _draw_histograms(study, folder / "histograms.png")


def normalities(study: Study) -> list[Normality]:
    """Normality of the averaged maps, one per entry of `REGIONS` (the paper's table I)."""
    rng = np.random.default_rng(SEED)
    maps = study.maps
    return [normality(study.region(getattr(maps, name), name, band), rng) for name, band in REGIONS]


def _mean_and_variance(moments: np.ndarray) -> np.ndarray:
    """From mean and mean square on the last axis."""
    mean, square = moments[..., 0], moments[..., 1]
    return np.stack([mean, np.maximum(square - mean**2, 0)], axis=-1)


def _sampling(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of drawn pairs (r,); mean and variance of RSD, RAD and APPD (draws, r, 3, 2)."""
    return sampled_moments(study.moments[:, WHOLE], RATES, DRAWS, np.random.default_rng(SEED))


def _write_sampling(path: Path, study: Study) -> None:
    counts, numbers = _sampling(study)
    columns = [f"{name}_{kind}" for name in MAPS for kind in ("mean", "variance")]
    header = ["sampling_rate", "pairs", *columns, *(f"{column}_std_over_draws" for column in columns)]
    values = [numbers.mean(axis=0).reshape(len(counts), -1), numbers.std(axis=0).reshape(len(counts), -1)]
    rows = np.concatenate([(counts / len(study.names))[:, None], counts[:, None], *values], axis=1)
    write_table(path, header, rows, digits=6)


def _write_histograms(path: Path, study: Study) -> None:
    rows = (
        [*region, left, right, count]
        for region, counts in zip(REGIONS, study.counts, strict=True)
        for left, right, count in zip(EDGES[region[0]], EDGES[region[0]][1:], counts, strict=False)
    )
    write_table(path, ["map", "band", "from", "to", "values"], rows, digits=6)


def _draw_maps(study: Study, path: Path) -> None:
    """The first pair, and the three maps averaged over all pairs; zero frequency in the middle."""
    assert study.first is not None, "there is at least one pair"
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.4), layout="constrained")
    for axis, image, role in zip(axes, study.first, ("optical", "SAR"), strict=False):
        axis.imshow(image, cmap="gray", interpolation="nearest")
        axis.set_title(f"{role} image of the first pair", fontsize=10)
    rsd, rad, appd = study.maps
    shifted = [np.fft.fftshift(spectral) for spectral in (rad, appd)]
    panels = [np.log10(np.maximum(rsd, FLOOR)), np.log10(np.maximum(shifted[0], FLOOR)), shifted[1]]
    titles = ["RSD (log10)", "RAD (log10)", "APPD (radians)"]
    for axis, panel, title in zip(axes[2:], panels, titles, strict=True):
        low, high = np.percentile(panel, [1, 99])
        shown = axis.imshow(panel, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(shown, ax=axis, fraction=0.046)
        axis.set_title(f"{title}, mean over pairs", fontsize=10)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    save_figure(figure, path)


def _draw_profiles(study: Study, path: Path) -> None:
    """RAD and APPD in rings of equal frequency: mean and standard deviation over the pairs."""
    frequency, mean, std = study.profiles
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, name, line, spread in zip(axes, ("RAD", "APPD (radians)"), mean, std, strict=True):
        axis.plot(frequency, line, lw=1.5)
        axis.fill_between(frequency, line - spread, line + spread, alpha=0.25, lw=0)
        axis.axvline(study.config.cutoff, color="k", lw=0.6, ls=":")
        axis.set_xlabel("cycles per pixel")
        axis.set_title(f"{name}: mean and deviation over pairs", fontsize=10)
    axes[1].axhline(UNRELATED_APPD, color="k", lw=0.8, ls="--", label="unrelated phases")
    axes[1].legend(fontsize=8)
    save_figure(figure, path)


def _draw_sampling(study: Study, path: Path) -> None:
    """Mean and variance of each map against the share of the pairs that is drawn."""
    counts, numbers = _sampling(study)
    rates = counts / len(study.names)
    centre, spread = numbers.mean(axis=0), numbers.std(axis=0)
    figure, axes = plt.subplots(2, len(MAPS), figsize=(12, 5.6), sharex=True, layout="constrained")
    for row, kind in enumerate(("mean", "variance")):
        for column, name in enumerate(MAPS):
            axis = axes[row, column]
            line, deviation = centre[:, column, row], spread[:, column, row]
            axis.plot(rates, line, marker="o", ms=3)
            axis.fill_between(rates, line - deviation, line + deviation, alpha=0.25, lw=0)
            axis.set_xlim(0, 1.05)
            axis.set_title(f"{name.upper()}, {kind} over {DRAWS} draws", fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("sampling rate: share of the pairs")
    save_figure(figure, path)


def _draw_histograms(study: Study, path: Path) -> None:
    """Above: all values of all pairs. Below: the averaged maps beside normal curves."""
    figure, axes = plt.subplots(2, len(MAPS), figsize=(14, 7), layout="constrained")
    for index, (region, normal) in enumerate(zip(REGIONS, normalities(study), strict=True)):
        column = MAPS.index(region[0])
        _draw_counts(axes[0, column], study, index)
        _draw_average(axes[1, column], study, region, normal)
    for axis, name in zip(axes[0], MAPS, strict=True):
        axis.set_title(f"{name.upper()}, all values", fontsize=10)
    for axis, name in zip(axes[1], MAPS, strict=True):
        axis.set_title(f"{name.upper()}, average map and normal curve", fontsize=10)
    for axis in axes.flat:
        axis.legend(fontsize=7)
    save_figure(figure, path)


def _draw_counts(axis: Axes, study: Study, index: int) -> None:
    name, band = REGIONS[index]
    counts = study.counts[index]
    axis.stairs(counts / counts.sum(), EDGES[name], color=COLOURS[band], label=band)
    axis.set_ylabel("share of the values")
    if name != "appd":
        axis.set_xscale("log")


def _draw_average(axis: Axes, study: Study, region: tuple[str, str], normal: Normality) -> None:
    name, band = region
    values = study.region(getattr(study.maps, name), name, band)
    low, high = np.percentile(values, [0.5, 99.5])
    label = f"{band}: skewness {normal.skewness:.2f}, kurtosis {normal.kurtosis:.2f}, W {normal.shapiro_w:.3f}"
    if not high > low:
        axis.axvline(low, color=COLOURS[band], label=f"{band}: all {low:.3g}")
        return
    edges = np.linspace(low, high, 61)
    axis.hist(values, edges, density=True, histtype="stepfilled", alpha=0.25, color=COLOURS[band], label=label)
    axis.plot(edges, stats.norm.pdf(edges, normal.mean, normal.std), color=COLOURS[band], lw=1)
    axis.set_ylabel("density")
