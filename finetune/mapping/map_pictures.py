"""Pictures of class maps: ground truth, prediction and errors side by side, with a legend."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from datasets.figures import save_figure
from datasets.imagery.feature_maps import read_features
from datasets.imagery.labels import IGNORE
from datasets.imagery.rasters import open_quietly
from datasets.labelled import PatchSet
from datasets.sampling.splits import Split
from finetune.mapping.pixels import ROLES, ClassMap, class_colours, classify_scenes, is_placed, write_geotiff
from finetune.pictures import coloured, legend_patches

UNLABELLED = (0, 0, 0)
ERRORS = {  # of labelled pixels
    "right": (190, 225, 190),
    "wrong": (230, 40, 40),
    "training": (70, 120, 220),
    "validation": (150, 185, 245),
    "not used": (95, 95, 95),
}
PANEL, LARGEST = 6.0, 20.0  # least and most of the longest side of a map, inches
DPI = 100
STRETCH = (2, 98)  # percentiles of features that become black and white


def write_maps(
    folder: Path,
    model: nn.Module,
    patches: PatchSet,
    *,
    split: Split | None = None,
    labelled_only: bool = False,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Classify all scenes into <folder>/<scene>.png, and <scene>.tif where the scene is georeferenced.

    See `classify_scenes` for the arguments.

    Returns:
        The files, in the order of the scenes.
    """
    written = []
    maps = classify_scenes(model, patches, split=split, labelled_only=labelled_only, batch=batch, device=device)
    for found in maps:
        written.append(folder / f"{found.footprint.name}.png")
        draw_map(written[-1], found, patches)
        if is_placed(found):
            written.append(folder / f"{found.footprint.name}.tif")
            write_geotiff(written[-1], found, patches)
    return written


def draw_map(path: Path, found: ClassMap, patches: PatchSet) -> None:
    """Write a PNG: ground truth, predicted classes, errors, and what the colours mean."""
    classes = class_colours(patches)
    errors, counted = error_map(found)
    wrong, right = (int((counted == kind).sum()) for kind in ("wrong", "right"))
    among = "labelled" if found.role is None else "test"
    panels = {
        "ground truth": coloured(found.truth, classes, UNLABELLED),
        "predicted": coloured(found.predicted, classes, UNLABELLED),
        f"errors: {wrong} of {wrong + right} {among} pixels": errors,
    }
    height, width = found.truth.shape
    stacked = width > 1.6 * height
    longest = max(height, width)
    scale = min(max(PANEL, longest / DPI), LARGEST) / longest  # a dot for every pixel, if they are not too many
    size = np.array([width, height]) * scale * ((1, 3) if stacked else (3, 1)) + (2.6, 1.2 if stacked else 0.6)
    rows, columns = (3, 1) if stacked else (1, 3)
    figure, axes = plt.subplots(rows, columns, figsize=(size[0], max(size[1], 4.5)), layout="constrained")
    for axis, (title, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    shown = {kind: shade for kind, shade in ERRORS.items() if (counted == kind).any()}
    legends = {"classes": (classes | {"unlabelled": UNLABELLED}, "upper"), "errors": (shown, "lower")}
    for name, (entries, side) in legends.items():
        place: Any = f"outside right {side}"
        figure.legend(handles=legend_patches(entries), title=name, loc=place, fontsize=8, title_fontsize=9)
    figure.suptitle(found.footprint.name, fontsize=11)
    save_figure(figure, path, DPI)


def draw_features(path: Path, features: Path) -> None:
    """Write a PNG of the first three bands of a feature map as red, green and blue, each stretched; missing ones white."""
    with open_quietly(features) as file:
        thinning = max(1.0, max(file.shape) / (LARGEST * DPI))
        height, width = (max(1, round(side / thinning)) for side in file.shape)
        bands = [1, 2, 3] if file.count >= 3 else [1, 1, 1]
        image = np.moveaxis(read_features(file, bands, (height, width)), 0, -1)
        names = dict.fromkeys(file.descriptions[band - 1] for band in bands)
    present = ~np.isnan(image).any(axis=-1)
    if present.any():
        low, high = np.percentile(image[present], STRETCH, axis=0)
        image = ((image - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    image[~present] = 1
    scale = max(PANEL, max(height, width) / DPI) / max(height, width)
    figure, axis = plt.subplots(figsize=(max(width * scale, 3), height * scale + 0.5), layout="constrained")
    axis.imshow(image, interpolation="nearest")
    axis.set_title(", ".join(str(name) for name in names), fontsize=10)
    axis.set_axis_off()
    save_figure(figure, path, DPI)


def error_map(found: ClassMap) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Picture (h, w, 3) of the errors, and which key of ERRORS every pixel has, "" where it has no label.

    With a split, pixels of training and validation are marked as such, whether right or wrong.
    """
    kind = np.where(found.predicted == found.truth, "right", "wrong").astype("<U10")
    if found.role is not None:
        names = ("not used", "training", "validation")
        for role, name in zip(range(len(ROLES) - 1), names, strict=True):
            kind[found.role == role] = name
    kind[found.truth == IGNORE] = ""
    image = np.zeros((*kind.shape, 3), dtype=np.uint8)
    for name, shade in ERRORS.items():
        image[kind == name] = shade
    return image, kind
