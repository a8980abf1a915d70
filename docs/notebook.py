"""The tutorial as a notebook with its results, docs/tutorial.ipynb, from docs/tutorial.py:  python docs/notebook.py

Nothing of Jupyter is needed: the cells are run one after the other, and what they print and draw is kept.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SCRIPT, NOTEBOOK = HERE / "tutorial.py", HERE / "tutorial.ipynb"
CELL = re.compile(r"^# %%(?: \[(markdown)\])?\n", re.M)
DPI = 60  # of pictures


class Cell(NamedTuple):
    """One cell of the script."""

    kind: str  # markdown, code
    text: str


def cells() -> list[Cell]:
    """The cells of the script, comment signs of text taken off."""
    parts = CELL.split(SCRIPT.read_text())[1:]
    found = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        body = text.strip("\n")
        if mark:
            found.append(Cell("markdown", re.sub(r"^# ?", "", body, flags=re.M)))
        else:
            found.append(Cell("code", body))
    return found


def run(found: list[Cell]) -> Iterator[list[dict[str, Any]]]:
    """Outputs of every cell, run in their order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(found):
        outputs: list[dict[str, Any]] = []
        if cell.kind == "code":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(ast.parse(cell.text), f"cell {number}", "exec"), names)
            if said.getvalue():
                outputs.append({"output_type": "stream", "name": "stdout", "text": lines(said.getvalue())})
            for figure in map(plt.figure, plt.get_fignums()):
                drawn = io.BytesIO()
                figure.savefig(drawn, dpi=DPI, metadata={"Software": None})
                data = {"image/png": base64.b64encode(drawn.getvalue()).decode()}
                outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
            plt.close("all")
        yield outputs


def lines(text: str) -> list[str]:
    """A text as notebooks keep it."""
    return text.splitlines(keepends=True)


def notebook(found: list[Cell], outputs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The content of the file."""
    made = []
    for number, (cell, told) in enumerate(zip(found, outputs, strict=True)):
        record: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": lines(cell.text),
        }
        made.append(record | ({"execution_count": None, "outputs": told} if cell.kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def as_markdown() -> str:
    """The notebook as a page."""
    parts = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                parts.append("```text\n" + "".join(output["text"]).rstrip("\n") + "\n```")
            else:
                parts.append(f"![result](data:image/png;base64,{output['data']['image/png']})")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the script and write the notebook."""
    found = cells()
    NOTEBOOK.write_text(json.dumps(notebook(found, list(run(found))), indent=1) + "\n")
    sys.stdout.write(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main()
