"""Scenes in object storage: the shards of the same files on disk, read by ranges; what a store does not give is an error."""

import dataclasses
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

from alliance.errors import InputError
from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.files import find_images
from datasets.imagery.mirror import mirrored
from datasets.imagery.products import with_product
from datasets.imagery.rasters import describe_raster, opened
from datasets.imagery.scenes import Scene, Unreadable
from datasets.shards.command import main as shards
from datasets.storage import standins
from tests.helpers.envi import write_envi
from tests.helpers.object_store import SECRET, ObjectStore, named_by_the_environment, running_store
from tests.helpers.rasters import counts, write_sentinel2, write_tiff

pytestmark = pytest.mark.timeout(60)
LINE = '<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>'
BAND = '<VRTRasterBand dataType="UInt16" band="{}"><SimpleSource>' + LINE + "</SimpleSource></VRTRasterBand>"
NOTE = "<PAMDataset>{}</PAMDataset>"


def write_zoo(folder: Path) -> None:
    """A file of every format that GDAL reads for us, with what may lie beside it."""
    wide = counts((2, 300, 280), 1)
    write_tiff(folder / "tiled.tif", wide, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    note = NOTE.format('<PAMRasterBand band="1"><NoDataValue>7</NoDataValue><Scale>0.5</Scale></PAMRasterBand>')
    (folder / "tiled.tif.aux.xml").write_text(note)
    write_tiff(folder / "deep/er/masked_20210315.tif", counts((1, 64, 64), 2))
    with rasterio.open(folder / "deep/er/masked_20210315.tif", "r+") as file:
        file.write_mask(np.arange(64 * 64).reshape(64, 64) % 3 > 0)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tiff(folder / "inside.tif", counts((3, 50, 60), 3), nodata=5)
    write_tiff(folder / "pages.tif", counts((1, 40, 30), 4))
    write_tiff(folder / "pages.tif", counts((1, 40, 30), 5), APPEND_SUBDATASET=True)
    for suffix, driver in ((".png", "PNG"), (".jp2", "JP2OpenJPEG"), (".img", "HFA")):
        write_tiff(folder / f"as{suffix}", counts((1, 120, 90), 6), driver=driver)
    (folder / "as.png.aux.xml").unlink()
    shutil.copy(folder / "as.png", folder / "placed.png")
    (folder / "placed.pgw").write_text("10\n0\n0\n-10\n500005\n4999995\n")
    write_envi(folder / "line.dat", counts((3, 20, 30), 7).astype(np.int16), "bil", wavelength="{500, 600, 700}")
    source = "deep/er/masked_20210315.tif"
    (folder / "stack.vrt").write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64">{BAND.format(1, source)}{BAND.format(2, source)}</VRTDataset>'
    )
    with h5py.File(folder / "cube.h5", "w") as file:
        file["cube"] = counts((20, 20, 4), 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of many formats, and scenes of Sentinel-2."""
    here = tmp_path_factory.mktemp("scenes")
    write_zoo(here / "zoo")
    write_sentinel2(here / "scenes", scenes=3, size=140)
    shutil.copy(here / "scenes/scene_1.tif", here / "scenes/scene_1_copy.tif")
    shutil.copy(here / "scenes/scene_2.tif", here / "scenes/cut.tif")
    os.truncate(here / "scenes/cut.tif", 300_000)
    return here


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ObjectStore]:
    with running_store() as server:
        server.upload(folder, "some")
        yield server


@pytest.fixture
def server(running: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server as a user's environment names it, without trouble, with quick tries anew and little patience."""
    monkeypatch.setattr(standins, "PATIENCE", 0.3)
    with named_by_the_environment(running, monkeypatch) as server:
        yield server


def described(path: Path, root: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    """What a scene's header says, but for where it lies, its numbers, and which of them are missing."""
    is_cube = path.suffix == ".h5"
    scene: Scene = describe_cube(path, root, CubeOptions()) if is_cube else describe_raster(path, root)
    with scene.open(range(scene.shape[0])) as read:
        window = read(0, 0, *scene.shape[1:])
    said = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)} | {"sources": scene.sources}
    return {name: said[name] for name in said if name not in ("root", "files")}, window.stored, window.missing


def test_every_format_gives_the_header_the_pixels_and_the_mask_that_it_gives_on_disk(
    folder: Path, server: ObjectStore
) -> None:
    here, _ = find_images([folder / "zoo"])
    with mirrored(["s3://imagery/some/zoo/"]) as mirror:
        there, _ = find_images([mirror.path("s3://imagery/some/zoo/")])
        names = [each.path.relative_to(each.root).as_posix() for each in there]
        assert names == [each.path.relative_to(each.root).as_posix() for each in here] and len(names) == 11
        for mine, theirs in zip(here, there, strict=True):
            (said, stored, missing), (others, found, absent) = described(*mine[:2]), described(*theirs[:2])
            assert repr(others) == repr(said)
            np.testing.assert_array_equal(found, stored)
            assert (absent is None) == (missing is None) and np.array_equal(absent, missing)  # pyright: ignore[reportArgumentType]
    assert not mirror.root.exists()


def test_one_file_brings_what_lies_beside_it(folder: Path, server: ObjectStore) -> None:
    places = [f"s3://imagery/some/zoo/{name}" for name in ("tiled.tif", "placed.png", "line.dat", "stack.vrt")]
    with mirrored(places) as mirror:
        for place in places:
            path, name = mirror.path(place), place.rpartition("/")[2]
            (said, stored, _), (others, found, _) = (
                described(folder / "zoo" / name, folder / "zoo"),
                described(path, path.parent),
            )
            assert repr(others) == repr(said) and np.array_equal(found, stored)
    assert not any(name == "cube.h5" and method == "GET" for method, name, _ in server.asked)


def test_a_stand_in_is_no_image_to_anything_that_does_not_know_it(server: ObjectStore) -> None:
    with mirrored(["s3://imagery/some/zoo"]) as mirror:
        path = mirror.path("s3://imagery/some/zoo")
        for name in ("tiled.tif", "as.png", "as.jp2", "as.img"):
            with pytest.raises(RasterioIOError):
                rasterio.open(path / name)
        standins.use(None)
        for name in ("tiled.tif", "as.png", "as.jp2", "as.img", "line.dat", "stack.vrt"):
            with pytest.raises(Unreadable), opened(path / name) as file:
                file.read()


def make(place: str | Path, out: Path, *more: str) -> None:
    shards([str(place), "--sensor", "sentinel2-l1c", "--out", str(out), "--tile", "64", "--shard-mb", "0.6", *more])


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def index_of(folder: Path) -> dict[str, Any]:
    """The index, but for the fingerprint, which holds times."""
    return json.loads((folder / "index.json").read_text()) | {"fingerprint": ""}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_shards_are_those_of_the_files_on_disk(
    workers: str, folder: Path, server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder / "scenes", tmp_path / "here", "--workers", workers)
    said = capsys.readouterr().out
    make("s3://imagery/some/scenes", tmp_path / "there", "--workers", workers)
    assert capsys.readouterr().out == said.replace(str(tmp_path / "here"), str(tmp_path / "there")).replace(
        "/here", "/there"
    )
    assert len(tars(tmp_path / "here")) > 2 and tars(tmp_path / "there") == tars(tmp_path / "here")
    assert index_of(tmp_path / "there") == index_of(tmp_path / "here")
    assert not any(method == "GET" and name.startswith("scene_") and not asked for method, name, asked in server.asked)


def test_workers_know_the_store_that_the_environment_names_now(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "scenes", tmp_path / "here", "--workers", "2")  # what starts workers has an environment without it
    with running_store() as running, named_by_the_environment(running, monkeypatch) as server:
        make(server.upload(folder / "scenes", "named/later"), tmp_path / "there", "--workers", "2")
    assert tars(tmp_path / "there") == tars(tmp_path / "here")


def test_the_same_command_goes_on_and_a_changed_object_is_another_plan(
    folder: Path, server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = server.upload(folder / "scenes", "changing")
    make(place, tmp_path / "out")
    before = tars(tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / "shard-000001.tar").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    make(place, tmp_path / "out")
    assert tars(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "one").mkdir()
    content = bytearray((folder / "scenes/scene_0.tif").read_bytes())
    content[-1] ^= 1  # as long as before, and perhaps within the same second
    (tmp_path / "one/scene_0.tif").write_bytes(content)
    server.upload(tmp_path / "one", "changing")
    with pytest.raises(SystemExit):
        make(place, tmp_path / "out")
    assert "other scenes or options" in capsys.readouterr().err


def test_only_what_is_looked_at_is_asked_for(
    server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = counts((2, 2048, 2048), 9)
    write_tiff(tmp_path / "big/big.tif", pixels, names=("VV", "VH"), tiled=True, blockxsize=256, blockysize=256)
    place = server.upload(tmp_path / "big", "big")
    server.asked.clear()
    with mirrored([f"{place}/big.tif"]) as mirror:
        path = mirror.path(f"{place}/big.tif")
        with describe_raster(path, path.parent).open([0]) as read:
            np.testing.assert_array_equal(read(700, 300, 50, 60).stored, pixels[:1, 700:750, 300:360])
    ranges = [asked.removeprefix("bytes=").split("-") for method, _, asked in server.asked if method == "GET" and asked]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < pixels.nbytes / 8
    shards(["--inspect", f"{place}/big.tif"])
    said = capsys.readouterr().out
    assert "2 bands x 2048 x 2048 px, uint16" in said and "alliance_" not in said


@pytest.mark.parametrize(
    ("trouble", "workers", "said"),
    [
        ("503", "1", "cannot be read for 0.3 s"),
        ("cut", "1", "cannot be read for 0.3 s"),
        ("403", "1", "is refused to us"),
        ("403", "2", "is refused to us"),
    ],
)
def test_what_a_store_does_not_give_while_shards_are_made_is_an_error(
    trouble: str, workers: str, said: str, server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All can be read until the first shard is begun."""
    monkeypatch.setattr(standins, "KEPT", 1)
    out = tmp_path / "out"
    server.trouble = lambda number, name: trouble if name.endswith(".tif") and any(out.glob("shard-*.tmp")) else ""
    with pytest.raises(SystemExit):
        make("s3://imagery/some/scenes", out, "--workers", workers)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: s3://imagery/some/scenes/scene_") and said in error
    assert SECRET not in error and "alliance_" not in error
    assert not (out / "index.json").exists() and not tars(out)


@pytest.mark.parametrize(
    "name",
    ["tiled.tif", "inside.tif", "deep/er/masked_20210315.tif", "as.png", "as.jp2", "as.img", "line.dat", "stack.vrt"],
)
def test_no_format_gives_pixels_that_did_not_come(
    name: str, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any request on: of the header, of a mask, of pixels."""
    monkeypatch.setattr(standins, "KEPT", 1)
    with mirrored(["s3://imagery/some/zoo"]) as mirror:
        path = mirror.path("s3://imagery/some/zoo") / name
        server.asked.clear()
        _, whole, _ = described(path, path.parent.parent if "deep" in name else path.parent)
        asked = len(server.asked)
    for good in range(asked):
        server.trouble = lambda number, name: ""
        try:
            with mirrored(["s3://imagery/some/zoo"]) as mirror:
                server.asked.clear()
                server.trouble = lambda number, name, good=good: "403" if number > good else ""
                path = mirror.path("s3://imagery/some/zoo") / name
                _, found, _ = described(path, path.parent)
        except InputError as error:
            assert re.search("s3://imagery/some/zoo/.* is refused to us", str(error))
        else:  # a busy machine asks once more now and then; nothing was refused here
            assert good and len(server.asked) <= good and np.array_equal(found, whole)


def test_what_fails_for_a_while_is_asked_for_again(folder: Path, server: ObjectStore, tmp_path: Path) -> None:
    server.trouble = lambda number, name: ("503", "cut", "", "")[number % 4]
    make("s3://imagery/some/scenes", tmp_path / "there", "--workers", "1")
    server.trouble = lambda number, name: ""
    make(folder / "scenes", tmp_path / "here", "--workers", "1")
    assert tars(tmp_path / "there") == tars(tmp_path / "here")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://imagery/some/nothing", "s3://imagery/some/nothing: no such file or folder in the store"),
        ("s3://imagery/some/scenes/scene_9.tif", "no such file or folder in the store"),
        ("s3://imagery/some/zoo/a?b.tif", "give a plain address"),
        ("s3://imagery/some/../zoo", "no file can have such a name"),
    ],
)
def test_a_place_where_nothing_can_be_is_refused(
    place: str, said: str, server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make(place, tmp_path / "out")
    assert said in capsys.readouterr().err


def test_an_object_that_changes_or_goes_while_it_is_read_is_an_error(
    folder: Path, server: ObjectStore, tmp_path: Path
) -> None:
    place = server.upload(folder / "scenes", "moving")
    for change in (lambda: server.upload(tmp_path / "one", "moving"), lambda: server.remove(place, "scene_0.tif")):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one/scene_0.tif").write_bytes(os.urandom((folder / "scenes/scene_0.tif").stat().st_size))
        with (
            pytest.raises(
                InputError, match=r"moving/scene_0.tif (has changed|is missing).*give the same command again"
            ),
            mirrored([place]) as mirror,
        ):
            change()
            describe_raster(mirror.path(place) / "scene_0.tif", mirror.path(place))


def test_another_thread_does_not_read(server: ObjectStore) -> None:
    """GDAL would not find the opener there, and a virtual raster would be empty."""
    found: list[BaseException] = []

    def work(path: Path) -> None:
        try:
            described(path, path.parent)
        except BaseException as error:
            found.append(error)

    with mirrored(["s3://imagery/some/zoo"]) as mirror:
        thread = threading.Thread(target=work, args=(mirror.path("s3://imagery/some/zoo") / "stack.vrt",))
        thread.start()
        thread.join()
    assert [type(error) for error in found] == [AssertionError]


PRODUCT = "S2A_MSIL2A_20210315T100021_N0500_R122_T33UUP_20210315T133000.SAFE"


def test_metadata_above_a_place_count_as_on_disk(server: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "scenes" / PRODUCT / "GRANULE/L2A/IMG_DATA"
    for number, name in enumerate(("B02", "B03")):
        write_tiff(folder / f"T33UUP_20210315T100021_{name}_10m.jp2", counts((1, 50, 50), number), driver="JP2OpenJPEG")
    offsets = "".join(f"<BOA_ADD_OFFSET band_id='{band}'>-777</BOA_ADD_OFFSET>" for band in range(13))
    (tmp_path / "scenes" / PRODUCT / "MTD_MSIL2A.xml").write_text(f"<x>{offsets}</x>")
    server.upload(tmp_path / "scenes", "products")
    inside = folder.relative_to(tmp_path / "scenes").as_posix()
    one = f"s3://imagery/products/{inside}/T33UUP_20210315T100021_B02_10m.jp2"
    for place in ("s3://imagery/products", f"s3://imagery/products/{inside}", one):
        with mirrored([place]) as mirror:
            path = next(mirror.root.rglob("*_B02_10m.jp2"))
            scene = with_product(describe_raster(path, path.parent))
            assert scene.offsets == pytest.approx([-0.0777]) and scene.facts["level"] == "L2A"


class WebServer(BaseHTTPRequestHandler):
    """Files with ranges, for those who say the password; names that are not there are refused, as some servers do."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(None)

    def answer(self, body: bytes | None) -> None:
        path = self.folder / self.path.lstrip("/")
        if self.headers["Authorization"] != "Basic c29tZW9uZTpwQHNz" or not path.is_file():  # someone:p@ss
            self.send_error(403)
            return
        content = path.read_bytes()
        first, last = map(
            int, (self.headers["Range"] or f"bytes=0-{len(content) - 1}").removeprefix("bytes=").split("-")
        )
        part = content[first : last + 1]
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", "Mon, 15 Mar 2021 10:00:00 GMT")
        self.end_headers()
        self.wfile.write(part if body is None else body)

    def log_message(self, format: str, *args: object) -> None: ...


class ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a web server that asks for a password, which the environment holds."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("LOGIN", "someone:p%40ss")
    server = ManyAtOnce(("127.0.0.1", 0), type("Handler", (WebServer,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://${{LOGIN}}@127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server_are_read_with_what_lies_beside_them(folder: Path, address: str) -> None:
    names = ("tiled.tif", "deep/er/masked_20210315.tif", "placed.png", "line.dat", "cube.h5")
    with mirrored([f"{address}/zoo/{name}" for name in names]) as mirror:
        for name in names:
            path, mine = mirror.path(f"{address}/zoo/{name}"), folder / "zoo" / name
            (said, stored, missing), (others, found, absent) = (
                described(mine, mine.parent),
                described(path, path.parent),
            )
            assert repr(others) == repr(said) and np.array_equal(found, stored)
            assert np.array_equal(absent, missing)  # pyright: ignore[reportArgumentType]


def test_what_a_web_server_does_not_give_is_said_without_the_password(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make(f"{address}/scenes/scene_9.tif", tmp_path / "out")
    assert "scene_9.tif is refused to us: the credentials" in capsys.readouterr().err
    monkeypatch.setenv("LOGIN", "someone:wrong")
    with pytest.raises(SystemExit):
        make(address.replace("${LOGIN}", "someone:secret") + "/scenes/scene_1.tif", tmp_path / "out")
    error = capsys.readouterr().err
    assert "scene_1.tif is refused to us: the credentials" in error and "secret" not in error


def test_a_web_server_without_ranges_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ManyAtOnce(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.raises(SystemExit):
        make(f"http://127.0.0.1:{server.server_address[1]}/scenes/scene_1.tif", tmp_path / "out")
    assert "scenes/scene_1.tif: its server gives no byte ranges; fetch the file (curl -O)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make(f"http://127.0.0.1:{server.server_address[1]}/nowhere", tmp_path / "out")
    assert "nowhere: no such file, and a web server does not tell what a folder holds" in capsys.readouterr().err
    server.shutdown()
    server.server_close()


def test_stand_ins_that_are_taken_away_are_an_error(server: ObjectStore) -> None:
    with (
        pytest.raises(InputError, match="was taken away while it was needed"),
        mirrored(["s3://imagery/some/zoo"]) as mirror,
    ):
        path = mirror.path("s3://imagery/some/zoo")
        shutil.rmtree(mirror.root)
        described(path / "tiled.tif", path)


def test_a_dask_cluster_does_not_read_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make("s3://imagery/some/scenes", tmp_path / "out", "--dask", "tcp://127.0.0.1:8786")
    assert (
        "--dask needs scenes that all workers see as files, not s3://imagery/some/scenes; let"
        in capsys.readouterr().err
    )
