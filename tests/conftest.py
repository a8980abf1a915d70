"""What several tests share: real data where they are at hand, and small synthetic scenes."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datasets.shards import command
from datasets.synthetic.landscapes import write_scenes

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # two OpenMP threads on busy cores stall at their barriers


def _python() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON") or name == "PATH"}


@pytest.fixture(autouse=True)
def python_stays() -> Iterator[None]:
    """No test changes which Python, and which packages, the tests after it start on this worker."""
    before = _python()
    yield
    assert _python() == before


@pytest.fixture(autouse=True)
def log_stays() -> Iterator[None]:
    """No command that a test calls takes the log away from those after it."""
    logger = logging.getLogger("alliance")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real scenes beside the clone; tests that need it skip where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data of real scenes is not here")
    return folder


@pytest.fixture(scope="session")
def synthetic_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two synthetic scenes of 128 x 128 pixels: optical, sar, hyperspectral, elevation, labels."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_scenes(folder, scenes=2, size=128, seed=0)
    return folder


def _shards(scenes: Path, sensor: str, out: Path) -> Path:
    command.main([str(scenes), "--sensor", sensor, "--out", str(out), "--tile", "64", "--workers", "1"])
    return out


@pytest.fixture(scope="session")
def optical_shards(synthetic_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the synthetic optical scenes: 8 tiles of 10 x 64 x 64."""
    return _shards(synthetic_scenes / "optical", "synthetic-optical", tmp_path_factory.mktemp("shards") / "optical")


@pytest.fixture(scope="session")
def sar_shards(synthetic_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the synthetic SAR scenes: 8 tiles of 2 x 64 x 64."""
    return _shards(synthetic_scenes / "sar", "synthetic-sar", tmp_path_factory.mktemp("shards") / "sar")
