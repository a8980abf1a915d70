"""Files as they lie: links, hidden folders, archives, other formats; everything found is used or named."""

import os
import zipfile
from pathlib import Path

import pytest

from alliance.errors import InputError
from datasets.imagery.files import find_images
from tests.helpers.envi import write_envi
from tests.helpers.rasters import counts, write_tiff


def names(paths: list[Path]) -> tuple[list[str], dict[str, str]]:
    found, skipped = find_images(paths)
    return [file.path.relative_to(file.root).as_posix() for file in found], dict(skipped)


def scene(path: Path) -> Path:
    write_tiff(path, counts((2, 8, 8)))
    return path


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    store, use = tmp_path / "store", tmp_path / "use"
    for name in ("orbit1/a.tif", "orbit2/a.tif", "orbit3/a.tif"):
        scene(store / name)
    scene(use / "own" / "a.tif")
    (use / "orbit1").symlink_to(store / "orbit1")
    (use / "own" / "linked.tif").symlink_to(store / "orbit2" / "a.tif")
    assert names([use]) == (["orbit1/a.tif", "own/a.tif", "own/linked.tif"], {})


def test_loops_and_second_ways_to_a_file_are_named(tmp_path: Path) -> None:
    scene(tmp_path / "z" / "a.tif")
    (tmp_path / "z" / "loop").symlink_to(tmp_path)
    (tmp_path / "b_link").symlink_to(tmp_path / "z")
    (tmp_path / "copy.tif").symlink_to(tmp_path / "z" / "a.tif")
    found, skipped = names([tmp_path])
    assert found == ["z/a.tif"]
    assert skipped == {
        "z/loop": "a link to ., which is read once",
        "b_link": "a link to z, which is read once",
        "copy.tif": "a link to z/a.tif, which is read once",
    }


def test_a_file_in_a_folder_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    scene(tmp_path / "in" / "a.tif")
    found, _ = find_images([tmp_path, tmp_path / "in"])
    assert [file.path.name for file in found] == ["a.tif"]


def test_what_looks_like_imagery_is_named_with_the_mend(tmp_path: Path) -> None:
    write_tiff(tmp_path / "good.tif", counts((2, 8, 8)))
    tiff = (tmp_path / "good.tif").read_bytes()
    (tmp_path / "other.tf8").write_bytes(tiff)
    (tmp_path / "MOD09GA.hdf").write_bytes(b"\x0e\x03\x13\x01" + bytes(100))
    (tmp_path / "old.bmp").write_bytes(b"BM" + bytes(100))
    (tmp_path / "line.bil").write_bytes(bytes(100))
    (tmp_path / "lost.tif").symlink_to(tmp_path / "nowhere.tif")
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        archive.write(tmp_path / "good.tif", "../../a.tif")
    (tmp_path / "cube.zarr").mkdir()
    (tmp_path / "cube.zarr" / "0.0").write_bytes(bytes(8))
    os.mkfifo(tmp_path / "pipe.tif")
    for name in ("good.tif.ovr", "good.tif.aux.xml", "good.tfw", "notes.txt", "README"):
        (tmp_path / name).write_bytes(tiff if name.endswith("ovr") else b"text")
    found, skipped = names([tmp_path])
    assert found == ["good.tif"]
    parts = {
        "other.tf8": "is TIFF under another suffix; rename it to .tif",
        "MOD09GA.hdf": "is HDF4, which is not read; convert it with h4toh5",
        "old.bmp": "format .bmp is not read; convert it: gdal_translate IN.bmp OUT.tif",
        "line.bil": "no ENVI header",
        "lost.tif": "is a link to nothing",
        "scenes.zip": "is an archive, which is not looked into; unpack it",
        "cube.zarr": "Zarr store is not read; save the scene as netCDF-4",
        "pipe.tif": "is no regular file",
    }
    assert set(skipped) == set(parts)
    for name, part in parts.items():
        assert part in skipped[name]


def test_hidden_files_and_folders_are_named(tmp_path: Path) -> None:
    scene(tmp_path / "a.tif")
    for name in (".ipynb_checkpoints/a.tif", "__MACOSX/._a.tif", "._b.tif"):
        scene(tmp_path / name)
    found, skipped = names([tmp_path])
    assert found == ["a.tif"]
    assert set(skipped) == {".ipynb_checkpoints/a.tif", "__MACOSX/._a.tif", "._b.tif"}
    assert all(reason.startswith("hidden") for reason in skipped.values())


@pytest.mark.parametrize("name", ["nowhere", "notes.txt", "a.zip"])
def test_a_path_without_imagery_is_refused(tmp_path: Path, name: str) -> None:
    for other in ("notes.txt", "a.zip"):
        (tmp_path / other).write_bytes(b"PK")
    with pytest.raises(InputError, match=f"{name}.*(no such file|no image format we read|is an archive)"):
        find_images([tmp_path / name])


@pytest.mark.parametrize(
    "name", ["flight_corr", "line.bil", "line.bip", "line.bsq", "line.dat", "line.img", "a.v2_rfl"]
)
@pytest.mark.parametrize("appended", [True, False])
def test_an_envi_file_has_any_name_beside_its_header(tmp_path: Path, name: str, appended: bool) -> None:
    path = tmp_path / name
    write_envi(path, counts((3, 8, 9)), header=path.with_name(f"{name if appended else path.stem}.hdr"))
    path.with_name(f"{path.stem}.txt").write_text("notes")
    assert names([tmp_path]) == ([name], {})
    assert find_images([path])[0][0].path == path


def test_a_header_of_another_kind_makes_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.hdr").write_text("BYTEORDER I\nNROWS 4\n")
    (tmp_path / "x.flt").write_bytes(bytes(64))
    assert names([tmp_path]) == ([], {})


def test_a_cut_envi_file_is_named(tmp_path: Path) -> None:
    write_envi(tmp_path / "flight", counts((3, 8, 9)))
    with (tmp_path / "flight").open("r+b") as file:
        file.truncate(400)
    assert names([tmp_path])[1] == {
        "flight": "is cut off: 400 bytes, its header flight.hdr says 432; fetch it again"  # 3 x 8 x 9 x 2 bytes
    }
