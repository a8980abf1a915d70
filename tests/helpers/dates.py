"""Images of two dates on disk, with what changed between them."""

from pathlib import Path

import numpy as np
import yaml

from tests.helpers.rasters import write_tiff


def write_dates(root: Path) -> Path:
    """Six pairs of 32 x 48 pixels: three bands before, one after, bright where it changed; the description."""
    draw = np.random.default_rng(0)
    for name in "abcdef":
        changed = np.zeros((32, 48), dtype=np.uint8)
        changed[8:20, 5 : 5 + draw.integers(10, 30)] = 255
        write_tiff(root / "one" / f"{name}.tif", draw.integers(40, 120, (3, 32, 48)).astype(np.uint8))
        later = draw.integers(40, 120, (1, 32, 48)) + 100 * (changed > 0)
        write_tiff(root / "two" / f"{name}.tif", later.astype(np.uint8))
        write_tiff(root / "change" / f"{name}.tif", changed[None])
    record = {
        "early": {"files": "one", "sensor": "rgb-uint8", "mean": [0.3] * 3, "std": [0.1] * 3},
        "late": {"files": "two", "bands": [1], "statistics": "dataset"},
        "label": {"files": "change", "values": {0: 0, 255: 1}},
        "classes": {"same": [0, 0, 0], "changed": [250, 250, 0]},
        "splits": {"train": list("abcd"), "test": list("ef")},
    }
    (root / "set.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return root / "set.yaml"
