"""Synthetic patches in the layout of BigEarthNet v1: Sentinel-2 and Sentinel-1 of one place, a file per band, labels in JSON.

NOTHING IN THEM IS MEASURED. Of the four classes two and two look alike in either image, so that neither alone tells all apart.
"""

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.files import require_empty
from datasets.synthetic.chips import LEAST, make_cover
from datasets.synthetic.landscapes import CRS, PIXEL_M

CLASSES = ("Pastures", "Coniferous forest", "Water bodies", "Continuous urban fabric")
FINE = {"B02": 0.06, "B03": 0.08, "B04": 0.07, "B08": 0.3}  # bands of 10 m, reflectance of the brighter look
COARSE = {
    "B05": 2,
    "B06": 2,
    "B07": 2,
    "B8A": 2,
    "B11": 2,
    "B12": 2,
    "B01": 6,
    "B09": 6,
}  # how many pixels of 10 m along a side
RADAR = {"VV": (-16.0, -7.0), "VH": (-23.0, -14.0)}  # decibel of the darker and the brighter look


def write_bigearthnet(folder: Path, *, patches: int = 40, size: int = 120, seed: int = 0) -> None:
    """Write S2/PATCH/PATCH_BAND.tif and S1/PATCH/PATCH_BAND.tif, each with PATCH_labels_metadata.json; classes take turns.

    Args:
        size: side of the bands of 10 m, pixels, a multiple of 6.
    Raises:
        InputError: other numbers than these can be made with, or a folder that is not empty.
    """
    if patches < len(CLASSES) or size < 12 or size % 6 or seed < 0:
        raise InputError(
            f"{patches} patches of {size} pixels, seed {seed}, cannot be made; give {len(CLASSES)} at least, a multiple of 6 "
            f"from 12 on and a seed from 0 on"
        )
    require_empty(folder)
    for number in range(patches):
        rng = np.random.default_rng([seed, number])
        cover = make_cover(size, len(CLASSES), number % len(CLASSES), rng)
        share = np.bincount(cover.ravel(), minlength=len(CLASSES)) / cover.size
        labels = [name for name, part in zip(CLASSES, share, strict=True) if part >= LEAST]
        optical, radar = f"S2A_MSIL2A_20170613T101031_{number}_0", f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}_0"
        _write(folder / "S2" / optical, _reflectance(cover // 2, rng), number)
        _write(folder / "S1" / radar, _backscatter(cover % 2, rng), number)
        _tell(folder / "S2" / optical, {"labels": labels})
        _tell(folder / "S1" / radar, {"labels": labels, "corresponding_s2_patch": optical})
    (folder / "SYNTHETIC.txt").write_text(
        f"Nothing in this folder is measured. It was drawn by Alliance (datasets/synthetic/bigearthnet.py, seed {seed}).\n"
    )


def _reflectance(look: NDArray[np.intp], rng: np.random.Generator) -> dict[str, NDArray]:
    """Stored numbers of every band, of looks 0 and 1 per pixel (h, w)."""
    bands = {}
    for name in (*FINE, *COARSE):
        step = COARSE.get(name, 1)
        bright = FINE.get(name, 0.2)
        value = np.where(look[::step, ::step] == 1, bright, 0.4 * bright)
        bands[name] = np.rint(1e4 * value * np.exp(0.1 * rng.standard_normal(value.shape))).clip(1).astype(np.uint16)
    return bands


def _backscatter(look: NDArray[np.intp], rng: np.random.Generator) -> dict[str, NDArray]:
    return {
        name: (np.where(look == 1, bright, dark) + 1.5 * rng.standard_normal(look.shape)).astype(np.float32)
        for name, (dark, bright) in RADAR.items()
    }


def _write(folder: Path, bands: dict[str, NDArray], number: int) -> None:
    folder.mkdir(parents=True)
    size = max(map(len, bands.values()))
    for name, band in bands.items():
        metres = PIXEL_M * size / len(band)
        place = Affine(metres, 0, 500_000 + number * size * PIXEL_M, 0, -metres, 5_000_000)
        form = {"count": 1, "height": len(band), "width": len(band), "dtype": band.dtype.name, "compress": "deflate"}
        path = folder / f"{folder.name}_{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", crs=CRS, transform=place, **form) as file:
            file.write(band, 1)
            file.update_tags(SYNTHETIC="yes")


def _tell(folder: Path, record: dict) -> None:
    (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(record))
