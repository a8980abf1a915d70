"""Scale and offset: the file's, the sensor's, or a refusal that names both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from alliance.errors import InputError
from alliance.sensors.catalog import FOLDER
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Unreadable
from datasets.shards.gather import Collection, Generated, Request, gather
from tests.helpers.envi import write_envi
from tests.helpers.rasters import S2_NAMES, counts, write_tiff


def write_scaled(path: Path, array: np.ndarray, names: tuple[str, ...], scale: float, offset: float = 0.0) -> None:
    write_tiff(path, array, names=names)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (scale,) * len(array), (offset,) * len(array)


def collect(sensor: str, path: Path, scale: float = 1.0) -> Collection:
    return gather(Request(sensor=sensor, paths=(path,), generated=Generated(scale=scale)))


def lines(found: Collection) -> set[tuple[float, float]]:
    return {(band.scale, band.offset) for band in found.sensor.bands}


def test_a_sensor_that_says_nothing_takes_the_files_scale(tmp_path: Path) -> None:
    decibels = (100 * np.full((2, 8, 8), -10.97)).astype("i2")
    write_scaled(tmp_path / "a.tif", decibels, ("VV", "VH"), 0.01)
    assert lines(collect("sentinel1-grd-db", tmp_path)) == {(0.01, 0)}


@pytest.mark.parametrize("sensor", ["sentinel2-l1c", "sentinel2-l1c-baseline4"])
def test_a_file_that_says_nothing_keeps_the_sensors_scale(tmp_path: Path, sensor: str) -> None:
    write_tiff(tmp_path / "a.tif", counts((13, 8, 8)), names=S2_NAMES)
    assert lines(collect(sensor, tmp_path)) == {(1e-4, 0.0 if sensor == "sentinel2-l1c" else -0.1)}


@pytest.mark.parametrize(
    ("scale", "offset", "sensor", "reason"),
    [
        (1e-4, -0.1, "sentinel2-l1c", "pass --sensor sentinel2-l1c-baseline4"),
        (1e-4, 0, "sentinel2-l1c-baseline4", "pass --sensor sentinel2-l1c;"),
        (
            2e-4,
            0,
            "sentinel2-l1c",
            "copy the YAML of sentinel2-l1c under another name, with scale: 0.0002 and offset: 0",
        ),
        (1.00001e-4, 0, "sentinel2-l1c", "says scale 0.000100001 and offset 0, sensor sentinel2-l1c scale 0.0001"),
    ],
)
def test_a_file_and_a_sensor_that_differ_are_refused(
    tmp_path: Path, scale: float, offset: float, sensor: str, reason: str
) -> None:
    write_scaled(tmp_path / "a.tif", counts((13, 8, 8)), S2_NAMES, scale, offset)
    with pytest.raises(InputError, match=reason):
        collect(sensor, tmp_path)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, -0.1), (1e-4 * (1 + 1e-7), -0.1)])
def test_a_file_and_a_sensor_that_agree_are_read(tmp_path: Path, scale: float, offset: float) -> None:
    write_scaled(tmp_path / "a.tif", counts((13, 8, 8)), S2_NAMES, scale, offset)
    assert lines(collect("sentinel2-l1c-baseline4", tmp_path)) == {(1e-4, -0.1)}


def test_the_mend_works(tmp_path: Path) -> None:
    write_scaled(tmp_path / "a.tif", counts((13, 8, 8), low=1500), S2_NAMES, 2e-4, -0.3)
    shipped = (FOLDER / "sentinel2-l1c.yaml").read_text()
    assert shipped.count("scale: 1.0e-4") == 1
    own = shipped.replace("name: sentinel2-l1c", "name: own").replace("scale: 1.0e-4", "scale: 0.0002\noffset: -0.3")
    (tmp_path / "own.yaml").write_text(own)
    assert lines(collect(str(tmp_path / "own.yaml"), tmp_path)) == {(2e-4, -0.3)}


def test_scenes_that_differ_from_most_are_skipped_by_name(tmp_path: Path) -> None:
    pixels = -counts((2, 8, 8)).astype("i2")
    for name, scale in (("a", 1.0), ("b", 0.01), ("c", 0.01)):
        write_scaled(tmp_path / f"{name}.tif", pixels + ord(name), ("VV", "VH"), scale)
    found = collect("sentinel1-grd-db", tmp_path)
    assert (lines(found), [scene.name for scene, _ in found.scenes]) == ({(0.01, 0)}, ["b", "c"])
    assert [entry.file for entry in found.skipped] == ["a.tif"]
    assert found.skipped[0].reason.startswith("scale 1 and offset 0, but 0.01 and 0 in most scenes")


@pytest.mark.parametrize(
    ("header", "scales", "offsets"),
    [
        ({"reflectance_scale_factor": "10000"}, (1e-4, 1e-4), (0, 0)),
        ({"data_gain_values": "{0.5, 0.25}", "data_offset_values": "{1, 2}"}, (0.5, 0.25), (1, 2)),
        ({"data_gain_values": "{0.0001, 0.0001}", "reflectance_scale_factor": "10000"}, (1e-4, 1e-4), (0, 0)),
        ({"reflectance_scale_factor": "1"}, (), ()),
        ({}, (), ()),
    ],
)
def test_an_envi_header_says_the_scale(
    tmp_path: Path, header: dict[str, Any], scales: tuple[float, ...], offsets: tuple[float, ...]
) -> None:
    write_envi(tmp_path / "a", counts((2, 8, 8)), **header)
    scene = describe_raster(tmp_path / "a", tmp_path)
    assert (scene.scales, scene.offsets) == (scales, offsets)


@pytest.mark.parametrize("key", ["wavelength", "data_gain_values", "data_offset_values"])
@pytest.mark.parametrize("values", ["{450}", "{450, 500,\n 600}"])
def test_a_list_that_is_not_as_long_as_there_are_bands_is_refused(tmp_path: Path, key: str, values: str) -> None:
    header: dict[str, Any] = {"wavelength_units": "nm", key: values}
    write_envi(tmp_path / "a", counts((2, 8, 8)), **header)
    with pytest.raises(Unreadable, match=f"list of {key.replace('_', ' ')} has [13] numbers for 2 bands"):
        describe_raster(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("gains", ["{0.5, 0.25}", "{0.0001, 0.001}"])
def test_gains_that_contradict_the_factor_are_refused(tmp_path: Path, gains: str) -> None:
    write_envi(tmp_path / "a", counts((2, 8, 8)), data_gain_values=gains, reflectance_scale_factor=10000)
    with pytest.raises(Unreadable, match=r"twice: .* as gain or scale, but 0.0001 and 0 as reflectance scale factor"):
        describe_raster(tmp_path / "a", tmp_path)


@pytest.mark.parametrize(("given", "expected"), [(1.0, 1e-4), (1e-4, 1e-4), (1e-3, None)])
def test_the_scale_that_is_given_must_be_the_files(tmp_path: Path, given: float, expected: float | None) -> None:
    write_envi(tmp_path / "a", counts((2, 8, 8)), reflectance_scale_factor=10000)
    if expected is None:
        with pytest.raises(InputError, match="the file says scale 0.0001 .*sensor hsi2 scale 0.001"):
            collect("hsi", tmp_path, given)
    else:
        assert lines(collect("hsi", tmp_path, given)) == {(expected, 0)}


@pytest.mark.parametrize("factor", ["zero", "0", "-5", "nan"])
def test_a_factor_that_is_none_is_refused(tmp_path: Path, factor: str) -> None:
    write_envi(tmp_path / "a", counts((2, 8, 8)), reflectance_scale_factor=factor)
    with pytest.raises(Unreadable, match="reflectance scale factor"):
        describe_raster(tmp_path / "a", tmp_path)


def test_wavelengths_of_a_header_are_nanometres(tmp_path: Path) -> None:
    write_envi(tmp_path / "a", counts((2, 8, 8)), wavelength="{0.45, 2.5}", wavelength_units="Micrometers")
    scene = describe_raster(tmp_path / "a", tmp_path)
    assert (scene.wavelengths, scene.band_names) == ((450, 2500), None)
    write_tiff(tmp_path / "b.tif", counts((2, 8, 8)), names=("423.00 nm", "2450.5 nm"))
    assert describe_raster(tmp_path / "b.tif", tmp_path).wavelengths == (423, 2450.5)


@pytest.mark.parametrize("per_band", [True, False], ids=["of each band", "of the file"])
def test_tags_that_other_formats_left_are_the_files_scale(tmp_path: Path, per_band: bool) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, counts((2, 8, 8)))
    tags = {"scale_factor": "0.0001", "add_offset": "-0.1"}
    with rasterio.open(path, "r+") as target:
        for index in target.indexes if per_band else ():
            target.update_tags(index, **tags)
        target.update_tags(**({} if per_band else tags))
    scene = describe_raster(path, tmp_path)
    assert (scene.scales, scene.offsets) == ((0.0001,) * 2, (-0.1,) * 2)


@pytest.mark.parametrize(
    ("tags", "said"),
    [({"scale_factor": "0.01"}, "scale and offset twice: 0.0001 and 0"), ({"scale_factor": "many"}, "no number"),
     ({"scale_factor": "0"}, "tag scale_factor is 0")],
)  # fmt: skip
def test_tags_that_contradict_the_scale_or_are_none_are_refused(
    tmp_path: Path, tags: dict[str, str], said: str
) -> None:
    path = tmp_path / "a.tif"
    write_scaled(path, counts((2, 8, 8)), ("VV", "VH"), 0.0001)
    with rasterio.open(path, "r+") as target:
        target.update_tags(**tags)
    with pytest.raises(Unreadable, match=said):
        describe_raster(path, tmp_path)
