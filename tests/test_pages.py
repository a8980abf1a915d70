"""README and docs/: their commands run, their links lead somewhere, and what they name is there."""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from docs import notebook, reference
from engine.settings_tree import find, groups, keys
from tests.helpers import warm
from tests.helpers.runs import environment

ROOT = Path(__file__).resolve().parents[1]
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "RESULTS.md"]
FENCE = re.compile(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", re.M | re.S)
TAGS = {"quick", "long", "elsewhere"}  # run by `make test`, by `make test LONG=1`, by none
OTHERS = {
    "logdir",
    "num_gpus",
    "hostfile",
    "master_addr",
    "nodes",
    "nthreads",
    "group.key",
}  # options of programs that are not ours, and a placeholder
OWN = ("config", "help", "print_config")  # of every trainer
SCRIPT = re.compile(r"(?:launch|finetune|benchmarks)/\w+\.py")
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

# What makes the commands of the pages small, appended to them.
SMALL = {
    "launch/synthetic.py scenes": "--scenes 2 --size 128 --cube 0",
    "launch/synthetic.py chips": "--chips 20 --size 32",
    "launch/synthetic.py augsburg": "--height 48 --width 64 --classes 3",
    "launch/synthetic.py whu-opt-sar": "--height 128 --width 192",
    "launch/synthetic.py yellow-river": "--size 128",
    "launch/shards.py": "--tile 32 --workers 1",
    "launch/pretrain.py": "--data.crop 32 --optim.batch 8 --model.encoder.embed_dim 48 --model.encoder.depth 2 "
    "--model.encoder.heads 3 --model.decoder.embed_dim 48 --model.decoder.depth 3 --run.steps 2 --run.log_every 1",
    "finetune/scene.py": "--run.steps 2 --optim.batch 8 --data.size 16 --resamples 0",
    "finetune/multilabel.py": "--run.steps 2 --optim.batch 8 --data.size 16 --resamples 0",
    "finetune/classify.py": "--seeds 0 --epochs 1 --model.width 16 --references false --maps none "
    "--data.protocol.per_class 3",
    "finetune/segment.py": "--run.steps 2 --augment.crop 64 --engine.precision fp32",
    "finetune/crossdomain.py": "--run.steps 2",
    "finetune/probe.py": "--images 20 --readout mean",
}


def sh_blocks(path: Path) -> list[tuple[str, str]]:
    """Tag and text of every block of commands of a page."""
    return [(tag.strip(), text) for language, tag, text in FENCE.findall(path.read_text()) if language == "sh"]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a block, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def inline(path: Path) -> list[str]:
    """What stands in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text()))


@cache
def options_of(script: str) -> set[str]:
    """Long options of a command that is no trainer, those of its kinds included."""
    text = (ROOT / script).read_text()
    for name in re.findall(r"from ([\w.]+) import main", text):
        module = importlib.import_module(name)
        if hasattr(module, "_parser"):
            return set(_options(module._parser()))
        text = Path(str(module.__file__)).read_text()
    return set(re.findall(r'"--([\w-]+)"', text))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option.removeprefix("--") for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for kind in action.choices.values():
                yield from _options(kind)


def is_setting(name: str, trees: list[type]) -> bool:
    return name in OWN or any(find(tree, name.removesuffix("+")) for tree in trees)


def unknown_options(words: list[str]) -> list[str]:
    """Options of a command of ours that it does not have."""
    place = next((number for number, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
    if place is None:
        return []
    script = words[place]
    given = [word[2:].partition("=")[0] for word in words[place + 1 :] if re.match(r"--[a-z]", word)]
    if script in reference.TREES:
        return [name for name in given if not is_setting(name, [reference.TREES[script]])]
    return [name for name in given if name not in options_of(script)]


def every_option() -> set[str]:
    scripts = [
        str(path.relative_to(ROOT))
        for room in ("launch", "finetune", "benchmarks")
        for path in (ROOT / room).glob("*.py")
    ]
    ours = [each for each in scripts if each not in reference.TREES and "import main" in (ROOT / each).read_text()]
    return OTHERS | {option for script in ours for option in options_of(script)}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and Python-Markdown make it."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def test_the_readme_is_short_and_its_commands_stand_near_the_top():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any("make pretrain" in line for line in lines[:15]) and any("make test" in line for line in lines[:15])


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place = (path.parent / target).resolve() if target else path
        assert place.exists() and place.is_relative_to(ROOT), f"{target} of {path.name}"
        if anchor and place.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", place.read_text()), re.M)
            assert anchor[1:] in {slug(heading) for heading in headings}, f"{target}{anchor} of {path.name}"


@each_page
def test_every_block_of_commands_says_who_runs_it(path: Path):
    assert {tag for tag, _ in sh_blocks(path)} <= TAGS
    outside = FENCE.sub("", path.read_text())
    assert not re.findall(r"^ {4,}(?:python|deepspeed|make|sbatch|pip) .*$", outside, re.M)


@each_page
def test_commands_have_their_options(path: Path):
    told = [words for _, text in sh_blocks(path) for words in commands(text)]
    told += [code.split() for code in inline(path) if SCRIPT.search(code)]
    assert [(words, unknown) for words in told if (unknown := unknown_options(words))] == []


@each_page
def test_options_and_settings_in_the_text_are_there(path: Path):
    trees, known = list(reference.TREES.values()), every_option()
    flags = {flag for code in inline(path) for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", code)}
    wrong = [flag for flag in flags if flag not in known and not is_setting(flag.rstrip("."), trees)]
    names = {name for tree in trees for name in keys(tree)}
    tops = {name.split(".")[0] for name in names}
    named = [
        code for code in inline(path) if re.fullmatch(r"[a-z_]+(?:\.[a-z_]+)+", code) and code.split(".")[0] in tops
    ]
    files = (".json", ".jsonl", ".safetensors", ".yaml", ".npz", ".py", ".md")
    short = [name for name in named if not name.endswith(files) and not is_setting(name, trees)]
    wrong += [name for name in short if not any(one.endswith(f".{name}") for one in names)]
    assert wrong == []


@each_page
def test_files_of_the_repository_that_are_named_exist(path: Path):
    rooms = "alliance|datasets|engine|pretrain|finetune|launch|configs|benchmarks|docs|tests"
    named = set(re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w/.-]+)", path.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name.rstrip(".")).exists()] == []


def nav_pages(entries: list) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values():
                yield from nav_pages(inner) if isinstance(inner, list) else [inner]


def test_the_site_shows_every_page():
    made = {reference.page_name(command) for command in reference.TREES} | {"tutorial.md"}
    copied = {"results.md", "security.md", "contributing.md", "changelog.md"}
    assert sorted(nav_pages(NAV)) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} | made | copied)


def run_pages(folder: Path, tags: set[str]) -> None:
    """Run the blocks with these tags, page by page as the site lists them, what they write below `folder`."""
    for page in [path for name in nav_pages(NAV) if (path := ROOT / "docs" / name).is_file()]:
        for tag, text in sh_blocks(page):
            for words in commands(text) if tag in tags else ():
                assert words[0] == "python", words
                few = next((more for known, more in SMALL.items() if " ".join(words[1:]).startswith(known)), "")
                more = "" if {"--verify", "--print_config"} & set(words) else few
                moved = [re.sub(r"(?<![\w./-])(data|runs|probes)/", rf"{folder}/\1/", word) for word in words[1:]]
                done = warm.run([str(ROOT / moved[0]), *moved[1:], *more.split()], environment(), 200)
                assert done.returncode == 0, f"{page.name}: {shlex.join(words)}\n{done.stdout[-3000:]}"


def test_quick_commands_of_the_pages_run(tmp_path: Path):
    run_pages(tmp_path, {"quick"})
    told = [path.parent for path in (tmp_path / "runs").rglob("metrics.jsonl")]
    assert told and [run for run in told if not (run / "report.html").is_file()] == []


@pytest.mark.long
def test_long_commands_of_the_pages_run(tmp_path: Path):
    run_pages(tmp_path, {"quick", "long"})
    made = (
        "probes/rgb/scores.json",
        "runs/exported/README.md",
        "runs/encoder.onnx",
        "runs/three.png",
        "runs/labels.csv",
        "runs/pad/examined/robustness.csv",
    )
    assert [name for name in made if not (tmp_path / name).is_file()] == []


@pytest.mark.long
def test_the_tutorial_runs(tmp_path: Path):
    small = {"SCENES": "3", "SIZE": "192", "STEPS": "4", "FOLDER": str(tmp_path / "made")}
    environ = environment() | {f"TUTORIAL_{name}": value for name, value in small.items()} | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "docs/tutorial.py"],
        cwd=ROOT,
        env=environ,
        text=True,
        timeout=280,
        stdout=-1,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert "% of the pixels as in the truth" in done.stdout


def test_the_notebook_is_that_of_the_script():
    kept = json.loads((ROOT / "docs/tutorial.ipynb").read_text())
    told = [notebook.Cell(cell["cell_type"], "".join(cell["source"])) for cell in kept["cells"]]
    assert told == notebook.cells()
    assert (ROOT / "docs/tutorial.ipynb").stat().st_size < 2e6
    assert not re.search(r"/(?:home|tmp|work|root|Users)/", (ROOT / "docs/tutorial.ipynb").read_text())


@pytest.mark.parametrize("command", reference.TREES)
def test_pages_of_settings_explain_every_key(command: str):
    tree = reference.TREES[command]
    rows = [row for row in reference.settings(tree) if isinstance(row, reference.Row)]
    told = {row.name for row in rows}
    single = {name for name in keys(tree) if not any(groups(hint) == [hint] for hint in find(tree, name))}
    assert single <= told
    assert [row.name for row in rows if len(row.text) < 3] == []
    page = reference.page(command)
    assert all(f"| `{name}` |" in page for name in told)


def test_a_page_of_settings_by_hand():
    page = reference.page("launch/pretrain.py")
    assert "| `run.dir` | text | needed | Folder of the run;" in page
    assert (
        "| `run.keep` | whole number | `2` | Number of checkpoints that stay, the newest ones. Range: from 1 to 2^31 - 1. |"
        in page
    )
    assert "| `data.sources[].weight` | number | `1` |" in page
    assert "| `model.loss.schedule` | `linear`, `rbf`, `constant` | `linear` |" in page


@cache
def sayings() -> str:
    """All texts of the code, one after the other, parts in braces as they are computed left out."""
    parts = []
    for room in ("alliance", "datasets", "engine", "pretrain", "finetune"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts.append(
                        "".join(str(value.value) if isinstance(value, ast.Constant) else "" for value in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts.append(node.value)
    return "\n".join(parts)


@pytest.mark.parametrize("told", re.findall(r'^### "(.*)"$', (ROOT / "docs/faq.md").read_text(), re.M))
def test_errors_of_the_page_are_those_of_the_code(told: str):
    assert told in sayings()


def test_tables_of_data_sets_name_every_configuration_and_description():
    page = (ROOT / "docs/datasets.md").read_text()
    for path in [*(ROOT / "configs/finetune").glob("*.yaml"), *(ROOT / "configs/labelled").glob("*.yaml")]:
        assert f"`{path.stem}`" in page, path.name


@pytest.mark.long
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    if importlib.util.find_spec("material") is None:
        pytest.skip("the extra docs is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=dict(os.environ), text=True, stdout=-1, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    assert (tmp_path / "site" / "settings-pretrain.html").is_file()
