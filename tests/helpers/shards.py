"""Very small shards of any sizes, as others would make them: plain WebDataset tars, indexed once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset
import yaml

from datasets.shards.foreign import index_folder

SENSOR = "one-band"


def write_tiny_shards(
    folder: Path, sizes: Sequence[int], *, side: int = 2, dtype: str = "uint8", nodata: float | None = None,
    extra: Sequence[str] = (), member: str = "image",
) -> Path:  # fmt: skip
    """Tars of `sizes` samples with one band, indexed; sample n of shard s is called `s<s>-<n>` and holds 16 s + n.

    Args:
        extra: keys of further samples in the first tar.
        member: what the arrays are called; those that are streamed are called by their sensor.
    """
    folder.mkdir(parents=True)
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(folder / f"shard-{shard:06d}.tar"), mtime=0) as tar:
            keys = [f"s{shard}-{sample}" for sample in range(size)] + list(extra if shard == 0 else ())
            for number, key in enumerate(keys):
                image = np.full((1, side, side), 16 * shard + number, dtype)
                tar.write({"__key__": key, f"{member}.npy": image})
    band = {"name": "grey", "wavelength": 600.0, "bandwidth": 100.0, "unit": "digital number"}
    sensor = {"name": SENSOR, "gsd_m": 1.0, "bands": [band], "nodata": nodata}
    (folder / "sensor.yaml").write_text(yaml.safe_dump(sensor))
    index_folder(folder, str(folder / "sensor.yaml"), workers=1)
    return folder
