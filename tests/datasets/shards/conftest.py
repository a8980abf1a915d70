"""Shards that several files of tests read."""

from pathlib import Path

import pytest

from datasets.shards.command import main
from tests.helpers.rasters import S2_NAMES, counts, write_tiff


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two sensors: 9 samples in one tar."""
    root = tmp_path_factory.mktemp("two")
    write_tiff(root / "s2" / "x.tif", counts((13, 48, 48)), names=S2_NAMES)
    write_tiff(root / "s1" / "x.tif", -counts((2, 48, 48)).astype("f4") / 200, names=("VV", "VH"))
    sources = (f"sentinel2-l1c={root / 's2'}", f"sentinel1-grd-db={root / 's1'}")
    main([*sources, "--out", str(root / "out"), "--tile", "16", "--workers", "1"])
    return root / "out"
