"""PAD on the floods of OMBRIA: with both images, with each alone, and with both as the bands of one encoder."""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.segmentation import ROOT, call, spread
from benchmarks.yardsticks.table import read_results, write_results
from datasets.imagery.images import ImageSource
from datasets.imagery.rasters import open_quietly
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set, write_set
from datasets.labelled.tiles import Tiles

CONFIG = ROOT / "configs/finetune/segment_ombria_pad.yaml"
ROWS = {"both images": ("own", "both"), "S2 alone": ("own", "rgb"), "S1 alone": ("own", "sar"),
        "early fusion": ("stacked", "rgb")}  # set and model.input  # fmt: skip
FIRST = next(iter(ROWS))
SCORES = ("miou", "oa", "mf1")
STACKED = "stacked"  # folder of images of all bands


def compare(folder: Path, out: Path, *, seeds: Sequence[int], steps: int) -> str:
    """Train what the file of results lacks, and give the table: percent on the test images, and paired differences.

    Args:
        folder: of the set.
        out: file of results, gone on with.
    """
    results = read_results(out)
    with tempfile.TemporaryDirectory() as scratch:
        described = {"own": own_set(folder, Path(scratch)), STACKED: stacked_set(folder, Path(scratch))}
        for seed in seeds:  # all rows of one seed first, so that what is there can be compared
            for row, (name, given) in ROWS.items():
                key = f"{row}, seed {seed}, {steps} steps"
                if key not in results:
                    results[key] = train(Path(scratch) / "runs" / key, described[name], given, seed, steps)
                    write_results(out, results)
                    print(f"{key}: mIoU {results[key]['miou']}", file=sys.stderr, flush=True)
    return table(results, seeds, steps)


def train(run: Path, described: Path, given: str, seed: int, steps: int) -> dict[str, Any]:
    """Scores on the test images of the network that was best on those of validation."""
    settings = {
        "run.dir": run, "run.seed": seed, "run.steps": steps, "run.save_every": steps, "run.picture_every": 0,
        "evaluate_every": max(steps // 2, 1), "evaluate_without": "none", "data.set": described, "data.workers": 0,
        "model.input": given, "optim.batch": 4,
    }  # fmt: skip
    call(
        "finetune/segment.py",
        "--config",
        CONFIG,
        *(text for name, value in settings.items() for text in (f"--{name}", value)),
    )
    scores = json.loads((run / "scores.json").read_text())
    assert scores["split"] == "test", "what data.test names"
    return {name: scores[name] for name in SCORES}


def own_set(folder: Path, scratch: Path) -> Path:
    """The description of the set with the two images after the flood, at the place of its files."""
    described = find_set("ombria-flood", folder.resolve()).only({"optical": "optical", "sar": "sar"})
    return _written(described, scratch / "own.yaml")


def stacked_set(folder: Path, scratch: Path) -> Path:
    """The same set whose optical images have the SAR image as their last band, in files that are written here."""
    known = find_set("ombria-flood", folder.resolve())
    optical, sar, target = known.image("optical"), known.image("sar"), scratch / STACKED
    target.mkdir(parents=True)
    for split in known.splits:
        for files in Tiles(known, split).files:
            bands = [read_bands(files.paths[role], known.image(role)) for role in ("optical", "sar")]
            write_bands(target / f"{files.key}.tif", np.concatenate(bands))
    joined = ImageSource(files=f"{target}/{{key}}.tif", bands=(1, 2, 3, 4), dtype="uint8", mean=optical.mean + sar.mean,
                         std=optical.std + sar.std)  # fmt: skip
    return _written(known.only({"optical": "optical"}).with_images(optical=joined), scratch / "stacked.yaml")


def read_bands(path: Path, source: ImageSource) -> np.ndarray:
    """The stored numbers (c, h, w) of the bands of a source."""
    with open_quietly(path) as file:
        return file.read([int(band) for band in source.bands])


def write_bands(path: Path, image: np.ndarray) -> None:
    """An image (c, h, w) uint8 as a GeoTIFF without a transparent band."""
    count, height, width = image.shape
    form = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    with open_quietly(path, "w", photometric="MINISBLACK", alpha="unspecified", **form) as file:
        file.write(image)


def table(results: Mapping[str, Mapping[str, float]], seeds: Sequence[int], steps: int) -> str:
    """Mean and deviation over seeds, and what the first row is above each other, seed by seed."""
    head = ["percent", *SCORES, f"mIoU of {FIRST} above it, by seed"]
    lines = [head, ["---"] * len(head)]
    found = {row: [results[f"{row}, seed {seed}, {steps} steps"] for seed in seeds] for row in ROWS}
    for row, scores in found.items():
        cells = [spread([score[name] for score in scores]) for name in SCORES]
        gains = [one["miou"] - other["miou"] for one, other in zip(found[FIRST], scores, strict=True)]
        told = f"{statistics.fmean(gains):+.1f} ({', '.join(f'{gain:+.1f}' for gain in gains)})"
        lines.append([row, *cells, "-" if row == FIRST else told])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _written(described: LabelledSet, path: Path) -> Path:
    write_set(described, path)
    return path
