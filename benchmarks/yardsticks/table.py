"""Results of tasks as a file that is gone on with, and as a table in Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alliance.json_files import read_json
from benchmarks.yardsticks.scoring import PIXELS, RAW, RELEASED, TRAINED, UNTRAINED
from finetune.scores import write_scores

TITLES = {
    RAW: "raw statistics",
    PIXELS: "pixel values",
    UNTRAINED: "untrained encoder",
    TRAINED: "pretrained here",
    RELEASED: "Galileo nano",
}


def read_results(path: Path) -> dict[str, Any]:
    """What an earlier command wrote; empty: nothing."""
    return dict(read_json(path)) if path.exists() else {}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write all results, whole or not at all."""
    write_scores(path, json.loads(json.dumps(results)))


def table(results: Mapping[str, Any]) -> str:
    """A line per task, percent with the interval of 95 % over the scored images; the last two columns are differences."""
    head = ["task (measure; classes)", "learnt / scored", *TITLES.values(), "pretrained above untrained", "above raw"]
    lines = [head, ["---"] * len(head)]
    for each in results.values():
        for task in each["tasks"]:
            rows, trained = task["rows"], task["rows"].get(TRAINED, {})
            cells = [interval_text(rows[row]["score"]) if row in rows else "-" for row in TITLES]
            gains = [interval_text(trained.get(f"above {other}"), sign="+") for other in (UNTRAINED, RAW)]
            title = f"{task['task']} ({task['measure']}; {task['classes']})"
            lines.append([title, f"{task['learnt']} / {task['scored']}", *cells, *gains])
    told = [f"{name}: {each['steps']} steps in {each['seconds']:.0f} s" for name, each in results.items()]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", "Pretraining: " + "; ".join(told) + "."])


def interval_text(found: Sequence[float | None] | None, sign: str = "") -> str:
    """Percent with its ends; a dash where there is none."""
    if not found or found[0] is None:
        return "-"
    value, low, high = found
    ends = "" if low is None or high is None else f" ({low:{sign}.1f} to {high:{sign}.1f})"
    return f"{value:{sign}.1f}{ends}"
