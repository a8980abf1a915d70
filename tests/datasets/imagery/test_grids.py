"""Whether images lie on one grid: distances by hand, coordinate systems by pyproj's and GDAL's spellings."""

from dataclasses import dataclass

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from datasets.imagery.grids import compare_grids, corners, one_footprint, pixel_size
from datasets.imagery.scenes import Points, Unreadable

NORTH_UP = Affine(10, 0, 400_000, 0, -10, 5_000_000)
UTM33 = CRS.from_epsg(32633)
ESRI = (
    'PROJCS["WGS_1984_UTM_Zone_33N",GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,'
    '298.257223563]],PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["False_Easting",500000.0],PARAMETER["False_Northing",0.0],PARAMETER["Central_Meridian",15.0],'
    'PARAMETER["Scale_Factor",0.9996],PARAMETER["Latitude_Of_Origin",0.0],UNIT["Meter",1.0]]'
)
UNKNOWN_DATUM = (
    'PROJCS["UTM Zone 33, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",15],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)


@dataclass(frozen=True)
class Place:
    transform: tuple[float, ...] | None = tuple(NORTH_UP)[:6]
    crs: str | None = "EPSG:32633"
    shape: tuple[int, int, int] = (1, 48, 64)
    points: Points | None = None


def placed(affine: Affine, **more) -> Place:
    return Place(transform=tuple(affine)[:6], **more)


def test_corners_and_pixel_size_of_a_rotated_image() -> None:
    turned = placed(Affine.translation(1, 2) * Affine.rotation(90) * Affine.scale(5, -3), shape=(1, 2, 4))
    # a quarter turn counter-clockwise: columns run along +y with 5, rows along +x with 3
    np.testing.assert_allclose(corners(turned), [(1, 2), (1, 22), (7, 2), (7, 22)], atol=1e-12)
    assert pixel_size(turned) == pytest.approx(3)


@pytest.mark.parametrize(
    "second",
    [
        Place(),
        Place(transform=None),
        Place(crs=None),
        Place(crs=None, transform=None),
        Place(crs=UTM33.to_wkt()),
        Place(crs=UTM33.to_proj4()),
        Place(crs=UTM33.to_wkt(version="WKT1_GDAL").replace(',AUTHORITY["EPSG","32633"]', "")),
        Place(crs=ESRI),
        Place(crs=UNKNOWN_DATUM),
        placed(NORTH_UP * Affine.translation(0.4, -0.4)),
        placed(NORTH_UP * Affine.scale(2), shape=(3, 24, 32)),
        placed(NORTH_UP * Affine.scale(0.5), shape=(3, 96, 128)),
    ],
)
def test_images_of_the_same_ground_lie_on_one_grid(second: Place) -> None:
    compare_grids(Place(), second)
    compare_grids(second, Place())


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (placed(NORTH_UP * Affine.translation(0.6, 0)), "differ by 6 map units, 0.6 pixels"),
        (placed(Affine.translation(10_000, 0) * NORTH_UP), "differ by 10000 map units, 1000 pixels"),
        (placed(NORTH_UP * Affine.scale(1, -1) * Affine.translation(0, -48)), "480 map units.*rows run the other way"),
        (placed(NORTH_UP * Affine.rotation(1)), "resample one onto the other's grid"),
        (placed(NORTH_UP * Affine.scale(2), shape=(1, 25, 32)), "differ by 20 map units, 2 pixels"),
        (Place(crs="EPSG:32632"), "CRS EPSG:32633 and EPSG:32632; resample"),
        (Place(crs='LOCAL_CS["field",UNIT["metre",1]]'), "cannot be compared, CRS EPSG:32633 and LOCAL_CS"),
    ],
)
def test_images_of_other_ground_are_refused_with_the_distance(second: Place, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        compare_grids(Place(), second)


def test_the_tolerance_is_in_pixels_of_the_finer_image() -> None:
    coarse = placed(Affine.translation(4, 0) * NORTH_UP * Affine.scale(2), shape=(1, 24, 32))
    compare_grids(Place(), coarse, tolerance=0.41)
    with pytest.raises(Unreadable, match="4 map units, 0.4 pixels"):
        compare_grids(coarse, Place(), tolerance=0.39)


def test_the_same_ground_in_degrees_and_metres() -> None:
    """One pixel at the centre of a zone, where north is up in both systems."""
    (west, east), (south, north), *_ = transform(UTM33, CRS.from_epsg(4326), [500_000, 500_010], [4_999_990, 5_000_000])
    degrees = placed(Affine(east - west, 0, west, 0, south - north, north), crs="EPSG:4326", shape=(1, 1, 1))
    compare_grids(placed(Affine(10, 0, 500_000, 0, -10, 5_000_000), shape=(1, 1, 1)), degrees, tolerance=1e-3)


def test_one_of_several_without_a_place_is_no_footprint() -> None:
    assert one_footprint([Place(), Place(crs=ESRI)])
    assert not one_footprint([Place(), Place(transform=None)])
    assert not one_footprint([Place(), placed(Affine.translation(20, 0) * NORTH_UP)])
