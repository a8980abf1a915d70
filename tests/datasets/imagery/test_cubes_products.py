"""Files as products and programs write them: which arrays are the image, what its bands are called, where it lies."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rasterio.crs import CRS
from scipy.io import netcdf_file

from datasets.imagery.scenes import Unreadable
from tests.helpers.cubes import ramp, seen, write_h5

NAMES = ("B02", "B03", "B04", "B08", "B8A")
CUBE = ramp(5, 20, 30)
X, Y = 5e5 + 10 * np.arange(30) + 5, 5e6 - 10 * np.arange(20) - 5
TRANSFORM = (10, 0, 5e5, 0, -10, 5e6)  # of the corners; coordinates are the pixels' centres
UTM = CRS.from_epsg(32632).to_wkt()


@pytest.mark.parametrize("time", [False, True])
def test_one_variable_per_band_is_one_scene(tmp_path: Path, time: bool) -> None:
    arrays = {name: band[None] if time else band for name, band in zip(NAMES, CUBE, strict=True)}
    dims = dict.fromkeys(NAMES, (["time"] if time else []) + ["y", "x"])
    beside = {"x": X, "y": Y, "SCL": np.zeros((20, 30), "u1"), "lat": np.zeros((20, 30))}
    fills = {"B02": {"_FillValue": np.uint16(31)}, "B04": {"scale_factor": 1e-4}}
    scene, window = seen(write_h5(tmp_path / "a.nc", arrays | beside, fills, dims))
    assert scene.band_names == NAMES
    np.testing.assert_array_equal(window.stored, CUBE)
    assert window.missing is not None and window.missing.sum() == (CUBE[0] == 31).sum() > 0
    assert (scene.nodata, scene.scales) == ((31, None, None, None, None), (1, 1, 1e-4, 1, 1))
    with scene.open([3, 0]) as read:
        np.testing.assert_array_equal(read(2, 3, 4, 5).stored, CUBE[[3, 0], 2:6, 3:8])


def test_bands_that_are_only_numbered_have_no_names_and_keep_their_order(tmp_path: Path) -> None:
    cube = ramp(12, 20, 30)
    path = write_h5(tmp_path / "a.nc", {f"Band{number}": band for number, band in enumerate(cube, start=1)})
    scene, window = seen(path)
    assert scene.band_names is None
    np.testing.assert_array_equal(window.stored, cube)


def test_maps_of_several_groups_need_a_choice(tmp_path: Path) -> None:
    arrays = {f"{group}/{name}": CUBE[0, ::step, ::step] for group, step in (("r10", 1), ("r20", 2)) for name in "ab"}
    path = write_h5(tmp_path / "a.nc", arrays)
    with pytest.raises(Unreadable, match="choose one with --key"):
        seen(path)
    assert seen(path, key="r20")[0].shape == (2, 10, 15)
    assert seen(path, key="r10/b")[0].shape == (1, 20, 30)


def test_classic_netcdf_is_read(tmp_path: Path) -> None:
    with netcdf_file(str(tmp_path / "a.nc"), "w") as file:
        for name, size in (("band", 5), ("y", 20), ("x", 30), ("letters", 3)):
            file.createDimension(name, size)
        for name, values in (("y", Y), ("x", X)):
            file.createVariable(name, "f8", (name,))[:] = values
        cube = file.createVariable("reflectance", "i2", ("y", "band", "x"))
        cube[:] = CUBE.transpose(1, 0, 2).astype("i2")
        cube.scale_factor, cube._FillValue, cube.grid_mapping = 1e-4, np.int16(31), "crs"
        file.createVariable("band_names", "c", ("band", "letters"))[:] = np.array([list(name) for name in NAMES], "S1")
        file.createVariable("crs", "i4", ()).crs_wkt = UTM
    scene, window = seen(tmp_path / "a.nc")
    assert (scene.band_names, scene.nodata[0], scene.crs) == (NAMES, 31, "EPSG:32632")
    np.testing.assert_allclose(scene.scales, 1e-4, rtol=1e-6)
    np.testing.assert_allclose(scene.transform or (), TRANSFORM)
    np.testing.assert_array_equal(window.stored, CUBE)


@pytest.mark.parametrize("how", ["coordinate", "list", "attribute"])
def test_words_beside_the_bands_are_their_names(tmp_path: Path, how: str) -> None:
    words = np.array(NAMES, dtype=h5py.string_dtype())
    if how == "coordinate":
        path = write_h5(tmp_path / "a.nc", {"r": CUBE, "band": words}, {}, {"r": ["band", "y", "x"]})
    elif how == "list":
        path = write_h5(tmp_path / "a.h5", {"r": CUBE, "meta/Band_Names": words})
    else:
        path = write_h5(tmp_path / "a.nc", {"r": CUBE}, {"r": {"long_name": words}})
    assert seen(path, bands=5)[0].band_names == NAMES


def place(mapping: dict[str, Any], coordinates: dict[str, Any], dims: list[str], **own: Any) -> dict[str, Any]:
    return {
        "arrays": {"r": CUBE, "spatial_ref": 0} | coordinates,
        "attributes": {"spatial_ref": mapping, "r": own},
        "dims": {"r": dims},
    }


LON, LAT = 7 + 0.01 * np.arange(30), 46 - 0.01 * np.arange(20)
PLACES = {
    "wkt and coordinates": (place({"crs_wkt": UTM}, {"x": X, "y": Y}, ["band", "y", "x"]), "EPSG:32632", TRANSFORM),
    "code and transform": (
        place({"spatial_ref": "EPSG:32632", "GeoTransform": "5e5 10 0 5e6 0 -10"}, {}, ["band", "y", "x"]),
        "EPSG:32632",
        TRANSFORM,
    ),
    "south first": (
        place({"crs_wkt": UTM}, {"x": X, "y": Y[::-1]}, ["band", "y", "x"]),
        "EPSG:32632",
        (10, 0, 5e5, 0, 10, 5e6 - 200),
    ),
    "degrees": (
        place({}, {"lon": LON, "lat": LAT}, ["band", "lat", "lon"]),
        "EPSG:4326",
        (0.01, 0, 6.995, 0, -0.01, 46.005),
    ),
    "kilometres": (
        place({"crs_wkt": UTM}, {"x": X / 1e3, "y": Y / 1e3}, ["band", "y", "x"])
        | {"attributes": {"x": {"units": "km"}, "y": {"units": "km"}, "spatial_ref": {"crs_wkt": UTM}}},
        "EPSG:32632",
        TRANSFORM,
    ),
    "uneven": (
        place({"crs_wkt": UTM}, {"x": np.geomspace(1, 1e6, 30), "y": Y}, ["band", "y", "x"]),
        "EPSG:32632",
        None,
    ),
    "nothing": (place({}, {}, ["band", "y", "x"]), None, None),
}


@pytest.mark.parametrize("how", PLACES)
def test_the_place_is_that_of_grid_mapping_and_coordinates(tmp_path: Path, how: str) -> None:
    contents, crs, transform = PLACES[how]
    scene, _ = seen(write_h5(tmp_path / "a.nc", **contents))
    assert scene.crs == crs
    if transform is None:
        assert scene.transform is None
    else:
        np.testing.assert_allclose(scene.transform or (), transform, rtol=1e-9)


def prisma(path: Path, *, height: int = 40, width: int = 36) -> tuple[np.ndarray, list[float]]:
    """A PRISMA L2D product; its physical reflectance (c, h, w) and wavelengths, both by rising wavelength."""
    wavelengths = {
        "Vnir": np.r_[np.zeros(2), np.linspace(970, 420, 10)],
        "Swir": np.r_[np.linspace(2495, 943, 18), np.zeros(2)],
    }
    tops = {"Vnir": 1.2, "Swir": 0.9}
    row, col = np.ogrid[:height, :width]
    group, reflectance = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields", {}
    with h5py.File(path, "w") as file:
        file.attrs["Product_ID"] = b"PRS_L2D_STD"
        for detector, nm in wavelengths.items():
            physical = (
                0.1 + (nm / 5000)[None, :, None] + 1e-3 * row[:, :, None].transpose(0, 1, 2) + 1e-4 * col[:, None]
            )
            file.attrs[f"List_Cw_{detector}"] = nm.astype("f4")
            file.attrs[f"L2Scale{detector}Min"], file.attrs[f"L2Scale{detector}Max"] = (
                np.float32(0),
                np.float32(tops[detector]),
            )
            stored = (physical / tops[detector] * 65535).round().astype("u2")
            file.create_dataset(f"{group}/{detector.upper()}_Cube", data=stored, compression="gzip")
            flags = np.zeros(stored.shape, "u1")
            file.create_dataset(f"{group}/{detector.upper()}_PIXEL_L2_ERR_MATRIX", data=flags, compression="gzip")
            reflectance |= {float(value): physical[:, band] for band, value in enumerate(nm) if value > 0}
    order = sorted(reflectance)
    return np.stack([reflectance[value] for value in order]), order


def test_the_detectors_of_a_product_are_one_scene_by_wavelength(tmp_path: Path) -> None:
    physical, wavelengths = prisma(tmp_path / "PRS.he5")
    scene, window = seen(tmp_path / "PRS.he5")
    np.testing.assert_allclose(scene.wavelengths or (), wavelengths, atol=1e-3)
    scales, offsets = (np.array(values)[:, None, None] for values in (scene.scales, scene.offsets))
    np.testing.assert_allclose(window.stored * scales + offsets, physical, atol=2e-5)
    one, _ = seen(tmp_path / "PRS.he5", key="VNIR_Cube")
    assert one.shape == (10, 40, 36)
    with scene.open([20, 3, 11]) as read:
        np.testing.assert_array_equal(read(5, 6, 7, 8).stored, window.stored[[20, 3, 11], 5:12, 6:14])


def test_two_cubes_without_wavelengths_need_a_choice(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", {"one": CUBE, "two": CUBE, "cube_mask": CUBE})
    with pytest.raises(Unreadable, match=r"choose one with --key: .*one \(5, 20, 30\)"):
        seen(path)
    assert seen(path, key="two", bands=5)[0].parts[0].key == "two"


def test_complex_numbers_are_refused_with_a_mend(tmp_path: Path) -> None:
    pair = np.zeros((2, 20, 30), dtype=[("r", "i2"), ("i", "i2")])
    np.save(tmp_path / "a.npy", np.zeros((2, 20, 30), "c8"))
    write_h5(tmp_path / "a.h5", {"slc": np.zeros((2, 20, 30), "c8")})
    write_h5(tmp_path / "b.h5", {"slc": pair})
    for name in ("a.npy", "a.h5", "b.h5"):
        with pytest.raises(Unreadable, match="complex64 values.* take the amplitude"):
            seen(tmp_path / name)


def test_variables_may_each_give_their_wavelength(tmp_path: Path) -> None:
    nm = (443.0, 492.0, 560.0, 665.0, 833.0)
    names = [f"rhos_{value:.0f}" for value in nm]
    attributes = {name: {"wavelength": value} for name, value in zip(names, nm, strict=True)}
    scene, _ = seen(write_h5(tmp_path / "a.nc", dict(zip(names, CUBE, strict=True)), attributes))
    assert (scene.band_names, scene.wavelengths) == (tuple(names), nm)
