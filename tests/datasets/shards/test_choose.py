"""Bad, empty and dropped bands."""

from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.imagery.rasters import describe_raster
from datasets.shards.choose import dropped_bands, empty_bands
from datasets.shards.gather import Collection, Request, gather
from tests.helpers.envi import write_envi
from tests.helpers.rasters import S2_NAMES, counts, write_tiff


def cube(*, empty: tuple[int, ...] = ()) -> np.ndarray:
    """Pixels (6, 700, 40) with one value below the last rows of band 5 and none in some bands."""
    pixels = np.random.default_rng(0).integers(100, 4000, (6, 700, 40), dtype=np.int16)
    pixels[5, :690] = -9999
    pixels[list(empty)] = -9999
    return pixels


def collect(path: Path, sensor: str = "hsi", drop: str | None = None) -> Collection:
    return gather(Request(sensor=sensor, paths=(path,), drop=drop))


def test_bands_without_any_value_are_left_out_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", cube(empty=(1, 2)), nodata=-9999)
    pixels = cube(empty=(2,))
    pixels[1, 650, 3] = 7  # band 2 has a value in another scene
    write_tiff(tmp_path / "c.tif", pixels, nodata=-9999)
    found = collect(tmp_path)
    assert found.sensor.band_names == ("b001", "b002", "b004", "b005", "b006")
    assert (found.sensor.name, {bands for _, bands in found.scenes}) == ("hsi5", {(0, 1, 3, 4, 5)})
    assert found.notes == ("left out 1 of 6 bands, without any value: 3; --drop none keeps them",)


def test_the_makers_bad_bands_are_left_out(tmp_path: Path) -> None:
    write_envi(tmp_path / "line", cube(), bbl="{1, 0, 0, 1, 1, 1}", wavelength="{400, 500, 600, 700, 800, 900}")
    found = collect(tmp_path)
    assert [band.wavelength for band in found.sensor.bands] == [400, 700, 800, 900]
    assert "left out 2 of 6 bands, called bad in the file: 2-3" in found.notes[0]
    assert len(collect(tmp_path, drop="none").sensor.bands) == 6
    assert collect(tmp_path, drop="1,5-6").sensor.band_names == ("b004",)


def test_measurements_that_the_asked_sensor_lacks_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", counts((13, 32, 32)), names=S2_NAMES)
    beside = (*S2_NAMES[:10], "SCL", *S2_NAMES[11:])  # a quality layer in the place of B10
    write_tiff(tmp_path / "c.tif", counts((13, 32, 32)), names=beside)
    (told,) = collect(tmp_path, "sentinel2-l2a").notes
    assert told.startswith("left out of 2 of 3 scenes: band B10,") and "--sensor auto" in told
    assert collect(tmp_path / "a.tif", "sentinel2-l2a", drop="B10").notes == ()
    assert collect(tmp_path / "a.tif", "sentinel2-l1c").notes == ()


def test_a_list_of_bad_bands_of_another_length_is_named(tmp_path: Path) -> None:
    write_envi(tmp_path / "line", cube(), bbl="{1, 0}")
    with pytest.raises(InputError, match="its list of bad bands has 2 entries for 6 bands; mend the header"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("drop", "empty", "places"), [(None, (1, 3), (0, 2, 4, 5)), ("1-2", (), (2, 3, 4, 5)), ("6 2", (0,), (0, 2, 3, 4))]
)
def test_a_named_sensor_takes_the_bands_that_are_left(
    tmp_path: Path, drop: str | None, empty: tuple[int, ...], places: tuple[int, ...]
) -> None:
    bands = "".join(f"  - {{name: band{number}, wavelength: {400 + number}}}\n" for number in range(4))
    (tmp_path / "own.yaml").write_text(f"name: own\nscale: 1.0e-4\nbands:\n{bands}")
    write_tiff(tmp_path / "a.tif", cube(empty=empty), nodata=-9999)
    assert collect(tmp_path, str(tmp_path / "own.yaml"), drop).scenes[0][1] == places


def test_a_sensor_of_fewer_bands_asks_which_to_drop(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nbands:\n  - {name: one, wavelength: 400}\n")
    write_tiff(tmp_path / "a.tif", cube(), nodata=-9999)
    with pytest.raises(InputError, match="6 bands without names, sensor own has 1; leave bands out with --drop"):
        collect(tmp_path, str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(("text", "places"), [("1", {0}), ("2-4,6", {1, 2, 3, 5}), ("vh 1", {0, 1}), ("none", set())])
def test_bands_are_dropped_by_number_and_by_name(tmp_path: Path, text: str, places: set[int]) -> None:
    write_tiff(tmp_path / "a.tif", cube(), names=("VV", "VH", "HH", "HV", "x", "y"))
    assert dropped_bands(text, describe_raster(tmp_path / "a.tif", tmp_path)) == places


@pytest.mark.parametrize("text", ["0", "7", "5-9", "4-2", "B02", "1.5"])
def test_a_band_that_is_not_there_is_refused(tmp_path: Path, text: str) -> None:
    write_tiff(tmp_path / "a.tif", cube())
    with pytest.raises(InputError, match=f"has no band {text} to drop; give numbers from 1 to 6"):
        dropped_bands(text, describe_raster(tmp_path / "a.tif", tmp_path))


def test_a_stored_value_may_be_called_missing(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", cube(empty=(4,)))
    scene = describe_raster(tmp_path / "a.tif", tmp_path)
    assert (empty_bands(scene, range(6)), empty_bands(scene, range(6), nodata=-9999)) == (set(), {4})
