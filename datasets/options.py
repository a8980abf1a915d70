"""Options of command lines: numbers are finite and within a range, and a mistake is one line on stderr, as everywhere."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import NamedTuple, NoReturn

from alliance.passwords import hide_passwords
from alliance.ranges import KEY, MANY, SEEDS, Range, Ranged
from datasets.commands import MISTAKE


class Number(NamedTuple):
    """Reads a number from a word of a command line: the `type` of an option."""

    stated: Range
    whole: bool

    def __call__(self, text: str) -> int | float:
        """
        Raises:
            argparse.ArgumentTypeError: it is no number, or one outside the range.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # also of thousands of digits
            value = math.nan
        if not (text.isascii() and self.stated.holds(value)):
            raise argparse.ArgumentTypeError(
                f"{text!r:.80} is not allowed; give a {'whole ' * self.whole}number {self.stated}"
            )
        return value


class NumberOrFile(NamedTuple):
    """Reads a number if the word is one, else the name of a file."""

    number: Number

    def __call__(self, text: str) -> int | float | Path:
        """
        Raises:
            argparse.ArgumentTypeError: a number outside the range.
        """
        return self.number(text) if text.lstrip("+-").isdigit() else Path(text)


def whole(low: int, high: int = MANY) -> Number:
    """Whole numbers from `low` to `high`."""
    return Number(Range(low, high), whole=True)


SEED = whole(0, SEEDS)
WORKERS = whole(1, 1024)


def number_of(kind: type[Ranged], field: str) -> Number:
    """The numbers that a field of a dataclass may hold, as it states them."""
    (found,) = (each for each in dataclasses.fields(kind) if each.name == field)
    return Number(found.metadata[KEY], whole="int" in str(found.type))


class Parser(argparse.ArgumentParser):
    """A parser of a command line whose message about a mistake is one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        mend = "" if ";" in message else "; --help lists all options"
        self.exit(MISTAKE, f"error: {hide_passwords(' '.join(message.split()))}{mend}\n")
