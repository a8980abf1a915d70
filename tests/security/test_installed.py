"""The library installed as users install it: a wheel in an environment of its own, used far from the clone."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import alliance
from alliance.checkpoint import save_encoder
from alliance.model import create_model
from tests.helpers.models import sensor_of
from tests.helpers.runs import ROOT, environment


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def test_the_version_stands_in_one_place() -> None:
    tree = ast.parse((ROOT / "alliance" / "__init__.py").read_text())
    (stated,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert ast.literal_eval(stated) == alliance.__version__
    assert setup()["metadata"]["version"] == "attr: alliance.__version__"


def test_every_dependency_has_a_lowest_version_and_deepspeed_a_range() -> None:
    lines = [setup()["options"]["install_requires"], *setup()["options.extras_require"].values()]
    needed = [Requirement(line) for line in "\n".join(lines).split("\n") if line and not line.startswith("#")]
    assert all(any(each.operator == ">=" for each in need.specifier) for need in needed)
    (deepspeed,) = [need for need in needed if need.name == "deepspeed"]
    assert {each.operator for each in deepspeed.specifier} == {">=", "<"}


def versions(which: str) -> dict[str, Version]:
    """What .ci/requirements.py names, by name."""
    done = subprocess.run([sys.executable, ".ci/requirements.py", which], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    needs = [Requirement(line) for line in done.stdout.splitlines()]
    assert all([each.operator for each in need.specifier] == ["=="] for need in needs)
    return {need.name.lower(): Version(str(need.specifier)[2:]) for need in needs}


def test_lowest_versions_are_not_above_those_that_are_used() -> None:
    pytest.importorskip("pre_commit", reason="`make test-lowest` installs no tools of those who write")
    used, lowest = versions("installed"), versions("lowest")
    assert {"torch", "deepspeed", "pytest", "einops"} <= set(lowest) and "ruff" not in lowest
    assert [name for name, version in lowest.items() if version > used[name.replace("_", "-")]] == []


def test_the_locked_versions_are_whole_and_those_that_setup_allows() -> None:
    """All that is needed, and nothing that only this machine knows."""
    needs = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
    assert all(not need.url and [each.operator for each in need.specifier] == ["=="] for need in needs)
    locked = {need.name: str(need.specifier)[2:] for need in needs}
    lines = [setup()["options"]["install_requires"]]
    lines += [setup()["options.extras_require"][name] for name in ("train", "dev")]
    for line in "\n".join(lines).split("\n"):
        if line and not line.startswith("#"):
            need = Requirement(line)
            assert need.specifier.contains(locked[need.name.lower().replace("_", "-")]), line


def test_sensors_are_public() -> None:
    assert "sentinel2-l2a" in alliance.list_sensors()
    assert alliance.find_sensor("sentinel2-l2a").name == "sentinel2-l2a"
    assert set(alliance.__all__) <= set(dir(alliance))


def test_what_a_command_does_not_need_is_not_imported() -> None:
    code = (
        "import sys, alliance; print([m for m in ('torch', 'timm') if m in sys.modules]);"
        "import datasets.shards.command, datasets.releases.command;"
        "print([m for m in ('timm', 'torchvision', 'deepspeed', 'wandb') if m in sys.modules]);"
        "print(sorted(name for name in alliance.__all__ if not hasattr(alliance, name)), hasattr(alliance, 'nothing'))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == ["[]", "[]", "[] False"]


def sdist(folder: Path) -> Path:
    """The source distribution, from a copy of what a fresh clone holds of the library."""
    clone = folder / "clone"
    shutil.copytree(ROOT / "alliance", clone / "alliance", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (folder / "made").mkdir()
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder / 'made')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=clone, timeout=200, capture_output=True)
    (made,) = (folder / "made").iterdir()
    assert made.name == f"alliance_rs-{alliance.__version__}.tar.gz"
    return made


@pytest.mark.long
@pytest.mark.parametrize("source", ["clone", "sdist"])
def test_a_wheel_works_outside_the_clone(tmp_path: Path, source: str) -> None:
    built_from = ROOT if source == "clone" else sdist(tmp_path)
    save_encoder(create_model("alliance_nano_patch8", [sensor_of(3)]).encoder, tmp_path / "run" / "encoder")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheel"), str(built_from)]
    subprocess.run(build, check=True, cwd=tmp_path, timeout=280)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"alliance/py.typed", "alliance/sensors/sentinel2-l2a.yaml"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"alliance", f"alliance_rs-{alliance.__version__}.dist-info"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True, timeout=100)
    place = next((tmp_path / "empty" / "lib").glob("python*/site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(wheel)], check=True, timeout=100)
    (place / "zz_libraries.pth").write_text(sysconfig.get_paths()["purelib"])  # torch and the rest, after our own
    program = f"""
import alliance, alliance.sensors.catalog, pathlib
assert pathlib.Path(alliance.__file__).is_relative_to({str(place)!r}), alliance.__file__
print(len(alliance.sensors.catalog.find_sensor("sentinel2-l2a").bands), alliance.__version__)
print(type(alliance.load_encoder({str(tmp_path / "run")!r})).__name__, len(alliance.list_sensors()))
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    python = str(tmp_path / "empty" / "bin" / "python")
    done = subprocess.run([python, "-c", program], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    bands = len(alliance.find_sensor("sentinel2-l2a").bands)
    assert done.stdout.split() == [
        str(bands),
        alliance.__version__,
        "AllianceEncoder",
        str(len(alliance.list_sensors())),
    ]
