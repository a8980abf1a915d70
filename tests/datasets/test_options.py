"""Numbers on the command lines of all commands: finite, in range, and refused in one line that tells the range."""

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alliance.ranges import Range
from datasets.options import SEED, Number, NumberOrFile, Parser, number_of, whole
from datasets.shards.gather import Generated
from datasets.shards.plan import TileOptions

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("alliance", "datasets", "engine", "finetune", "pretrain", "launch")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Of the modules that make a parser of a command line, by their names."""
    files = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    made = [path for path in files if re.search(r"(?<![\w.])Parser\(|\bargparse\.ArgumentParser\(", path.read_text())]
    names = [".".join(path.with_suffix("").parts) for path in made if path.as_posix() != "datasets/options.py"]
    return {name: importlib.import_module(name)._parser() for name in names}


PARSERS = parsers()


def options_of(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """Every option, of subcommands too, with the words before it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from options_of(below, f"{before}{name} ")
        else:
            yield f"{before}{(action.option_strings or [action.dest])[-1]}", action


def test_every_command_states_the_range_of_its_numbers() -> None:
    """A new option cannot forget it."""
    numbers = 0
    assert len(PARSERS) >= 10
    for name, parser in PARSERS.items():
        assert isinstance(parser, Parser), f"{name}: make its parser with datasets.options.Parser"
        for option, action in options_of(parser):
            assert action.type not in (int, float, complex), f"{name} {option}: give it a range, datasets.options.whole"
            is_number = isinstance(action.type, Number | NumberOrFile)
            defaults = action.default if isinstance(action.default, list | tuple) else [action.default]
            told = any(isinstance(each, int | float) and not isinstance(each, bool) for each in defaults)
            assert is_number or not told, f"{name} {option}: a default that is a number, without a range"
            assert is_number or action.metavar != "N", f"{name} {option}: a number without a range"
            numbers += is_number
            if isinstance(action.type, Number):
                for each in defaults:
                    assert each is None or action.type.stated.holds(each), f"{name} {option}: its default"
    assert numbers > 40


def refused(capsys: pytest.CaptureFixture[str], parser: argparse.ArgumentParser, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "9" * 5000, "-1e999", "x", "", "²", "٣"])
def test_what_is_no_number_of_the_range_is_refused(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, action in options_of(PARSERS[name]):
        if not isinstance(action.type, Number) or action.choices:
            continue
        *before, flag = option.split()
        alone = Parser()
        alone.add_argument(flag, type=action.type, nargs=action.nargs)
        told = refused(
            capsys, alone, f"{flag}={text}" if action.nargs is None else flag, *([text] * bool(action.nargs))
        )
        assert flag in told and "give a" in told or "expected" in told, (before, told)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole(1, 9), "9", 9),
        (whole(1, 9), "10", None),
        (whole(1, 9), "0", None),
        (whole(1, 9), "1.0", None),
        (SEED, str(2**63 - 1), 2**63 - 1),
        (SEED, str(2**63), None),
        (SEED, "-1", None),
        (Number(Range(0, 1, above=True, below=True), whole=False), "1e-3", 1e-3),
        (Number(Range(0, 1, above=True, below=True), whole=False), "0", None),
        (Number(Range(0, 1, above=True, below=True), whole=False), "1", None),
        (number_of(TileOptions, "max_missing"), "1", 1.0),
        (number_of(TileOptions, "max_missing"), "1.01", None),
        (number_of(TileOptions, "tile"), "96.0", None),
        (number_of(Generated, "nodata"), "-9999", -9999.0),
        (number_of(Generated, "nodata"), "nan", None),
        (NumberOrFile(whole(1, 9)), "3", 3),
        (NumberOrFile(whole(1, 9)), "features.tif", Path("features.tif")),
        (NumberOrFile(whole(1, 9)), "0", None),
        (NumberOrFile(whole(1, 9)), "-3", None),
        (NumberOrFile(whole(1, 9)), "9" * 5000, None),
    ],
)
def test_the_ends_of_ranges(read: Any, text: str, value: Any) -> None:
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not allowed; give a (whole )?number "):
            read(text)
    else:
        found = read(text)
        assert found == value and type(found) is type(value)


def test_a_mistake_of_another_kind_is_one_line_with_its_mend_and_hides_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = Parser()
    parser.add_argument("--out", required=True)
    assert refused(capsys, parser) == "error: the following arguments are required: --out; --help lists all options"
    assert "hunter2" not in refused(capsys, parser, "--out=a", "https://me:hunter2@host/a")
