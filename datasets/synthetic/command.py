"""The command `launch/made_up.py`: files in the layout of a public data set, to try everything without data.

NOTHING IN THEM IS MEASURED: scores on them say nothing about real images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets.commands import run_body
from datasets.synthetic.labelled_scenes import SETS, MadeUpOptions, require_empty, write_made_up
from datasets.synthetic.pair_trees import write_ddhr, write_whu

PAIRS = {"whu-opt-sar": write_whu, "ddhr-sk": write_ddhr}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    options = vars(_parser().parse_args(arguments))
    name, out = options.pop("name"), options.pop("out")
    run_body(lambda: _write(name, out, options), stopped=f"stopped; remove {out}, then give the command again")


def _write(name: str, out: Path, options: dict[str, int]) -> list[str]:
    require_empty(out)
    if name in PAIRS:
        PAIRS[name](out, **options)
    else:
        write_made_up(name, out, MadeUpOptions(**options))
    return [f"made up in the layout of {name}, nothing is measured: {out}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/made_up.py", description="Write made-up data in the layout of a public set. Nothing is measured."
    )
    kinds = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    default = MadeUpOptions()
    for name in SETS:
        added = _add(kinds, name, "labelled scene of two modalities, for finetune/classify.py")
        for field, text in (
            ("height", "rows"), ("width", "columns"), ("classes", "the first classes of the data set"),
            ("seed", "same seed, same pixels"), ("layout", "which layout in configs/labelled/NAME.yaml, from 1"),
        ):  # fmt: skip
            _number(added, field, getattr(default, field), text)
    whu = _add(kinds, "whu-opt-sar", "five scenes with the known defects of the set, for launch/prepare.py")
    for field, value, text in (
        ("height", 320, "rows"),
        ("width", 448, "columns"),
        ("seed", 0, "same seed, same pixels"),
    ):
        _number(whu, field, value, text)
    ddhr = _add(
        kinds, "ddhr-sk", "JPEG pairs with PNG labels and lists of another machine's paths, for launch/prepare.py"
    )
    for field, value, text in (
        ("pairs", 60, "count"),
        ("size", 64, "side, pixels"),
        ("seed", 0, "same seed, same pixels"),
    ):
        _number(ddhr, field, value, text)
    return parser


def _add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    added = kinds.add_parser(name, help=text, description=text)
    added.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    return added


def _number(parser: argparse.ArgumentParser, field: str, value: int, text: str) -> None:
    parser.add_argument(f"--{field}", type=int, default=value, help=f"{text} (default %(default)s)")
