"""The command `launch/report.py`: a run, or several side by side, as one page of HTML that needs no network.

Settings, curves of losses, rates and probes, scores with bars and confusion matrix, pictures over the run with a slider.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from alliance.errors import InputError
from datasets.commands import run_body
from datasets.options import Parser
from engine.reporting.page import write_page

NAME = "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: _report(options.runs, options.out), stopped="stopped; no page was written")


def _report(folders: Sequence[Path], out: Path | None) -> list[str]:
    if out is None and len(folders) > 1:
        raise InputError(f"{len(folders)} runs are compared; give the page to write, --out FILE.html")
    out = out or folders[0] / NAME
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out} is to be a page; let its name end in .html")
    return [f"{out}, {write_page(out, *folders) / 1e6:.1f} MB; open it in a browser"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="launch/report.py", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, of any task, also while they run"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"page to write (default: {NAME} in the folder of a single run)"
    )
    return parser
