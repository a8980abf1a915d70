"""What the parts of S2Fin do on few labels:  python benchmarks/classification.py --path ../shared/data/houston2013_patches

Rows are overlays of configs/finetune/ablations/s2fin behind configs/finetune/classify_houston2013_patches.yaml, on the splits by
block that lie beside the patches. Every row trains one network per seed; `full` is the setting as it is.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.segmentation import call, spread  # noqa: E402

BASE = ROOT / "configs/finetune/classify_houston2013_patches.yaml"
OVERLAYS = ROOT / "configs/finetune/ablations/s2fin"
SCORES = ("oa", "aa", "kappa")


def main() -> None:
    """Train, read the scores, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--path", type=Path, required=True, help="folder of houston2013_train_pixels.npz, splits_by_block.npz"
    )
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--labels", type=int, default=20, choices=(5, 20), help="per class")
    parser.add_argument("--rows", nargs="+", default=["full", *sorted(path.stem for path in OVERLAYS.glob("*.yaml"))])
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {row: train(options.keep or Path(scratch), row, options) for row in options.rows}
    print(f"{'percent, seeds ' + options.seeds:24}" + "".join(f"{name:>14}" for name in SCORES) + f"{'parameters':>14}")
    for row, record in found.items():
        cells = [spread(list(record[name]["seeds"].values())) for name in SCORES]
        print(f"{row:24}" + "".join(f"{cell:>14}" for cell in cells) + f"{record['parameters']:>14,}")


def train(folder: Path, row: str, options: argparse.Namespace) -> dict:
    """scores.json of a row."""
    run, overlay = folder / row, [] if row == "full" else ["--config", OVERLAYS / f"{row}.yaml"]
    split = f"{options.path / 'splits_by_block.npz'}:n{options.labels}_seed{{seed}}_"
    if not (run / "scores.json").exists():
        call("finetune/classify.py", "--config", BASE, *overlay, "--run.dir", run, "--data.path", options.path, "--data.split", split,
             "--seeds", options.seeds, "--epochs", options.epochs, "--maps", "none", "--references", "false")  # fmt: skip
    return json.loads((run / "scores.json").read_text())


if __name__ == "__main__":
    main()
