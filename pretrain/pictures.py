"""Pictures of a run: what the encoder saw, what the decoder made of it stage by stage, and their spectra."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from alliance.frequency import radial_power
from alliance.losses import STAGES, LossConfig, frequency_bands
from alliance.model import Reconstruction
from alliance.sensors import Sensor
from alliance.sensors.display import display_bands
from datasets.figures import save_figure

HIDDEN = 0.55  # grey of masked patches


def pasted(reconstruction: Reconstruction) -> Tensor:
    """Stage predictions with the true ones where the encoder could see: (k, b, c, h, w)."""
    return torch.where(reconstruction.masked, reconstruction.stages, reconstruction.targets)


def band_psnr(reconstruction: Reconstruction, patch: int, config: LossConfig) -> dict[str, float]:
    """Peak signal-to-noise ratio of the whole image and of its low, mid and high band, dB.

    The peak is the range of the target, in standard deviations.
    """
    truth, guess = reconstruction.targets[-1], pasted(reconstruction)[-1]
    peak = (truth.max() - truth.min()).clamp(min=1e-6)
    cutoffs = config.cutoffs_for(patch)
    difference = guess - truth
    bands = frequency_bands(difference, cutoffs, config.edge, config.extension)
    errors = {"psnr": difference} | {f"psnr_{name}": band for name, band in zip(STAGES, bands, strict=True)}
    return {
        name: float(20 * torch.log10(peak / band.square().mean().sqrt().clamp(min=1e-6)))
        for name, band in errors.items()
    }


def draw_reconstruction(
    path: Path, reconstruction: Reconstruction, sensor: Sensor, *, title: str, rows: int = 3
) -> None:
    """Write a PNG: one row per sample; input, masked, each stage, error, radial power spectrum."""
    k, b = reconstruction.stages.shape[:2]
    rows = min(rows, b)
    names = list(STAGES[: k - 1]) + ["full, mean and contrast told" if reconstruction.told else "full"]
    columns = ["input", "masked", *names, "error of full", "radial power spectrum"]
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(2.2 * len(columns) + 0.8, 2.3 * rows + 0.5), squeeze=False,
        gridspec_kw={"width_ratios": [1] * (len(columns) - 1) + [1.35]},
    )  # fmt: skip
    for row in range(rows):
        _draw_row(axes[row], reconstruction, sensor, row, names)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=10)
    shown = dict.fromkeys(sensor.band_names[index] for index in display_bands(sensor))
    figure.suptitle(f"{title}, bands {', '.join(shown)}", fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def _draw_row(axes: np.ndarray, reconstruction: Reconstruction, sensor: Sensor, row: int, names: list[str]) -> None:
    shown = display_bands(sensor)
    truth = reconstruction.targets[-1, row, shown].cpu()
    masked = reconstruction.masked[row, shown].cpu()
    stages = pasted(reconstruction)[:, row, shown].cpu()
    low, high = torch.quantile(truth, torch.tensor([0.02, 0.98]))

    def stretch(image: Tensor) -> np.ndarray:
        scaled = (image - low) / (high - low).clamp(min=1e-3)
        return rearrange(scaled.clamp(0, 1), "c h w -> h w c").numpy()

    seen = np.where(rearrange(masked, "c h w -> h w c").numpy(), HIDDEN, stretch(truth))
    for axis, image in zip(axes, [stretch(truth), seen, *map(stretch, stages)], strict=False):
        axis.imshow(image, interpolation="nearest")
    error = (stages[-1] - truth).abs().mean(0)
    axes[-2].imshow(error.numpy(), cmap="magma", vmin=0, vmax=2, interpolation="nearest")
    for axis in axes[:-1]:
        axis.set_xticks([])
        axis.set_yticks([])
    for image, name in [(truth, "input"), *zip(stages, names, strict=True)]:
        frequency, power = radial_power(image)
        axes[-1].semilogy(frequency, power.mean(0), label=name, lw=2 if name == "input" else 1)
    axes[-1].set_xlabel("cycles per pixel", fontsize=8)
    axes[-1].tick_params(labelsize=7)
    axes[-1].legend(fontsize=7)
