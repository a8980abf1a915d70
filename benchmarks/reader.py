"""Throughput of the shard reader beside others on the same samples, as ratios to a sequential read in the same run.

    python benchmarks/reader.py                # page cache warm; all readers take turns, medians of the rounds
    python benchmarks/reader.py --cold         # the page cache is dropped before every measurement
    python benchmarks/reader.py --profile      # what our reader does in a batch
    pip install litdata                        # for its rows; it is no dependency of ours

Synthetic data: 12 bands of noise-like 12-bit numbers, and two bands of float32, 128 x 128 pixels, tars of about 50 MB.
MB are 10^6 bytes of arrays. The sequential read goes through the same tars with one reused buffer of 1 MiB.
"""

import argparse
import contextlib
import cProfile
import importlib
import importlib.util
import io
import itertools
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import numpy as np
import torch
from torch import Tensor
from webdataset.compat import WebDataset, WebLoader
from webdataset.writer import TarWriter

from alliance.sensors.catalog import generated_sensor
from datasets.shards.index import NAME, Index, collect
from datasets.shards.loader import LoaderConfig, ShardLoader, SourceConfig
from datasets.shards.scan import scan

Batches = Generator[Any, None, None]

BATCH = 32
SHARD_MB = 50
BUFFER = 1 << 20  # bytes of the sequential read
PAGE = 4096  # bytes
MIXED = 128  # samples in WebDataset's shuffle buffer
KINDS = {"uint16": (12, 128, 128), "float32": (2, 128, 128)}
PARTS = {  # of our reader, by the names of the functions that do it
    "order of the samples": ("locate",),
    "places in the tars": ("_find",),
    "opening tars": ("_descriptor",),
    "preadv (page cache -> batch)": ("<built-in method posix.preadv>",),
    "crc32": ("<built-in method zlib.crc32>",),
    "looking for pixels with values": ("_replace_empty",),
    "drawing sources and placements": ("draw_placements", "_draw"),
}


class Data(NamedTuple):
    """The samples of one kind, as tars and as litdata's chunks."""

    dtype: str
    tars: list[Path]
    chunks: Path
    samples: int

    @property
    def batch_bytes(self) -> int:
        return BATCH * int(np.prod(KINDS[self.dtype])) * np.dtype(self.dtype).itemsize


class Reader(NamedTuple):
    """A row of the table: how to begin an iteration over batches."""

    name: str
    workers: int
    begin: Callable[[], Batches]


class Row(NamedTuple):
    """One measurement."""

    rate: float  # batches/s
    tensor: bool  # batches come as one torch tensor


def make(folder: Path, dtype: str, gigabytes: float, litdata: bool) -> Data:
    """The data of one kind, made if they are not there."""
    place, chunks = folder / dtype, folder / f"{dtype}-litdata"
    if not (place / NAME).is_file():
        place.mkdir(parents=True, exist_ok=True)
        write(place, dtype, gigabytes)
    index = Index.read(place)
    data = Data(dtype, [place / shard.name for shard in index.shards], chunks, index.samples)
    if litdata and not chunks.exists():
        settings = {"chunk_bytes": f"{SHARD_MB}MB", "num_workers": 1, "start_method": "fork", "verbose": False}
        tars = [str(tar) for tar in data.tars]
        importlib.import_module("litdata").optimize(samples_of, tars, output_dir=str(chunks), **settings)
    for path in files(data):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet cannot be dropped
    return data


def write(place: Path, dtype: str, gigabytes: float) -> None:
    """Ordinary WebDataset tars with our sidecars and index."""
    sensor, shape = generated_sensor("synthetic", KINDS[dtype][0]), KINDS[dtype]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    numbers, random = range(int(gigabytes * 1e9 / size)), np.random.default_rng(0)
    per_shard, tars = round(SHARD_MB * 1e6 / size), []
    for first in numbers[::per_shard]:
        tars.append(place / f"shard-{len(tars):05d}.tar")
        with TarWriter(str(tars[-1]), encoder=False, mtime=0) as writer:
            for number in numbers[first : first + per_shard]:
                buffer = io.BytesIO()
                np.save(buffer, random.integers(0, 4096, shape, dtype="uint16").astype(dtype), allow_pickle=False)
                writer.write({"__key__": f"{number:08d}", f"{sensor.name}.npy": buffer.getvalue()})
        scan(tars[-1], {sensor.name: sensor}, {sensor.name: shape}).save(tars[-1].with_suffix(".npz"))
    collect(tars, {sensor.name: sensor}, {sensor.name: shape}).write(place)


def samples_of(tar: str) -> Batches:
    """The arrays of a tar, for litdata to store its own way."""
    with tarfile.open(tar) as archive:
        for info in archive:
            member = archive.extractfile(info)
            assert member, f"{info.name} in {tar} is no file"
            yield torch.from_numpy(np.load(io.BytesIO(member.read())))


def files(data: Data) -> list[Path]:
    return [path for folder in (data.tars[0].parent, data.chunks) for path in folder.rglob("*") if path.is_file()]


def evict(data: Data) -> None:
    """Drop the files from this machine's page cache."""
    for path in files(data):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential(data: Data) -> Batches:
    """Yields whenever as many bytes were read as a batch and its tar headers have."""
    buffer = bytearray(BUFFER)
    batch = sum(tar.stat().st_size for tar in data.tars) / data.samples * BATCH
    count = 0.0
    for tar in itertools.cycle(data.tars):
        with tar.open("rb", buffering=0) as file:
            while more := file.readinto(buffer):
                count += more
                while count >= batch:
                    count -= batch
                    yield None


def ours(data: Data, workers: int, verify: bool) -> Batches:
    config = LoaderConfig(micro=BATCH, workers=workers, flips=False, verify=verify)
    for batch in ShardLoader([SourceConfig(shards=str(data.tars[0].parent))], config):
        yield batch.stored


def plain_webdataset(data: Data, workers: int) -> Batches:
    """WebDataset at its best: no decoder, npy headers skipped, batches made by the workers."""
    size, shape = data.batch_bytes // BATCH, KINDS[data.dtype]

    def stack(samples: list[dict[str, Any]]) -> Tensor:
        contents = (memoryview(sample["synthetic.npy"])[-size:] for sample in samples)
        return torch.from_numpy(np.stack([np.frombuffer(content, data.dtype).reshape(shape) for content in contents]))

    urls = [str(tar) for tar in data.tars]
    stream = WebDataset(urls, repeat=True, shardshuffle=len(urls), seed=0, empty_check=False)
    batches = stream.shuffle(MIXED, initial=MIXED).batched(BATCH, collation_fn=stack, partial=False)
    yield from WebLoader(batches, batch_size=None, num_workers=workers)


def streamed_litdata(data: Data, workers: int) -> Batches:
    package = importlib.import_module("litdata")
    stream = package.StreamingDataset(str(data.chunks), shuffle=True, drop_last=True)
    yield from package.StreamingDataLoader(stream, batch_size=BATCH, num_workers=workers)


def readers_of(data: Data, litdata: bool, cold: bool) -> list[Reader]:
    """The rows of one kind; the sequential read comes first."""
    several = (0, 2) if cold else (0, 1, 2)
    readers = [Reader("sequential read", 0, partial(sequential, data))]
    for verify in (False,) if cold else (False, True):
        name = "ours, crc32 checked" if verify else "ours"
        readers += [Reader(name, workers, partial(ours, data, workers, verify)) for workers in several]
    readers += [Reader("webdataset", workers, partial(plain_webdataset, data, workers)) for workers in several]
    if litdata:
        readers += [Reader("litdata", workers, partial(streamed_litdata, data, workers)) for workers in several]
    return readers


def measure(data: Data, reader: Reader, cold: bool) -> Row:
    """Three quarters of an epoch, after an eighth of it, or where it is cold after the first batch."""
    epoch = data.samples // BATCH
    warm, count = 1 if cold else max(1, epoch // 8), max(1, epoch * 3 // 4)
    if cold:
        evict(data)
    with contextlib.closing(reader.begin()) as batches:
        for _ in range(warm):
            next(batches)
        batch, began = None, time.perf_counter()
        for _ in range(count):
            batch = next(batches)
            if reader.workers and isinstance(batch, Tensor):  # a page that comes through shared memory costs when used
                batch.view(torch.uint8).flatten()[::PAGE].sum()
        seconds = time.perf_counter() - began
    return Row(count / seconds, isinstance(batch, Tensor) and batch.shape == (BATCH, *KINDS[data.dtype]))


def compare(kinds: list[Data], litdata: bool, cold: bool, rounds: int) -> dict[tuple[str, str, int], list[Row]]:
    """Measurements of every row, round by round; the first round warms up and does not count."""
    rows: dict[tuple[str, str, int], list[Row]] = {}
    for _ in range(rounds + 1):
        for data in kinds:
            for reader in readers_of(data, litdata, cold):
                row = measure(data, reader, cold)
                rows.setdefault((data.dtype, reader.name, reader.workers), []).append(row)
    return {key: turns[1:] for key, turns in rows.items()}


def print_rates(kinds: list[Data], rows: dict[tuple[str, str, int], list[Row]]) -> None:
    """The table; ratios are medians of the ratios within a round."""
    batch_bytes = {data.dtype: data.batch_bytes for data in kinds}
    print("| data | reader | workers | samples/s | MB/s | ratio | one tensor |\n|---|---|---|---|---|---|---|")
    for (dtype, name, workers), turns in rows.items():
        reference = rows[dtype, "sequential read", 0]
        rate = statistics.median(row.rate for row in turns)
        ratio = statistics.median(row.rate / base.rate for row, base in zip(turns, reference, strict=True))
        speed = f"{rate * BATCH:.0f} | {rate * batch_bytes[dtype] / 1e6:.0f} | {ratio:.2f}"
        print(f"| {dtype} | {name} | {workers} | {speed} | {'yes' if turns[0].tensor else 'no'} |")


def profile(data: Data, verify: bool) -> dict[str, float]:
    """Milliseconds of a batch by part, without workers, over half an epoch of warm pages."""
    count = max(1, data.samples // BATCH // 2)
    with contextlib.closing(ours(data, 0, verify)) as batches:
        for _ in range(2 * count):
            next(batches)
        profiler = cProfile.Profile()
        began = time.perf_counter()
        profiler.enable()
        for _ in range(count):
            next(batches)
        profiler.disable()
        total = time.perf_counter() - began
    spent: dict[str, float] = {}
    for entry in profiler.getstats():
        name = entry.code if isinstance(entry.code, str) else entry.code.co_name
        spent[name] = spent.get(name, 0.0) + entry.totaltime
    parts = {part: 1000 / count * sum(spent.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    return parts | {"all else": 1000 / count * total - sum(parts.values())}


def print_profile(kinds: list[Data]) -> None:
    print("| data | part of our reader, 0 workers | ms per batch | share |\n|---|---|---|---|")
    for data in kinds:
        for part, spent in (parts := profile(data, verify=True)).items():
            print(f"| {data.dtype} | {part} | {spent:.3f} | {spent / sum(parts.values()):.0%} |")


def bound(data: Data, cold: bool) -> str:
    """What our reader's time goes into."""
    if cold:
        return "Bound: the disk; the sequential read says how fast it is through the kernel's read-ahead."
    parts = profile(data, verify=False)
    largest = sorted(parts, key=lambda part: -parts[part])[:2]
    shares = " and ".join(f"{parts[part] / sum(parts.values()):.0%} in {part}" for part in largest)
    return f"Bound: ours without workers ({data.dtype}) spends {shares}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the data here; default: a temporary folder")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # two would wait for each other where a core is busy: litdata then falls to a tenth
    litdata = importlib.util.find_spec("litdata") is not None and not options.profile
    with tempfile.TemporaryDirectory() as temporary:
        kinds = [make(options.folder or Path(temporary), dtype, options.gigabytes, litdata) for dtype in KINDS]
        if options.profile:
            print_profile(kinds)
        else:
            print_rates(kinds, compare(kinds, litdata, options.cold, options.rounds))
        print(f"\n{bound(kinds[0], options.cold)}")
        if not litdata and not options.profile:
            print("litdata is not installed: row left out")


if __name__ == "__main__":
    main()
