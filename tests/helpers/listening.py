"""What the library says to its log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heard(level: int = logging.INFO) -> Iterator[list[str]]:
    """Messages of this level and above, while inside; the logger is then as it was."""
    lines: list[str] = []
    ear, logger = logging.Handler(level), logging.getLogger("alliance")
    ear.emit = lambda record: lines.append(record.getMessage())
    before = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before)
