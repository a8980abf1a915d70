"""docs/formats.md is enough to read and to write our files: done here with NumPy, tarfile and json alone."""

import dataclasses
import hashlib
import io
import json
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from alliance.sensors import Band, Sensor
from datasets.shards import ShardSource
from datasets.shards.index import Index
from datasets.shards.verify import verify_folder

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "formats.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", PAGE, flags=re.M)[
        [part.split("\n")[0] for part in re.split(r"^## ", PAGE, flags=re.M)].index(title)
    ]


def first_column(text: str) -> set[str]:
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_our_shards_are_read_by_the_specification(optical_shards: Path):
    index = json.loads((optical_shards / "index.json").read_text())
    ours = ShardSource(optical_shards)
    (name,) = index["shapes"]
    for number, shard in enumerate(index["shards"]):
        tar = (optical_shards / shard["name"]).read_bytes()
        assert len(tar) == shard["bytes"] and hashlib.sha256(tar).hexdigest() == shard["sha256"]
        sidecar = np.load((optical_shards / shard["name"]).with_suffix(".npz"), allow_pickle=False)
        for place in range(shard["samples"]):
            kind = np.dtype(sidecar[f"{name}.dtype"][place].decode())
            start, count = int(sidecar[f"{name}.offset"][place]), int(np.prod(index["shapes"][name]))
            data = tar[start : start + count * kind.itemsize]
            assert zlib.crc32(data) == sidecar[f"{name}.crc32"][place]
            read = ours.read(name, np.array([number]), np.array([place]))
            assert np.array_equal(np.frombuffer(data, kind).reshape(index["shapes"][name]), read.stored[0])
            assert read.keys == [sidecar["keys"][place].decode()]


def test_shards_written_by_the_specification_are_read(tmp_path: Path):
    """Two samples of two bands of 4 x 4 pixels, stored as hundredths."""
    images = np.random.default_rng(0).integers(0, 100, (2, 2, 4, 4)).astype("<i2")
    keys, offsets, sums = ["a", "deep/b"], [], []
    with tarfile.open(tmp_path / "shard-000000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for key, image in zip(keys, images, strict=True):
            content = io.BytesIO()
            np.save(content, image)
            member = tarfile.TarInfo(f"{key}.mine.npy")
            member.size = len(content.getvalue())
            offsets.append(tar.offset + 512 + member.size - image.nbytes)
            sums.append(zlib.crc32(image.tobytes()))
            tar.addfile(member, io.BytesIO(content.getvalue()))
    data = (tmp_path / "shard-000000.tar").read_bytes()
    values = images.astype(np.float64) * 0.01
    mean, low, high = (getattr(values, name)(axis=(0, 2, 3)) for name in ("mean", "min", "max"))
    squares = ((values - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3))
    sha256 = hashlib.sha256(data).hexdigest()
    record = {"bytes": len(data), "sha256": sha256, "fingerprint": "by hand", "dropped": 0, "skipped": []}
    np.savez(
        tmp_path / "shard-000000.npz", allow_pickle=False,
        **{
            "keys": np.array([key.encode() for key in keys]), "record": np.array(json.dumps(record)),
            "mine.offset": np.array(offsets, dtype=np.int64), "mine.dtype": np.array([b"<i2"] * 2),
            "mine.crc32": np.array(sums, dtype=np.uint32), "mine.moments": np.stack([np.full(2, 32.0), mean, squares, low, high]),
        },
    )  # fmt: skip
    std = np.sqrt(squares / 32)
    bands = [
        {"name": f"b{i}", "wavelength": 500.0 + i, "scale": 0.01, "mean": mean[i], "std": std[i]} for i in range(2)
    ]
    columns = {"count": [32, 32], "mean": mean.tolist(), "std": std.tolist(), "min": low.tolist(), "max": high.tolist()}
    index = {
        "version": 1, "sensors": [{"name": "mine", "bands": bands}], "shapes": {"mine": [2, 4, 4]}, "statistics": {"mine": columns},
        "shards": [{"name": "shard-000000.tar", "samples": 2, "bytes": len(data), "sha256": sha256}],
        "dropped": 0, "skipped": [], "fingerprint": "by hand",
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))

    source = ShardSource(tmp_path)
    read = source.read("mine", np.array([0, 0]), np.array([1, 0]), verify=True)
    assert read.keys == ["deep/b", "a"] and not read.faults
    assert np.array_equal(read.stored, images[::-1])
    assert "are as they were written" in verify_folder(tmp_path)[0]
    assert source.index.digest == hashlib.sha256(sha256.encode()).hexdigest()


def test_the_tables_name_every_key():
    sensors, shards = section("Sensors"), section("Shards")
    named = first_column(sensors)
    assert named == {field.name for kind in (Sensor, Band) for field in dataclasses.fields(kind)}
    told = first_column(shards[shards.index("### index.json") :])
    assert told == {field.name for field in dataclasses.fields(Index)} | {"version", "samples"}
