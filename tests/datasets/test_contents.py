"""One checksum of files: of names and contents, whatever their place and time."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets import contents
from datasets.contents import digest_files
from tests.helpers.envi import write_envi
from tests.helpers.rasters import counts, write_tiff


def written(folder: Path, **texts: bytes) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return {name: folder / name for name in texts}


@pytest.mark.parametrize("whole", [1 << 30, 0])
def test_the_same_contents_have_the_same_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(contents, "WHOLE", whole)
    large = os.urandom(300_000)
    files = written(tmp_path / "a", one=b"1", two=large)
    found = digest_files(files)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "one", (1, 1))
    assert digest_files({name: tmp_path / "b" / name for name in files}) == found
    assert digest_files(dict(reversed(files.items()))) == found
    changed = {
        "a byte": {"one": b"2", "two": large},
        "the end": {"one": b"1", "two": large[:-1] + bytes([large[-1] ^ 1])},
        "the middle": {"one": b"1", "two": large[:150_000] + bytes([large[150_000] ^ 1]) + large[150_001:]},
        "the length": {"one": b"1", "two": large + b"0"},
        "names": {"two": b"1", "one": large},
        "one less": {"one": b"1"},
    }
    for number, texts in enumerate(changed.values()):
        assert digest_files(written(tmp_path / f"c{number}", **texts)) != found


def write(path: Path, text: str) -> None:
    path.write_text(text)


VRT = '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>{}</SimpleSource></VRTRasterBand></VRTDataset>'
SOURCE = '<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>'
NOTES = "<PAMDataset><PAMRasterBand band='1'>{}</PAMRasterBand></PAMDataset>"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An ENVI file, a GeoTIFF and a virtual raster of a virtual raster of another one."""
    write_envi(tmp_path / "cube.dat", counts((2, 8, 8)).astype("i2"))
    for name in ("plain.tif", "inside.tif"):
        write_tiff(tmp_path / name, counts((1, 8, 8)))
    write(tmp_path / "inner.vrt", VRT.format(SOURCE.format("inside.tif")))
    write(tmp_path / "outer.vrt", VRT.format(SOURCE.format("inner.vrt")))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cube.dat", lambda place: (place / "cube.dat.hdr").write_text((place / "cube.dat.hdr").read_text() + "byte order = 1\n")),
        ("outer.vrt", lambda place: write(place / "inner.vrt", VRT.format(SOURCE.format("plain.tif")))),
        ("outer.vrt", lambda place: write_tiff(place / "inside.tif", counts((1, 8, 8), seed=1))),
        ("outer.vrt", lambda place: write(place / "inside.tif.aux.xml", NOTES.format("<NoDataValue>7</NoDataValue>"))),
        ("plain.tif", lambda place: write(place / "plain.tif.aux.xml", NOTES.format("<Scale>2</Scale>"))),
        ("plain.tif", lambda place: write(place / "plain.tif.aux.xml", NOTES.format("<Offset>2</Offset>"))),
        ("plain.tif", lambda place: write(place / "plain.tif.aux.xml", NOTES.format("<Metadata><MDI key='scale_factor'>2</MDI></Metadata>"))),
        ("plain.tif", lambda place: write_tiff(place / "plain.tif.msk", np.zeros((1, 8, 8), "u1"))),
    ],
)  # fmt: skip
def test_what_gives_numbers_another_meaning_counts(images: Path, name: str, change: Callable[[Path], None]) -> None:
    files = {"a": images / name}
    before = digest_files(files)
    assert digest_files(files) == before
    change(images)
    assert digest_files(files) != before


S2 = "S2A_MSIL1C_20230101T101031_N0301_R022_T33UUP_20230101T113009"
L8 = "LC08_L1TP_193024_20230110_20230124_02_T1"
MTD = '<a><PRODUCT_STOP_TIME>{}</PRODUCT_STOP_TIME><RADIO_ADD_OFFSET band_id="0">{}</RADIO_ADD_OFFSET></a>'
MTL = "  DATE_PRODUCT_GENERATED = {}\n  REFLECTANCE_MULT_BAND_4 = {}\n  REFLECTANCE_ADD_BAND_4 = -0.1\n"


@pytest.mark.parametrize(
    ("band", "metadata", "text", "numbers"),
    [
        (f"{S2}.SAFE/GRANULE/IMG_DATA/T33UUP_B02.tif", f"{S2}.SAFE/MTD_MSIL1C.xml", MTD, ("0", "-1000")),
        (f"{L8}_B4.TIF", f"{L8}_MTL.txt", MTL, ("2.0000E-05", "2.1000E-05")),
    ],
)
def test_of_metadata_of_a_product_the_numbers_count_and_nothing_else(
    tmp_path: Path, band: str, metadata: str, text: str, numbers: tuple[str, str]
) -> None:
    write_tiff(tmp_path / band, counts((1, 8, 8)))
    files, found = {"a": tmp_path / band}, []
    for day, number in (("2023-01-24", numbers[0]), ("2024-12-31T00:00:00", numbers[0]), ("2023-01-24", numbers[1])):
        write(tmp_path / metadata, text.format(day, number))
        found.append(digest_files(files))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "beside",
    [
        NOTES.format("<Metadata><MDI key='STATISTICS_MEAN'>2</MDI></Metadata><Histograms/>"),
        "<PAMDataset><SRS>EPSG:4326</SRS><GeoTransform>0, 1, 0, 0, 0, 1</GeoTransform></PAMDataset>",
    ],
)
def test_what_a_viewer_notes_beside_an_image_does_not_count(images: Path, beside: str) -> None:
    files = {"a": images / "plain.tif"}
    before = digest_files(files)
    write(images / "plain.tif.aux.xml", beside)
    write(images / "plain.tfw", "1\n0\n0\n-1\n0\n0\n")
    assert digest_files(files) == before


def test_files_beside_that_are_hostile_count_as_they_are(images: Path) -> None:
    files, found = {"a": images / "plain.tif", "b": images / "outer.vrt"}, set[str]()
    for text in ("", "<a", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "<PAMDataset/>" + " " * 2**21):
        write(images / "plain.tif.aux.xml", text)
        found.add(digest_files(files))
    write(images / "outer.vrt", VRT.format(SOURCE.format("outer.vrt")))  # reads itself
    found.add(digest_files(files))
    assert len(found) == 5  # an empty file says nothing, as none does; a large one is read no further than it counts
