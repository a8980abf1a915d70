"""The command `finetune/examine.py`: a trained PAD network on the pairs of a split, whole and spoilt, and its features.

Writes robustness.csv and .png (scores without a modality and under clouds, figures 4 and 5 of the paper) and features.csv
and .png (how well features before and after fusion tell the classes apart; PCA, then t-SNE).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.commands import run_body
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Tiles
from datasets.options import Parser, number_of, whole
from finetune.model_files import find_network
from finetune.pad.checkpoint import load_pad
from finetune.pad.inputs import as_seen_by, read_pad_inputs
from finetune.studies.feature_separation import feature_figure
from finetune.studies.report import draw_clouds, write_rows
from finetune.studies.robustness import RobustnessConfig, robustness, score_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: _examine(options), stopped="stopped; give the same command again")


def _examine(options: argparse.Namespace) -> list[str]:
    folder = find_network(options.checkpoint)
    found = find_set(options.set, options.path).without(options.drop_classes)
    pairs = as_seen_by(found, read_pad_inputs(folder))
    tiles = Tiles(pairs, options.split)
    network = load_pad(folder, device=options.device)
    config = RobustnessConfig(clouds=tuple(options.clouds), cloud_value=options.cloud_value, seed=options.seed)
    scores = robustness(network, tiles, device=options.device, config=config)
    rows = score_rows(scores, list(pairs.classes))
    write_rows(options.out / "robustness.csv", rows)
    draw_clouds(options.out / "robustness.png", {"PAD": scores}, config)
    lines = [f"{row['condition']:12}  mIoU {row['miou']:6.2f}  OA {row['oa']:6.2f}" for row in rows]
    if network.config.input == "both":
        stage = 1 if network.config.early_fusion else options.stage
        found = feature_figure(network, tiles, options.out / "features.png", stage=stage, seed=options.seed)
        lines += [f"{name:12}  silhouette {each.features.silhouette:6.3f}, of the drawn points {each.drawn.silhouette:6.3f}"
                  for name, each in found.items()]  # fmt: skip
    return [*lines, f"tables and figures are in {options.out}"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="finetune/examine.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="run folder, its model/, or a converted release")
    add(
        "--set",
        "--pairs",
        required=True,
        metavar="FILE",
        help="description of the pairs; the network's classes by their names",
    )
    add("--path", "--root", type=Path, metavar="DIR", help="folder of the files (default: the description's)")
    add("--drop-classes", nargs="+", default=[], metavar="NAME", help="classes that the network does not know: their pixels "
        "have no label")  # fmt: skip
    add("--split", default="test", help="which pairs (default %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for tables and figures")
    add(
        "--clouds",
        type=number_of(RobustnessConfig, "clouds"),
        nargs="+",
        default=list(RobustnessConfig().clouds),
        help="shares (default %(default)s)",
    )
    add("--cloud-value", type=number_of(RobustnessConfig, "cloud_value"), help="stored value under a cloud, such as 255 "
        "(default: masked out)")  # fmt: skip
    add("--stage", type=whole(1, 4), default=4, choices=(1, 2, 3, 4), help="whose features (default %(default)s)")
    add(
        "--seed",
        type=number_of(RobustnessConfig, "seed"),
        default=0,
        help="of clouds and chosen places (default %(default)s)",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    return parser
