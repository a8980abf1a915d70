"""The figure of the method, docs/figures/method.png, from a synthetic scene:  python docs/figures/method.py"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[2])]  # the clone's root

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from torch import Tensor

from alliance.losses import LossConfig, frequency_bands
from datasets.synthetic.landscapes import make_scene

SIZE, PATCH, RATIO = 96, 8, 0.75  # pixels, pixels, share of hidden patches
RGB = (2, 1, 0)  # of the synthetic optical bands B02, B03, B04
STAGES = {"low": "#5b8db8", "mid": "#5aa27c", "high": "#c98a3c"}
GREY, INK = "#dcdcdc", "#333333"
OUT = Path(__file__).with_name("method.png")


def main() -> None:
    """Draw it."""
    scene = torch.from_numpy(make_scene(SIZE, np.random.default_rng(6), cube=32).optical).float()
    image = (scene - scene.mean((1, 2), keepdim=True)) / scene.std((1, 2), keepdim=True)
    config = LossConfig()
    targets = frequency_bands(image[None], config.cutoffs_for(PATCH), config.edge, config.extension).cumsum(0)[:, 0]
    shown = stretch(torch.cat([image[None], targets])[:, RGB])

    figure = plt.figure(figsize=(11, 3.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 3.7))
    axes.axis("off")
    place(axes, shown[0], 0.15, 1.25, "image of any sensor", "standardised bands")
    place(axes, hide(shown[0]), 1.85, 1.25, "masked", "75 % of the patches hidden")
    arrow(axes, 1.52, 1.9, 1.83, 1.9)
    arrow(axes, 3.22, 1.9, 3.62, 1.9)
    box(
        axes,
        3.65,
        0.75,
        1.6,
        2.3,
        "encoder",
        "vision transformer on\nvisible patches,\nfrequency tokens\nand a cls token",
        GREY,
    )
    for row, (name, colour) in enumerate(STAGES.items()):
        box(axes, 3.75 + 0.5 * row, 0.83, 0.42, 0.3, name, "", colour, size=8)
    arrow(axes, 5.27, 2.75, 5.63, 2.92)
    below = {"low": "coarse shapes", "mid": "structures", "high": "edges, texture"}
    for row, (name, colour) in enumerate(STAGES.items()):
        left = 5.65 + 1.8 * row
        box(axes, left, 2.45, 1.5, 0.95, f"decoder: {name}", "blocks of triple-domain\nfusion attention", colour)
        place(axes, shown[1 + row], left + 0.12, 0.55, "", f"target: {below[name]}", side=1.26)
        arrow(axes, left + 0.75, 2.43, left + 0.75, 1.85)
        if row < 2:
            arrow(axes, left + 1.52, 2.92, left + 1.78, 2.92)
    axes.text(8.3, 0.12, "one loss per stage; its weight moves from low to high during the run", ha="center", fontsize=9, color=INK)  # fmt: skip
    axes.text(4.45, 0.42, "kept for every task", ha="center", fontsize=9, color=INK)
    figure.savefig(OUT, dpi=110, metadata={"Software": None})
    with Image.open(OUT) as drawn:
        drawn.convert("RGB").quantize(128).save(OUT, optimize=True)


def stretch(images: Tensor) -> np.ndarray:
    """Standardised images (k, 3, h, w) -> (k, h, w, 3) from 0 to 1, with the range of the first one."""
    low, high = torch.quantile(images[0], torch.tensor([0.02, 0.98]))
    return rearrange(((images - low) / (high - low)).clamp(0, 1), "k c h w -> k h w c").numpy()


def hide(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) with the hidden patches in grey."""
    places = np.random.default_rng(1).random((SIZE // PATCH, SIZE // PATCH)) < RATIO
    hidden = np.kron(places, np.ones((PATCH, PATCH), dtype=bool))
    return np.where(hidden[..., None], 0.6, image)


def place(axes: Axes, image: np.ndarray, x: float, y: float, title: str, note: str, side: float = 1.35) -> None:
    """An image with its lower left corner at (x, y), a title above and a note below."""
    axes.imshow(image, extent=(x, x + side, y, y + side), interpolation="nearest", zorder=2)
    axes.text(x + side / 2, y + side + 0.1, title, ha="center", fontsize=10, color=INK)
    axes.text(x + side / 2, y - 0.2, note, ha="center", fontsize=8, color=INK)
    axes.set(xlim=(0, 11), ylim=(0, 3.7), aspect="auto")


def box(axes: Axes, x: float, y: float, w: float, h: float, title: str, note: str, colour: str, size: int = 10) -> None:
    """A box with a title and a note."""
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=colour, alpha=0.55, edgecolor=INK, lw=0.8))
    height = y + h - 0.25 if note else y + h / 2
    axes.text(x + w / 2, height, title, ha="center", va="center", fontsize=size, color=INK, weight="bold")
    axes.text(x + w / 2, height - 0.2, note, ha="center", va="top", fontsize=8, color=INK)


def arrow(axes: Axes, x: float, y: float, to_x: float, to_y: float) -> None:
    """An arrow."""
    axes.add_patch(FancyArrowPatch((x, y), (to_x, to_y), arrowstyle="-|>", mutation_scale=12, color=INK, lw=1.2))


if __name__ == "__main__":
    main()
