"""What `mkdocs build` makes beside the pages that lie here: pages of settings, tables, and pages of the clone's root."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs import notebook, reference  # noqa: E402

ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "docs/tutorial.ipynb": "tutorial.md",
}
WHO_RUNS_IT = re.compile(r"^```sh \w+$", re.M)  # quick, long, elsewhere: for tests
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and those of the clone's root."""
    for command in reference.TREES:
        content = reference.page(command)
        files.append(File.generated(config, reference.page_name(command), content=content))
    files.append(File.generated(config, "tutorial.md", content=notebook.as_markdown()))
    for source, name in ELSEWHERE.items():
        if name not in ("index.md", "tutorial.md"):
            content = at_home((ROOT / source).read_text(), ROOT / source)
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the tables, and let links to pages of the root lead to their copies."""
    tables = {"<!-- sensors -->": reference.sensors, "<!-- settings -->": _settings}
    for mark, make in tables.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return at_home(markdown, ROOT / "docs" / page.file.src_uri) if page.file.generated_by is None else markdown


def at_home(markdown: str, source: Path) -> str:
    """The text with its relative links as they are inside the site; what has no page there is text alone."""

    def moved(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = (source.parent / target).resolve()
        place = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else target
        if place in ELSEWHERE:
            return f"[{text}]({ELSEWHERE[place]}{anchor if place != 'README.md' else ''})"
        if path.parent == ROOT / "docs" and path.suffix == ".md":
            return f"[{text}]({path.name}{anchor})"
        return text

    return LINK.sub(moved, WHO_RUNS_IT.sub("```sh", markdown))


def _settings() -> str:
    return "\n".join(f"* [`{command}`]({reference.page_name(command)})" for command in reference.TREES)
