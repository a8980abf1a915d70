"""Versions for installing what setup.cfg asks for, one requirement a line:  python .ci/requirements.py lowest|installed

`lowest` are the lowest that setup.cfg allows, for `make test-lowest`; `installed` those of this environment and of all that
they need, for requirements.lock.
"""

import configparser
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = ("ruff", "pyright", "pre-commit")  # for those who write: no part of what is tested
EXTRAS = ("train", "dev")


def wanted() -> list[Requirement]:
    """What the library needs, and the extras."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[1] / "setup.cfg")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in EXTRAS)]
    return [Requirement(line) for line in "\n".join(texts).split("\n") if line and not line.startswith("#")]


def lowest() -> list[str]:
    """Each at the lowest version that is allowed."""
    pinned = []
    for need in wanted():
        (version,) = [each.version for each in need.specifier if each.operator == ">="]
        extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
        pinned += [f"{need.name}{extras}=={version}"] if need.name not in TOOLS else []
    return pinned


def installed() -> list[str]:
    """Each at the version that is installed here, and what they need in turn; without the label of a local build.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    found: dict[str, str] = {}
    left, seen = wanted(), set()
    while left:
        need = left.pop()
        name, extras = canonicalize_name(need.name), need.extras or {""}
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        known = metadata.distribution(name)
        found[name] = re.sub(r"\+.*", "", known.version)
        inner = map(Requirement, known.requires or ())
        left += [each for each in inner if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["installed"]):
        sys.exit("usage: python .ci/requirements.py lowest|installed")
    sys.stdout.write("\n".join({"lowest": lowest, "installed": installed}[sys.argv[1]]()) + "\n")
