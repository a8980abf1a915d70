"""ENVI files for tests."""

from pathlib import Path
from typing import Any

import numpy as np


def write_envi(
    path: Path, cube: np.ndarray, interleave: str = "bsq", *, header: Path | None = None, **more: Any
) -> None:
    """A cube (c, h, w) of int16 with its header beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    cube.astype("<i2").transpose(order).tofile(path)
    bands, lines, samples = cube.shape
    keys = {"samples": samples, "lines": lines, "bands": bands, "header offset": 0, "file type": "ENVI Standard"}
    keys |= {"data type": 2, "interleave": interleave, "byte order": 0, **more}
    text = "\n".join(f"{key.replace('_', ' ')} = {value}" for key, value in keys.items())
    (header or path.with_name(path.name + ".hdr")).write_text(f"ENVI\n{text}\n")
