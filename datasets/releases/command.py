"""The command `launch/prepare.py`: from the downloads of a public data set to tiles that are ready to train on."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from alliance.errors import InputError
from datasets.commands import run_body
from datasets.imagery.scenes import summarise
from datasets.labelled.checks import check_values, count_labels, shared_samples
from datasets.labelled.parse import find_set
from datasets.labelled.survey import survey, with_statistics
from datasets.labelled.tiles import Tiles
from datasets.options import Parser, number_of
from datasets.releases.cut import Edges, Grid
from datasets.releases.facts import DDHR_SK, WHU_OPT_SAR, Release
from datasets.releases.prepare import NAME, Constants, Options, Split, prepare

EPILOG = """An interrupted command goes on where it stopped when given again. Neither data set comes with a licence or is
downloaded here; their authors' pages name the places: github.com/AmberHen/WHU-OPT-SAR-dataset, github.com/XD-MG/DDHRNet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(
        lambda: check(options.file, options.root) if options.release is None else _prepare(options),
        stopped="stopped; the finished tiles are kept: give the same command again to go on",
    )


def check(file: Path, root: Path | None) -> list[str]:
    """Read every pair of a description; what is there, what cannot be used, and the statistics of the bands."""
    pairs = find_set(file, root)
    tiles = {split: Tiles(pairs, split) for split in sorted(pairs.splits, key=lambda split: split != "train")}
    notes = check_values(pairs, {split: count_labels(own) for split, own in tiles.items()})
    surveyed = {split: survey(tiles[split]) for split in pairs.splits}
    if not any(each.tiles for each in surveyed.values()):
        reasons = summarise(skip for each in surveyed.values() for skip in each.skipped)
        raise InputError(f"{file}: not one sample can be used: {'; '.join(reasons[:3])}")
    lines = [f"note: {note}" for note in notes]
    first, *others = tiles.values()
    for other in others:
        if shared := shared_samples(first, other):
            lines.append(
                f"note: {len(shared)} of {len(other)} samples of {other.split} also stand in {first.split}, {shared[0][0]}"
            )
    for split, each in surveyed.items():
        lines.extend(f"{split}: {line}" for line in each.describe(pairs.classes))
        lines.extend(f"  skipped {line}" for line in summarise(each.skipped))
    measured = with_statistics(pairs, [surveyed.get("train") or next(iter(surveyed.values()))])
    for role, source in measured.images.items():
        mean, std = ([round(value, 4) for value in column] for column in (source.mean, source.std))
        lines.append(f"{role}: bands: {list(source.bands)}, mean: {mean}, std: {std}")
    return lines


def _prepare(options: argparse.Namespace) -> list[str]:
    release: Release = options.release
    manifest = prepare(
        release,
        options.root,
        options.out,
        Options(
            grid=Grid(tile=options.tile, edges=options.edges),
            split=options.split,
            seed=options.seed,
            lists=options.lists,
            constants=options.constants,
            overwrite=options.overwrite,
        ),
    )
    lines = [f"{name}: {each['scenes']} scenes, {each['tiles']} tiles" for name, each in manifest["splits"].items()]
    lines.extend(f"warning: {warning}" for warning in manifest["warnings"])
    return [*lines, f"written to {options.out}; train with {options.out / NAME}"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="launch/prepare.py", description=__doc__, epilog=EPILOG)
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for release in (WHU_OPT_SAR, DDHR_SK):
        _add_release(kinds.add_parser(release.name, help=f"tiles of {release.name}, split lists, statistics"), release)
    checking = kinds.add_parser("check", help="read all pairs of a description; report problems and statistics")
    checking.add_argument("file", type=Path, metavar="FILE", help="YAML description, see configs/labelled/")
    checking.add_argument("--root", type=Path, metavar="DIR", help="folder of the files (default: the description's)")
    checking.set_defaults(release=None)
    return parser


def _add_release(parser: argparse.ArgumentParser, release: Release) -> None:
    parser.set_defaults(release=release)
    add = parser.add_argument
    folders = ", ".join("|".join(names) for names in release.folders.values())
    add("root", type=Path, metavar="ROOT", help=f"folder that holds {folders}, at any of three levels")
    add("out", type=Path, metavar="OUT", help="folder to write")
    add(
        "--tile",
        type=number_of(Grid, "tile"),
        default=release.tile,
        help="side of a tile, pixels (default %(default)s)",
    )
    add("--edges", choices=get_args(Edges), default="drop", help="rest of a scene: left out (default, as PAD), or shift "
        "the last tile inwards (as ASANet)")  # fmt: skip
    add("--split", choices=get_args(Split), default="published", help="published (default), or tiles drawn at random, "
        "which puts neighbours into training and test")  # fmt: skip
    add("--seed", type=number_of(Options, "seed"), default=0, help="of a random split (default %(default)s)")
    lists = " and ".join((release.lists or {}).values())
    add("--lists", type=Path, metavar="DIR", help=f"folder of {lists} (default: found below ROOT)"
        if lists else argparse.SUPPRESS)  # fmt: skip
    add("--constants", choices=get_args(Constants), default="measured", help="mean, std and band order: of the training "
        "tiles (default), or those of PAD's public code, which its checkpoints need")  # fmt: skip
    add("--overwrite", action="store_true", help="remove the tiles that an earlier run left in OUT")
