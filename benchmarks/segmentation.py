"""What PAD gains by both modalities, and what its parts do, on synthetic scenes:  python benchmarks/segmentation.py

Scenes in the layout of WHU-OPT-SAR are drawn, prepared and trained on by the commands that users have. Every class has one
of three colours and one of three backscatters, so that neither modality tells all seven apart. NOTHING HERE IS MEASURED ON
REAL IMAGES: it shows that the parts work, not which of them help on the Earth.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[: not sys.flags.safe_path] = [str(ROOT)]

from datasets.synthetic.pair_trees import write_whu  # noqa: E402

BASE = ROOT / "configs/finetune/segment_whu_opt_sar.yaml"
OVERLAYS = ROOT / "configs/finetune/ablations/pad"
SMALL = {"augment.crop": 64, "model.size": "atto", "model.drop_path": 0.0, "optim.batch": 8, "optim.lr": 1e-3,
         "data.workers": 1, "run.picture_every": 0, "run.log_every": 50}  # fmt: skip
SCORES = ("miou", "oa", "mf1", "mkappa")


def main() -> None:
    """Train, read the scores, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", nargs="+", default=["iv_full", "rgb_only", "sar_only"],
                        help="overlays of configs/finetune/ablations/pad; all: every one")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="folder for data and runs (default: a temporary one)")
    options = parser.parse_args()
    rows = sorted(path.stem for path in OVERLAYS.glob("*.yaml")) if options.rows == ["all"] else options.rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        found = {row: [train(folder, row, seed, options.steps) for seed in options.seeds] for row in rows}
    print(f"{'percent, ' + str(len(options.seeds)) + ' seeds':26}" + "".join(f"{name:>16}" for name in SCORES))
    for row, scores in found.items():
        print(f"{row:26}" + "".join(f"{spread([score[name] for score in scores]):>16}" for name in SCORES))


def train(folder: Path, row: str, seed: int, steps: int) -> dict[str, float]:
    """Scores of the network after the last step; data of every seed are other ones."""
    raw, tiles, run = (folder / f"{name}_{seed}" for name in ("raw", "tiles", row))
    if not raw.exists():
        write_whu(raw, height=320, width=448, seed=seed)
        call("launch/prepare.py", "whu-opt-sar", raw, tiles, "--tile", 64, "--constants", "released")
    settings = SMALL | {"run.dir": run, "run.seed": seed, "run.steps": steps, "run.save_every": steps,
                        "evaluate_every": steps, "data.set": tiles / "pairs.yaml"}  # fmt: skip
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
    if not (run / "scores.json").exists():
        call("finetune/segment.py", "--config", BASE, "--config", OVERLAYS / f"{row}.yaml", *flags)
    scores = json.loads((run / "scores.json").read_text())["last"]
    print(f"{row}, seed {seed}: mIoU {scores['miou']}", file=sys.stderr, flush=True)
    return scores


def call(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
