"""Honest images that look strange: each is read, under the sensor that it is of, whole."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from alliance.sensors.catalog import sensor_names
from datasets.shards.gather import Request, gather
from datasets.shards.plan import TileOptions, make_plan
from tests.helpers.rasters import S2_NAMES, write_tiff

SIDE = 40
L2A = tuple(name for name in S2_NAMES if name != "B10")
LAND = (300, 400, 600, 500, 900, 2200, 2600, 2800, 2900, 3000, 1800, 1000)  # reflectance x 10000 of L2A
PLANET, RADAR = ("blue", "green", "red", "nir"), ("VV", "VH")


def normal(*means: float, std: float, dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.stack([generator.normal(mean, std, (SIDE, SIDE)) for mean in means]).astype(dtype)


def counted(*means: float) -> np.ndarray:
    """Of uint16, with a tenth of noise and without the fill value 0."""
    noise = normal(*[1] * len(means), std=0.1)
    return (noise * np.array(means)[:, None, None]).clip(1, 65535).round().astype("uint16")


def power(*means: float) -> np.ndarray:
    """Speckle of four looks."""
    return np.stack([np.random.default_rng(0).gamma(4, mean / 4, (SIDE, SIDE)) for mean in means]).astype("float32")


def constant(image: np.ndarray, band: int) -> np.ndarray:
    image[band] = 600
    return image


def bordered(image: np.ndarray) -> np.ndarray:
    image[:, :, : SIDE // 2] = 0
    return image


CONTROLS = {
    "water": ("sentinel2-l2a", L2A, counted(300, 250, 180, 100, 80, 60, 55, 50, 45, 40, 20, 15)),
    "water below zero": ("hls-s30", S2_NAMES, normal(60, 50, 40, 20, 9, 5, 0, -5, -5, 0, 0, -8, -9, std=30, dtype="i2")),
    "snow at 1.2": ("sentinel2-l2a", L2A, counted(*[12000] * 8, 11000, 10000, 1500, 1000)),
    "desert": ("sentinel2-l2a", L2A, counted(1500, 1900, 2900, 3900, 4200, 4400, 4600, 4700, 4800, 4900, 5600, 5200)),
    "cirrus near zero": ("sentinel2-l1c", S2_NAMES, counted(*LAND[:9], 900, 2, 1800, 1000)),
    "a constant band": ("sentinel2-l2a", L2A, constant(counted(*LAND), 2)),
    "a black border": ("sentinel2-l2a", L2A, bordered(counted(*LAND))),
    "water at level 2": ("landsat8", [f"SR_B{n}" for n in range(1, 8)], counted(8000, 7900, 7700, 7500, 7400, 7300, 7300)),
    "calm water": ("sentinel1-grd-db", RADAR, normal(-26, -35, std=1.5)),
    "a town": ("sentinel1-grd-db", RADAR, normal(2, -6, std=4)),
    "dry sand": ("sentinel1-grd-db", RADAR, normal(-18, -30, std=1)),
    "faint power": ("sentinel1-grd-linear", RADAR, power(0.08, 0.002)),
    "the Dead Sea": ("elevation", ["elevation"], normal(-430, std=3)),
    "a flat sea": ("elevation", ["elevation"], np.zeros((1, SIDE, SIDE), "float32")),
    "one bright pixel": ("rgb-uint8", ["R", "G", "B"], np.pad(np.full((3, 1, 1), 255, "u1"), ((0, 0), (20, 19), (20, 19)))),
    "night in K": ("K", ["x"], normal(262, std=3)),
    "night in C": ("degC", ["x"], normal(-11, std=3)),
    "elevation in feet": ("ft", ["x"], normal(8000, std=300)),
    "elevation in cm": ("cm", ["x"], normal(-40_000, std=300)),
    "night lights": ("nW/cm2/sr", ["x"], normal(5, std=2)),
    "noise below zero": ("reflectance", ["x", "y"], normal(0.006, 0.03, std=0.006)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTROLS)
def test_an_honest_image_is_read_whole(tmp_path: Path, kind: str) -> None:
    sensor, names, image = CONTROLS[kind]
    if sensor not in sensor_names():  # a unit
        own = tmp_path / "own.yaml"
        own.write_text(f"name: own\nunit: {sensor}\nbands:\n" + "".join(f"  - {{name: {name}}}\n" for name in names))
        sensor = str(own)
    write_tiff(tmp_path / "in" / "a.tif", image, names=tuple(names))
    found = gather(Request(sensor=sensor, paths=(tmp_path / "in",)))
    plan = make_plan([found], TileOptions(tile=SIDE, stride=SIDE))
    ((scene, bands),) = found.scenes
    assert (len(plan.footprints), found.skipped, found.forced) == (1, (), ())
    with scene.open(bands) as read:
        np.testing.assert_array_equal(read(0, 0, SIDE, SIDE).stored, image)


@pytest.mark.parametrize("kind", ["alpha", "internal mask"])
def test_what_a_mask_hides_is_missing(tmp_path: Path, kind: str) -> None:
    image, shown = counted(400, 600, 500, 2800), np.arange(SIDE)[:, None] >= SIDE // 4
    opaque = np.broadcast_to(np.where(shown, 65535, 0), (1, SIDE, SIDE)).astype("uint16")
    path = tmp_path / "a.tif"
    if kind == "alpha":
        write_tiff(path, np.concatenate([image, opaque]), names=(*PLANET, "alpha"))
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [*target.colorinterp[:4], ColorInterp.alpha]
    else:
        write_tiff(path, image, names=PLANET)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
            target.write_mask(opaque[0] > 0)
    ((scene, bands),) = gather(Request(sensor="planetscope-sr-4band", paths=(tmp_path,))).scenes
    with scene.open(bands) as read:
        window = read(0, 0, SIDE, SIDE)
    assert window.missing is not None
    np.testing.assert_array_equal(window.missing, np.broadcast_to(~shown, image.shape))
