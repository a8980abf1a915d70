"""Time of a training step beside that of another clone of this repository, and whether both compute the same losses.

    git worktree add ../older COMMIT
    python benchmarks/step_against.py --against ../older --size nano small --rounds 15

A process of each clone builds the model from one seed and takes steps (forward, backward, update) on the same images in
turn, so that a slow moment of the machine meets both. Told: the median of the ratios of neighbouring steps with its quartiles,
and the largest relative difference of the losses of the first steps, after which rounding makes two runs drift apart.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
FIRST = 3  # steps whose losses are compared
CROP = 64  # pixels


def work(options: argparse.Namespace) -> None:
    """Take a step for every line of stdin; its seconds and its loss go to stdout."""
    sys.path[0] = str(options.worker)
    import torch

    from alliance.model import create_model
    from alliance.sensors import Band, Sensor
    from alliance.tokens import mask_noise

    torch.set_num_threads(options.threads)
    bands = tuple(Band(name=f"b{i}", wavelength=450.0 + 150 * i, bandwidth=30.0, mean=0.0, std=1.0) for i in range(10))
    names = [band.name for band in bands]
    sensor = Sensor(name="ten-bands", bands=bands, groups=(tuple(names[:4]), tuple(names[4:8]), tuple(names[8:])))
    torch.manual_seed(0)
    model = create_model(f"alliance_{options.size[0]}_patch8", [sensor])
    if options.compile:
        model.compile(dynamic=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(4, options.batch, 10, CROP, CROP, generator=torch.Generator().manual_seed(1))
    for step, _ in enumerate(sys.stdin):
        noise = mask_noise(0, step, range(options.batch), 3 * (CROP // 8) ** 2)
        began = time.perf_counter()
        loss = model(images[step % len(images)], sensor, noise, 0.5).total
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        print(json.dumps([time.perf_counter() - began, loss.item()]), flush=True)


@contextmanager
def worker(clone: Path, size: str, options: argparse.Namespace) -> Iterator[Any]:
    """A process that takes steps of a clone; calling what it gives takes one: seconds and loss."""
    settings = ["--size", size, "--batch", str(options.batch), "--threads", str(options.threads)]
    command = [sys.executable, __file__, "--worker", str(clone), *settings, *["--compile"] * options.compile]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=clone) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, taken = process.stdin, process.stdout

        def step() -> list[float]:
            print("step", file=given, flush=True)
            return json.loads(taken.readline())

        yield step
        given.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another clone, such as a worktree of an older commit")
    parser.add_argument("--size", nargs="+", default=["nano", "small"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    clones = [HERE, *([options.against.resolve()] if options.against else [])]
    for size in options.size:
        with ExitStack() as stack:
            steps = [stack.enter_context(worker(clone, size, options)) for clone in clones]
            rounds = [[step() for step in steps] for _ in range(FIRST + options.rounds)]
        times = [[one[0] for one in turn] for turn in rounds[FIRST:]]
        print(f"{size}: {1000 * statistics.median(turn[0] for turn in times):.1f} ms/step", end="")
        if options.against:
            ratios = [turn[0] / turn[1] for turn in times]
            low, middle, high = statistics.quantiles(ratios, n=4)
            apart = max(abs(here[1] - other[1]) / abs(other[1]) for here, other in rounds[:FIRST])
            print(f", {middle:.3f} ({low:.3f} to {high:.3f}) of the other, losses differ by {apart:.1e}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
