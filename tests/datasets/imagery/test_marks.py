"""Usual marks of missing pixels that a file does not declare: refused with a mend, in every room that reads images."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from alliance.errors import InputError
from datasets.imagery.images import ImageSource, read_image
from datasets.imagery.marks import undeclared
from datasets.imagery.scenes import Skipped
from datasets.shards.gather import Request, gather
from datasets.shards.plan import TileOptions, make_plan
from datasets.shards.write import write_shards
from tests.helpers.rasters import counts, write_tiff

HEIGHTS = np.random.default_rng(0).uniform(2, 60, (1, 8, 8)).astype("f4")
HOLES = (HEIGHTS > 50) | (HEIGHTS < 5)


def holed(mark: float, dtype: str = "f4") -> np.ndarray:
    return np.where(HOLES, np.array(mark, dtype), HEIGHTS.astype(dtype))


MARKED = [
    (-9999.0, "f4"), (-9999.0, "i2"), (-32768.0, "i2"), (-32768.0, "f4"), (-99999.0, "i4"), (-(2.0**31), "i4"),
    (float(np.finfo("f4").min), "f4"), (float(np.finfo("f4").max), "f4"), (1e20, "f4"), (9.969209968386869e36, "f8"),
]  # fmt: skip


@pytest.mark.parametrize(("mark", "dtype"), MARKED)
def test_a_mark_that_nothing_declares_is_refused_and_the_advice_works(tmp_path: Path, mark: float, dtype: str) -> None:
    path, declared = tmp_path / "height.tif", tmp_path / "declared.tif"
    write_tiff(path, holed(mark, dtype))
    with pytest.raises(InputError, match=rf"height\.tif holds .* in {HOLES.sum()} places") as told:
        read_image(path, ImageSource())
    advised = yaml.safe_load("nodata" + str(told.value).split("`nodata")[1].split("`")[0])["nodata"]
    found = read_image(path, ImageSource(nodata=advised)).numbers.numpy()
    assert np.array_equal(np.isnan(found), HOLES)
    write_tiff(declared, holed(mark, dtype), nodata=float(np.array(mark).astype(dtype)))
    assert np.array_equal(np.isnan(read_image(declared, ImageSource()).numbers.numpy()), HOLES)


REAL = [
    ("depths around the mark", np.linspace(-11000, -9000, 2001).reshape(1, 1, -1).round().astype("f4")),
    ("full range of int16", np.arange(-32768, 32767).reshape(1, 1, -1).astype("i2")),
    ("a bright corner", np.append(np.arange(0, 65536, 100), [65535] * 5).reshape(1, 1, -1).astype("u2")),
    ("8-bit white", np.full((3, 4, 4), 255, "u1")),
    ("heights of the ground", np.zeros((1, 4, 4), "f4")),
    ("decibel with gaps", np.array([[[np.nan, -np.inf, -12.0, -25.0]]], "f4")),
    ("darkest reflectance", np.array([[[-999, -600, -120, 4000]]], "i2")),
]


@pytest.mark.parametrize(("name", "numbers"), REAL, ids=[name for name, _ in REAL])
def test_measurements_are_no_marks(name: str, numbers: np.ndarray) -> None:
    assert undeclared(numbers, None) is None


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4"])
def test_the_largest_integer_in_all_bands_of_many_pixels_is_a_fill(dtype: str) -> None:
    numbers = counts((3, 20, 20)).astype(dtype)
    numbers[0, :5] = np.iinfo(dtype).max  # saturated in one band
    assert undeclared(numbers, None) is None
    numbers[:, :2, :2] = np.iinfo(dtype).max
    assert undeclared(numbers, None) == np.iinfo(dtype).max
    assert undeclared(numbers, numbers == np.iinfo(dtype).max) is None


def test_0_decibel_in_all_bands_of_many_pixels_is_a_fill(tmp_path: Path) -> None:
    decibels = np.random.default_rng(0).normal(-12, 3, (2, 16, 16)).astype("f4")
    decibels[0, 0, 0] = 0
    assert undeclared(decibels, None, decibels=True) is None
    decibels[:, :3] = 0
    assert undeclared(decibels, None) is None
    write_tiff(tmp_path / "s1.tif", decibels, names=("VV", "VH"))
    with pytest.raises(InputError, match=r"s1\.tif holds 0 in 96 places"):
        read_image(tmp_path / "s1.tif", ImageSource(sensor="sentinel1-grd-db"))
    found = read_image(tmp_path / "s1.tif", ImageSource(sensor="sentinel1-grd-db", nodata=0)).numbers
    assert int(found.isnan().sum()) == 96


def test_shards_leave_out_a_scene_with_undeclared_holes_by_name(tmp_path: Path) -> None:
    good, bad = (counts((4, 16, 16)).astype("i2") for _ in range(2))
    bad[:, :3, :3] = -9999
    write_tiff(tmp_path / "scenes" / "good.tif", good, names=("B", "G", "R", "N"))
    write_tiff(tmp_path / "scenes" / "bad.tif", bad, names=("B", "G", "R", "N"))
    collection = gather(Request(sensor="planetscope-sr-4band", paths=(tmp_path / "scenes",)))
    plan = make_plan([collection], TileOptions(tile=16, stride=16))
    index = write_shards(plan, tmp_path / "out", workers=1)
    assert sum(shard.samples for shard in index.shards) == 1
    skipped = [Skipped(*entry) for entry in index.skipped]
    assert [entry.file for entry in skipped] == ["bad.tif"]
    assert "-9999 in 36 places" in skipped[0].reason
