"""Scores of a network without one of its sources: which are left out, and how much is lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from alliance.errors import InputError
from engine.log import logger
from finetune.scores import shown
from finetune.tasks.dense_config import EVERY, NONE


def sources_left_out(wanted: str, sources: Sequence[str]) -> list[str]:
    """Sources that the network is scored without: all in turn, none, or one.

    Raises:
        InputError: there is no such source, or no other one.
    """
    if wanted not in (EVERY, NONE, *sources):
        raise InputError(
            f"evaluate_without is {wanted!r}; the network takes {' and '.join(sources)}: give one of them, {EVERY} or {NONE}"
        )
    if wanted in sources and len(sources) == 1:
        raise InputError(f"evaluate_without is {wanted!r}, all that the network takes; set it to {NONE}")
    if wanted == EVERY:
        return list(sources) if len(sources) > 1 else []
    return [] if wanted == NONE else [wanted]


def told_without(
    source: str, found: Mapping[str, Any], full: Mapping[str, Any], headline: Mapping[str, str]
) -> dict[str, Any]:
    """The scores without a source and what each lost of the full ones, for scores.json; the first is said."""
    scores = {name: found[name] for name in headline}
    lost = {name: _difference(full[name], scores[name]) for name in headline}
    name, title = next(iter(headline.items()))
    logger.info("without %s: %s %s, a drop of %s", source, title, shown(scores[name]), shown(lost[name]))
    return {**scores, "drop": lost}


def _difference(full: float | None, found: float | None) -> float | None:
    return None if full is None or found is None else round(full - found, 2)
