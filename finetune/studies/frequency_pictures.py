"""One figure of what a trained S2Fin learnt: its spectral filter, its cut-offs and channel weights, its resonance mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from datasets.figures import save_figure
from datasets.labelled import PatchSet
from finetune.mapping.pixels import class_colours
from finetune.s2fin.channels import ChannelGains
from finetune.s2fin.network import S2Fin
from finetune.studies.frequencies import Frequencies, Values, by_class

MASKS = 5  # classes whose mean mask is shown, beside that of all
UNIT = Normalize(0, 1)
GAINS = {
    "structure": "share in the\ncommon low",
    "low": "weight of\nlow",
    "high": "weight of\nhigh",
    "detail": "gain of\nown high",
}


def draw_frequencies(path: Path, found: Frequencies, model: S2Fin, patches: PatchSet, *, title: str = "") -> None:
    """Write a PNG of what `frequencies` found. A panel whose module the network does not have says so."""
    figure = plt.figure(figsize=(17, 8.2), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above, below = halves
    axes = above.subplots(1, 4)
    _draw_thresholds(axes[0], found, patches)
    _draw_response(axes[1], found, patches)
    _draw_cutoffs(axes[2], found, model.config.temperature)
    _draw_gains(axes[3], found.gains, model.branches)
    if found.mask is None:
        _say(below.subplots(), "no HFRM")
    else:
        _draw_masks(below.subplots(1, MASKS + 1), found.mask, found.label, patches)
    below.suptitle("resonance mask of HFRM, mean over channels and patches (units of Nyquist)", fontsize=10)
    above.suptitle(f"{title}, {len(found.label)} patches".removeprefix(", "), fontsize=11)
    save_figure(figure, path)


def _draw_thresholds(axis: Axes, found: Frequencies, patches: PatchSet) -> None:
    axis.set_title("threshold of HFSET's filter by class", fontsize=10)
    if found.threshold is None:
        return _say(axis, "no filter in HFSET")
    present = np.unique(found.label)
    boxes = axis.boxplot(
        [found.threshold[found.label == k] for k in present], orientation="horizontal", patch_artist=True, widths=0.7,
        flierprops={"markersize": 2}, medianprops={"color": "black"},
    )  # fmt: skip
    for box, k in zip(boxes["boxes"], present, strict=True):
        box.set_facecolor(_shade(patches, int(k)))
    axis.set_yticks(range(1, len(present) + 1), [patches.classes[k] for k in present], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("tau, units of Nyquist", fontsize=9)
    return None


def _draw_response(axis: Axes, found: Frequencies, patches: PatchSet) -> None:
    axis.set_title("gain of that filter", fontsize=10)
    if found.response is None:
        return _say(axis, "no filter in HFSET")
    frequency = 2 * np.fft.rfftfreq(patches.channels["spectral"])
    for k, mean in by_class(found.response, found.label).items():
        axis.plot(frequency, mean, color=_shade(patches, k), lw=0.9)
    mean, std = found.response.mean(axis=0), found.response.std(axis=0)
    axis.fill_between(frequency, mean - std, mean + std, color="gray", alpha=0.3, label="deviation over patches")
    axis.plot(frequency, mean, color="black", lw=2, label="mean of all patches")
    axis.set_xlabel("frequency along the bands, units of Nyquist", fontsize=9)
    axis.set_ylabel("h(f)", fontsize=9)
    axis.legend(fontsize=8, loc="lower right")
    return None


def _draw_cutoffs(axis: Axes, found: Frequencies, temperature: float) -> None:
    axis.set_title("high-pass of AFCM and HFRM", fontsize=10)
    if not found.cutoffs:
        return _say(axis, "neither AFCM nor HFRM")
    radius = np.linspace(0, 1, 201)
    for index, (name, cutoff) in enumerate(found.cutoffs.items()):
        axis.plot(radius, 1 / (1 + np.exp((cutoff - radius) / temperature)), f"C{index}", label=f"{name}: {cutoff:.3f}")
        axis.axvline(cutoff, color=f"C{index}", ls=":", lw=1)
    axis.set_xlabel("spatial frequency R, units of Nyquist", fontsize=9)
    axis.set_ylabel("M(R)", fontsize=9)
    axis.legend(fontsize=8, loc="lower right", title="cut-off", title_fontsize=8)
    return None


def _draw_gains(axis: Axes, gains: ChannelGains | None, branches: Sequence[str]) -> None:
    axis.set_title("weights of AFCM, mean and deviation\nover patches and channels", fontsize=10)
    if gains is None:
        return _say(axis, "no AFCM")
    width = 0.8 / len(branches)
    places = np.arange(len(GAINS))
    for index, branch in enumerate(branches):
        values = [getattr(gains, name)[index] for name in GAINS]
        mean, std = [float(one.mean()) for one in values], [float(one.std(correction=0)) for one in values]
        axis.bar(places + width * (index + 0.5) - 0.4, mean, width, yerr=std, capsize=3, label=branch, alpha=0.85)
    axis.set_xticks(places, list(GAINS.values()), fontsize=8)
    axis.legend(fontsize=8)
    return None


def _draw_masks(axes: Sequence[Axes], masks: Values, label: NDArray, patches: PatchSet) -> None:
    """Mean masks (patch, patch // 2 + 1), zero frequency at the middle of the left side."""
    means = by_class(masks, label)
    present = list(means)
    chosen = [present[i] for i in np.unique(np.linspace(0, len(present) - 1, MASKS).round().astype(int))]
    shown = {"all patches": masks.mean(axis=0)} | {patches.classes[k]: means[k] for k in chosen}
    side = masks.shape[1]
    rows, columns = 2 * np.fft.fftshift(np.fft.fftfreq(side)), 2 * np.fft.rfftfreq(side)
    for axis, (name, mask) in zip(axes, shown.items(), strict=False):
        axis.imshow(np.fft.fftshift(mask, axes=0), norm=UNIT, cmap="viridis")
        axis.set_title(f"{name}\nmean {mask.mean():.2f}", fontsize=9)
        axis.set_xticks(range(len(columns)), [f"{f:.2f}" for f in columns], fontsize=7)
        axis.set_yticks(range(len(rows)), [f"{f:.2f}" for f in rows], fontsize=7)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    axes[0].figure.colorbar(ScalarMappable(UNIT, "viridis"), ax=list(axes), fraction=0.02)


def _shade(patches: PatchSet, k: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in class_colours(patches)[patches.classes[k]])


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color="gray")
    axis.set_xticks([])
    axis.set_yticks([])
