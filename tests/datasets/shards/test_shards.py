"""Shards: ordinary WebDataset tars whose bytes, index and statistics depend on the scenes and options alone."""

import gc
import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import webdataset
from rasterio.windows import Window

from alliance.sensors.catalog import sensor_names
from datasets.sampling.order import SampleOrder
from datasets.shards.command import main
from datasets.shards.index import Index, Sidecar
from datasets.shards.read import ShardSource
from tests.datasets.imagery.test_finding_scenes import Trap
from tests.helpers.rasters import S2_NAMES, counts, write_sentinel2, write_tiff

ROOT = Path(__file__).resolve().parents[3]
SENSOR = "sentinel2-l1c"


def make(*arguments: object) -> None:
    """Run the command in this process with one worker and 32-pixel tiles, unless told otherwise."""
    main([*map(str, ("--tile", 32, "--workers", 1)), *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stop:
        make(*arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    return lines[0]


def plain(folder: Path) -> list[dict[str, Any]]:
    """All samples as WebDataset itself reads them."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    return samples


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_webdataset_reads_the_tiles_of_the_scenes(tmp_path: Path) -> None:
    scenes = write_sentinel2(tmp_path / "in", size=70)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    samples = plain(tmp_path / "out")
    assert len(samples) == 2 * 9
    for sample in samples:
        name, row, col = sample["__key__"].rsplit("_", 2)
        row, col = int(row[1:]), int(col[1:])
        np.testing.assert_array_equal(sample[f"{SENSOR}.npy"], scenes[name][:, row : row + 32, col : col + 32])
        with rasterio.open(tmp_path / "in" / f"{name}.tif") as source:
            assert sample["json"]["transform"] == list(source.window_transform(Window(col, row, 32, 32)))[:6]
        assert sample["json"]["crs"] == "EPSG:32633"
        assert sample["json"]["bands"] == {SENSOR: list(S2_NAMES)}
        assert sample["json"]["source"] == {SENSOR: [f"{name}.tif"]}


def test_the_reader_gives_what_webdataset_gives(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in")
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out", "--shard-mb", 0.2)
    source = ShardSource(tmp_path / "out")
    assert len(source.counts) > 2
    places = SampleOrder(source.counts, seed=1).locate(np.arange(source.samples))
    read = source.read(SENSOR, places.shard, places.sample, verify=True)
    expected = {sample["__key__"]: sample[f"{SENSOR}.npy"] for sample in plain(tmp_path / "out")}
    assert sorted(read.keys) == sorted(expected)
    for key, stored in zip(read.keys, read.stored, strict=True):
        np.testing.assert_array_equal(stored, expected[key])


def test_bands_are_stored_in_the_order_of_the_sensor(tmp_path: Path) -> None:
    pixels = counts((13, 32, 32))
    write_tiff(tmp_path / "in" / "a.tif", pixels[::-1], names=S2_NAMES[::-1])
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    np.testing.assert_array_equal(plain(tmp_path / "out")[0][f"{SENSOR}.npy"], pixels)


def test_statistics_are_those_of_the_physical_pixels(tmp_path: Path) -> None:
    pixels = counts((13, 64, 64), low=0, high=9)  # the nodata value 0 is in every ninth pixel
    write_tiff(tmp_path / "in" / "a.tif", pixels, names=S2_NAMES)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out", "--shard-mb", 0.1, "--max-missing", 1)
    index = Index.read(tmp_path / "out")
    bands = [band[band > 0] * 1e-4 for band in pixels.astype(float)]
    figures = index.statistics[SENSOR]
    for name, function in {"count": np.size, "mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
        np.testing.assert_allclose(figures[name], [function(band) for band in bands], rtol=1e-6)
    np.testing.assert_allclose([band.std for band in index.sensors[SENSOR].bands], figures["std"])


@pytest.mark.parametrize(
    ("size", "stride", "expected"), [(96, 32, [0, 32, 64]), (70, 32, [0, 32, 38]), (33, 8, [0, 1])]
)
def test_tiles_reach_every_edge(size: int, stride: int, expected: list[int], tmp_path: Path) -> None:
    write_tiff(tmp_path / "in" / "a.tif", counts((13, size, 32)), names=S2_NAMES)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out", "--stride", stride)
    keys = [sample["__key__"] for sample in plain(tmp_path / "out")]
    assert keys == [f"a_r{row:05d}_c00000" for row in expected]


def test_a_shard_is_never_larger_than_asked(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in", scenes=3)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out", "--shard-mb", 0.15)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) > 3
    assert max(sizes) <= 150_000


def test_a_truncated_file_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sentinel2(tmp_path / "in", scenes=3)
    whole = (tmp_path / "in" / "scene_1.tif").read_bytes()
    (tmp_path / "in" / "scene_1.tif").write_bytes(whole[: len(whole) * 2 // 3])
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    index = Index.read(tmp_path / "out")
    assert [entry.file for entry in index.skipped] == ["scene_1.tif"]
    assert "skipped 1 file:\n  scene_1.tif: cannot be read" in capsys.readouterr().out
    assert {sample["__key__"][:7] for sample in plain(tmp_path / "out")} == {"scene_0", "scene_2"}
    assert index.samples == 18


def test_label_rasters_and_other_files_are_left_out(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in", scenes=1)
    write_tiff(tmp_path / "in" / "scene_0_cm.tif", np.ones((1, 70, 70), np.uint8), names=("change",))
    (tmp_path / "in" / "readme.txt").write_text("no image")
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    (entry,) = Index.read(tmp_path / "out").skipped
    assert entry.file == "scene_0_cm.tif"
    assert "sensor sentinel2-l1c has 13" in entry.reason


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in")
    command = (tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out", "--shard-mb", 0.2)
    make(*command)
    before = digests(tmp_path / "out")
    tars = sorted((tmp_path / "out").glob("*.tar"))
    (tmp_path / "out" / "index.json").unlink()
    tars[-1].with_suffix(".npz").unlink()
    tars[-1].rename(tars[-1].with_name(tars[-1].name + ".tmp"))
    tars[-2].write_bytes(tars[-2].read_bytes()[:-1000])
    kept = tars[0].stat().st_mtime_ns
    make(*command)
    assert digests(tmp_path / "out") == before
    assert tars[0].stat().st_mtime_ns == kept


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in")
    for workers in (1, 2):
        command = ("--sensor", SENSOR, "--out", tmp_path / str(workers), "--shard-mb", 0.4, "--workers", workers)
        make(tmp_path / "in", *command)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    write_sentinel2(tmp_path / "in", scenes=4, size=256)
    options = ["--sensor", SENSOR, "--tile", "32", "--stride", "6", "--shard-mb", "5", "--workers", "2"]
    command = [str(tmp_path / "in"), *options, "--out"]
    script = [sys.executable, str(ROOT / "launch" / "shards.py")]
    with subprocess.Popen([*script, *command, str(tmp_path / "out")], stderr=subprocess.PIPE, text=True) as run:
        while not list((tmp_path / "out").glob("*.npz")) and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(number)
        said = run.communicate()[1]
    assert number == signal.SIGKILL or said.startswith("stopped; the finished shards are kept")
    assert run.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert not (tmp_path / "out" / "index.json").exists()
    for out in ("out", "straight"):
        make(*command, tmp_path / out, "--workers", 1)
    assert digests(tmp_path / "out") == digests(tmp_path / "straight")


def test_shards_of_other_options_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sentinel2(tmp_path / "in")
    command = (tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    make(*command)
    capsys.readouterr()
    assert "pass --overwrite, or another --out" in refused(capsys, *command, "--tile", 16)
    make(*command, "--tile", 16, "--overwrite")
    assert Index.read(tmp_path / "out").shapes == {SENSOR: (13, 16, 16)}
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "holds other files" in refused(capsys, *command, "--overwrite")
    assert ShardSource(tmp_path / "out").samples > 0


def write_sensor(path: Path, nodata: float | None) -> Path:
    path.write_text(json.dumps({"name": "one", "bands": [{"name": "x"}], "nodata": nodata}))
    return path


@pytest.mark.parametrize(
    ("file_nodata", "sensor_nodata", "dtype", "stored_as", "mark"),
    [
        (7, 7, "uint16", "uint16", 7),  # agreed: unchanged
        (7, 0, "uint16", "uint16", 0),  # the sensor's own value, as the dtype holds it
        (7, -9999, "uint16", "float32", np.nan),  # it does not
        (7, None, "int16", "float32", np.nan),
        (7, None, "float32", "float32", np.nan),
        (None, 7, "uint16", "uint16", 7),
    ],
)
def test_missing_pixels_are_marked_the_way_of_the_sensor(
    tmp_path: Path, file_nodata: float | None, sensor_nodata: float | None, dtype: str, stored_as: str, mark: float
) -> None:
    pixels = counts((1, 32, 64), low=10).astype(dtype)
    pixels[0, 3:6, 4:9] = 7
    write_tiff(tmp_path / "a.tif", pixels, names=("x",), nodata=file_nodata)
    sensor = write_sensor(tmp_path / "one.yaml", sensor_nodata)
    make(tmp_path / "a.tif", "--sensor", sensor, "--out", tmp_path / "out")
    torn, whole = (sample["one.npy"] for sample in plain(tmp_path / "out"))
    assert (torn.dtype, whole.dtype) == (stored_as, dtype)
    np.testing.assert_array_equal(torn[0], np.where(pixels[0, :, :32] == 7, mark, pixels[0, :, :32]))
    np.testing.assert_array_equal(whole, pixels[:, :, 32:])
    count = Index.read(tmp_path / "out").statistics["one"]["count"]
    assert count == [32 * 64 - 15]


def test_tiles_that_lack_too_much_are_dropped(tmp_path: Path) -> None:
    pixels = counts((13, 64, 64))
    pixels[:, :32, :20] = 0  # 20 of 32 columns of the first tile
    pixels[:, 32:, :12] = 0
    write_tiff(tmp_path / "in" / "a.tif", pixels, names=S2_NAMES)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    index = Index.read(tmp_path / "out")
    assert (index.samples, index.dropped) == (3, 1)


def test_several_sensors_of_one_footprint_are_one_sample(tmp_path: Path) -> None:
    optical = write_tiff(tmp_path / "s2" / "a" / "x.tif", counts((13, 96, 64)), names=S2_NAMES)
    decibels = -counts((2, 48, 32)).astype("f4") / 200
    radar = write_tiff(tmp_path / "s1" / "a" / "x.tif", decibels, names=("VH", "VV"), pixel=20)
    write_tiff(tmp_path / "s1" / "a" / "alone.tif", radar, names=("VH", "VV"), pixel=20)
    write_tiff(tmp_path / "s2" / "b" / "moved.tif", optical, names=S2_NAMES)
    write_tiff(tmp_path / "s1" / "b" / "moved.tif", radar, names=("VH", "VV"), pixel=20.5)
    inputs = (f"{SENSOR}={tmp_path / 's2'}", f"sentinel1-grd-db={tmp_path / 's1'}")
    make(*inputs, "--out", tmp_path / "out")
    samples = plain(tmp_path / "out")
    assert [sample["__key__"] for sample in samples[:2]] == ["a_x_r00000_c00000", "a_x_r00000_c00032"]
    assert len(samples) == 6
    np.testing.assert_array_equal(samples[3][f"{SENSOR}.npy"], optical[:, 32:64, 32:64])
    np.testing.assert_array_equal(samples[3]["sentinel1-grd-db.npy"], radar[::-1, 16:32, 16:32])
    reasons = {entry.file: entry.reason for entry in Index.read(tmp_path / "out").skipped}
    assert "footprints differ by 24 map units" in reasons["b/moved.tif"]
    assert "no image of the same name" in reasons["a/alone.tif"]


def test_nothing_in_the_shards_says_where_they_were_made(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in", scenes=1)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_keys_are_unique_and_hold_no_dot(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.b/c.tif", "a_b/c.tif", "ä/c d.tif")):
        write_tiff(tmp_path / "in" / name, counts((13, 32, 32), seed), names=S2_NAMES)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    keys = [sample["__key__"] for sample in plain(tmp_path / "out")]
    assert keys == ["a_b_c_r00000_c00000", "a_b_c_2_r00000_c00000", "__c_d_r00000_c00000"]


def test_a_cube_becomes_shards_of_a_generated_sensor(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).integers(0, 9000, (40, 48, 60), dtype=np.int16)
    np.save(tmp_path / "cube.npy", cube)
    options = ("--sensor", "hsi", "--name", "lab", "--axes", "hwc", "--wavelengths", "400:990", "--scale", 1e-4)
    make(tmp_path / "cube.npy", *options, "--out", tmp_path / "out")
    source = ShardSource(tmp_path / "out")
    sensor = source.sensors["lab"]
    assert source.shape("lab") == (60, 32, 32)
    assert [sensor.bands[place].wavelength for place in (0, 1, -1)] == [400, 410, 990]
    tile = plain(tmp_path / "out")[3]["lab.npy"]
    np.testing.assert_array_equal(tile, cube[8:, 16:].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--sensor", SENSOR, "--out", "out"], "no such file or folder"),
        (["in", "--sensor", "landsat88", "--out", "out"], "unknown sensor 'landsat88'; did you mean landsat8"),
        (["in", "--sensor", SENSOR], "pass --out DIR"),
        (["in", "--sensor", "rgb-uint8", "--out", "out"], "no usable image of sensor rgb-uint8"),
        (["in", "--sensor", SENSOR, "--out", "out", "--tile", "99"], "70 x 70 px, smaller than a tile; pass --tile 70"),
        (
            ["in", "--sensor", SENSOR, "--out", "out", "--max-missing", "7"],
            "'7' is not allowed; give a number from 0 to 1",
        ),
        (
            ["in", "--sensor", SENSOR, "--out", "out", "--tile", "0"],
            "argument --tile: '0' is not allowed; give a whole number from 1 to 65536",
        ),
        (["empty", "--sensor", SENSOR, "--out", "out"], "no images; known suffixes: .tif"),
        (["blank", "--sensor", SENSOR, "--out", "out"], "all 4 tiles have more pixels that miss a band"),
        (["hole", "--sensor", SENSOR, "--out", "out", "--max-missing", "1"], "B10 missing in every tile"),
        (["--index", "empty", "--sensor", SENSOR], "holds no .tar files"),
    ],
)
def test_a_mistake_is_answered_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sentinel2(tmp_path / "in", scenes=1)
    (tmp_path / "empty").mkdir()
    write_tiff(tmp_path / "blank" / "a.tif", np.zeros((13, 64, 64), np.uint16), names=S2_NAMES)
    hole = counts((13, 32, 32))
    hole[10] = 0
    write_tiff(tmp_path / "hole" / "a.tif", hole, names=S2_NAMES)
    assert message in refused(capsys, *arguments)
    assert not (tmp_path / "out" / "index.json").exists()


def test_help_names_every_sensor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in sensor_names())


def test_the_script_fails_with_code_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "shards.py"), "nowhere", "--out", "x"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: nowhere: no such file or folder; give scenes, or folders of them\n"


def write_foreign(folder: Path, tars: int = 2) -> dict[str, np.ndarray]:
    """WebDataset tars with members `<key>.npy` and `<key>.cls`, and their arrays."""
    folder.mkdir()
    arrays = {}
    for tar in range(tars):
        with webdataset.TarWriter(str(folder / f"train-{tar}.tar")) as writer:
            for index in range(4):
                key = f"{tar}/sample{index}"
                arrays[key] = np.random.default_rng(index).integers(0, 255, (3, 16, 16), dtype=np.uint8)
                writer.write({"__key__": key, "npy": arrays[key], "cls": index})
    return arrays


def test_tars_of_others_are_indexed_and_read(tmp_path: Path) -> None:
    arrays = write_foreign(tmp_path / "foreign")
    make("--index", tmp_path / "foreign", "--sensor", "rgb-uint8")
    source = ShardSource(tmp_path / "foreign")
    read = source.read("rgb-uint8", np.repeat([0, 1], 4), np.tile(np.arange(4), 2), verify=True)
    assert read.keys == list(arrays)
    np.testing.assert_array_equal(read.stored, np.stack(list(arrays.values())))
    physical = np.stack(list(arrays.values())) / 255.0
    np.testing.assert_allclose(source.index.statistics["rgb-uint8"]["mean"], physical.mean((0, 2, 3)), rtol=1e-6)


def test_one_of_several_arrays_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        image, mask = np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8)
        writer.write({"__key__": "x", "image.npy": image, "mask.npy": mask})
    assert "image.npy (3, 8, 8), mask.npy (8, 8)" in refused(capsys, "--index", tmp_path, "--sensor", "rgb-uint8")
    make("--index", tmp_path, "--sensor", "rgb-uint8", "--member", "image")
    assert ShardSource(tmp_path).samples == 1


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_a_hostile_tar_runs_nothing_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "foreign"
    folder.mkdir(parents=True)
    image = np.ones((3, 8, 8), np.uint8)
    with tarfile.open(folder / "a.tar", "w") as tar:
        add(tar, "good.npy", npy(image))
        add(tar, "trap.npy", npy(np.array([Trap(tmp_path / "sprung")], dtype=object)))
        add(tar, "../../escaped.npy", npy(image))
        add(tar, "huge.npy", npy(image).replace(b"(3, 8, 8)", b"(9999999999, 8, 8)")[:200])
        add(tar, "short.npy", npy(image)[:-50])
        add(tar, "columns.npy", npy(np.asfortranarray(np.ones((3, 8, 8)))))
    make("--index", folder, "--sensor", "rgb-uint8")
    source = ShardSource(folder)
    assert source.read("rgb-uint8", np.zeros(2, int), np.arange(2)).keys == ["good", "../../escaped"]
    reasons = [f"{entry.file} {entry.reason}" for entry in source.index.skipped]
    for name, reason in {
        "trap": "never unpickled",
        "huge": "expected (3, 8, 8)",
        "short": "cut off",
        "columns": "Fortran",
    }.items():
        assert any(name in line and reason in line for line in reasons), reasons
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.npz", "a.tar", "deep", "foreign", "index.json"]


def test_damage_in_a_foreign_tar_is_reported(tmp_path: Path) -> None:
    write_foreign(tmp_path / "foreign", tars=2)
    first = tmp_path / "foreign" / "train-0.tar"
    with tarfile.open(first) as tar:
        third = tar.getmembers()[4].offset
    content = bytearray(first.read_bytes())
    content[third : third + 512] = bytes(512)  # a zeroed header ends the tar without a word
    first.write_bytes(content)
    make("--index", tmp_path / "foreign", "--sensor", "rgb-uint8")
    index = Index.read(tmp_path / "foreign")
    assert index.samples == 2 + 4
    assert index.skipped[0].file == "train-0.tar"
    assert "damaged after byte" in index.skipped[0].reason


def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign(tmp_path / "foreign")
    np.savez(tmp_path / "foreign" / "train-1.npz", mine=np.arange(3))
    assert "is in the way" in refused(capsys, "--index", tmp_path / "foreign", "--sensor", "rgb-uint8")
    assert np.load(tmp_path / "foreign" / "train-1.npz").files == ["mine"]


def test_checksums_are_those_of_the_bytes(tmp_path: Path) -> None:
    write_sentinel2(tmp_path / "in", scenes=1)
    make(tmp_path / "in", "--sensor", SENSOR, "--out", tmp_path / "out")
    (shard,) = Index.read(tmp_path / "out").shards
    content = (tmp_path / "out" / shard.name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    places = Sidecar.load(tmp_path / "out" / "shard-000000.npz").places[SENSOR]
    start = int(places.offset[4])
    expected = plain(tmp_path / "out")[4][f"{SENSOR}.npy"]
    assert content[start : start + expected.nbytes] == expected.tobytes()
