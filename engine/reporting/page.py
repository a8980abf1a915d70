"""The page: one file of HTML that asks for nothing else. Everything that files say is escaped, and no script but ours may run."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from alliance import __version__
from alliance.errors import InputError
from alliance.files import replace_file
from engine.log import logger
from engine.reporting.drawing import bars, curves, matrix, picture
from engine.reporting.reading import RunRecord, number, read_run
from engine.runs import RunFolder

PICTURES = 8  # of one kind, the last among them
ROOM = 3_500_000  # characters for the pictures of all runs
CLASSES = 60  # of a confusion matrix that is drawn
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:1.5em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:2px 10px;text-align:left}
img{max-width:100%}.row{display:flex;flex-wrap:wrap;gap:8px}.row img{max-width:520px}code{font-size:12px}"""
SCRIPT = """for (const slider of document.querySelectorAll("input[type=range]")) {
  const images = slider.parentElement.querySelectorAll("figure");
  const show = () => images.forEach((image, place) => { image.hidden = place !== Number(slider.value); });
  slider.addEventListener("input", show); show();
}"""


def page(runs: Sequence[RunRecord]) -> str:
    """The whole page of one or several runs."""
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    title = escape(", ".join(run.name for run in runs))
    body = "\n".join([*_summary(runs), *_settings(runs), *_panels(runs), *_scores(runs), *_pictures(runs)])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head>
<body><h1>{title}</h1>
{body}
<p><small>alliance-rs {escape(__version__)}</small></p>
<script>{SCRIPT}</script></body></html>
"""


def write_page(path: Path, *folders: Path) -> int:
    """Write the page of one run or several; its size in bytes.

    Raises:
        InputError: a folder is no run's, or its settings or scores are damaged.
    """
    content = page([read_run(folder) for folder in folders]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return len(content)


def refresh_page(folder: RunFolder) -> None:
    """Write the page of a run of ours; what keeps it from being written is a warning."""
    try:
        write_page(folder.page, folder.path)
    except (InputError, OSError) as error:
        logger.warning("%s cannot be written (%s); the run goes on without", folder.page.name, error)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table of any values."""
    lines = ["".join(f"<th>{escape(str(cell))}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _summary(runs: Sequence[RunRecord]) -> Iterator[str]:
    """How far each run is, and its last values."""
    last = [{(point.panel, point.curve): point for point in run.points()} for run in runs]
    names = list(dict.fromkeys(name for found in last for name in found))
    rows: list[list[Any]] = [["steps done", *(_done(run) for run in runs)]]
    rows += [["steps of the run", *(run.settings.get("run.steps", "") for run in runs)]]
    rows += [["samples left out", *(_counted(run.faults()) for run in runs)]]
    rows += [
        [panel if panel == curve else f"{panel}: {curve}", *(_value(found.get((panel, curve))) for found in last)]
        for panel, curve in names
    ]
    yield table(["last value", *(run.name for run in runs)], rows)


def _done(run: RunRecord) -> int:
    return max((int(point.step) + 1 for point in run.points()), default=0)


def _counted(faults: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in faults.items()) or "none"


def _value(point: Any) -> str:
    return "" if point is None else f"{point.value:.4g}"


def _settings(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Where runs differ; all settings, folded."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(run.settings.get(name, "") for run in runs)] for name in names]
    differing = [row for row in rows if any(value != row[1] for value in row[2:])]
    head = ["setting", *(run.name for run in runs)]
    if len(runs) > 1:
        yield "<h2>Settings that differ</h2>"
        yield table(head, differing)
    yield f"<details><summary>All settings</summary>{table(head, rows)}</details>"


def _panels(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Curves of all runs, a panel for each thing that is measured."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for point in run.points():
            name = point.curve if len(runs) == 1 else f"{run.name}: {point.curve}"
            panels.setdefault(point.panel, {}).setdefault(name, []).append((point.step, point.value))
    yield "<h2>Curves</h2><div class=row>"
    for title, drawn in panels.items():
        yield f'<img alt="{escape(title)}" src="{curves(title, drawn, log=title == "grad_norm" and _positive(drawn))}">'
    yield "</div>"


def _positive(drawn: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    return all(value > 0 for points in drawn.values() for _, value in points)


def _scores(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Numbers, bars per class and confusion matrix of scores.json."""
    for run in (run for run in runs if run.scores):
        yield f"<h2>Scores, {escape(run.name)}</h2>"
        numbers = {name: value for name, value in run.scores.items() if number(value) is not None}
        yield table(["score", "value"], list(numbers.items()))
        yield "<div class=row>"
        counts = _counts(run.scores.get("confusion"))
        classes = _classes(run.scores, counts)
        for name, values in run.scores.items():
            known = {str(each): found for each, value in _items(values) if (found := number(value)) is not None}
            of_classes = not classes or set(known) <= set(classes)
            if known and of_classes and all(0 <= value <= 100 for value in known.values()):
                yield f'<img alt="{escape(name)}" src="{bars(name, known)}">'
        if counts is not None:
            yield f'<img alt="confusion" src="{matrix(counts, classes or [str(i) for i in range(len(counts))])}">'
        yield "</div>"


def _classes(scores: Mapping[str, Any], counts: np.ndarray | None) -> list[str]:
    """Names of the classes: those that the scores list, or that have a score each; empty: nobody says."""
    listed = scores.get("classes")
    told = [list(map(str, listed))] if isinstance(listed, list) else []
    told += [[str(name) for name, _ in _items(values)] for values in scores.values()]
    return next((names for names in told if names and (counts is None or len(names) == len(counts))), [])


def _items(values: Any) -> list[tuple[Any, Any]]:
    return list(values.items()) if isinstance(values, dict) else []


def _counts(rows: Any) -> np.ndarray | None:
    """A square matrix of numbers (k, k), not too large; None: it is none."""
    if not isinstance(rows, list) or not 0 < len(rows) <= CLASSES:
        return None
    if not all(
        isinstance(row, list) and len(row) == len(rows) and all(number(v) is not None for v in row) for row in rows
    ):
        return None
    return np.array(rows, dtype=np.float64)


def _pictures(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Pictures over the run, with a slider; few enough that the page stays small."""
    groups = [(run.name, about, found) for run in runs for about, found in run.pictures().items()]
    for name, about, found in groups:
        places = np.unique(np.linspace(0, len(found) - 1, min(PICTURES, len(found))).round().astype(int))
        figures, left = [], ROOM // len(groups)
        for text, file in reversed([found[place] for place in places]):
            try:
                address = picture(file)
            except OSError as error:
                figures.append(f"<figure><figcaption>{escape(str(error))}</figcaption></figure>")
                continue
            left -= len(address)
            if left < 0:
                break
            shown = escape(text)
            figures.append(f'<figure><figcaption>{shown}</figcaption><img alt="{shown}" src="{address}"></figure>')
        figures.reverse()
        yield f"<h2>Pictures, {escape(', '.join(filter(None, (name, about))))}</h2><div>"
        if len(figures) > 1:
            yield f'<input type="range" min="0" max="{len(figures) - 1}" value="{len(figures) - 1}" aria-label="step">'
        yield "".join(figures) + "</div>"
