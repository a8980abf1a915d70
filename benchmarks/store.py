"""Throughput of shards in object storage beside the same shards on disk, and beside webdataset's stream.

    python benchmarks/store.py --batches 40

Noise-like tiles of 12 x 128 x 128 uint16 (393 kB), batches of 32, one rank. A server on the loopback, in a process of its own,
gives ranges of files as S3 does (signatures are not looked at) and holds every answer back by the latency given. Requests are counted at the server, those for sidecars included. Rows take turns; medians of the rounds.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.reader import BATCH, write
from benchmarks.yardsticks.serving import BUCKET, Files, serve_folder
from datasets.shards.loader import LoaderConfig, ShardLoader, SourceConfig

WARM = 4  # batches before the clock starts
CONFIG = LoaderConfig(micro=BATCH, workers=8)


class Row(NamedTuple):
    """One way to read."""

    name: str
    source: SourceConfig
    config: LoaderConfig
    delay: float = 0.0  # seconds


class Reading(NamedTuple):
    """What one round of it came to."""

    samples_per_s: float
    megabytes_per_s: float
    requests: float  # a sample


def serve(folder: Path, told: Connection) -> None:
    """Hold the shards of a folder; count what is asked for between two messages, which are latencies in seconds."""
    told.send(serve_folder(folder))
    while (delay := told.recv()) is not None:
        told.send(Files.asked)
        Files.asked, Files.delay = 0, delay


def measure(row: Row, batches: int, server: Connection) -> Reading:
    """Read so many batches, the first ones before the clock starts."""
    server.send(row.delay)
    server.recv()
    loader = ShardLoader([row.source], row.config)
    with closing(iter(loader)) as read:  # pyright: ignore[reportArgumentType]
        list(itertools.islice(read, WARM))
        began, size = time.perf_counter(), 0
        for batch in itertools.islice(read, batches):
            size += batch.stored.nbytes
        seconds = time.perf_counter() - began
    server.send(0.0)
    read_ahead = 2 * row.config.workers
    requests = server.recv() / ((batches + WARM + read_ahead) * BATCH)
    return Reading(batches * BATCH / seconds, size / seconds / 1e6, requests)


def rows(address: str, folder: Path, kept: Path) -> list[Row]:
    """All ways, in the order of the table."""
    store = SourceConfig(shards=f"s3://{BUCKET}")
    stream = SourceConfig(shards=address, stream=True)
    found = [Row("disk", SourceConfig(shards=str(folder)), CONFIG)]
    for delay in (0.0, 0.05, 0.2):
        found.append(Row(f"S3, {1000 * delay:.0f} ms", store, CONFIG, delay))
    found.append(Row("S3, 200 ms, 1 worker", store, replace(CONFIG, workers=1), 0.2))
    found.append(Row("S3, 200 ms, 32 workers", store, replace(CONFIG, workers=32), 0.2))
    found.append(Row("S3, 200 ms, cache from the second round on", store, replace(CONFIG, cache=str(kept)), 0.2))
    found += [Row(f"webdataset's stream, {1000 * delay:.0f} ms", stream, CONFIG, delay) for delay in (0.0, 0.2)]
    return found


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40, help="of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--gigabytes", type=float, default=0.3, help="of shards (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        folder.mkdir()
        write(folder, "uint16", options.gigabytes)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, theirs), daemon=True)
        server.start()
        environment = ours.recv()
        os.environ |= environment
        ways = rows(environment["AWS_ENDPOINT_URL"], folder, Path(scratch) / "kept")
        found = [[measure(row, options.batches, ours) for row in ways] for _ in range(options.rounds)]
        ours.send(None)
        server.join()
    print("| way | samples/s | MB/s | of disk | requests a sample |", "|---|---|---|---|---|", sep="\n")
    base = statistics.median(turn[0].samples_per_s for turn in found)
    for place, row in enumerate(ways):
        rate, size = (statistics.median(turn[place][kind] for turn in found) for kind in (0, 1))
        asked = found[-1][place].requests
        print(f"| {row.name} | {rate:.0f} | {size:.0f} | {rate / base:.3f} | {asked:.3f} |")


if __name__ == "__main__":
    main()
