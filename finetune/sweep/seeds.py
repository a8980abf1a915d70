"""Scores of several seeds: mean and sample deviation in percent, a table of models under the same splits, scores.json."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError

TITLES = {
    "kappa": "kappa x 100",
    "leakage": "leaking test pixels",
    "miou": "mIoU",
    "mf1": "mF1",
    "mkappa": "mKappa",
    "mkappa_release": "mKappa, released code",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "map_micro": "mAP micro",
    "map_macro": "mAP macro",
    "f1_micro": "F1 micro",
    "f1_macro": "F1 macro",
}


class SeedScores(NamedTuple):
    """What one model reached with one seed."""

    seed: int
    scores: Mapping[str, float]  # overall ones by name, shares from 0 to 1 in the order of the table; nan: not defined
    per_class: Sequence[float]  # the same, in the order of the classes
    confusion: Tensor  # (k, k) int64, rows truth
    seconds: float | None = None  # of training and test


class Spread(NamedTuple):
    """A score over seeds, percent; nan seeds are left out."""

    mean: float  # nan: no seed defines it
    std: float  # sample standard deviation, over n - 1; nan with fewer than two seeds
    seeds: dict[int, float]

    @classmethod
    def of(cls, shares: Mapping[int, float]) -> "Spread":
        """From shares 0 to 1 by seed."""
        percent = {seed: 100 * share for seed, share in shares.items()}
        known = [value for value in percent.values() if not math.isnan(value)]
        mean = statistics.fmean(known) if known else math.nan
        return cls(mean, statistics.stdev(known) if len(known) > 1 else math.nan, percent)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "not defined"
        return f"{self.mean:.1f} ± {'-' if math.isnan(self.std) else f'{self.std:.1f}'}"


class Summary(NamedTuple):
    """One model over all seeds."""

    scores: dict[str, Spread]  # overall ones by name
    per_class: tuple[Spread, ...]  # in the order of the classes
    confusion: Tensor  # (k, k) int64, summed over seeds, rows truth
    seconds: dict[int, float | None]
    parameters: int | None  # None: the model has none to count

    @property
    def seeds(self) -> list[int]:
        """The seeds, in their order."""
        return list(self.seconds)


class Results(NamedTuple):
    """All models of one experiment, under the same split of every seed."""

    classes: tuple[str, ...]
    splits: dict[int, dict[str, Any]]  # seed to what `split_report` tells; empty: all seeds share one split
    models: dict[str, Summary]  # by name; the first one is what the experiment is about


def summarise(records: Sequence[SeedScores], parameters: int | None = None) -> Summary:
    """Put the seeds of one model together.

    Raises:
        InputError: no seed, one twice, or seeds with other classes.
    """
    seeds = [record.seed for record in records]
    sizes = {record.confusion.shape for record in records}
    if not records or len(set(seeds)) < len(seeds) or len(sizes) > 1:
        raise InputError(f"scores of seeds {seeds} with {len(sizes)} sizes of confusion; give each seed once, one task")
    classes = range(len(records[0].per_class))
    return Summary(
        scores={name: Spread.of({one.seed: one.scores[name] for one in records}) for name in records[0].scores},
        per_class=tuple(Spread.of({one.seed: one.per_class[k] for one in records}) for k in classes),
        confusion=torch.stack([record.confusion for record in records]).sum(dim=0),
        seconds={record.seed: record.seconds for record in records},
        parameters=parameters,
    )


def collect(
    classes: Sequence[str],
    splits: Mapping[int, dict[str, Any]],
    networks: Mapping[str, Summary],
    references: Mapping[str, Sequence[SeedScores]],
) -> Results:
    """Results of networks and of classical references that were trained and tested on the very same pixels.

    Raises:
        InputError: seeds and splits do not belong together.
    """
    models = {**networks, **{name: summarise(records) for name, records in references.items()}}
    for name, one in models.items():
        if splits and set(one.seeds) != set(splits):
            raise InputError(f"{name} has scores of seeds {one.seeds}, splits are of {list(splits)}; give both")
    return Results(tuple(classes), dict(splits), models)


def score_table(results: Results) -> str:
    """One line per model: mean ± sample deviation over seeds in percent, and the share of leaking test pixels."""
    some = next(iter(results.models.values()))
    seeds = len(some.seeds)
    titles = [TITLES.get(name, name.upper()) for name in some.scores]
    rows = [("percent, " + (f"{seeds} seeds" if seeds > 1 else "1 seed"), *titles, "parameters")]
    for name, one in results.models.items():
        count = "-" if one.parameters is None else f"{one.parameters:,}"
        rows.append((name, *map(str, one.scores.values()), count))
    return _aligned(rows)


def class_table(results: Results, models: Sequence[str] = ()) -> str:
    """One line per class: its mean pixels of training and test, its accuracy for some models (none: the first one)."""
    names = list(models) or list(results.models)[:1]
    parts = ("train", "test") if results.splits else ()
    rows: list[tuple[str, ...]] = [("class", *parts, *names)]
    for index, name in enumerate(results.classes):
        counts = [f"{statistics.fmean(report[part][name] for report in results.splits.values()):.0f}" for part in parts]
        rows.append((name, *counts, *(str(results.models[model].per_class[index]) for model in names)))
    return _aligned(rows)


def to_json(results: Results) -> dict[str, Any]:
    """The content of scores.json: the first model's scores on top, the others under `references`, all in percent.

    What is not defined is null. Rows of `confusion` are the truth; `splits` counts pixels by class.
    """
    (name, main), *others = results.models.items()
    record = {"model": name, "classes": list(results.classes)} | _record(main)
    if results.splits:
        splits = {str(seed): report | {"leakage": 100 * report["leakage"]} for seed, report in results.splits.items()}
        record["splits"] = splits
    return record | {"references": {other: _record(one) for other, one in others}}


def _record(one: Summary) -> dict[str, Any]:
    record: dict[str, Any] = {name: _spread(spread) for name, spread in one.scores.items()}
    record["per_class"] = {
        "mean": [_number(spread.mean) for spread in one.per_class],
        "std": [_number(spread.std) for spread in one.per_class],
        "seeds": {
            str(seed): [_number(spread.seeds[seed]) for spread in one.per_class] for seed in one.seeds
        },
    }  # fmt: skip
    record["confusion"] = one.confusion.tolist()
    record["parameters"] = one.parameters
    record["seconds"] = {str(seed): seconds for seed, seconds in one.seconds.items()}
    return record


def _spread(one: Spread) -> dict[str, Any]:
    seeds = {str(seed): _number(value) for seed, value in one.seeds.items()}
    return {"mean": _number(one.mean), "std": _number(one.std), "seeds": seeds}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
