"""What lay in the memory of the process gets into no file: not into what a block of a map holds beyond the image's edge."""

import ctypes
import zlib
from pathlib import Path

import numpy as np
import pytest

from datasets.imagery.feature_maps import Dtype, feature_map
from datasets.imagery.maps import Grid
from datasets.imagery.rasters import open_quietly

SECRET = 1234.0  # half precision holds it
BANDS, HEIGHT, WIDTH, BLOCK = 48, 37, 45, 128


def spill() -> None:
    """Leave memory of many sizes free that holds the secret."""
    for size in (2**12, 2**16, 2**20, 7 * 2**19):
        pieces = [np.full(size, SECRET, np.float32) for _ in range(4)]
        del pieces


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than GNU's")
@pytest.mark.parametrize(("dtype", "stored"), [("float16", "<f2"), ("int8", "i1")])
def test_beyond_the_edge_of_an_image_its_file_holds_zeros(dtype: Dtype, stored: str, tmp_path: Path) -> None:
    features = np.random.default_rng(0).random((BANDS, HEIGHT, WIDTH), dtype=np.float32)
    names = [f"f{number}" for number in range(BANDS)]
    for attempt in range(3):
        path = tmp_path / f"{attempt}.tif"
        with feature_map(path, Grid(HEIGHT, WIDTH), names, dtype, {}) as rows:
            rows.write(features, 0, 0)
            spill()
        with open_quietly(path) as file:
            assert file.block_shapes[0] == (BLOCK, BLOCK)
            place, size = (int(file.get_tag_item(f"BLOCK_{name}_0_0", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE"))
        block = np.frombuffer(zlib.decompress(path.read_bytes()[place : place + size]), stored)
        beyond = block.reshape(BLOCK, BLOCK, BANDS).copy()
        assert np.count_nonzero(beyond[:HEIGHT, :WIDTH]) > 0.9 * features.size
        beyond[:HEIGHT, :WIDTH] = 0
        assert not beyond.any(), np.unique(beyond)[:9]
