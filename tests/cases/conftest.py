"""What the cases share: their scripts, which are run as a user would run them, in this process."""

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make_case("ingest", "01", ...)`: the folder of the input that a script makes, with its further arguments; once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        folder, number, *arguments = words
        if not (CASES / folder).is_dir():
            pytest.skip("the folder ../shared/cases of inputs is not here")
        if words not in made:
            (script,) = (CASES / folder).glob(f"{number}_*.py")
            out = made[words] = tmp_path_factory.mktemp("case") / "input"
            before = set(sys.modules)
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the script
                patch.setattr(sys, "argv", [str(script), str(out), *arguments])
                patch.syspath_prepend(str(script.parent))
                runpy.run_path(str(script), run_name="__main__")
            for name in {"common", "scene"} & (set(sys.modules) - before):
                del sys.modules[name]
        return made[words]

    return make
