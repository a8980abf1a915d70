"""The shape of the code: which way imports point, names that shadow nothing, sizes, and files that explain themselves."""

import ast
import configparser
import graphlib
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANK = {"alliance": 0, "datasets": 1, "engine": 2, "pretrain": 3, "finetune": 3, "launch": 4, "benchmarks": 4}
CORE = {"torch", "timm", "einops", "safetensors", "yaml", "numpy"}  # all that the installed library may need
IMPORT_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pytest-timeout": "pytest_timeout"}
FILES = {
    path.relative_to(ROOT): ast.parse(path.read_text()) for folder in RANK for path in (ROOT / folder).rglob("*.py")
}
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
SCRIPTS = [
    path for path, tree in FILES.items() if path.parts[0] in ("launch", "finetune") and "__main__" in ast.dump(tree)
]
each_file = pytest.mark.parametrize("path", FILES, ids=str)


def imports(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Modules that a file imports, dotted; `everywhere` also those imported inside functions."""
    tree = FILES[path]
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            parts = [f"{base}.{alias.name}" for alias in node.names]
            yield from (part if part in MODULES else base for part in parts)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function of a file."""
    for node in ast.walk(FILES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def dependencies() -> set[str]:
    """Import names of everything setup.cfg asks for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = [re.split(r"[\[<>=! ]", line)[0] for line in "\n".join(lines).split("\n") if line]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


@each_file
def test_imports_point_down(path: Path) -> None:
    """launch -> pretrain, finetune -> engine -> datasets -> alliance; pretrain and finetune do not know each other."""
    own = path.parts[0]
    for name in imports(path):
        top = name.partition(".")[0]
        assert top != "tests", f"{path} imports {name}"
        assert top not in RANK or top == own or RANK[top] < RANK[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "alliance"], ids=str)
def test_the_library_needs_its_core_dependencies_alone(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path, everywhere=False)}
    assert tops <= CORE | {"alliance"} | set(sys.stdlib_module_names)


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


@each_file
def test_no_module_is_named_like_one_of_python_or_of_a_library(path: Path) -> None:
    own = set() if path in SCRIPTS else {path.stem}  # a script is not imported, and takes its folder off the path first
    names = {*own, *path.parent.parts} - {"__init__", "datasets"}
    assert not names & (set(sys.stdlib_module_names) | dependencies())


def test_setup_installs_the_library_alone() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["packages"].split() == [
        "alliance", "alliance.integrations", "alliance.released", "alliance.sensors",
    ]  # fmt: skip
    required = {
        IMPORT_NAMES.get(name, name) for name in re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.M)
    }
    assert required == CORE


@each_file
def test_files_and_functions_are_short(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 400
    assert not [(name, length) for name, length in functions(path) if length > 60]


def test_half_of_all_functions_have_at_most_15_lines() -> None:
    assert statistics.median(length for path in FILES for _, length in functions(path)) <= 15


@each_file
def test_every_module_opens_with_a_docstring(path: Path) -> None:
    tree = FILES[path]
    assert not tree.body or ast.get_docstring(tree)


EXPLAINED = ("alliance/", "engine/", "pretrain/", "datasets/shards/", "datasets/sampling/")
SHAPE = re.compile(r"\((?:[^(),]{1,24},)+[^(),]{0,24}\)|\(\)|scalar|same shape")  # (b, c, h, w), (), "the same shape"
Public = ast.FunctionDef | ast.ClassDef


def public() -> Iterator[tuple[str, Public, ast.ClassDef | None]]:
    """Name, node and class of every public function, class and method of the folders whose docstrings are counted."""
    for path, tree in FILES.items():
        if str(path).startswith(EXPLAINED):
            tops = [node for node in tree.body if isinstance(node, Public) and not node.name.startswith("_")]
            for top in tops:
                yield f"{path}: {top.name}", top, None
                for node in top.body if isinstance(top, ast.ClassDef) else ():
                    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                        yield f"{path}: {top.name}.{node.name}", node, top


def annotations(function: ast.FunctionDef) -> Iterator[ast.expr]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    yield from (one.annotation for one in arguments if one and one.annotation)
    yield from [function.returns] if function.returns else []


def is_array(annotation: ast.expr) -> bool:
    """Whether it names tensors or arrays; those in a mapping, such as weights by name, have no shape in common."""
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(annotation)}
    return bool(names & {"Tensor", "ndarray"}) and not names & {"dict", "Mapping"}


def test_public_code_explains_itself() -> None:
    """At least 95 in 100 public functions, classes and methods have a docstring."""
    found = {name: ast.get_docstring(node) for name, node, _ in public()}
    silent = [name for name, text in found.items() if not text]
    assert len(silent) <= 0.05 * len(found), silent


def test_shapes_of_tensors_and_arrays_are_named() -> None:
    """In at least 95 in 100 docstrings of public functions that take or give them; that of the class counts as well."""
    functions = [
        (name, f"{ast.get_docstring(node)} {top and ast.get_docstring(top)}")
        for name, node, top in public()
        if isinstance(node, ast.FunctionDef) and any(map(is_array, annotations(node)))
    ]
    silent = [name for name, text in functions if not SHAPE.search(text)]
    assert len(silent) <= 0.05 * len(functions), silent


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_script_keeps_the_folders_of_pythonpath(tmp_path: Path, safe: str) -> None:
    (tmp_path / "sitecustomize.py").write_text("import atexit, sys\natexit.register(lambda: print(sys.path[:2]))\n")
    where = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe}
    done = subprocess.run(
        [sys.executable, "launch/report.py", "--help"], cwd=ROOT, env=where, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([str(ROOT), str(tmp_path)])


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_scripts_are_thin_and_put_the_clone_first_on_the_path(path: Path) -> None:
    """A class defined in a script would be pickled as __main__.X; its own folder on the path would shadow packages."""
    assert (
        "sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]" in (ROOT / path).read_text()
    )
    assert 'os.environ["PYTHONSAFEPATH"] = "1"' in (ROOT / path).read_text()
    assert "end_at_once()" in (ROOT / path).read_text().partition("import main")[0]
    assert not [node for node in ast.walk(FILES[path]) if isinstance(node, ast.ClassDef | ast.FunctionDef)]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_opens_with_a_comment(path: Path) -> None:
    assert re.match(r"# \w", path.read_text())
