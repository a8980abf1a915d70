"""A sensor is told by everything a file says or not at all, and a named one does not take numbers of another unit."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from webdataset.writer import TarWriter

from alliance.errors import InputError
from datasets.imagery.samples import sample_pixels
from datasets.imagery.scenes import Skipped, summarise
from datasets.shards import inspection
from datasets.shards.command import main
from datasets.shards.gather import Collection, Request, gather
from datasets.shards.index import Index
from finetune.inspection import main as inspect_main
from tests.helpers.rasters import S2_NAMES, counts, write_tiff

PLANET = "20230412_101112_24_2476_3B_AnalyticMS_SR_clip.tif"
EIGHT = ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir")


def levels(*values: float, dtype: str = "uint16", size: int = 40) -> np.ndarray:
    """An image (c, size, size) of these levels with a tenth of noise."""
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal((len(values), size, size))
    return (np.array(values)[:, None, None] * noise).astype(dtype)


def found(path: Path, sensor: str = "auto", *, force: bool = False) -> Collection:
    return gather(Request(sensor=sensor, paths=(path,), force=force))


BGRN = ("blue", "green", "red", "nir")
TOLD = {  # file, band names, pixels -> the sensor that alone explains them
    "planet by its product": (PLANET, BGRN, levels(500, 800, 700, 3000), "planetscope-sr-4band"),
    "eight bands": (
        PLANET.replace("clip", "8b_clip"), EIGHT, levels(400, 500, 780, 800, 760, 700, 1800, 3000), "planetscope-sr-8band",
    ),
    "Sentinel-2 by its cirrus band": ("a.tif", S2_NAMES, levels(*[900] * 10, 15, 1500, 900), "sentinel2-l1c"),
    "decibels": ("a.tif", ("VV", "VH"), levels(-11, -18, dtype="float32"), "sentinel1-grd-db"),
    "power of a terrain corrected product": (
        "S1A_RTC10_x.tif", ("VV", "VH"), levels(0.08, 0.02, dtype="float32"), "sentinel1-rtc-linear",
    ),
    "quality beside": ("a.tif", ("VV", "VH", "angle"), levels(-11, -18, 38, dtype="float32"), "sentinel1-grd-db"),
    "a picture": ("a.tif", ("red", "green", "blue"), levels(90, 80, 60, dtype="uint8"), "rgb-uint8"),
    "Landsat level 1": (
        "LC08_L1TP_195026_20200714_20200911_02_T1.tif", ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9"),
        levels(*[15000] * 8), "landsat8-l1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_a_sensor_is_told_where_one_alone_fits_everything(case: str, tmp_path: Path) -> None:
    file, names, pixels, expected = TOLD[case]
    write_tiff(tmp_path / file, pixels, names=names)
    assert found(tmp_path).sensor.name == expected


NOT_TOLD = {
    "four bands of any maker": ("a.tif", BGRN, levels(500, 800, 700, 3000), "planetscope-sr-4band fits if it is"),
    "a band more": ("a.tif", (*BGRN, "Red edge"), levels(500, 800, 700, 3000, 2000), "leaves out Red edge"),
    "numbers for names": (
        "a.tif", tuple(f"Band {n}" for n in range(1, 61)), levels(*[2000] * 60, dtype="int16"), "--sensor hsi",
    ),
    "numbers that look like Landsat": ("a.tif", tuple(f"B{n}" for n in range(1, 8)), levels(*[9000] * 7), "only numbers"),
    "no names": ("a.tif", (), levels(-11, -18, dtype="float32"), "they have no names"),
    "counts": ("a.tif", ("VV", "VH"), levels(150, 60), "holds uint16"),
    "power of any product": ("a.tif", ("VV", "VH"), levels(0.08, 0.02, dtype="float32"), "likely linear power"),
    "scaled already": ("a.tif", S2_NAMES, levels(*[0.2] * 13, dtype="float32"), "likely reflectance already"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TOLD)
def test_a_sensor_is_not_told_where_several_or_none_fit(case: str, tmp_path: Path) -> None:
    file, names, pixels, reason = NOT_TOLD[case]
    write_tiff(tmp_path / file, pixels, names=names)
    with pytest.raises(InputError) as refused:
        found(tmp_path)
    said = str(refused.value)
    assert reason in said
    assert "stored values" in said and "pass --sensor NAME" in said and "--inspect" in said


def test_wavelengths_in_the_file_make_a_sensor_of_a_cube(tmp_path: Path) -> None:
    centres = np.linspace(420, 2450, 60)
    write_tiff(tmp_path / "a.tif", levels(*[2000] * 60), names=tuple(f"Band {n}" for n in range(1, 61)))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        for place, centre in enumerate(centres, start=1):
            file.update_tags(place, wavelength=f"{centre:.2f}", wavelength_units="Nanometers")
    sensor = found(tmp_path).sensor
    np.testing.assert_allclose([band.wavelength for band in sensor.bands], centres, atol=0.01)
    assert {band.unit for band in sensor.bands} == {"digital number"}  # nobody said how they are scaled
    (tmp_path / "a.tif").rename(tmp_path / "ENMAP01-L2A-SPECTRAL_IMAGE.tif")
    enmap = found(tmp_path).sensor
    assert (enmap.name, enmap.bands[0].scale, enmap.bands[0].unit) == ("enmap", 1e-4, "reflectance")


def test_wavelengths_of_the_file_must_be_those_of_a_named_sensor(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", levels(500, 800, 700, 3000), names=BGRN)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        for place, centre in enumerate((485, 545, 630, 1650), start=1):
            file.update_tags(place, wavelength=str(centre))
    with pytest.raises(
        InputError, match="its band for nir is at 1650 nm, that of sensor planetscope-sr-4band at 820 nm"
    ):
        found(tmp_path, "planetscope-sr-4band")


REFUSED = {
    "reflectance for stored numbers": ("sentinel2-l1c", S2_NAMES, levels(*[0.2] * 13, dtype="float32"), "reflectance already"),
    "power for decibels": ("sentinel1-grd-db", ("VV", "VH"), levels(0.08, 0.02, dtype="float32"), "linear power"),
    "decibels for power": ("sentinel1-rtc-linear", ("VV", "VH"), levels(-11, -18, dtype="float32"), "backscatter in dB"),
    "hundredths of decibels": ("sentinel1-grd-db", ("VV", "VH"), levels(-1100, -1800, dtype="int16"), "dB x 100"),
    "a newer baseline": ("sentinel2-l1c", S2_NAMES, levels(*[1900] * 10, 1015, 2500, 1900), "baseline"),
    "an older baseline": ("sentinel2-l2a-baseline4", S2_NAMES[:10] + S2_NAMES[11:], levels(*[300] * 12), "baseline"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_scene_of_another_unit_is_refused_by_name(case: str, tmp_path: Path) -> None:
    sensor, names, pixels, cause = REFUSED[case]
    write_tiff(tmp_path / "wrong.tif", pixels, names=names)
    with pytest.raises(InputError, match=rf"wrong\.tif: is not {sensor}: .*likely .*{cause}.*--force"):
        found(tmp_path, sensor)
    forced = found(tmp_path, sensor, force=True)
    assert [entry.file for entry in forced.forced] == ["wrong.tif"]


def test_the_other_scenes_go_on_and_force_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiff(tmp_path / "in" / "good.tif", counts((13, 40, 40)), names=S2_NAMES)
    write_tiff(tmp_path / "in" / "wrong.tif", levels(*[0.2] * 13, dtype="float32"), names=S2_NAMES)
    command = [str(tmp_path / "in"), "--sensor", "sentinel2-l1c", "--tile", "40", "--workers", "1", "--out"]
    main([*command, str(tmp_path / "out")])
    index = Index.read(tmp_path / "out")
    assert (index.samples, index.forced, [entry.file for entry in index.skipped]) == (1, False, ["wrong.tif"])
    assert (
        "1 scene used, 1 left out because their numbers are not what sentinel2-l1c measures" in capsys.readouterr().out
    )
    main([*command, str(tmp_path / "forced"), "--force"])
    assert "forced: scenes whose numbers are not what their sensor says\n  wrong.tif: " in capsys.readouterr().out
    assert json.loads((tmp_path / "forced" / "index.json").read_text())["forced"] is True
    assert Index.read(tmp_path / "forced").samples == 2


def test_a_sensor_that_most_files_are_not_of_is_taken_with_a_note(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", levels(90, 80, 60, dtype="uint8"), names=("red", "green", "blue"))
    assert not found(tmp_path).notes
    for name in ("b", "c"):
        write_tiff(tmp_path / f"{name}.tif", levels(*[7000] * 6, dtype="uint16"), names=tuple("uvwxyz"))
    assert found(tmp_path).sensor.name == "rgb-uint8"
    assert "1 scene used, 2 files left out as not of the sensor that auto found" in found(tmp_path).notes[0]


def test_tars_of_others_are_held_to_their_sensor(tmp_path: Path) -> None:
    with TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "x", "npy": levels(*[0.2] * 13, dtype="float32")})
    with pytest.raises(SystemExit):
        main(["--index", str(tmp_path), "--sensor", "sentinel2-l1c"])
    assert not (tmp_path / "index.json").exists()
    main(["--index", str(tmp_path), "--sensor", "sentinel2-l1c", "--force"])
    assert Index.read(tmp_path).forced


def test_pixels_are_looked_for_where_there_are_some(tmp_path: Path) -> None:
    pixels = np.zeros((1, 400, 400), np.uint16)
    pixels[:, 10:40, :] = 7
    write_tiff(tmp_path / "a.tif", pixels, names=("x",), nodata=0)
    (scene,), _ = inspection.find_scenes(Request(sensor="auto", paths=(tmp_path,)))
    seen = sample_pixels(scene, [0])
    assert set(seen[seen.isfinite()].tolist()) == {7.0}


def test_inspection_tells_everything_and_writes_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiff(
        tmp_path / "in" / "S1_RTC_20200102.tif", levels(0.08, 0.02, dtype="float32"), names=("VV", "VH"), nodata=0
    )
    write_tiff(tmp_path / "in" / "labels.tif", np.ones((1, 40, 40), np.uint8))
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0nothing")
    main(["--inspect", str(tmp_path / "in"), "--out", str(tmp_path / "seen.png")])
    said = capsys.readouterr().out
    for part in (
        "2 scenes of 2 kinds, 1 file left out", "2 bands x 40 x 40 px, float32", "EPSG:32633, pixel 10", "2020-01-02",
        "nodata 0", "fits      sentinel1-rtc-linear, and the path says so", "not       sentinel1-grd-db: backscatter in dB",
        "(1, no name)", "broken.tif: cannot be read", "seen.png",
    ):  # fmt: skip
        assert part in said
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "S1_RTC_20200102.tif",
        "broken.tif",
        "labels.tif",
        "seen.png",
    ]


def test_inspection_names_a_missing_value_once_and_keeps_scenes_without_a_place_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = levels(*[0.2] * 12, dtype="float32")
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", image, nodata=float("nan"))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_tiff(tmp_path / "c.tif", image, nodata=float("nan"), crs=None, transform=None)
    inspect_main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "3 scenes of 2 kinds, 0 files left out" in said and said.count("nodata nan, no mask;") == 2
    assert "a, and 1 more like it" in said and "no georeference" in said


def test_the_histograms_have_a_colour_for_each_band(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", counts((13, 40, 40)), names=S2_NAMES)
    looks, _ = inspection.inspect(Request(sensor="auto", paths=(tmp_path,)))
    (axis,) = inspection.draw(looks).axes
    assert axis.get_ylabel() == "pixels"
    assert len({tuple(patch.get_edgecolor()) for patch in axis.patches}) == len(axis.patches) == 13


def test_reasons_that_differ_in_numbers_alone_are_told_once() -> None:
    against = [
        "is not landsat8: nothing above 3e-05",
        "is not landsat8: nothing above 0.04",
        "is not landsat9: nothing above 0.04",
    ]
    sizes = ["12 x 12 px, smaller than a tile", "13 x 13 px, smaller than a tile"]
    skipped = [Skipped(f"{number}.tif", reason) for number, reason in enumerate(against + sizes)]
    assert summarise(skipped) == [
        f"0.tif, 1.tif: {against[0]} (of the first; 1 more with other numbers)",
        *(f"{number}.tif: {reason}" for number, reason in enumerate((against + sizes)[2:], start=2)),
    ]


def test_inspection_of_a_named_sensor_says_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiff(tmp_path / "a.tif", counts((13, 40, 40)), names=S2_NAMES)
    inspect_main([str(tmp_path), "--sensor", "sentinel2-l1c"])
    assert "sensor    sentinel2-l1c: fits" in capsys.readouterr().out
    inspect_main([str(tmp_path), "--sensor", "landsat8-l1"])
    assert "sensor    landsat8-l1: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        inspect_main([str(tmp_path / "nowhere")])
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "taken"),
    [
        (levels(*np.linspace(5, 35, 13), dtype="float32"), False),  # per cent
        (levels(*[20] * 13), True),  # black water
        (levels(*[20] * 13).astype("float32"), True),  # whole counts in floats
        (levels(*[200] * 10, 5, 60, 40, dtype="float32"), True),  # resampled counts of dark water
    ],
    ids=["per cent", "black water", "whole floats", "resampled"],
)
def test_fractions_where_counts_are_expected_are_per_cent(tmp_path: Path, image: np.ndarray, taken: bool) -> None:
    write_tiff(tmp_path / "a.tif", image, names=S2_NAMES)
    if taken:
        assert len(found(tmp_path, "sentinel2-l1c").scenes) == 1
        return
    with pytest.raises(InputError, match="stored numbers have fractions"):
        found(tmp_path, "sentinel2-l1c")
