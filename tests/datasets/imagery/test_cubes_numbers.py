"""What stored numbers mean, which are missing, and which wavelengths and bands they belong to: as the file says it."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from alliance.errors import InputError
from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.scenes import Unreadable
from datasets.shards.gather import Request, gather
from tests.helpers.cubes import ramp, seen, write_h5

NM = np.linspace(420, 2450, 12)
CUBE = ramp(12, 20, 30, "int16")


def cube_file(folder: Path, attributes: dict[str, Any], **arrays: Any) -> Path:
    """CUBE as `r` with its attributes, and arrays beside it."""
    return write_h5(folder / "a.nc", {"r": CUBE, "wavelength": NM} | arrays, {"r": attributes})


@pytest.mark.parametrize(
    ("attributes", "scale", "offset"),
    [
        ({"scale_factor": np.float64(1e-4), "add_offset": np.float64(0.02)}, 1e-4, 0.02),
        ({"scale_factor": np.array([1e-4])}, 1e-4, 0),
        ({"add_offset": np.float32(-5)}, 1, -5),
        ({"scale_factor": 10_000.0}, 10_000, 0),  # CF: always a factor; that it is no reflectance is found later
        ({"Scale_Factor": np.array([10_000.0])}, 1e-4, 0),  # NEON: a divisor
        ({"reflectance scale factor": 10_000}, 1e-4, 0),
        ({"Scale_Factor": "1.0E4"}, 1e-4, 0),
        ({"slope": 0.01, "intercept": -3.0}, 0.01, -3),
        ({"scale": 0.5, "offset": 2}, 0.5, 2),
    ],
)
def test_scale_and_offset_are_those_of_the_file(
    tmp_path: Path, attributes: dict[str, Any], scale: float, offset: float
) -> None:
    scene, window = seen(cube_file(tmp_path, attributes))
    np.testing.assert_allclose(scene.scales, [scale] * 12)
    np.testing.assert_allclose(scene.offsets, [offset] * 12)
    np.testing.assert_array_equal(window.stored, CUBE)


@pytest.mark.parametrize("sensor", ["hsi", "own.yaml"])
def test_a_divisor_called_a_scale_factor_is_named_and_the_mend_works(tmp_path: Path, sensor: str) -> None:
    bands = "".join(f"  - {{name: b{index}, wavelength: {nm}}}\n" for index, nm in enumerate(NM))
    (tmp_path / "own.yaml").write_text(f"name: own\nunit: reflectance\nscale: 1.0e-4\nbands:\n{bands}")
    request = Request(sensor=sensor if sensor == "hsi" else str(tmp_path / sensor), paths=(tmp_path / "in",))
    (tmp_path / "in").mkdir()
    path = cube_file(tmp_path / "in", {"scale_factor": 10_000.0})
    with pytest.raises(InputError, match="a divisor that is called a scale factor: write 0.0001") as refused:
        gather(request)
    with h5py.File(path, "r+") as file:
        file["r"].attrs["scale_factor"] = float(re.findall(r"write ([\d.]+)", str(refused.value))[0])
    assert {band.scale for band in gather(request).sensor.bands} == {1e-4}


@pytest.mark.parametrize("attributes", [{}, {"scale_factor": 1.0, "add_offset": 0.0}, {"scale": "none"}])
def test_a_file_without_scale_says_none(tmp_path: Path, attributes: dict[str, Any]) -> None:
    scene, _ = seen(cube_file(tmp_path, attributes))
    assert (scene.scales, scene.offsets) == ((), ())


def test_every_band_may_have_its_own_scale(tmp_path: Path) -> None:
    scene, _ = seen(cube_file(tmp_path, {"scale_factor": np.arange(1, 13) * 1e-4, "units": "1"}))
    np.testing.assert_allclose(scene.scales, np.arange(1, 13) * 1e-4)
    assert scene.units == ("1",) * 12
    with pytest.raises(Unreadable, match="12 bands and 5 numbers of scale"):
        seen(cube_file(tmp_path, {"scale_factor": np.ones(5) * 1e-4}))


def test_a_scale_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="scale 0"):
        seen(cube_file(tmp_path, {"scale_factor": 0.0}))


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        ({}, None),
        ({"_FillValue": np.int16(30)}, CUBE == 30),
        ({"Data_Ignore_Value": [-30.0, 1000.0]}, CUBE == 1000),
        ({"_FillValue": np.int16(30), "missing_value": np.int16(60)}, (CUBE == 30) | (CUBE == 60)),
        ({"fill_value": "31"}, CUBE == 31),
        ({"valid_range": np.array([30, 5000], "i2")}, (CUBE < 30) | (CUBE > 5000)),
        ({"valid_min": np.int16(500)}, CUBE < 500),
        ({"valid_max": np.int16(500), "_FillValue": np.int16(0)}, (CUBE > 500) | (CUBE == 0)),
        # a range of fractions, where integers are packed, is of physical values (CF 2.5.1): 300 to 5000 stored
        ({"valid_range": [0.03, 0.5], "scale_factor": 1e-4}, (CUBE < 300) | (CUBE > 5000)),
    ],
)
def test_missing_is_what_the_file_calls_so(
    tmp_path: Path, attributes: dict[str, Any], missing: np.ndarray | None
) -> None:
    scene, window = seen(cube_file(tmp_path, attributes))
    if missing is None:
        assert window.missing is None and not scene.marks_missing
    else:
        np.testing.assert_array_equal(window.missing, missing)
        assert scene.marks_missing


def test_a_fill_value_that_is_no_number_is_found(tmp_path: Path) -> None:
    values = np.where(CUBE == 30, np.nan, CUBE).astype(np.float32)
    path = write_h5(tmp_path / "a.h5", {"r": values, "wavelength": NM}, {"r": {"_FillValue": np.float32("nan")}})
    np.testing.assert_array_equal(seen(path)[1].missing, CUBE == 30)


def test_unsigned_numbers_in_signed_types_are_read_as_meant(tmp_path: Path) -> None:
    stored = np.array([[[1, -1], [-2, 127]]] * 12, dtype=np.int8)
    attributes = {"_Unsigned": "true", "_FillValue": np.int8(-1)}
    path = write_h5(tmp_path / "a.nc", {"r": stored, "wavelength": NM}, {"r": attributes})
    scene, window = seen(path)
    assert (scene.dtype, scene.nodata[0]) == ("uint8", 255)
    np.testing.assert_array_equal(window.stored[0], [[1, 255], [254, 127]])
    np.testing.assert_array_equal(window.missing, window.stored == 255)


@pytest.mark.parametrize(
    ("name", "factor", "units"),
    [
        ("wavelength", 1, "nm"),
        ("wavelength", 1, None),
        ("Wavelengths", 1e-3, "Micrometers"),
        ("wavelength", 1e-3, None),
        ("wavelength", 1e-9, "m"),
        ("wavelength", 10, "Angstrom"),
        ("wavelength_um", 1e-3, None),
        ("sensor/center_wavelengths", 1, "nanometers"),
        ("wl", 1, None),
        ("lambda", 1, "nm"),
    ],
)
def test_wavelengths_are_nanometres(tmp_path: Path, name: str, factor: float, units: str | None) -> None:
    given = {} if units is None else {name: {"units": units}}
    scene, _ = seen(write_h5(tmp_path / "a.h5", {"r": CUBE, name: NM * factor}, given))
    np.testing.assert_allclose(scene.wavelengths or (), NM, atol=1e-3)


def test_wavenumbers_are_turned_into_wavelengths(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", {"r": CUBE, "wavenumber": 1e7 / NM}, {"wavenumber": {"units": "cm-1"}})
    np.testing.assert_allclose(seen(path)[0].wavelengths or (), NM, atol=1e-3)


def test_attributes_of_the_cube_may_hold_the_wavelengths(tmp_path: Path) -> None:
    own = {"wavelengths": NM, "fwhm": np.full(12, 8.5), "good_wavelengths": np.r_[np.ones(10), 0, 1]}
    scene, _ = seen(write_h5(tmp_path / "a.h5", {"r": CUBE}, {"r": own}))
    np.testing.assert_allclose(scene.wavelengths or (), NM, atol=1e-3)
    assert scene.good == (*[True] * 10, False, True)


def test_the_coordinate_of_the_band_axis_tells_by_its_unit(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.nc", {"r": CUBE, "band": NM}, {"band": {"units": "nm"}}, {"r": ["band", "y", "x"]})
    np.testing.assert_allclose(seen(path)[0].wavelengths or (), NM, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bad_wavelength_flag", np.ones(12, "u1")),
        ("wavelength_index", np.arange(12)),
        ("a_wavelength", np.arange(12)),
        ("wavelength_fwhm", np.linspace(8, 9, 12)),
        ("bandwidth", np.linspace(500, 600, 12)),
        ("good_wavelengths", np.ones(12, "u1")),
    ],
)
def test_other_lists_are_not_taken_for_wavelengths(tmp_path: Path, name: str, values: np.ndarray) -> None:
    path = write_h5(tmp_path / "a.h5", {"r": CUBE, name: values, "wavelength": NM})
    np.testing.assert_allclose(seen(path)[0].wavelengths or (), NM, atol=1e-3)


@pytest.mark.parametrize(
    ("arrays", "units", "said"),
    [
        ({"wavelength": NM / 1000}, {"wavelength": {"units": "nm"}}, "0.42 to 2.45 nm"),
        ({"wavelength": np.linspace(1, 1000, 12)}, {}, r"1 to 1000"),
        ({"wavelength": NM}, {"wavelength": {"units": "furlongs"}}, "unknown unit 'furlongs'"),
        ({"wavelength": NM, "centre_wavelength": NM + 50}, {}, "disagree"),
    ],
)
def test_wavelengths_that_cannot_be_are_refused(
    tmp_path: Path, arrays: dict[str, Any], units: dict[str, dict[str, Any]], said: str
) -> None:
    with pytest.raises(Unreadable, match=said):
        seen(write_h5(tmp_path / "a.h5", {"r": CUBE, **arrays}, units))


@pytest.mark.parametrize(
    ("name", "values", "good"),
    [
        ("good_wavelengths", [1] * 8 + [0] * 4, [True] * 8 + [False] * 4),
        ("bbl", [0] + [1] * 11, [False] + [True] * 11),
        ("bad_bands_list", [0] + [1] * 11, [False] + [True] * 11),  # ENVI: 1 is good
        ("bad_wavelength_flag", [1] + [0] * 11, [False] + [True] * 11),
        ("bad_band", [0] * 12, [True] * 12),
        ("bad_wavelength_flag", [1] * 12, []),  # all bands are bad: the flag is understood the wrong way round
        ("good_wavelengths", list(range(12)), []),
    ],
)
def test_flags_tell_the_good_bands(tmp_path: Path, name: str, values: list[int], good: list[bool]) -> None:
    scene, _ = seen(write_h5(tmp_path / "a.h5", {"r": CUBE, "wavelength": NM, name: np.array(values, "u1")}))
    assert list(scene.good) == good


def test_wavelengths_beside_a_cube_are_as_many_as_its_bands(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", {"r": CUBE, "wavelength": NM[:9]})
    with pytest.raises(Unreadable, match="wavelength has 9 numbers, r has 12 bands; mend one"):
        describe_cube(path, tmp_path, CubeOptions(axes="chw"))
