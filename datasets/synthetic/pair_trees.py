"""Synthetic files in the layouts of WHU-OPT-SAR and DDHR-SK, with the defects of the real ones. NOTHING HERE IS MEASURED."""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.imagery.rasters import open_quietly
from datasets.synthetic.pairs import SyntheticPair, make_pair

WHU_SCENES = ("NH49E001013", "NH49E001014", "NH49E002014", "NH49E004013", "NH50E007002")  # train test train train test
NARROW, NO_SAR = "NH49E002014", "NH49E004013"
AUTHORS = "/home/authors/korea/256_cloud"  # DDHR-SK's published lists hold absolute paths of another machine


def write_plain(path: Path, pixels: np.ndarray, **profile: Any) -> None:
    """(c, h, w) to a file without georeference, as both data sets are; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = {".tif": "GTiff", ".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    count, height, width = pixels.shape
    form = {"driver": driver, "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with open_quietly(path, "w", **(form | profile)) as file:
        file.write(pixels)


def write_whu(root: Path, *, height: int = 80, width: int = 112, seed: int = 0) -> dict[str, SyntheticPair]:
    """Five scenes: labels 10, 20, ... with 0 in the first row, one scene a column narrower, one without SAR."""
    scenes = {}
    for number, name in enumerate(WHU_SCENES):
        scene = make_pair(height, width - (name == NARROW), 7, np.random.default_rng([seed, number]))
        stored = 10 * (scene.label[None] + 1)
        stored[:, 0] = 0
        write_plain(root / "optical" / f"{name}.tif", scene.optical)
        write_plain(root / "lbl" / f"{name}.tif", stored)
        if name != NO_SAR:
            write_plain(root / "sar" / f"{name}.tif", scene.sar)
        scenes[name] = scene
    return scenes


def write_ddhr(root: Path, *, pairs: int = 6, size: int = 32, seed: int = 0) -> dict[str, SyntheticPair]:
    """JPEG pairs 1, 2, ... (SAR as three equal channels), PNG labels 0 to 4 and 255, and lists of foreign paths."""
    tiles = {}
    for number in range(1, pairs + 1):
        tile = make_pair(size, size, 5, np.random.default_rng([seed, number]))
        stored = tile.label[None].copy()
        stored[:, 0] = 255
        home = root / "korea" / "256_cloud"
        write_plain(home / "GF2" / f"{number}.jpg", tile.optical[:3], quality=95)
        write_plain(home / "GF3" / f"{number}.jpg", np.repeat(tile.sar, 3, axis=0), quality=95)
        write_plain(home / "label" / f"{number}.png", stored)
        tiles[str(number)] = tile
    for name, first in (("trainM_list.txt", 1), ("valM_list.txt", 2)):
        lines = [
            f"{AUTHORS}/GF2/{number}.jpg {AUTHORS}/GF3/{number}.jpg {AUTHORS}/label/{number}.png\n"
            for number in range(first, pairs + 1, 2)
        ]
        (root / name).write_text("".join(lines))
    return tiles
