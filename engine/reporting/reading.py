"""What a run folder tells: settings, curves, pictures and scores. Its files may be of somebody else, and hold anything."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from alliance.errors import InputError
from alliance.json_files import read_json
from alliance.yaml_files import read_yaml
from engine.log import read_metrics

SPEEDS = ("lr", "grad_norm", "samples_per_s", "data_wait", "memory_gb")  # of a logged step, one panel each
NOT_SCORES = ("step", "event", "part", "seconds")  # whole numbers are counts and no scores either
MOST = 20  # pictures that are of no step
STEP = re.compile(r"step_[0-9]{8}(_.*)?")


class Point(NamedTuple):
    """One value of a curve."""

    panel: str  # curves of one panel share axes
    curve: str
    step: float
    value: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is shown of a run."""

    name: str
    folder: Path
    settings: Mapping[str, Any]  # by dotted name
    records: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    scores: Mapping[str, Any]  # of scores.json; empty: none

    def points(self) -> Sequence[Point]:
        """All values of all curves, in the order in which they were written."""
        return self._points

    @cached_property
    def _points(self) -> Sequence[Point]:
        steps = ((record, number(record.get("step"))) for record in self.records)
        return [
            Point(panel, curve, step, known)
            for record, step in steps if step is not None
            for panel, curve, value in _values(record) if (known := number(value)) is not None
        ]  # fmt: skip

    def pictures(self) -> dict[str, list[tuple[str, Path]]]:
        """Captions and files of the pictures that are there, by what they show: those of steps, then maps and others."""
        found: dict[str, list[tuple[str, Path]]] = {}
        for record in self.records:
            name, step = record.get("path"), number(record.get("step"))
            if record.get("event") != "picture" or not isinstance(name, str) or step is None:
                continue
            file = self.folder / "pictures" / Path(name).name
            if Path(name).name == name and file.is_file():
                found.setdefault(str(record.get("sensor", "")), []).append((f"step {int(step) + 1}", file))
        others = [file for file in sorted(self.folder.glob("pictures/*.png")) if not STEP.fullmatch(file.stem)]
        return found | {file.stem: [(file.name, file)] for file in others[:MOST]}

    def faults(self) -> Mapping[str, Any]:
        """Samples that could not be used, by cause."""
        told = [record["total"] for record in self.records if record.get("event") == "skipped" and "total" in record]
        return told[-1] if told and isinstance(told[-1], dict) else {}


def read_run(folder: Path) -> RunRecord:
    """What a run folder holds.

    Raises:
        InputError: it is none, or its settings or scores are damaged.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        seeds = sorted(each.parent.name for each in folder.glob("seed_*/metrics.jsonl"))
        mend = f"choose one of its seeds, such as {folder / seeds[0]}" if seeds else "give the folder of a --run.dir"
        raise InputError(f"{folder} holds no metrics.jsonl of a run; {mend}")
    config, scores = folder / "config.yaml", folder / "scores.json"
    settings = read_yaml(config) if config.is_file() else {}
    kept = read_json(scores) if scores.is_file() else {}
    if not isinstance(kept, dict):
        raise InputError(f"{scores} holds no scores by name; remove it, or train again")
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        settings=dict(flat(settings)),
        records=read_metrics(metrics),
        scores=kept,
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name; lists are values."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        return None
    return float(value)


def _values(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Panel, curve and value of everything in a record that can be drawn."""
    event = record.get("event")
    if event is None:
        sensor = f", {record['sensor']}" if "sensor" in record else ""
        yield from ((f"loss{sensor}", key, value) for key, value in record.items() if key.startswith("loss"))
        yield from ((key, key, record[key]) for key in SPEEDS if key in record)
    elif event == "probe":
        about = ", ".join(str(record[key]) for key in ("sensor", "data", "kind") if key in record)
        yield from ((f"probe, {about}", key, value) for key, value in record.items() if key not in NOT_SCORES)
    elif event == "scores":
        title = f"scores on {record['part']}, %" if "part" in record else "scores, %"
        yield from (
            (title, key, value) for key, value in record.items() if key not in NOT_SCORES and isinstance(value, float)
        )
