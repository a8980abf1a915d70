"""launch/report.py: what a run folder holds is on the page, once, escaped, and asks for nothing from elsewhere."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from engine.reporting import command
from engine.reporting.drawing import curves
from engine.reporting.reading import Point, read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert(1)</script>$x_{$&\"'"


def make_run(folder: Path, lr: float = 1e-3, name: str = "s2") -> Path:
    """Two logged steps, a picture after the second, and scores, written by hand."""
    (folder / "pictures").mkdir(parents=True)
    lines = [
        {"step": 0, "sensor": name, "loss": 1.0, "loss_low": 0.5, "lr": lr, "grad_norm": 2.0},
        {"event": "skipped", "step": 0, "causes": {"checksum": 1}, "total": {"checksum": 3}, "samples": []},
        {"step": 1, "sensor": name, "loss": 0.75, "loss_low": None, "lr": lr, "grad_norm": 1.0},
        {"event": "picture", "step": 1, "sensor": name, "path": "step_00000002.png"},
        {"event": "probe", "step": 1, "sensor": name, "psnr": 20.5},
        {"event": "picture", "step": 1, "sensor": name, "path": "../../secret.png"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 2, "lo'  # cut by a kill
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"steps": 2}, "optim": {"lr": lr}}))
    scores = {
        "oa": 75.0,
        "iou": {"land": 50.0, HOSTILE: 25.0},
        "confusion": [[1, 1], [0, 2]],
        "classes": ["land", HOSTILE],
        "gates": {"first": 1.0, "second": 2.0},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    Image.new("RGB", (40, 20), (200, 10, 10)).save(folder / "pictures" / "step_00000002.png")
    Image.new("RGB", (30, 10), (10, 10, 10)).save(folder / "pictures" / "map.png")
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1][0] in ("td", "th"):
            self.cells[-1] += data

    def row(self, name: str, width: int = 1) -> list[str]:
        place = self.cells.index(name)
        return [cell.strip() for cell in self.cells[place + 1 : place + 1 + width]]


def report(*arguments: object) -> Page:
    command.main([str(each) for each in arguments])
    return Page(Path(str(arguments[-1])).read_text())


def test_curves_hold_the_numbers_of_the_log(tmp_path: Path):
    points = read_run(make_run(tmp_path / "run")).points()
    assert [point for point in points if point.panel == "loss, s2"] == [
        Point("loss, s2", "loss", 0.0, 1.0), Point("loss, s2", "loss_low", 0.0, 0.5), Point("loss, s2", "loss", 1.0, 0.75),
    ]  # fmt: skip
    assert Point("probe, s2", "psnr", 1.0, 20.5) in points
    assert [point.value for point in points if point.panel == "grad_norm"] == [2.0, 1.0]


def test_a_page_shows_the_run_and_needs_no_network(tmp_path: Path):
    page = report(make_run(tmp_path / "run"), "--out", tmp_path / "run.html")
    assert page.row("steps done") == ["2"] and page.row("samples left out") == ["3 checksum"]
    assert page.row("loss, s2: loss") == ["0.75"] and page.row("oa") == ["75.0"]
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    kinds = [image.partition(";")[0] for image in images]
    assert kinds.count("data:image/jpeg") == 2  # of step 2, and a map; the other one lies outside of the run
    assert (
        kinds.count("data:image/svg+xml") == 4 + 2
    )  # loss, lr, gradient, probe; IoU by class (gates are no classes), confusion
    content = base64.b64decode(next(image for image in images if "jpeg" in image).partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (40, 20)
    outside = [
        value for _, attributes in page.tags for value in attributes.values() if value and re.match(r"\w+://|//", value)
    ]
    assert outside == [] and not [tag for tag, _ in page.tags if tag in ("link", "iframe")]


def test_scores_are_drawn_without_counts_and_times(tmp_path: Path):
    run = make_run(tmp_path / "run")
    told = {"event": "scores", "step": 1, "part": "test", "oa": 75.0, "tiles": 4, "seconds": 2.5, "good": True}
    (run / "metrics.jsonl").write_text(json.dumps(told) + "\n")
    assert read_run(run).points() == [Point("scores on test, %", "oa", 1.0, 75.0)]


def test_an_axis_in_powers_of_ten_is_numbered_in_plain_text():
    drawn = base64.b64decode(curves("grad_norm", {"a": [(0, 0.02), (1, 3.0)]}, log=True).partition(",")[2]).decode()
    numbers = set(re.findall(r">([^<>]+)</text>", drawn))
    assert {"0.1", "1"} <= numbers and not [text for text in numbers if "$" in text or "{" in text]


def test_classes_without_a_list_are_those_with_a_score_each(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "scores.json").write_text(
        json.dumps({"per_class": {"wood": 5.0, "roof": 6.0}, "confusion": [[1, 0], [0, 1]]})
    )
    page = report(run, "--out", tmp_path / "page.html")
    confusion = next(a["src"] or "" for tag, a in page.tags if tag == "img" and a["alt"] == "confusion")
    assert base64.b64decode(confusion.partition(",")[2]).count(b">wood<") == 2  # of its row, and of its column


@pytest.mark.skipif(BROWSER is None, reason="no browser is here")
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path):
    report(make_run(tmp_path / "run"), "--out", tmp_path / "run.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *options, (tmp_path / "run.html").as_uri()], text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert done.stdout.count("<figure") == 2 and "<h2>Curves</h2>" in done.stdout


def test_what_files_say_is_text(tmp_path: Path):
    page = report(make_run(tmp_path / "run", name=HOSTILE), "--out", tmp_path / "run.html")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.row(f"loss, {HOSTILE}: loss") == ["0.75"]
    drawn = [
        base64.b64decode((a["src"] or "").partition(",")[2])
        for tag, a in page.tags
        if tag == "img" and "svg" in (a["src"] or "")
    ]
    assert any(b"&lt;script&gt;alert(1)" in svg for svg in drawn) and not any(b"<script" in svg for svg in drawn)


def test_runs_side_by_side_tell_what_differs(tmp_path: Path):
    folders = [make_run(tmp_path / name, lr=lr) for name, lr in (("first", 1e-3), ("second", 2e-3))]
    page = report(*folders, "--out", tmp_path / "both.html")
    assert page.row("optim.lr", 2) == ["0.001", "0.002"]
    text = (tmp_path / "both.html").read_text()
    differing = Page(text[text.index("Settings that differ") : text.index("<details>")])
    assert "run.steps" not in differing.cells


def test_damaged_pictures_are_told(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / "pictures" / "step_00000002.png").write_bytes(b"none")
    command.main([str(folder)])
    assert "step_00000002.png cannot be read" in (folder / "report.html").read_text()


def test_wrong_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sweep" / "seed_3").mkdir(parents=True)
    (tmp_path / "sweep" / "seed_3" / "metrics.jsonl").write_text("")
    run = make_run(tmp_path / "run")
    for arguments, told in [
        ([tmp_path / "sweep"], "choose one of its seeds, such as"),
        ([tmp_path / "absent"], "holds no metrics.jsonl of a run"),
        ([run, run], "give the page to write, --out FILE.html"),
        ([run, "--out", tmp_path / "page.png"], "let its name end in .html"),
    ]:
        with pytest.raises(SystemExit) as ended:
            command.main([str(each) for each in arguments])
        assert ended.value.code == 2 and told in capsys.readouterr().err
