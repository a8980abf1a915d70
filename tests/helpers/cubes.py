"""Files of arrays for tests, and what is read of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from datasets.imagery.cubes import CubeOptions, CubeScene, describe_cube
from datasets.imagery.scenes import Window


def ramp(bands: int, height: int, width: int, dtype: str = "uint16") -> np.ndarray:
    """Values 1000 band + 30 row + column: every reading of the axes but one gives other numbers. (c, h, w)."""
    band, row, col = np.ogrid[:bands, :height, :width]
    return (1000 * band + 30 * row + col).astype(dtype)


def write_h5(
    path: Path,
    arrays: Mapping[str, Any],
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """An HDF5 file.

    Args:
        attributes: by name of the array; of the file itself under "".
        dims: names of the dimensions of an array; those that are arrays become its dimension scales, others labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        for name, own in (attributes or {}).items():
            (file[name] if name else file).attrs.update(own)
        for name, names in (dims or {}).items():
            for dim, label in zip(file[name].dims, names, strict=True):
                if label in file:
                    if not h5py.h5ds.is_scale(file[label].id):
                        file[label].make_scale(label.rpartition("/")[2])
                    dim.attach_scale(file[label])
                else:
                    dim.label = label
    return path


def seen(path: Path, **options: Any) -> tuple[CubeScene, Window]:
    """Header and all pixels of the image in a file."""
    scene = describe_cube(path, path.parent, CubeOptions(**options))
    with scene.open(range(scene.shape[0])) as read:
        return scene, read(0, 0, *scene.shape[1:])
