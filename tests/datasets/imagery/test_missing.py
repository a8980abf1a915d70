"""What files call missing: nodata of each band, masks inside and beside, alpha that is one; pages; complex numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from alliance.errors import InputError
from datasets.imagery.duplicates import find_copies
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Scene, Unreadable
from datasets.shards.gather import Request, gather
from datasets.shards.plan import TileOptions, make_plan
from tests.helpers.cubes import write_h5
from tests.helpers.rasters import counts, write_tiff

RGBA: dict[str, Any] = {"photometric": "RGB", "alpha": "YES"}


def missing(scene: Scene, bands: tuple[int, ...]) -> np.ndarray | None:
    with scene.open(bands) as read:
        return read(0, 0, *scene.shape[1:]).missing


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, (3, 80, 90), dtype=np.uint8)


def left_half() -> np.ndarray:
    """Where pixels are (80, 90), 255, and are not, 0."""
    inside = np.full((80, 90), 255, dtype=np.uint8)
    inside[:, :45] = 0
    return inside


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_inside_or_beside_a_file_says_what_is_missing(tmp_path: Path, internal: bool) -> None:
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        write_tiff(path, picture(), photometric="RGB")
        with rasterio.open(path, "r+") as target:
            target.write_mask(left_half())
    assert (tmp_path / "a.tif.msk").exists() is not internal
    ((scene, bands),) = gather(Request(sensor="rgb-uint8", paths=(tmp_path,))).scenes
    assert scene.masked
    found = missing(scene, bands)
    assert found is not None
    np.testing.assert_array_equal(found, np.broadcast_to(left_half() == 0, (3, 80, 90)))


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("sensor", ["auto", "rgb-uint8"])
def test_alpha_is_a_mask_of_a_picture(tmp_path: Path, suffix: str, sensor: str) -> None:
    pixels = np.concatenate([picture(), left_half()[None]])
    if suffix == ".tif":
        write_tiff(tmp_path / "a.tif", pixels, **RGBA)
    else:
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / "a.png")
    found = gather(Request(sensor=sensor, paths=(tmp_path,)))
    ((scene, bands),) = found.scenes
    assert (found.sensor.name, bands) == ("rgb-uint8", (0, 1, 2))
    absent = missing(scene, bands)
    assert absent is not None
    np.testing.assert_array_equal(absent, np.broadcast_to(left_half() == 0, (3, 80, 90)))
    with pytest.raises(InputError, match="bands R, G, B, alpha lack N"):
        gather(Request(sensor="rgbn-uint8", paths=(tmp_path,)))


def test_alpha_with_soft_edges_is_one_and_near_infrared_is_none(tmp_path: Path) -> None:
    soft = left_half()
    soft[:, 44:47] = (60, 128, 190)  # 3 of 90 columns
    write_tiff(tmp_path / "soft.tif", np.concatenate([picture(), soft[None]]), **RGBA)
    assert describe_raster(tmp_path / "soft.tif", tmp_path).alpha == 3
    infrared = np.concatenate([picture(), picture(1)[:1]])
    infrared[3, :8] = 0  # a river
    write_tiff(tmp_path / "nir" / "a.tif", infrared, **RGBA)
    ((scene, bands),) = gather(Request(sensor="rgbn-uint8", paths=(tmp_path / "nir",))).scenes
    assert (scene.masked, bands, missing(scene, bands)) == (False, (0, 1, 2, 3), None)


def test_real_near_infrared_that_is_flagged_alpha_stays_a_band(shared_data: Path) -> None:
    found = gather(Request(sensor="rgbn-uint8", paths=(shared_data / "treesatai" / "aerial",)))
    assert len(found.scenes) == 3
    assert not any(scene.masked for scene, _ in found.scenes)


def test_files_of_one_band_each_have_their_own_nodata(tmp_path: Path) -> None:
    for name, nodata in (("VV", -9999.0), ("VH", None)):
        pixels = np.full((1, 8, 8), -10, dtype=np.float32)
        pixels[0, :, :2] = -9999
        write_tiff(tmp_path / f"x_{name}.tif", pixels, nodata=nodata)
    ((scene, bands),) = gather(Request(sensor="sentinel1-grd-db", paths=(tmp_path,), force=True)).scenes
    absent = missing(scene, bands)
    assert absent is not None
    assert (absent[0].sum(), absent[1].sum()) == (16, 0)


def test_pages_are_bands(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((6, 7), value, dtype=np.float32)) for value in range(12)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    ((scene, bands),) = gather(Request(sensor="sentinel2-l2a", paths=(tmp_path,))).scenes
    assert scene.shape == (12, 6, 7)
    with scene.open(bands) as read:
        assert read(1, 2, 3, 4).stored[:, 0, 0].tolist() == list(range(12))


def test_pages_of_several_bands_are_refused_and_pictures_beside_a_page_are_not(tmp_path: Path) -> None:
    colours = [Image.fromarray(np.zeros((6, 7, 3), dtype=np.uint8))] * 3
    colours[0].save(tmp_path / "a.tif", save_all=True, append_images=colours[1:])
    with pytest.raises(Unreadable, match="holds 3 pages of 3 .*gdal_translate GTIFF_DIR:1:a.tif PAGE.tif"):
        describe_raster(tmp_path / "a.tif", tmp_path)
    small = Image.fromarray(np.zeros((3, 3, 3), dtype=np.uint8))
    colours[0].save(tmp_path / "b.tif", save_all=True, append_images=[small])
    assert describe_raster(tmp_path / "b.tif", tmp_path).shape == (3, 6, 7)


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64"])
def test_complex_radar_is_refused_with_the_command_that_mends_it(tmp_path: Path, dtype: str) -> None:
    with rasterio.open(
        *(tmp_path / "slc.tif", "w"), driver="GTiff", width=8, height=8, count=1, dtype=dtype, crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as target:  # fmt: skip
        target.write(np.ones((1, 8, 8), dtype=np.complex64))
    with pytest.raises(Unreadable, match=f"holds {dtype} values.*amplitude, or decibels: gdal_calc.py"):
        describe_raster(tmp_path / "slc.tif", tmp_path)


def test_mosaics_and_previews_of_what_is_read_are_named(tmp_path: Path) -> None:
    tile = picture()
    write_tiff(tmp_path / "tile_0.tif", tile, photometric="RGB")
    write_tiff(tmp_path / "tile_1.tif", picture(1), photometric="RGB")
    Image.fromarray(np.moveaxis(tile, 0, -1)).save(tmp_path / "tile_0.jpg")
    Image.fromarray(np.moveaxis(tile, 0, -1)).save(tmp_path / "other.jpg")
    source = '<SimpleSource><SourceFilename relativeToVRT="1">tile_1.tif</SourceFilename><SourceBand>{}</SourceBand>'
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp>{source.format(band)}'
        "</SimpleSource></VRTRasterBand>"
        for band, colour in enumerate(("Red", "Green", "Blue"), start=1)
    )
    (tmp_path / "all.vrt").write_text(f'<VRTDataset rasterXSize="90" rasterYSize="80">{bands}</VRTDataset>')
    found = gather(Request(sensor="rgb-uint8", paths=(tmp_path,)))
    assert [scene.sources[0] for scene, _ in found.scenes] == ["other.jpg", "tile_0.tif", "tile_1.tif"]
    assert dict(found.skipped) == {
        "all.vrt": "its pixels are those of tile_1.tif, which are read themselves",
        "tile_0.jpg": "a picture of tile_0.tif, which is read itself",
    }


@pytest.mark.parametrize("same", [True, False])
def test_a_scene_in_two_formats_is_read_once(tmp_path: Path, same: bool) -> None:
    names, pixels = ("blue", "green", "red", "nir"), counts((4, 20, 30))
    write_tiff(tmp_path / "a.tif", pixels, names=names)
    maps = {name: band + (not same) for name, band in zip(names[::-1], pixels[::-1], strict=True)}
    write_h5(tmp_path / "a.nc", maps)
    found = gather(Request(sensor="planetscope-sr-4band", paths=(tmp_path,)))
    assert {scene.sources[0] for scene, _ in found.scenes} == {"a.tif"} | ({"a.nc"} if not same else set())
    assert list(found.skipped) == [("a.nc", "the same pixels as a.tif, which is read itself")] * same


def test_copies_are_left_out_where_all_sensors_repeat(tmp_path: Path) -> None:
    optical = [counts((2, 8, 8), seed) for seed in (0, 0, 0, 1)]
    for name, pixels in zip("abcd", optical, strict=True):
        write_tiff(tmp_path / "x" / f"{name}.tif", pixels)
        write_tiff(tmp_path / "y" / f"{name}.tif", counts((2, 8, 8), 5 if name == "c" else 4))
    groups = [[describe_raster(tmp_path / kind / f"{name}.tif", tmp_path) for kind in "xy"] for name in "abcd"]
    assert find_copies(groups) == {1: 0}
    assert find_copies([group[:1] for group in groups]) == {1: 0, 2: 0}


def test_copies_are_named_in_the_plan(tmp_path: Path) -> None:
    for name in ("a", "copy of a"):
        write_tiff(tmp_path / f"{name}.tif", -counts((2, 8, 8)).astype("f4") / 200, names=("VV", "VH"))
    plan = make_plan([gather(Request(sensor="auto", paths=(tmp_path,)))], TileOptions(tile=8, stride=8))
    assert len(plan.footprints) == 1
    assert list(plan.skipped) == [("copy of a.tif", "the same bytes as a.tif, which is read itself")]
