"""Growth of a run's resident memory:  python benchmarks/memory.py --steps 3000

Pretrains a very small network on synthetic shards, one process, and reads its resident memory while it runs. Printed are the
memory every 250 steps and the slope after step 500 in kB a step (least squares), with its 95 % interval by a bootstrap over
blocks of 250 steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[1]
WARM = 500  # steps before the slope is taken
BLOCK = 250  # steps
TINY = (
    '--model.encoder={"embed_dim": 32, "depth": 2, "heads": 2, "patch": 8}',
    '--model.decoder={"embed_dim": 32, "depth": 3, "heads": 2}', "--optim.batch=2", "--data.crop=32",
    "--run.log_every=1", "--run.picture_every=1000000",
)  # fmt: skip

NANO = ("--config=configs/pretrain/nano.yaml",)


def resident(process: int) -> int:
    """Of a process, bytes."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def steps_done(metrics: Path) -> int:
    """Steps that a run has written of, by its last whole line."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().splitlines()
    steps = []
    for line in lines[1:]:
        try:
            steps.append(int(json.loads(line).get("step", 0)))
        except ValueError:
            continue
    return max(steps, default=0)


def watch(command: list[str], run: Path) -> np.ndarray:
    """Steps and resident bytes of a command, two a second: (n, 2)."""
    seen = []
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            step = steps_done(run / "metrics.jsonl")
            if step:
                seen.append((step, resident(process.pid)))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {' '.join(command)}")
    return np.array(seen, dtype=np.float64)


def slope(seen: np.ndarray) -> float:
    """Bytes a step."""
    return float(np.polyfit(seen[:, 0], seen[:, 1], 1)[0])


def main() -> None:
    """Run, and print what is said above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--nano", action="store_true", help="configs/pretrain/nano.yaml with its pictures and checkpoints"
    )
    parser.add_argument("settings", nargs="*", help="further settings of launch/pretrain.py")
    options, more = parser.parse_known_args()
    python = [sys.executable, "-P"]
    with tempfile.TemporaryDirectory() as scratch:
        scenes, shards, run = (Path(scratch, name) for name in ("scenes", "shards", "run"))
        quiet = {"cwd": HERE, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [*python, "launch/synthetic.py", "scenes", str(scenes), "--scenes", "2", "--size", "128"], **quiet
        )
        subprocess.run([*python, "launch/shards.py", str(scenes / "optical"), "--out", str(shards), "--tile", "64" if options.nano else "32",
                        "--workers", "1", "--sensor", "synthetic-optical"], **quiet)  # fmt: skip
        sources = json.dumps([{"shards": str(shards)}])
        seen = watch([*python, "launch/pretrain.py", *(NANO if options.nano else TINY), f"--run.dir={run}", f"--run.steps={options.steps}",
                      f"--data.sources={sources}", *options.settings, *more], run)  # fmt: skip
    for first in range(0, options.steps, BLOCK):
        block = seen[(seen[:, 0] >= first) & (seen[:, 0] < first + BLOCK)]
        if len(block):
            print(f"step {first + BLOCK:6d}: {np.median(block[:, 1]) / 1e6:8.2f} MB")
    late = seen[(seen[:, 0] > WARM) & (seen[:, 0] < options.steps - BLOCK // 10)]  # at the end all is given back
    generator, blocks = np.random.default_rng(0), (late[:, 0] // BLOCK).astype(int)
    names = np.unique(blocks)
    drawn = [np.concatenate([late[blocks == one] for one in generator.choice(names, len(names))]) for _ in range(1000)]
    low, high = np.percentile([slope(one) for one in drawn if len(np.unique(one[:, 0])) > 2], [2.5, 97.5]) / 1e3
    print(f"slope after step {WARM}: {slope(late) / 1e3:.2f} kB a step ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
