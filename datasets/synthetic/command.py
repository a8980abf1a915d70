"""The command `launch/synthetic.py`: scenes with known truth, or files in the layout of a public set, to try everything.

NOTHING IN THEM IS MEASURED: scores on them say nothing about real images.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alliance.files import require_empty
from alliance.ranges import LARGE, SMALLEST, Range
from datasets.commands import run_body
from datasets.options import SEED, Number, Parser, number_of, whole
from datasets.synthetic.bigearthnet import write_bigearthnet
from datasets.synthetic.chips import write_chips
from datasets.synthetic.cover_chips import write_cover_chips
from datasets.synthetic.domains import write_yellow_river
from datasets.synthetic.labelled_scenes import SETS, SyntheticOptions, write_labelled
from datasets.synthetic.landscapes import LOOKS, write_scenes
from datasets.synthetic.pair_trees import write_ddhr, write_whu


class Kind(NamedTuple):
    """Something that the command writes: a line of help, what writes it, and its options with defaults and meanings."""

    text: str
    write: Callable[..., Any]  # folder, options
    options: Mapping[str, tuple[int | float, Number, str]]  # default, what it may be, meaning


SEEDED = {"seed": (0, SEED, "same seed, same pixels")}
SIZE = SyntheticOptions()
SIDE = 8192  # pixels, of the largest image that is drawn in one piece
KINDS = {
    "scenes": Kind(
        "scenes of optical, SAR, hyperspectral, elevation and land cover, for launch/shards.py",
        write_scenes,
        {
            "scenes": (12, whole(1, 10**6), "how many"),
            "size": (384, whole(32, SIDE), "pixels along each side, 10 m each"),
            "cube": (128, whole(0, SIDE), "side of the hyperspectral cubes, 0: none"),
            "looks": (LOOKS, Number(Range(SMALLEST, LARGE), whole=False), "number of looks of the SAR"),
        },
    ),
    "chips": Kind(
        "images in folders of classes, with a table of all their classes, for finetune/scene.py and multilabel.py",
        write_chips,
        {
            "chips": (120, whole(2, 10**6), "how many"),
            "size": (64, whole(16, SIDE), "side, pixels"),
            "classes": (5, whole(2, 6), "2 to 6"),
        },
    ),
    "cover": Kind(
        "small optical images of such scenes in folders of land cover, train and test, for probes",
        write_cover_chips,
        {
            "scenes": (6, whole(2, 10**6), "how many, half of them for test"),
            "size": (384, whole(32, SIDE), "pixels along each side of a scene"),
            "chip": (24, whole(8, SIDE), "side of an image, pixels"),
            "per-class": (40, whole(1, 10**6), "images of a class from a scene, at most"),
        },
    ),
    "bigearthnet": Kind(
        "patches of Sentinel-2 and Sentinel-1 with labels, in the layout of BigEarthNet, for finetune/multilabel.py",
        write_bigearthnet,
        {
            "patches": (40, whole(1, 10**6), "how many"),
            "size": (120, whole(12, SIDE), "side, pixels of 10 m, a multiple of 6"),
        },
    ),
    **{
        name: Kind(
            "labelled scene of two modalities, for finetune/classify.py",
            partial(write_labelled, name),
            {
                "height": (SIZE.height, number_of(SyntheticOptions, "height"), "rows"),
                "width": (SIZE.width, number_of(SyntheticOptions, "width"), "columns"),
                "classes": (SIZE.classes, number_of(SyntheticOptions, "classes"), "the first classes of the data set"),
                "layout": (
                    SIZE.layout,
                    number_of(SyntheticOptions, "layout"),
                    "which layout in configs/labelled/NAME.yaml, from 1",
                ),
            },
        )
        for name in SETS
    },
    "whu-opt-sar": Kind(
        "five scenes with the known defects of the set, for launch/prepare.py",
        write_whu,
        {"height": (320, whole(32, SIDE), "rows"), "width": (448, whole(32, SIDE), "columns")},
    ),
    "ddhr-sk": Kind(
        "JPEG pairs with PNG labels and lists of another machine's paths, for launch/prepare.py",
        write_ddhr,
        {"pairs": (60, whole(2, 10**6), "count"), "size": (64, whole(32, SIDE), "side, pixels")},
    ),
    "yellow-river": Kind(
        "scenes of two years as domains, for finetune/crossdomain.py",
        write_yellow_river,
        {"size": (256, whole(64, SIDE), "side of a scene, pixels"), "scenes": (1, whole(1, 10**6), "of each year")},
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    options = vars(_parser().parse_args(arguments))
    name, out = options.pop("name"), options.pop("out")
    run_body(lambda: _write(name, out, options), stopped=f"stopped; remove {out}, then give the command again")


def _write(name: str, out: Path, options: Mapping[str, Any]) -> list[str]:
    require_empty(out)
    KINDS[name].write(out, **options)
    return [f"synthetic {name}, nothing is measured: {out}"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch/synthetic.py",
        description="Write synthetic scenes with known truth, or in the layout of a public set. Nothing is measured.",
    )
    kinds = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, kind in KINDS.items():
        added = kinds.add_parser(name, help=kind.text, description=kind.text)
        added.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
        for option, (value, read, text) in {**kind.options, **SEEDED}.items():
            added.add_argument(f"--{option}", type=read, default=value, help=f"{text} (default %(default)s)")
    return parser
