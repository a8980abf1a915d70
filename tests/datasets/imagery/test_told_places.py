"""Places of hyperspectral products that do not follow CF: PRISMA, NEON, and swaths with latitudes of every pixel."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.grids import compare_grids
from datasets.imagery.scenes import Scene, Unreadable

H, W, BANDS = 20, 30, 12


def described(path: Path) -> Scene:
    return describe_cube(path, path.parent, CubeOptions())


def prisma(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        cubes = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        cubes["VNIR_Cube"] = np.ones((H, BANDS, W), "u2")
        file.attrs.update(List_Cw_Vnir=np.linspace(970, 420, BANDS, dtype="f4"), Epsg_Code=np.int64(32633))
        file.attrs.update(L2ScaleVnirMin=np.float32(0), L2ScaleVnirMax=np.float32(1))
        # Centres of the corner pixels of an image of 30 m whose upper left corner lies at (500000, 4600000).
        file.attrs.update(Product_ULcorner_easting=500015.0, Product_ULcorner_northing=4599985.0)
        file.attrs.update(Product_LRcorner_easting=500015.0 + 29 * 30, Product_LRcorner_northing=4599985.0 - 19 * 30)
    return path


def neon(path: Path, info: str) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("MLBS/Reflectance")
        group["Reflectance_Data"] = np.ones((H, W, BANDS), "i2")
        group["Reflectance_Data"].attrs.update(Scale_Factor=10000.0, Data_Ignore_Value=-9999.0)
        group["Metadata/Spectral_Data/Wavelength"] = np.linspace(400, 2500, BANDS)
        group["Metadata/Coordinate_System/Map_Info"] = info
        group["Metadata/Coordinate_System/EPSG Code"] = "32617"
    return path


def swath(path: Path, east: float = 0.0) -> Path:
    rows, cols = np.mgrid[:H, :W]
    with h5py.File(path, "w") as file:
        file["radiance"] = np.ones((H, W, BANDS), "f4")
        file["wavelength"] = np.linspace(400, 2500, BANDS)
        file["latitude"] = 45 - 1e-4 * (rows + 0.1 * cols)
        file["longitude"] = 11 + east + 1e-4 * (cols + 0.1 * rows)
    return path


def test_corners_of_prisma_are_centres_of_pixels(tmp_path: Path) -> None:
    scene = described(prisma(tmp_path / "PRS_L2D.he5"))
    assert scene.shape == (BANDS, H, W)
    assert scene.crs == "EPSG:32633"
    assert scene.transform == (30, 0, 500000, 0, -30, 4600000)


@pytest.mark.parametrize(
    ("info", "corner"),
    [
        (
            "UTM,  1.000,  1.000,  541000.000,  4140000.000,  1.0,  1.0,  17,  North,  WGS-84,  units=Meters",
            (541000, 4140000),
        ),
        ("UTM, 2, 3, 541001, 4139998, 1, 1, 17, North, WGS-84", (541000, 4140000)),  # of the pixel in row 3, column 2
    ],
)
def test_map_info_of_neon_is_that_of_envi(tmp_path: Path, info: str, corner: tuple[float, float]) -> None:
    scene = described(neon(tmp_path / "NEON.h5", info))
    assert scene.crs == "EPSG:32617"
    assert scene.transform == (1, 0, corner[0], 0, -1, corner[1])


@pytest.mark.parametrize(
    "info", ["UTM", "UTM, 1, 1, 541000, 4140000, 1, 1, 17, North, WGS-84, rotation=12.5", "a, b, c"]
)
def test_a_map_info_that_gives_no_grid_gives_no_place(tmp_path: Path, info: str) -> None:
    assert described(neon(tmp_path / "NEON.h5", info)).transform is None


def test_swaths_are_compared_by_their_latitudes_and_longitudes(tmp_path: Path) -> None:
    first, same = described(swath(tmp_path / "a.h5")), described(swath(tmp_path / "b.h5"))
    other = described(swath(tmp_path / "c.h5", east=0.1))
    assert first.transform is None
    assert first.points is not None
    assert first.points.crs == "EPSG:4326"
    assert (0.5, 0.5, 11.0, 45.0) in first.points.places
    compare_grids(first, same)
    with pytest.raises(Unreadable, match="latitudes and longitudes.*gdalwarp -geoloc"):
        compare_grids(first, other)
