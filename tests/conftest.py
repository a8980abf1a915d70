"""What several tests share: real data where they are at hand, and small made-up scenes."""

from pathlib import Path

import pytest
import torch

from datasets.synthetic import write_scenes

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real scenes beside the clone; tests that need it skip where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data of real scenes is not here")
    return folder


@pytest.fixture(scope="session")
def synthetic_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two made-up scenes of 128 x 128 pixels: optical, sar, hyperspectral, elevation, labels."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_scenes(folder, count=2, size=128, seed=0)
    return folder
