"""Tars that others wrote: read in place, converted, or refused with the command that works."""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from alliance.errors import InputError
from datasets.shards import ShardSource
from datasets.shards.command import main
from datasets.shards.foreign import index_folder
from datasets.shards.repack import repack_folder

SENSOR = "sentinel2-l1c"
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


def image(number: int, side: int = 16) -> np.ndarray:
    """13 bands (c, h, w) with band n at about 1000 + 100 n."""
    noise = np.random.default_rng(number).integers(0, 50, (13, side, side))
    return (1000 + 100 * np.arange(13)[:, None, None] + noise).astype(np.uint16)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tif(array: np.ndarray, names: Sequence[str] = (), nodata: float | None = None, scale: float = 1) -> bytes:
    profile = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    with MemoryFile() as memory:
        place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5e6, 10, 10)}
        with memory.open(driver="GTiff", nodata=nodata, **profile, **place) as file:
            file.write(array)
            if scale != 1:
                file.scales = (scale,) * len(array)
            if names:
                file.descriptions = names
        return bytes(memory.read())


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def stored(folder: Path, sensor: str = SENSOR) -> np.ndarray:
    source = ShardSource(folder)
    shards = [np.full(shard.samples, number) for number, shard in enumerate(source.index.shards)]
    samples = [np.arange(len(shard)) for shard in shards]
    return np.asarray(source.read(sensor, np.concatenate(shards), np.concatenate(samples), verify=True).stored)


def follow(error: pytest.ExceptionInfo[InputError], out: Path) -> None:
    """Run the command that a refusal gives."""
    command = re.search(r"python launch/shards\.py (.*--out DIR(?: --axes \w+)?)", str(error.value))
    assert command, error.value
    main([str(out) if word == "DIR" else word for word in shlex.split(command[1])])


@pytest.mark.parametrize("kind", ["hwc", "hcw", "tif", "tif shuffled"])
def test_what_cannot_be_read_in_place_names_the_command_that_converts(tmp_path: Path, kind: str) -> None:
    turned = [S2[(5 * place) % 13] for place in range(13)]
    make = {
        "hwc": lambda array: ("npy", npy(array.transpose(1, 2, 0).copy())),
        "hcw": lambda array: ("npy", npy(array.transpose(1, 0, 2).copy())),
        "tif": lambda array: ("tif", tif(array, S2)),
        "tif shuffled": lambda array: ("tif", tif(array[[S2.index(name) for name in turned]], turned)),
    }[kind]
    for tar in range(2):
        made = [(f"{tar}/s{number}", *make(image(4 * tar + number))) for number in range(4)]
        write_tar(tmp_path / "in" / f"{tar}.tar", [(f"{key}.{suffix}", content) for key, suffix, content in made])
    if kind == "hcw":
        repack_folder(tmp_path / "in", SENSOR, tmp_path / "out")
    else:
        with pytest.raises(InputError, match=r"in place") as refusal:
            index_folder(tmp_path / "in", SENSOR)
        follow(refusal, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out"), np.stack([image(number) for number in range(8)]))


def test_pictures_with_labels_keep_their_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    more = [("a.cls", b"3"), ("a.json", b'{"caption": "a field"}')]
    write_tar(tmp_path / "in" / "0.tar", [("a.png", buffer.getvalue()), *more])
    repack_folder(tmp_path / "in", "rgb-uint8", tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out", "rgb-uint8")[0], pixels.transpose(2, 0, 1))
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        contents = {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]
    assert contents["a.cls"] == b"3" and json.loads(contents["a.source.json"]) == {"caption": "a field"}
    assert json.loads(contents["a.json"])["source"] == {"rgb-uint8": ["0.tar/a.png"]}


def test_place_and_missing_pixels_go_along(tmp_path: Path) -> None:
    array = image(0)
    array[:, 0, 0] = 7
    write_tar(tmp_path / "in" / "0.tar", [("a.tif", tif(array, S2, nodata=7))])
    index = repack_folder(tmp_path / "in", SENSOR, tmp_path / "out")
    seen = image(0).astype(float)
    seen[:, 0, 0] = np.nan
    np.testing.assert_allclose(index.statistics[SENSOR]["mean"], np.nanmean(seen, (1, 2)) / 1e4, rtol=1e-5)
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        described = json.loads(tar.extractfile("a.json").read())  # type: ignore[union-attr]
    assert described["crs"] == "EPSG:32632" and described["transform"] == [10, 0, 5e5, 0, -10, 5e6]


@pytest.mark.parametrize("convert", [False, True])
def test_tars_of_several_tile_sizes_are_named(tmp_path: Path, convert: bool) -> None:
    for tar, side in enumerate((16, 24)):
        write_tar(tmp_path / "in" / f"{tar}.tar", [(f"s{number}.npy", npy(image(number, side))) for number in range(3)])
    with pytest.raises(InputError, match=r"1\.tar holds tiles of \(13, 24, 24\), 0\.tar of \(13, 16, 16\)"):
        if convert:
            repack_folder(tmp_path / "in", SENSOR, tmp_path / "out")
        else:
            index_folder(tmp_path / "in", SENSOR)


def test_an_ambiguous_order_of_axes_is_asked_for(tmp_path: Path) -> None:
    array = image(0, 13)
    write_tar(tmp_path / "in" / "0.tar", [("a.npy", npy(array)), ("b.npy", npy(image(1, 13)))])
    with pytest.raises(InputError, match="--axes chw") as refusal:
        index_folder(tmp_path / "in", SENSOR)
    index_folder(tmp_path / "in", SENSOR, axes="chw")
    np.testing.assert_array_equal(stored(tmp_path / "in")[0], array)
    follow(refusal, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], array.transpose(2, 0, 1))


def test_unusable_members_are_named_and_the_others_kept(tmp_path: Path) -> None:
    vrt = b'<VRTDataset rasterXSize="16" rasterYSize="16"></VRTDataset>'
    members = [
        ("bad.tif", b"II*\0nothing of use"),
        ("few.tif", tif(image(0)[:4])),
        ("other.tif", tif(image(0), S2, scale=0.5)),
        ("good.tif", tif(image(1), S2, scale=1e-4)),
        ("../../escaped.tif", tif(image(2), S2)),
        ("list.vrt", vrt),
    ]
    write_tar(tmp_path / "deep" / "in" / "0.tar", members)
    index = repack_folder(tmp_path / "deep" / "in", SENSOR, tmp_path / "deep" / "out")
    assert index.samples == 2
    reasons = {entry.file: entry.reason for entry in index.skipped}
    assert "cannot be read" in reasons["0.tar: bad.tif"] and "4 bands" in reasons["0.tar: few.tif"]
    assert "scale 0.5" in reasons["0.tar: other.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]


def test_one_of_several_images_must_be_named(tmp_path: Path) -> None:
    members = [("a.image.tif", tif(image(0), S2)), ("a.mask.tif", tif(image(0)[:1]))]
    write_tar(tmp_path / "in" / "0.tar", members)
    with pytest.raises(InputError, match=r"--member FIELD; fields with images found: image\.tif, mask\.tif"):
        repack_folder(tmp_path / "in", SENSOR, tmp_path / "out")
    assert repack_folder(tmp_path / "in", SENSOR, tmp_path / "out", member="image").samples == 1


def test_the_sensor_of_tars_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "0.tar", [("a.npy", npy(image(0)))])
    with pytest.raises(SystemExit):
        main(["--index", str(tmp_path)])
    assert "pass --sensor NAME" in capsys.readouterr().err
