"""The axes of an array are told by names, lengths and lists beside it, or asked for; they are never guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from einops import rearrange

from alliance.errors import InputError
from datasets.imagery.images import ImageSource, read_image
from datasets.imagery.scenes import Unreadable
from tests.helpers.cubes import ramp, seen, write_h5
from tests.helpers.matlab import write_matlab_header

SMALL = (60, 24, 32)  # fewer rows and columns than bands
ORDERS = ("c h w", "h w c", "h c w")


def turned(cube: np.ndarray, order: str) -> np.ndarray:
    return np.ascontiguousarray(rearrange(cube, f"c h w -> {order}"))


def with_names(*words: str) -> Callable[[np.ndarray, str], dict[str, Any]]:
    """Dimensions called by these words for bands, rows and columns."""
    names = dict(zip("chw", words, strict=True))
    return lambda cube, order: {
        "arrays": {"data": turned(cube, order)},
        "dims": {"data": [names[letter] for letter in order.split()]},
    }


def beside(**made: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray, str], dict[str, Any]]:
    """Further arrays in the file, made of the cube (c, h, w)."""
    return lambda cube, order: {
        "arrays": {"data": turned(cube, order), **{name: make(cube) for name, make in made.items()}}
    }


TOLD = {
    "xarray": with_names("band", "y", "x"),
    "geographic": with_names("wavelength", "lat", "lon"),
    "swath": with_names("bands", "downtrack", "crosstrack"),
    "lines and samples": with_names("nbands", "nlines", "nsamples"),
    "rows and columns": with_names("Channel", "Rows", "Cols"),
    "two names": with_names("what", "row", "column"),
    "wavelengths": beside(wavelength=lambda cube: np.linspace(400, 2400, len(cube))),
    "wavelengths in a column": beside(wl=lambda cube: np.linspace(400, 2400, len(cube))[:, None]),
    "coordinates": beside(
        x=lambda cube: 5e5 + 10 * np.arange(cube.shape[2]), y=lambda cube: 5e6 - 10.0 * np.arange(cube.shape[1])
    ),
    "a map beside it": beside(labels=lambda cube: np.zeros(cube.shape[1:], np.uint8)),
    "band names": beside(band_names=lambda cube: [f"band at {400 + number}" for number in range(len(cube))]),
    "flags of bands": beside(good_wavelengths=lambda cube: np.arange(len(cube)) % 2),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", TOLD)
def test_the_file_tells_its_axes(tmp_path: Path, how: str, order: str) -> None:
    cube = ramp(*SMALL)
    scene, window = seen(write_h5(tmp_path / "a.nc", **TOLD[how](cube, order)))
    assert scene.shape == SMALL
    np.testing.assert_array_equal(window.stored, cube)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{"bands": 60}, {"grid": (24, 32)}])
def test_the_task_tells_the_axes(tmp_path: Path, order: str, options: dict[str, Any]) -> None:
    cube = ramp(*SMALL)
    np.save(tmp_path / "a.npy", turned(cube, order))
    np.testing.assert_array_equal(seen(tmp_path / "a.npy", **options)[1].stored, cube)


@pytest.mark.parametrize("order", [*ORDERS, "c w h", "w h c", "w c h"])
def test_columns_before_rows_are_read_where_dimensions_say_so(tmp_path: Path, order: str) -> None:
    cube = ramp(5, 12, 17)
    scene, window = seen(write_h5(tmp_path / "a.nc", **with_names("band", "y", "x")(cube, order)))
    np.testing.assert_array_equal(window.stored, cube)
    with scene.open([3, 1]) as read:
        np.testing.assert_array_equal(read(2, 3, 7, 11).stored, cube[[3, 1], 2:9, 3:14])


@pytest.mark.parametrize(
    ("shape", "readings"),
    [
        ((24, 32, 60), ["60 bands of 24 x 32 pixels (axes hwc)", "24 bands of 32 x 60 pixels (axes chw)"]),
        ((48, 32, 32), ["32 bands of 48 x 32 pixels (axes hwc)", "48 bands of 32 x 32 pixels (axes chw)"]),
        ((32, 32, 48), ["48 bands of 32 x 32 pixels (axes hwc)", "32 bands of 32 x 48 pixels (axes chw)"]),
        ((30, 30, 30), ["(axes hwc)", "(axes chw)", "(axes hcw)"]),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "h5", "mat", "npz"])
def test_what_nothing_tells_is_refused_with_the_readings(
    tmp_path: Path, shape: tuple[int, ...], readings: list[str], suffix: str
) -> None:
    array, path = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16), tmp_path / f"patch.{suffix}"
    save(path, array)
    with pytest.raises(Unreadable) as refusal:
        seen(path)
    assert all(reading in str(refusal.value) for reading in readings), refusal.value
    np.testing.assert_array_equal(seen(path, axes="hwc")[1].stored, rearrange(array, "h w c -> c h w"))


def test_a_description_says_which_reading_is_right(tmp_path: Path) -> None:
    """As its refusal advises: the same array is read where the description of the image has `axes`."""
    array, path = np.arange(24 * 32 * 60, dtype=np.uint16).reshape(24, 32, 60), tmp_path / "patch.npy"
    np.save(path, array)
    with pytest.raises(InputError, match="axes: ORDER in the description of the image$"):  # it is not damaged
        read_image(path, ImageSource())
    for axes in ("hwc", "chw"):
        numbers = read_image(path, ImageSource(axes=axes)).numbers.numpy()
        np.testing.assert_array_equal(numbers, rearrange(array, f"{' '.join(axes)} -> c h w").astype(np.float32))
    with pytest.raises(InputError, match="axes are 'hw'; give an order of the letters h, w and c"):
        ImageSource(axes="hw")


def save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, cube=array)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"cube": array})
    else:
        write_h5(path, {"cube": array})


def test_a_band_count_that_two_axes_have_tells_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((13, 40, 13)))
    with pytest.raises(Unreadable, match="--axes"):
        seen(tmp_path / "a.npy", bands=13)


def test_few_bands_are_told_from_an_image_that_would_be_too_slim(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(4, 64, 64))
    assert seen(tmp_path / "a.npy")[0].shape == (4, 64, 64)


@pytest.mark.parametrize("square", [False, True])
def test_only_files_by_matlab_are_turned(tmp_path: Path, square: bool) -> None:
    """MATLAB -v7.3 stores (rows, columns, bands) as (bands, columns, rows); h5py in a file called .mat does not."""
    cube = ramp(24, 48, 48 if square else 64)
    image = turned(cube, "h w c")
    with h5py.File(tmp_path / "matlab.mat", "w", userblock_size=512) as file:
        file["data"] = image.T
    write_matlab_header(tmp_path / "matlab.mat")
    with h5py.File(tmp_path / "attribute.mat", "w") as file:
        file["data"] = image.T
        file["data"].attrs["MATLAB_class"] = np.bytes_("uint16")
    write_h5(tmp_path / "python.mat", {"data": image})
    for name in ("matlab", "attribute", "python"):
        np.testing.assert_array_equal(seen(tmp_path / f"{name}.mat", bands=24)[1].stored, cube)


@pytest.mark.parametrize("axes", ["hw", "hwb", "hhw", "chwt"])
def test_an_order_that_is_none_is_refused(tmp_path: Path, axes: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 64, 64)))
    with pytest.raises(Unreadable, match=f"axes '{axes}' are no order of the letters h, w and c"):
        seen(tmp_path / "a.npy", axes=axes)


def test_a_time_axis_of_one_date_is_none(tmp_path: Path) -> None:
    cube = ramp(6, 12, 17)
    named = write_h5(tmp_path / "a.nc", {"data": cube[None]}, dims={"data": ["time", "band", "y", "x"]})
    unnamed = write_h5(tmp_path / "b.nc", {"data": cube[None]})
    np.testing.assert_array_equal(seen(named)[1].stored, cube)
    np.testing.assert_array_equal(seen(unnamed, bands=6)[1].stored, cube)


def test_a_time_series_is_refused_with_a_way_on(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.nc", {"VH": np.zeros((7, 12, 17))}, dims={"VH": ["timestamp", "y", "x"]})
    for options in ({}, {"key": "VH"}, {"any_rank": True}):
        with pytest.raises(Unreadable, match=r"time series of 7 dates; .*isel\(timestamp=0\)"):
            seen(path, **options)
