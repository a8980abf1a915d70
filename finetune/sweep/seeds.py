"""Scores of several seeds: mean and sample deviation in percent, a table of models under the same splits, scores.json."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from datasets.labelled import PatchSet, split_report
from datasets.sampling.splits import Split
from finetune.scores import Scores
from finetune.sweep.classical import Model, reference_scores

METRICS = ("oa", "aa", "kappa")


class SeedScores(NamedTuple):
    """What one model reached on the test pixels of one seed's split."""

    seed: int
    scores: Scores
    leakage: float  # share, 0 to 1, of test pixels whose patch overlaps one of training
    seconds: float  # of training and test


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
        return f"{self.mean:.1f} ± {'-' if math.isnan(self.std) else f'{self.std:.1f}'}"


class Summary(NamedTuple):
    """One model over all seeds."""

    oa: Spread
    aa: Spread
    kappa: Spread
    per_class: tuple[Spread, ...]  # in the order of the classes
    leakage: Spread
    confusion: Tensor  # (k, k) int64, summed over seeds, rows truth
    seconds: dict[int, float]
    parameters: int | None  # None: the model has none to count


class Results(NamedTuple):
    """All models of one experiment, under the same split of every seed."""

    classes: tuple[str, ...]
    splits: dict[int, dict[str, Any]]  # seed to what `split_report` tells
    models: dict[str, Summary]  # by name; the first one is what the experiment is about


def summarise(records: Sequence[SeedScores], parameters: int | None = None) -> Summary:
    """Put the seeds of one model together.

    Raises:
        InputError: no seed, one twice, or seeds with other classes.
    """
    seeds = [record.seed for record in records]
    sizes = {record.scores.confusion.shape for record in records}
    if not records or len(set(seeds)) < len(seeds) or len(sizes) > 1:
        raise InputError(f"scores of seeds {seeds} with {len(sizes)} sizes of confusion; give each seed once, one task")

    def spread(name: str) -> Spread:
        return Spread.of({record.seed: getattr(record.scores, name) for record in records})

    classes = range(len(records[0].scores.per_class))
    return Summary(
        *map(spread, METRICS),
        per_class=tuple(Spread.of({one.seed: one.scores.per_class[k].item() for one in records}) for k in classes),
        leakage=Spread.of({record.seed: record.leakage for record in records}),
        confusion=torch.stack([record.scores.confusion for record in records]).sum(dim=0),
        seconds={record.seed: record.seconds for record in records},
        parameters=parameters,
    )


def collect(
    patches: PatchSet,
    splits: Mapping[int, Split],
    networks: Mapping[str, Summary],
    references: Sequence[Model] = ("svm", "forest"),
) -> Results:
    """Results of networks, and of the classical references trained and tested on the very same pixels.

    Raises:
        InputError: seeds and splits do not belong together.
    """
    for name, one in networks.items():
        if set(one.oa.seeds) != set(splits):
            raise InputError(
                f"{name} has scores of seeds {list(one.oa.seeds)}, splits are of {list(splits)}; give both"
            )
    found = reference_records(patches, splits, references)
    models = {**networks, **{name: summarise(records) for name, records in found.items()}}
    return Results(patches.classes, {seed: split_report(patches, split) for seed, split in splits.items()}, models)


def reference_records(
    patches: PatchSet, splits: Mapping[int, Split], models: Sequence[Model] = ("svm", "forest")
) -> dict[str, list[SeedScores]]:
    """Scores of all classical references on the split of every seed; their seconds are those of all together."""
    records: dict[str, list[SeedScores]] = {}
    for seed, split in splits.items():
        start = time.monotonic()
        found = reference_scores(patches, split, seed=seed, models=models)
        seconds = time.monotonic() - start
        leak = split_report(patches, split)["leakage"]
        for name, scores in found.items():
            records.setdefault(name, []).append(SeedScores(seed, scores, leak, seconds))
    return records


def score_table(results: Results) -> str:
    """One line per model: mean ± sample deviation over seeds in percent, and the share of leaking test pixels."""
    seeds = len(results.splits)
    over = f"{seeds} seeds" if seeds > 1 else "1 seed"
    rows = [("percent, " + over, "OA", "AA", "kappa x 100", "leaking test pixels", "parameters")]
    for name, one in results.models.items():
        count = "-" if one.parameters is None else f"{one.parameters:,}"
        rows.append((name, str(one.oa), str(one.aa), str(one.kappa), str(one.leakage), count))
    return _aligned(rows)


def class_table(results: Results, models: Sequence[str] = ()) -> str:
    """One line per class: its mean pixels of training and test, its accuracy for some models (none: the first one)."""
    names = list(models) or list(results.models)[:1]
    rows: list[tuple[str, ...]] = [("class", "train", "test", *names)]
    for index, name in enumerate(results.classes):
        counts = [
            f"{statistics.fmean(report[part][name] for report in results.splits.values()):.0f}"
            for part in ("train", "test")
        ]
        rows.append((name, *counts, *(str(results.models[model].per_class[index]) for model in names)))
    return _aligned(rows)


def to_json(results: Results) -> dict[str, Any]:
    """The content of scores.json: the first model's scores on top, the others under `references`, all in percent.

    What is not defined is null. Rows of `confusion` are the truth; `splits` counts pixels by class.
    """
    (name, main), *others = results.models.items()
    record = {"model": name, "classes": list(results.classes)} | _record(main)
    record["splits"] = {
        str(seed): report | {"leakage": 100 * report["leakage"]} for seed, report in results.splits.items()
    }
    return record | {"references": {other: _record(one) for other, one in others}}


def _record(one: Summary) -> dict[str, Any]:
    record: dict[str, Any] = {metric: _spread(getattr(one, metric)) for metric in (*METRICS, "leakage")}
    record["per_class"] = {
        "mean": [_number(spread.mean) for spread in one.per_class],
        "std": [_number(spread.std) for spread in one.per_class],
        "seeds": {
            str(seed): [_number(spread.seeds[seed]) for spread in one.per_class] for seed in one.oa.seeds
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
