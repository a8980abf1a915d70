"""Products as they are unpacked: one scene each, the finest file of each band, everything else named."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint

from alliance.errors import InputError
from datasets.imagery.products import band_file, metadata_numbers, product_facts
from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import CONTROL, Points
from datasets.shards.gather import Collection, Request, gather
from tests.helpers.rasters import S2_NAMES, write_tiff

L2A = tuple(name for name in S2_NAMES if name != "B10")
FINE = ("B02", "B03", "B04", "B08")
SAFE = "S2B_MSI{}_20230412T101609_{}_R065_T32TQM_20230412T131415.SAFE"
STEM = "T32TQM_20230412T101609"
LANDSAT = "LC08_{}_195026_20200714_20200911_02_T1"


def stored(value: int, side: int, dtype: str = "uint16") -> np.ndarray:
    return np.full((1, side, side), value, dtype=dtype)


def write_jp2(path: Path, side: int, value: int, count: int = 1, dtype: str = "uint16") -> None:
    pixels = np.broadcast_to(stored(value, side, dtype), (count, side, side))
    write_tiff(path, pixels, driver="JP2OpenJPEG", pixel=960 / side, QUALITY=100, REVERSIBLE="YES")


def write_l2a(root: Path, baseline: str) -> Path:
    """All bands at 60 m, those below 60 m at 20 m, four at 10 m; a band's number of metres is its stored value."""
    product = root / SAFE.format("L2A", baseline)
    folder = product / "GRANULE" / "L2A_T32TQM" / "IMG_DATA"
    for metres, names in ((10, FINE), (20, set(L2A) - {"B08", "B09"}), (60, set(L2A) - {"B08"})):
        for name in (*names, "SCL"):
            write_jp2(folder / f"R{metres}m" / f"{STEM}_{name}_{metres}m.jp2", 960 // metres, 1000 + metres)
        write_jp2(folder / f"R{metres}m" / f"{STEM}_TCI_{metres}m.jp2", 960 // metres, 90, count=3, dtype="uint8")
    return product


def collect(sensor: str, *paths: Path) -> Collection:
    return gather(Request(sensor=sensor, paths=paths))


@pytest.mark.parametrize("inside", [True, False])
def test_a_safe_folder_is_one_scene_of_the_finest_files(tmp_path: Path, inside: bool) -> None:
    product = write_l2a(tmp_path, "N0509")
    found = collect("sentinel2-l2a-baseline4", product if inside else tmp_path)
    ((scene, bands),) = found.scenes
    assert scene.facts == {"product": product.stem, "spacecraft": "S2B", "level": "L2A", "baseline": "05.09"}
    assert (scene.shape, scene.name.rpartition("/")[2]) == ((12, 96, 96), STEM)
    with scene.open(bands) as read:
        values = read(0, 0, 96, 96).stored[:, 0, 0].tolist()
    assert values == [1000 + (10 if name in FINE else 60 if name == "B09" else 20) for name in L2A]
    # 4 + 10 + 11 bands, 3 scene classifications, 3 true-colour images: 31 files
    assert len(scene.files) + len(found.skipped) == 31
    reasons = {Path(entry.file).stem: entry.reason for entry in found.skipped}
    assert "part of product" in reasons[f"{STEM}_TCI_10m"] and "part of product" in reasons[f"{STEM}_SCL_20m"]
    assert reasons[f"{STEM}_B02_20m"] == "another file of its image holds its band, 96 x 96 pixels or finer"


@pytest.mark.parametrize(
    ("baseline", "sensor", "fitting"),
    [
        ("N0509", "sentinel2-l2a", "sentinel2-l2a-baseline4"),
        ("N0400", "sentinel2-l2a", "sentinel2-l2a-baseline4"),
        ("N0301", "sentinel2-l2a-baseline4", "sentinel2-l2a"),
        ("N0509", "sentinel2-l1c-baseline4", "sentinel2-l2a"),
    ],
)
def test_a_sensor_of_another_baseline_or_level_is_refused(
    tmp_path: Path, baseline: str, sensor: str, fitting: str
) -> None:
    folder = tmp_path / SAFE.format("L2A", baseline) / "IMG_DATA"
    for name in S2_NAMES if "l1c" in sensor else L2A:
        write_jp2(folder / f"{STEM}_{name}.jp2", 96, 1000)
    with pytest.raises(InputError, match=f"pass --sensor .*{fitting}"):
        collect(sensor, tmp_path)
    if "l2a" in sensor:
        assert len(collect(fitting, tmp_path).scenes) == 1


def test_the_metadata_of_a_product_say_its_offset(tmp_path: Path) -> None:
    product = tmp_path / SAFE.format("L1C", "N0301")
    for name in S2_NAMES:
        write_jp2(product / "IMG_DATA" / f"{STEM}_{name}.jp2", 96, 1000)
    (product / "MTD_MSIL1C.xml").write_text('<a><RADIO_ADD_OFFSET band_id="0">-1000</RADIO_ADD_OFFSET></a>')
    with pytest.raises(InputError, match="says scale 0.0001 and offset -0.1, .*pass --sensor sentinel2-l1c-baseline4"):
        collect("sentinel2-l1c", tmp_path)


def test_a_landsat_bundle_is_one_scene(tmp_path: Path) -> None:
    stem = LANDSAT.format("L2SP")
    for name in (*(f"SR_B{number}" for number in range(1, 8)), "ST_B10", "QA_PIXEL", "SR_QA_AEROSOL"):
        write_tiff(tmp_path / stem / f"{stem}_{name}.TIF", stored(16364, 16), nodata=0)
    write_tiff(tmp_path / stem / f"{stem}_thumb_large.tif", np.ones((3, 16, 16), dtype="u1"), photometric="RGB")
    found = collect("landsat8", tmp_path)
    ((scene, _),) = found.scenes
    assert (len(scene.files), len(found.skipped)) == (7, 4)
    assert (scene.facts["level"], scene.scales[0], scene.offsets[0]) == ("L2SP", 2.75e-5, -0.2)


def test_level_1_is_no_level_2(tmp_path: Path) -> None:
    stem = LANDSAT.format("L1TP")
    for number in range(1, 8):
        write_tiff(tmp_path / f"{stem}_B{number}.TIF", stored(15000, 16))
    with pytest.raises(InputError, match="is a product of level L1TP .*sensor landsat8 is of level 2"):
        collect("landsat8", tmp_path)


@pytest.mark.parametrize(
    ("metadata", "line"),
    [("", (2e-5, -0.1)), ("  REFLECTANCE_MULT_BAND_1 = 1.5E-05\n  REFLECTANCE_ADD_BAND_1 = -0.05\n", (1.5e-5, -0.05))],
)
def test_level_1_of_landsat_8_has_the_scale_of_its_metadata(
    tmp_path: Path, metadata: str, line: tuple[float, float]
) -> None:
    stem = LANDSAT.format("L1TP")
    (tmp_path / "own.yaml").write_text(
        "name: own\nbands:\n  - {name: B1, wavelength: 443}\n  - {name: B2, wavelength: 482}\n"
    )
    for number in (1, 2):
        write_tiff(tmp_path / f"{stem}_B{number}.TIF", stored(15000, 16))
    (tmp_path / f"{stem}_MTL.txt").write_text(metadata)
    band = collect(str(tmp_path / "own.yaml"), tmp_path).sensor.bands[0]
    assert (band.scale, band.offset) == line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("REFLECTANCE_MULT_BAND_1 = 1e999\nREFLECTANCE_ADD_BAND_1 = 0\n", "says the scale inf"),
        ("REFLECTANCE_MULT_BAND_1 = -1\nREFLECTANCE_ADD_BAND_1 = 0\n", "says the scale -1"),
        (None, "metadata .*_MTL.txt cannot be read: is no regular file"),
    ],
)
def test_metadata_that_cannot_be_used_leave_their_product_out_with_the_reason(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    stem = LANDSAT.format("L1TP")
    for number in (1, 2):
        write_tiff(tmp_path / f"{stem}_B{number}.TIF", stored(15000, 16))
    metadata = tmp_path / f"{stem}_MTL.txt"
    metadata.write_text(text) if text else os.mkfifo(metadata)
    with pytest.raises(InputError, match=reason):
        collect("landsat8", tmp_path)


@pytest.mark.parametrize("number", ["E", "1.2.3", "--1", "9" * 5000, "nan"])
def test_what_is_no_number_in_metadata_says_nothing(tmp_path: Path, number: str) -> None:
    metadata = tmp_path / "MTD_MSIL1C.xml"
    metadata.write_text(f"<RADIO_ADD_OFFSET>{number}</RADIO_ADD_OFFSET>\n REFLECTANCE_MULT_BAND_1 = {number}\n")
    assert metadata_numbers(metadata) == b""


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("HLS.S30.T32TQM.2023102T101609.v2.0.{}.tif", "HLS.S30.T32TQM.2023102T101609.v2.0"),
        ("S2B_32TQM_20230412-{}.tif", "S2B_32TQM_20230412"),
        ("S2B_32TQM_20230412_{}.tif", "S2B_32TQM_20230412"),
        ("site_7/{}.tif", "site_7"),
        ("{}.tif", "in"),
    ],
)
def test_the_band_is_the_end_of_the_name_or_the_whole_of_it(tmp_path: Path, form: str, name: str) -> None:
    for value, band in enumerate(L2A, start=1):
        write_tiff(tmp_path / "in" / form.format(band), stored(value, 8))
    write_tiff(tmp_path / "in" / form.format("Fmask"), stored(1, 8, "uint8"))
    found = collect("sentinel2-l2a", tmp_path / "in")
    ((scene, bands),) = found.scenes
    assert (scene.name, len(found.skipped)) == (name, 1)
    with scene.open(bands) as read:
        assert read(0, 0, 8, 8).stored[:, 0, 0].tolist() == list(range(1, 13))


def test_polarisations_of_one_product_are_one_scene_placed_by_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 11 + col / 1e4, 45 - row / 1e4) for row in (0, 8) for col in (0, 8)]
    for number, name in enumerate(("vv", "vh"), start=1):
        path = tmp_path / f"s1a-iw-grd-{name}-20230412t053012-20230412t053037-048049-05c6b1-00{number}.tiff"
        shape: dict[str, Any] = {"width": 8, "height": 8, "count": 1, "dtype": "float32"}
        with rasterio.open(path, "w", driver="GTiff", gcps=points, crs="EPSG:4326", **shape) as target:
            target.write(np.full((1, 8, 8), -10 - number, dtype=np.float32))
    found = collect("sentinel1-grd-db", tmp_path)
    ((scene, bands),) = found.scenes
    assert scene.points == Points(CONTROL, tuple((p.row, p.col, p.x, p.y) for p in points), "EPSG:4326")
    assert "1 of 1 scenes have ground control points and no transform" in found.notes[0]
    with scene.open(bands) as read:
        assert read(0, 0, 8, 8).stored[:, 0, 0].tolist() == [-11, -12]


def test_theia_gives_the_bands_that_are_corrected_for_slopes(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: own\nbands:\n  - {name: B2, wavelength: 490}\n  - {name: B3, wavelength: 560}\n"
    )
    stem = "SENTINEL2A_20170613-103031-457_L2A_T31TCJ_D_V1-4"
    for kind, value in (("FRE", 4000), ("SRE", 5000)):
        for band in ("B2", "B3"):
            write_tiff(tmp_path / stem / f"{stem}_{kind}_{band}.tif", stored(value, 8, "int16"), nodata=-10000)
    write_tiff(tmp_path / stem / "MASKS" / f"{stem}_CLM_R1.tif", stored(0, 8, "uint8"))
    found = collect(str(tmp_path / "own.yaml"), tmp_path)
    ((scene, _),) = found.scenes
    assert scene.name.endswith("_FRE")
    assert [band.scale for band in found.sensor.bands] == [1e-4, 1e-4]
    reasons = {Path(entry.file).stem.removeprefix(f"{stem}_"): entry.reason for entry in found.skipped}
    assert "the same bands as FRE" in reasons["SRE_B2"] and "part of product" in reasons["CLM_R1"]


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        (
            "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57/x_B02.tif",  # a patch: another name than a product's
            {},
        ),
        ("LE07_L2SP_195026_20200714_20200911_02_T1_SR_B1.TIF", {"spacecraft": "LE07", "level": "L2SP"}),
        ("HLS.L30.T32TQM.2023102T101609.v2.0.B02.tif", {"spacecraft": "HLS L30", "level": "L2"}),
        ("a/b.tif", {}),
    ],
)
def test_facts_are_read_from_names(path: str, facts: dict[str, str]) -> None:
    found = product_facts(Path(path))
    assert {key: found[key] for key in facts} == facts
    assert bool(found) == bool(facts)


@pytest.mark.parametrize("name", ["scene_1.tif", "scene.tif", "red_roof.tif", "a_b02_final.tif"])
def test_other_names_have_no_band(name: str) -> None:
    assert band_file(Path(name), lambda text: text.lower() in ("b02", "red")) is None


def test_a_product_of_one_file_keeps_its_facts(tmp_path: Path) -> None:
    path = tmp_path / f"{LANDSAT.format('L2SP')}.tif"
    write_tiff(path, np.full((7, 8, 8), 16364, dtype="u2"), names=tuple(f"SR_B{number}" for number in range(1, 8)))
    assert describe_raster(path, tmp_path).scales == ()
    ((scene, _),) = collect("landsat8", tmp_path).scenes
    assert scene.facts["level"] == "L2SP"
