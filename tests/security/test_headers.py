"""Small files whose headers claim far more than they hold: named and left out, before memory is asked for."""

import io
import json
import resource
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from rasterio.transform import from_origin

from alliance.errors import InputError
from datasets.imagery.claims import free_memory, refuse_large
from datasets.imagery.images import ImageSource, describe, read_image
from datasets.imagery.scenes import Unreadable
from datasets.labelled.augment import AugmentConfig
from datasets.labelled.tile_samples import TileSamples
from datasets.sampling.loader import Place
from datasets.shards.command import main
from datasets.shards.index import Index
from datasets.synthetic.pairs import make_pair
from tests.helpers.pad_networks import write_tiles
from tests.helpers.rasters import write_tiff
from tests.helpers.shards import SENSOR, write_tiny_shards

SIDE, BANDS = 10**6, 100  # what the headers claim: 100 TB


def sparse_tiff(path: Path, bands: int = BANDS, side: int = SIDE, dtype: str = "uint8") -> Path:
    """A GeoTIFF without a single block of pixels."""
    form = {"driver": "GTiff", "count": bands, "height": side, "width": side, "dtype": dtype, "SPARSE_OK": True}
    blocks = {"tiled": True, "blockxsize": 32768, "blockysize": 32768, "interleave": "band", "BIGTIFF": "YES"}
    with rasterio.open(path, "w", transform=from_origin(4e5, 5e6, 10, 10), crs="EPSG:32633", **form, **blocks):
        return path


def png(path: Path) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))
    return path


def npy_bytes(shape: tuple[int, ...], held: int = 64) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(held)


def npy(path: Path, shape: tuple[int, ...] = (BANDS, SIDE, SIDE)) -> Path:
    path.write_bytes(npy_bytes(shape))
    return path


def h5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", (BANDS, SIDE, SIDE), "u1", chunks=(1, 100, 100), compression="gzip")
    return path


def h5_texts(path: Path) -> Path:
    """An image, and a list of words each of which is a gigabyte long."""
    with h5py.File(path, "w") as file:
        file.create_dataset("names", (9999,), f"S{10**9}", chunks=(1,), compression="gzip")
        file["cube"] = np.ones((2, 20, 30), np.uint8)
    return path


def mat(path: Path) -> Path:
    """A MATLAB file whose matrix says another shape."""
    scipy.io.savemat(path, {"cube": np.ones((2, 3, 5), np.uint8)})
    content = path.read_bytes()
    true = struct.pack("<III", 2, 3, 5)
    assert content.count(true) == 1
    path.write_bytes(content.replace(true, struct.pack("<III", BANDS, SIDE, SIDE)))
    return path


def vrt(path: Path) -> Path:
    write_tiff(path.with_name("small.tif"), np.ones((1, 8, 8), np.uint8))
    rect = '<SrcRect xOff="0" yOff="0" xSize="8" ySize="8"/><DstRect xOff="0" yOff="0" xSize="8" ySize="8"/>'
    source = f'<SimpleSource><SourceFilename relativeToVRT="1">small.tif</SourceFilename>{rect}</SimpleSource>'
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    path.write_text(f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{band}</VRTDataset>')
    return path


MAKERS = {"a.tif": sparse_tiff, "a.png": png, "a.npy": npy, "a.h5": h5, "a.mat": mat, "a.vrt": vrt}


@pytest.mark.parametrize("name", MAKERS)
def test_a_header_that_claims_too_much_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} .*(claims [\d,.]+ GB in a file of|its header says|cannot be read)"):
        read_image(path, ImageSource(axes="chw" if name[2:] in ("npy", "h5", "mat") else None))


def test_wrapped_products_are_seen_through(tmp_path: Path) -> None:
    """2^32 x 2^32 pixels are 2^64 bytes, which is 0 in 64 bits."""
    with pytest.raises(InputError, match="its header says 18446744073709551616 bytes"):
        describe(npy(tmp_path / "a.npy", (1, 2**32, 2**32)))


def test_a_text_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    assert describe(h5_texts(tmp_path / "a.h5")).shape == (2, 20, 30)


def test_an_empty_raster_of_a_usual_size_is_read(tmp_path: Path) -> None:
    image = read_image(sparse_tiff(tmp_path / "a.tif", bands=1, side=1000), ImageSource())
    assert image.numbers.shape == (1, 1000, 1000) and not image.numbers.any()


def test_making_shards_leaves_out_what_claims_too_much(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
    write_tiff(folder / "good.tif", good, names=("R", "G", "B"))
    sparse_tiff(folder / "huge.tif", bands=3)
    png(folder / "huge2.png")
    npy(folder / "huge3.npy", (3, SIDE, SIDE))
    command = [str(folder), "--sensor", "rgb-uint8", "--tile", "32", "--workers", "1", "--out", str(tmp_path / "out")]
    main(command)
    index = Index.read(tmp_path / "out")
    assert index.samples == 4
    assert {entry.file for entry in index.skipped} == {"huge.tif", "huge2.png", "huge3.npy"}
    assert all("GB in a file of" in entry.reason or "its header says" in entry.reason for entry in index.skipped)


def test_training_leaves_out_a_pair_that_claims_too_much(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path, [make_pair(40, 40, 4, np.random.default_rng(n)) for n in range(3)], 4)
    sparse_tiff(tiles.files[1].paths["optical"], bands=3)
    batch = TileSamples(tiles, AugmentConfig(crop=32), seed=0)(Place(0, np.arange(3), np.arange(3)))
    (fault,) = batch.faults
    assert fault.cause == "pair" and fault.key == tiles.keys[1] and "GB in a file of" in fault.reason
    assert (batch.label[1] == 255).all() and (batch.label[0] != 255).any()


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """This process may take only so many bytes more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_memory_cannot_hold_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    large = sparse_tiff(tmp_path / "a.tif", bands=1, side=30_000)  # 0.9 GB, which a sparse file may claim
    cube = tmp_path / "a.npz"
    np.savez_compressed(cube, cube=np.zeros((2, 15_000, 10_000), np.uint8))
    with little_memory(2**28):
        assert free_memory() <= 2**28
        with pytest.raises(InputError, match=r"a\.tif needs 0\.9 GB at once, of memory 0\.\d GB are free"):
            read_image(large, ImageSource())
        with pytest.raises(InputError, match=r"a\.npz needs 0\.3 GB at once"):
            read_image(cube, ImageSource(axes="chw"))
        with pytest.raises(Unreadable):
            refuse_large(2**29)
        refuse_large(2**20)
    with rasterio.open(large) as file:
        assert not file.read(1, window=((0, 64), (0, 64))).any()


# Tars


def add(tar: tarfile.TarFile, name: str, content: bytes, size: int | None = None) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    if size is None:
        tar.addfile(info, io.BytesIO(content))
        return
    info.size = size  # what the header says
    assert tar.fileobj is not None
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    tar.fileobj.write(header + content + bytes(-len(content) % 512))
    tar.offset += len(header) + len(content) + -len(content) % 512


def tile(value: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.full((3, 8, 8), value, np.uint8))
    return buffer.getvalue()


def index(folder: Path) -> Index:
    main(["--index", str(folder), "--sensor", "rgb-uint8", "--workers", "1"])
    return Index.read(folder)


def test_a_member_whose_array_claims_eight_terabytes_is_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "first.npy", npy_bytes((3, 1_632_993, 1_632_993)))
        add(tar, "good.npy", tile(7))
        add(tar, "middle.npy", npy_bytes((3, 8, 8), held=9))
    found = index(tmp_path)
    assert found.samples == 1
    assert {entry.file: entry.reason.partition(":")[0] for entry in found.skipped} == {
        "a.tar: first.npy": "shape (3, 1632993, 1632993), expected (3, 8, 8) (bands, rows, columns)",
        "a.tar: middle.npy": "is cut off",
    }


@pytest.mark.parametrize("size", [8 * 10**12, 2**62, 2**70])
@pytest.mark.parametrize("kind", ["member", "long name"])
def test_a_tar_header_that_claims_terabytes_ends_the_tar(tmp_path: Path, kind: str, size: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.npy", tile(7))
        if kind == "member":
            add(tar, "huge.npy", npy_bytes((3, 1_632_993, 1_632_993)), size)
        else:
            info = tarfile.TarInfo("././@LongLink")
            info.size, info.type = size, tarfile.GNUTYPE_LONGNAME
            assert tar.fileobj is not None
            tar.fileobj.write(info.tobuf(format=tarfile.GNU_FORMAT))
    found = index(tmp_path)
    assert found.samples == 1 and len(found.skipped) == 1
    assert found.skipped[0].file.startswith("a.tar")


def test_an_index_whose_tiles_do_not_fit_into_its_tars_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_shards(tmp_path / "out", (2,))
    record = json.loads((folder / "index.json").read_text())
    record["shapes"][SENSOR] = [1, 3_000_000, 3_000_000]
    (folder / "index.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="2 samples of 9000000000000 numbers do not fit into it"):
        Index.read(folder)
