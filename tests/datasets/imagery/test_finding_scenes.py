"""Scenes of every format give the pixels of their files, and sensors are told by band names, never guessed."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io

from alliance.errors import InputError
from alliance.sensors.catalog import candidates, find_sensor, fit, generated_sensor, sensor_names
from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Scene, Unreadable, find_date
from datasets.shards.gather import Generated, Request, gather
from tests.helpers.matlab import write_matlab_header
from tests.helpers.rasters import S2_NAMES, counts, write_tiff


def window(scene: Scene, bands: list[int], row: int, col: int, height: int, width: int) -> np.ndarray:
    with scene.open(bands) as read:
        return read(row, col, height, width).stored


def test_a_window_equals_the_pixels_of_the_file(tmp_path: Path) -> None:
    pixels = write_tiff(tmp_path / "a" / "scene_20210315.tif", counts((5, 40, 50)), nodata=0)
    scene = describe_raster(tmp_path / "a" / "scene_20210315.tif", tmp_path)
    assert (scene.name, scene.shape, scene.dtype, scene.nodata) == ("a/scene_20210315", (5, 40, 50), "uint16", (0,) * 5)
    assert (scene.crs, scene.date, scene.sources) == ("EPSG:32633", "2021-03-15", ("a/scene_20210315.tif",))
    np.testing.assert_array_equal(window(scene, [3, 0], 7, 11, 20, 30), pixels[[3, 0], 7:27, 11:41])


def test_bands_in_files_of_their_own_are_one_scene_on_the_finest_grid(tmp_path: Path) -> None:
    sizes = {"B02": 60, "B03": 60, "B04": 60, "B08": 60, "B01": 10, "B09": 10}
    sizes |= dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 30)
    pixels = {
        name: write_tiff(tmp_path / "T1" / f"T1_{name}.tif", counts((1, size, size), size), pixel=600 / size)
        for name, size in sizes.items()
    }
    write_tiff(tmp_path / "T1" / "T1_SCL.tif", counts((1, 30, 30)), pixel=20)
    collection = gather(Request(sensor="sentinel2-l2a", paths=(tmp_path,)))
    ((scene, bands),) = collection.scenes
    assert scene.shape[1:] == (60, 60)
    tile = window(scene, list(bands), 13, 7, 25, 31)
    for name, band in zip(collection.sensor.band_names, tile, strict=True):
        repeated = np.kron(pixels[name][0], np.ones((60 // sizes[name],) * 2, dtype=np.uint16))
        np.testing.assert_array_equal(band, repeated[13:38, 7:38])
    assert [entry.file for entry in collection.skipped] == ["T1/T1_SCL.tif"]


def test_bands_of_different_footprints_are_not_joined(tmp_path: Path) -> None:
    write_tiff(tmp_path / "x_VV.tif", counts((1, 20, 20)).astype("f4"))
    write_tiff(tmp_path / "x_VH.tif", counts((1, 20, 20)).astype("f4"), pixel=11)
    with pytest.raises(InputError, match="different footprints"):
        gather(Request(sensor="sentinel1-grd-db", paths=(tmp_path,)))


def test_a_picture_has_the_bands_r_g_b(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8)
    write_tiff(tmp_path / "p.tif", pixels, photometric="RGB")
    assert describe_raster(tmp_path / "p.tif", tmp_path).band_names == ("R", "G", "B")
    assert gather(Request(sensor="auto", paths=(tmp_path,))).sensor.name == "rgb-uint8"


def test_bands_are_matched_by_name_whatever_their_order() -> None:
    sensor = find_sensor("sentinel2-l1c")
    turned = S2_NAMES[::-1]
    assert [turned[place] for place in fit(sensor, turned, 13, "uint16")] == list(sensor.band_names)


@pytest.mark.parametrize(
    ("names", "count", "dtype", "reason"),
    [
        (("change",), 1, "uint8", "1 band .change., sensor sentinel2-l1c has 13"),
        (None, 12, "uint16", "12 bands without names, sensor sentinel2-l1c has 13"),
        ((*S2_NAMES[:12], "SCL"), 13, "uint16", "lack B12"),
    ],
)
def test_an_image_of_another_sensor_is_refused(
    names: tuple[str, ...] | None, count: int, dtype: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        fit(find_sensor("sentinel2-l1c"), names, count, dtype)


def test_an_8_bit_sensor_holds_8_bits() -> None:
    with pytest.raises(InputError, match="holds int16, sensor rgb-uint8 needs uint8"):
        fit(find_sensor("rgb-uint8"), ("R", "G", "B"), 3, "int16")


def test_sensors_that_differ_only_in_offset_are_both_named() -> None:
    found = [sensor.name for sensor in candidates(S2_NAMES, 13, "uint16")]
    assert found == ["sentinel2-l1c", "sentinel2-l1c-baseline4"]


def test_auto_asks_when_several_sensors_fit(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", counts((13, 20, 20)), names=S2_NAMES)
    with pytest.raises(InputError, match="sentinel2-l1c .*sentinel2-l1c-baseline4 .*pass --sensor NAME"):
        gather(Request(sensor="auto", paths=(tmp_path,)))


def test_an_unknown_sensor_is_answered_with_its_neighbours() -> None:
    with pytest.raises(InputError, match="did you mean sentinel2-l1c"):
        find_sensor("sentinel2-l1")


def test_every_shipped_sensor_is_found_under_its_own_name() -> None:
    assert [find_sensor(name).name for name in sensor_names()] == sensor_names()


def test_a_generated_sensor_has_its_wavelengths_in_nanometres() -> None:
    sensor = generated_sensor("neon", 3, [0.4, 0.55, 2.5], scale=1e-4)
    assert sensor.band_names == ("b001", "b002", "b003")
    assert [band.wavelength for band in sensor.bands] == [400, 550, 2500]
    with pytest.raises(InputError, match="2 wavelengths given for 3 bands"):
        generated_sensor("neon", 3, [400, 500])


@pytest.fixture
def cube() -> np.ndarray:
    """Pixels (c, h, w) = (30, 12, 17)."""
    return np.random.default_rng(1).integers(0, 9000, (30, 12, 17), dtype=np.int16)


def write_cube(path: Path, cube: np.ndarray) -> None:
    rows_first = np.ascontiguousarray(cube.transpose(1, 2, 0))
    if path.suffix == ".npy":
        np.save(path, rows_first)
    elif path.suffix == ".npz":
        np.savez(path, image=rows_first)
    elif path.stem == "old":
        scipy.io.savemat(path, {"image": rows_first, "note": "a text"})
    else:
        block = 512 if path.suffix == ".mat" else 0
        with h5py.File(path, "w", userblock_size=block) as file:  # MATLAB's own files hold (h, w, c) as (c, w, h)
            stored = rows_first.transpose(2, 1, 0) if path.suffix == ".mat" else rows_first
            file.create_dataset("group/image", data=stored, chunks=True)
            file["group/image"].attrs["Data_Ignore_Value"] = [-9999.0]
            file["group/wavelength"] = np.linspace(0.4, 0.98, 30)
        if block:
            write_matlab_header(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "old.mat", "new.mat", "a.h5", "a.nc"])
def test_cubes_of_every_format_give_the_same_pixels(tmp_path: Path, cube: np.ndarray, name: str) -> None:
    write_cube(tmp_path / name, cube)
    scene = describe_cube(tmp_path / name, tmp_path, CubeOptions(bands=30))
    assert scene.shape == (30, 12, 17)
    np.testing.assert_array_equal(window(scene, [29, 4, 5], 2, 3, 8, 11), cube[[29, 4, 5], 2:10, 3:14])


def test_wavelengths_and_nodata_come_from_the_cube(tmp_path: Path, cube: np.ndarray) -> None:
    write_cube(tmp_path / "a.h5", cube)
    collection = gather(Request(sensor="hsi", paths=(tmp_path,), generated=Generated(name="neon", scale=1e-4)))
    sensor = collection.sensor
    assert (sensor.name, sensor.nodata, len(sensor.bands)) == ("neon", -9999, 30)
    assert (sensor.bands[0].wavelength, sensor.bands[-1].wavelength) == (400, 980)


def test_the_order_of_axes_may_be_said(tmp_path: Path, cube: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", cube.transpose(2, 1, 0))
    scene = describe_cube(tmp_path / "a.npy", tmp_path, CubeOptions(axes="whc"))
    np.testing.assert_array_equal(window(scene, list(range(30)), 1, 2, 10, 15), cube[:, 1:11, 2:17])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros((4, 9, 9)), "b": np.zeros((4, 9, 9))}, r"choose one with --key: a \(4, 9, 9\), b"),
        ({"series": np.zeros((7, 2, 6, 6))}, "time series"),
        ({"Y": np.zeros((156, 900)), "S_GT": np.zeros((9, 9, 3))}, "its largest array Y is not 3-D"),
        ({"Y": np.zeros((156, 900))}, "no 3-D array"),
        ({"a": np.zeros((4, 9, 9), dtype=complex)}, "complex128 values"),
        ({"a": np.zeros(9)}, "no 3-D array"),
    ],
)
def test_a_file_without_one_clear_cube_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    with pytest.raises(Unreadable, match=reason):
        describe_cube(tmp_path / "a.h5", tmp_path, CubeOptions())


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickled_arrays_are_refused_and_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(Unreadable, match="cannot be read"):
            describe_cube(tmp_path / name, tmp_path, CubeOptions())
    assert not (tmp_path / "sprung").exists()


def test_damaged_files_are_unreadable_not_fatal(tmp_path: Path) -> None:
    for name in ("a.tif", "b.png"):
        (tmp_path / name).write_bytes(b"II*\0nothing of use")
        with pytest.raises(Unreadable, match="cannot be read"):
            describe_raster(tmp_path / name, tmp_path)
    for name in ("c.h5", "d.mat", "e.npy", "f.npz"):
        (tmp_path / name).write_bytes(b"\x93nothing of use" * 20)
        with pytest.raises(Unreadable, match="cannot be read"):
            describe_cube(tmp_path / name, tmp_path, CubeOptions())


@pytest.mark.parametrize(
    ("name", "tags", "date"),
    [
        ("S2A_MSIL2A_20170613T101031_87_48", {}, "2017-06-13"),
        ("scene", {"TIFFTAG_DATETIME": "2019:02:28 10:00:00"}, "2019-02-28"),
        ("tile_20209999_x", {}, None),
        ("img_120170613", {}, None),
        ("x_20200101", {"ACQUISITIONDATETIME": "2018-07-01T00:00:00Z"}, "2018-07-01"),
    ],
)
def test_the_date_is_read_from_tags_or_the_name(name: str, tags: dict[str, str], date: str | None) -> None:
    assert find_date(Path(f"{name}.tif"), tags) == date


def test_real_files_of_each_kind_are_described(shared_data: Path) -> None:
    tile = describe_raster(shared_data / "sentinel2" / "T60HWB_20201002.tif", shared_data)
    assert (tile.band_names, tile.date) == (S2_NAMES, "2020-10-02")
    neon = describe_cube(shared_data / "hsi" / "neon_sjer.h5", shared_data, CubeOptions())
    assert (neon.shape, neon.nodata[0], len(neon.wavelengths or ())) == ((426, 30, 30), -9999, 426)
    with rasterio.open(shared_data / "oscd" / "paris_t1.tif") as source:
        expected = source.read([4, 1], window=((5, 25), (6, 26)))
    paris = describe_raster(shared_data / "oscd" / "paris_t1.tif", shared_data)
    np.testing.assert_array_equal(window(paris, [3, 0], 5, 6, 20, 20), expected)
