"""What a rank pays at the size of a real run: a billion samples as an index, a million samples on disk.

    python benchmarks/scale.py                 # 10^9 samples in 10^5 shards, as ranks of 4,096 with 8 workers see them
    python benchmarks/scale.py --million       # 10^6 samples really on disk (1 GB): the first batch, and what is read for it

The billion has an index and no tars: what is measured is how ranks open it and find out which samples are theirs.
Every rank, and every first batch from disk, is measured in a process of its own, after its imports.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import numpy as np
import torch

from alliance.sensors.catalog import generated_sensor
from datasets.sampling.moments import FIGURES, Moments
from datasets.sampling.order import Places, SampleOrder
from datasets.shards.index import NAME, Index, Shard, Sidecar, collect
from datasets.shards.index import Places as Lying
from datasets.shards.loader import LoaderConfig, ShardLoader, SourceConfig
from datasets.shards.scan import scan

WORLD, WORKERS, MICRO = 4096, 8, 8  # ranks, workers per rank, samples per rank and step
BATCH = WORLD * MICRO
EPOCHS = 7.9  # where a run is resumed: 90 % of epoch 7, counted from 0
SENSOR = generated_sensor("tiny", 1)
SHAPE: tuple[int, int, int] = (1, 8, 8)
BLOCK, DATA, PIXELS = 1024, 640, 64  # bytes of a sample in its tar, where its pixels begin, how many they are
TAIL = 1024  # zeros at the end of a tar
READ = 32  # samples in the first batch from disk


def write_index(folder: Path, samples: int, shards: int) -> Path:
    """An index of shards of several sizes; there are no tars."""
    folder.mkdir()
    counts = np.diff(np.sort(np.concatenate([[0, samples], np.arange(1, shards) * samples // shards + 1])))
    names = [f"shard-{number:06d}.tar" for number in range(shards)]
    entries = [
        Shard(name, count, count * BLOCK, hashlib.sha256(name.encode()).hexdigest())
        for name, count in zip(names, counts.tolist(), strict=True)
    ]
    sensors, shapes = {SENSOR.name: SENSOR}, {SENSOR.name: SHAPE}
    figures = {SENSOR.name: {figure: [float(figure == "count")] for figure in FIGURES}}  # one number 0 was measured
    Index(sensors=sensors, shapes=shapes, shards=tuple(entries), statistics=figures).write(folder)
    return folder


def rank_order(index: Index) -> SampleOrder:
    return SampleOrder([shard.samples for shard in index.shards], seed=0)


def assigned(order: SampleOrder, rank: int, step: int) -> Places:
    """The samples of a rank in a step, by the rule in ShardLoader's docstring."""
    return order.locate(step * BATCH + rank * MICRO + np.arange(MICRO))


def steps_of(samples: int) -> dict[str, int]:
    """Steps at the beginning, at the end of epoch 0 (its batch reaches into epoch 1), after it, and at the resume."""
    change = samples // BATCH
    return {"begin": 0, "last": change, "change": change + 1, "resume": int(EPOCHS * samples) // BATCH}


def peak() -> float:
    """This process's highest memory, MB; ru_maxrss would count that of the process which started it, too."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "/proc/self/status has no VmHWM"
    return int(found[1]) * 1024 / 1e6


def probe_rank(folder: Path, rank: int, worker: int) -> dict[str, float]:
    """Seconds until a worker knows its first samples, and the memory of a rank; its workers take steps in turn."""
    before, marks = peak(), [time.perf_counter()]
    index = Index.read(folder)
    marks.append(time.perf_counter())
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=MICRO), rank=rank, world=WORLD)
    marks.append(time.perf_counter())
    steps = steps_of(index.samples)
    order = rank_order(index)
    assigned(order, rank, steps["begin"] + worker)
    marks.append(time.perf_counter())
    assigned(order, rank, steps["change"] + worker)
    marks.append(time.perf_counter())
    assigned(rank_order(index), rank, steps["resume"] + worker)
    marks.append(time.perf_counter())
    assert loader.batch == BATCH
    seconds = dict(zip(("read", "open", "begin", "change", "resume"), np.diff(marks).tolist(), strict=True))
    return seconds | {"peak": peak() - before}


def probe_memory(folder: Path, rank: int, worker: int) -> dict[str, float]:
    """What stays allocated, MB: by the index, and by a worker's order after an epoch change."""
    tracemalloc.start()
    index = Index.read(folder)
    kept = [0, tracemalloc.get_traced_memory()[0]]
    order, steps = rank_order(index), steps_of(index.samples)
    tracemalloc.reset_peak()
    for step in (steps["begin"], steps["last"], steps["change"]):
        assigned(order, rank, step + worker)
    now, highest = tracemalloc.get_traced_memory()
    return {"index": kept[1] / 1e6, "order": (now - kept[1]) / 1e6, "sorting": (highest - kept[1]) / 1e6}


def probe_state(folder: Path) -> str:
    """What a checkpoint holds of the reader, at the place of the resume."""
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=MICRO), world=WORLD)
    step = steps_of(loader.sources[0].samples)["resume"]
    loader.load_state_dict({"step": step, "consumed": [step * BATCH]})
    return json.dumps(loader.state_dict())


def probe_first_batch(folder: Path, share: float) -> dict[str, float]:
    """Seconds and bytes until the first batch of a run that goes on at this share of an epoch."""
    began, before = time.perf_counter(), bytes_read()
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=READ, flips=False))
    opened, then = time.perf_counter(), bytes_read()
    step = int(share * loader.sources[0].samples) // READ
    loader.load_state_dict({"step": step, "consumed": [step * READ]})
    batch = next(iter(loader))
    seconds, read = time.perf_counter() - opened, bytes_read() - then
    index = loader.sources[0].index
    places = rank_order(index).locate(step * READ + np.arange(READ))
    assert batch.keys == [key_of(shard, sample) for shard, sample in zip(*places, strict=True)] and not batch.faults
    touched = {(folder / index.shards[shard].name).with_suffix(".npz") for shard in places.shard.tolist()}
    sidecars = sum(path.stat().st_size for path in touched)
    return {"open": opened - began, "seconds": seconds, "opening": then - before, "read": read, "sidecars": sidecars}


def bytes_read() -> int:
    """What this process has asked the system for, whether it came from the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def key_of(shard: int, sample: int) -> str:
    return f"{shard:03d}-{sample:06d}"


def write_tiny(folder: Path, samples: int, shards: int) -> Path:
    """Real shards of tiny samples, with their sidecars and index."""
    folder.mkdir()
    sensors, shapes = {SENSOR.name: SENSOR}, {SENSOR.name: SHAPE}
    random = np.random.default_rng(0)
    tars = [folder / f"shard-{number:05d}.tar" for number in range(shards)]
    for number, tar in enumerate(tars):
        write_shard(tar, number, random.integers(0, 256, (samples // shards, PIXELS), dtype=np.uint8))
    ours, known = Sidecar.load(tars[0].with_suffix(".npz")), scan(tars[0], sensors, shapes)
    assert ours.sha256 == known.sha256 and ours.keys.tolist() == known.keys.tolist()
    assert all((a == b).all() for a, b in zip(ours.places[SENSOR.name], known.places[SENSOR.name], strict=True))
    collect(tars, sensors, shapes).write(folder)
    return folder


def write_shard(tar: Path, number: int, images: np.ndarray) -> None:
    """A tar and its sidecar, all samples at once: a header block, and a block with the array."""
    keys = [key_of(number, sample) for sample in range(len(images))]
    buffer = io.BytesIO()
    np.save(buffer, images[0].reshape(SHAPE))
    blocks = np.zeros((len(images), BLOCK), dtype=np.uint8)
    for block, key in zip(blocks, keys, strict=True):
        info = tarfile.TarInfo(f"{key}.{SENSOR.name}.npy")
        info.size = len(buffer.getvalue())
        block[: BLOCK // 2] = np.frombuffer(info.tobuf(tarfile.GNU_FORMAT), np.uint8)
    blocks[:, BLOCK // 2 : DATA] = np.frombuffer(buffer.getvalue()[:-PIXELS], np.uint8)
    blocks[:, DATA : DATA + PIXELS] = images
    content = blocks.tobytes() + bytes(TAIL)
    tar.write_bytes(content)
    offset = np.arange(len(images)) * BLOCK + DATA
    crc32 = np.array([zlib.crc32(image) for image in images], dtype=np.uint32)
    Sidecar(
        keys=np.array([key.encode() for key in keys]),
        places={SENSOR.name: Lying(offset, np.full(len(images), b"|u1"), crc32)},
        moments={SENSOR.name: Moments.of(torch.from_numpy(images.reshape(1, -1, SHAPE[-1])))},
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    ).save(tar.with_suffix(".npz"))


def check_global_batch(order: SampleOrder, step: int) -> None:
    """All ranks together read every place of the step's batch once, and within an epoch no sample twice."""
    located = [assigned(order, rank, step) for rank in range(WORLD)]
    shard, sample = (np.concatenate(parts) for parts in zip(*located, strict=True))
    epoch = (step * BATCH + np.arange(BATCH)) // order.samples
    apart = np.unique(np.stack([epoch, shard, sample]), axis=1).shape[1]
    assert apart == BATCH, f"step {step}: {BATCH - apart} samples are read twice"
    whole = order.locate(step * BATCH + np.arange(BATCH))
    assert (whole.shard == shard).all() and (whole.sample == sample).all()


def probe(name: str, folder: Path, **arguments: float) -> Any:
    """The answer of a probe in a fresh process."""
    task = json.dumps([name, str(folder), arguments])
    done = subprocess.run([sys.executable, __file__, "--probe", task], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def answer(task: str) -> None:
    name, folder, arguments = json.loads(task)
    probes = {"rank": probe_rank, "memory": probe_memory, "state": probe_state, "first_batch": probe_first_batch}
    print(json.dumps(probes[name](Path(folder), **arguments)))


def span(values: list[float], factor: float = 1.0, unit: str = "s") -> str:
    """Least to greatest."""
    return f"{factor * min(values):.3g} to {factor * max(values):.3g} {unit}"


def print_billion(root: Path, samples: int, shards: int) -> None:
    folder = write_index(root / "index", samples, shards)
    places = [(rank, worker) for rank in (0, WORLD // 3, WORLD - 1) for worker in (0, WORKERS - 1)]
    ranks = [probe("rank", folder, rank=rank, worker=worker) for rank, worker in places]
    memory = probe("memory", folder, rank=WORLD - 1, worker=WORKERS - 1)
    fewer = [(10**3, 10), (10**6, 100)]
    folders = [write_index(root / str(count), count, parts) for count, parts in fewer] + [folder]
    states = [probe("state", path) for path in folders]
    assert len({re.sub(r"\d+", "0", state) for state in states}) == 1, states
    order = rank_order(Index.read(folder))
    for step in steps_of(samples).values():
        check_global_batch(order, step)
    of = {name: [rank[name] for rank in ranks] for name in ranks[0]}
    rows = {
        f"index of {samples:,} samples in {shards:,} shards": f"{(folder / NAME).stat().st_size / 1e6:.1f} MB",
        "reading it": span(of["read"]),
        "opening a ShardLoader, which reads it": span(of["open"]),
        "order made, first batch assigned": span(of["begin"], 1000, "ms"),
        "first batch after an epoch change assigned": span(of["change"], 1000, "ms"),
        "order made, first batch at 90 % of epoch 7 assigned": span(of["resume"], 1000, "ms"),
        "kept in memory: index / order": f"{memory['index']:.1f} / {memory['order']:.1f} MB",
        "at most while the order is made": f"{memory['sorting']:.1f} MB",
        "highest memory of the process, above its imports": span(of["peak"], 1, "MB"),
        f"saved state at 10^3 / 10^6 / {samples:,} samples": " / ".join(str(len(state)) for state in states) + " bytes",
        f"samples read twice by {WORLD:,} ranks, in {len(steps_of(samples))} steps": "0",
    }
    print(f"| ranks and workers {', '.join(f'{r}.{w}' for r, w in places)} of {WORLD:,} x {WORKERS} | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))
    print(
        f"\nBound: the JSON of {shards:,} shards at the start; then sorting one group of 16 shards; never the samples."
    )


def print_million(root: Path, samples: int, shards: int) -> None:
    folder = write_tiny(root / "tiny", samples, shards)
    epoch = sum(path.stat().st_size for path in folder.glob("*.tar"))
    print(
        "| first batch at | opening s | first batch s | opening read, kB | first batch read, MB | of the epoch's bytes |"
    )
    print("|---|---|---|---|---|---|")
    for share in (0.0, 0.9):
        figures = [probe("first_batch", folder, share=share) for _ in range(3)]
        best = min(figures, key=lambda one: one["seconds"])
        assert best["read"] < 1.1 * best["sidecars"] + 1e5, f"more was read than sidecars and a batch: {best}"
        read = f"{best['opening'] / 1e3:.0f} | {best['read'] / 1e6:.2f} | {best['read'] / epoch:.2%}"
        print(f"| {share:.0%} of an epoch | {best['open']:.3f} | {best['seconds']:.3f} | {read} |")
    print(
        f"\nBound: the sidecars of the (up to) 16 shards in a group; of the {epoch / 1e6:.0f} MB of an epoch "
        f"nothing before that point is read."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--samples", type=int, help="default: 10^9, with --million 10^6")
    parser.add_argument("--shards", type=int, help="default: 10^5, with --million 100")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        answer(options.probe)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        show = print_million if options.million else print_billion
        samples, shards = (10**6, 100) if options.million else (10**9, 10**5)
        show(Path(temporary), options.samples or samples, options.shards or shards)


if __name__ == "__main__":
    main()
