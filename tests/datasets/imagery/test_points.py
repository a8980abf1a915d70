"""Images that control points or polynomials place: compared in pairs, or refused with commands that mend it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import from_bounds
from rasterio.warp import Resampling, reproject

from alliance.errors import InputError
from datasets.imagery.grids import compare_grids
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Scene, Unreadable
from datasets.shards.gather import Request, gather
from datasets.shards.plan import Plan, TileOptions, make_plan
from tests.helpers.rasters import counts, write_tiff

STEP = 1e-4  # degrees per pixel
SIDE = 16


def points(side: int = SIDE, *, east: float = 0.0, every: int = SIDE) -> list[GroundControlPoint]:
    """Of an image of 16 x 16 steps of 1e-4 degrees, whose upper left corner lies at 11 + east, 45."""
    step = STEP * SIDE / side
    places = range(0, side + 1, every * side // SIDE)
    return [GroundControlPoint(row, col, 11 + east + col * step, 45 - row * step) for row in places for col in places]


def write_pair(root: Path, optical: dict[str, Any], radar: dict[str, Any], side: int = SIDE) -> Plan:
    write_tiff(root / "s2" / "a.tif", counts((4, SIDE, SIDE)), names=("B", "G", "R", "N"), **optical)
    decibels = -np.random.default_rng(0).uniform(5, 20, (2, side, side)).astype("f4")
    write_tiff(root / "s1" / "a.tif", decibels, names=("VV", "VH"), **radar)
    return plan(root)


def plan(root: Path) -> Plan:
    collections = [
        gather(Request(sensor=sensor, paths=(root / folder,)))
        for sensor, folder in (("planetscope-sr-4band", "s2"), ("sentinel1-grd-db", "s1"))
    ]
    return make_plan(collections, TileOptions(tile=16, stride=16))


def by_points(given: list[GroundControlPoint], crs: str = "EPSG:4326") -> dict[str, Any]:
    return {"gcps": given, "crs": crs, "transform": None}


@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
@pytest.mark.parametrize("east", [0.0, 0.4 * STEP])
def test_points_at_the_same_places_are_a_pair(tmp_path: Path, side: int, east: float) -> None:
    made = write_pair(tmp_path, by_points(points()), by_points(points(side, east=east)), side)
    assert len(made.footprints) == 1


@pytest.mark.parametrize(
    ("radar", "reason"),
    [
        (by_points(points(east=1.5 * STEP)), "by ground control points and ground control points, differ"),
        (by_points(points(east=0.1)), "gdalwarp -tps"),
        (by_points(points(every=8)), "not to be compared"),
        (by_points(points(), "EPSG:4258"), "not to be compared"),
        ({}, "ground control points and a transform"),
        ({"crs": None, "transform": None}, "one of the pair is georeferenced"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_points_elsewhere_are_refused_with_the_mend(tmp_path: Path, radar: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        write_pair(tmp_path, by_points(points()), radar)


def test_the_mend_works(tmp_path: Path) -> None:
    """The commands of the message, done by rasterio: two grids of the same ground, and the numbers that were there."""
    with pytest.raises(InputError, match="gdalwarp") as refused:
        write_pair(tmp_path, by_points(points()), by_points(points(8, every=8)), 8)
    options = re.findall(r"-t_srs (\S+) -te (\S+) (\S+) (\S+) (\S+) -ts (\d+) (\d+)", str(refused.value))
    assert len(options) == 2
    for folder, (crs, *numbers) in zip(("s2", "s1"), options, strict=True):
        path = tmp_path / folder / "a.tif"
        with rasterio.open(path) as source:
            stored, names, given = source.read(), source.descriptions, source.gcps
        west, south, east, north, width, height = map(float, numbers)
        transform = from_bounds(west, south, east, north, int(width), int(height))
        out = np.zeros_like(stored)
        nearest = Resampling.nearest
        reproject(
            stored, out, gcps=given[0], src_crs=given[1], dst_transform=transform, dst_crs=crs, resampling=nearest
        )
        np.testing.assert_array_equal(out, stored)  # the points are those of an even grid
        write_tiff(path, out, names=names, crs=crs, transform=transform)
    assert len(plan(tmp_path).footprints) == 1


def test_polynomials_are_compared_by_the_corners_they_give(tmp_path: Path) -> None:
    def scene(name: str, longitude: float) -> Scene:
        line, sample, one = ([0.0] * 20 for _ in range(3))
        line[2], sample[1], one[0] = -1, 1, 1  # normalised row = -latitude, column = longitude
        numbers: dict[str, Any] = {"height_off": 0, "height_scale": 500, "lat_off": 45, "lat_scale": 0.01}
        numbers |= {
            "long_off": longitude,
            "long_scale": 0.01,
            "line_off": 8,
            "line_scale": 8,
            "samp_off": 8,
            "samp_scale": 8,
        }
        numbers |= {"line_num_coeff": line, "line_den_coeff": one, "samp_num_coeff": sample, "samp_den_coeff": one}
        rpc = RPC(**numbers)
        write_tiff(tmp_path / f"{name}.tif", counts((1, 16, 16)), transform=None, crs=None, rpcs=rpc)
        return describe_raster(tmp_path / f"{name}.tif", tmp_path)

    first = scene("a", 11)
    assert first.points is not None
    corners = np.array(first.points.places)[:, 2:]
    np.testing.assert_allclose(corners, [(10.99, 45.01), (11.01, 45.01), (10.99, 44.99), (11.01, 44.99)], atol=2e-3)
    compare_grids(first, scene("b", 11))
    with pytest.raises(Unreadable, match="gdalwarp -rpc"):
        compare_grids(first, scene("c", 11.1))
