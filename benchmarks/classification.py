"""What the parts of S2Fin do on few labels:  python benchmarks/classification.py --path ../shared/data/houston2013_patches

Rows are overlays of configs/finetune/ablations/s2fin behind configs/finetune/classify_houston2013_patches.yaml, on the splits by
block that lie beside the patches. Every row trains one network per seed; `full` is the setting as it is. Cross-entropy is that of
the test pixels, its difference to the first row paired by seed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path[: not sys.flags.safe_path] = [str(ROOT)]

from benchmarks.segmentation import call, spread  # noqa: E402
from datasets.labelled import PatchSet, make_split  # noqa: E402
from engine.probing import evaluating  # noqa: E402
from engine.settings import parse_settings  # noqa: E402
from finetune.s2fin.checkpoint import load_network  # noqa: E402
from finetune.tasks.classification_config import ClassifyConfig  # noqa: E402
from finetune.tasks.classification_seeds import open_data  # noqa: E402

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
    parser.add_argument("--jobs", type=int, help="seeds at once (default: one per core)")
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {row: train(options.keep or Path(scratch), row, options) for row in options.rows}
    columns = (*SCORES, "cross-entropy", "parameters", "OA paired", "entropy paired")
    print(f"{'percent, seeds ' + options.seeds:24}" + "".join(f"{name:>16}" for name in columns))
    first = found[options.rows[0]]
    for row, record in found.items():
        cells = [spread(values(record, name)) for name in SCORES]
        cells += [spread(record["entropy"], digits=3), f"{record['parameters']:,}"]
        cells += [spread(paired(values(record, "oa"), values(first, "oa")))]
        cells += [spread(paired(record["entropy"], first["entropy"]), digits=3)]
        print(f"{row:24}" + "".join(f"{cell:>16}" for cell in cells))


def values(record: dict, name: str) -> list[float]:
    return list(record[name]["seeds"].values())


def paired(these: list[float], those: list[float]) -> list[float]:
    return [this - that for this, that in zip(these, those, strict=True)]


def train(folder: Path, row: str, options: argparse.Namespace) -> dict:
    """scores.json of a row, and the cross-entropy of the test pixels by seed as `entropy`."""
    run, overlay = folder / row, [] if row == "full" else ["--config", OVERLAYS / f"{row}.yaml"]
    split = f"{options.path / 'splits_by_block.npz'}:n{options.labels}_seed{{seed}}_"
    arguments = [str(each) for each in (
        "--config", BASE, *overlay, "--run.dir", run, "--data.path", options.path, "--data.split", split, "--seeds", options.seeds,
        "--epochs", options.epochs, "--maps", "none", "--references", "false", *(["--jobs", options.jobs] if options.jobs else []),
    )]  # fmt: skip
    if not (run / "scores.json").exists():
        call("finetune/classify.py", *arguments)
    config = parse_settings(ClassifyConfig, None, arguments)
    patches = open_data(config)
    record = json.loads((run / "scores.json").read_text())
    return record | {"entropy": [entropy(run, patches, config, seed) for seed in config.seed_list]}


def entropy(run: Path, patches: PatchSet, config: ClassifyConfig, seed: int) -> float:
    """Mean cross-entropy of the test pixels of a seed, nats."""
    model = load_network(run / f"seed_{seed}" / "model")
    test = make_split(patches, config.data.protocol, seed, file=config.data.split).test
    total = 0.0
    with evaluating(model):
        for start in range(0, len(test), 256):
            inputs, label = patches.batch(test[start : start + 256])
            total += functional.cross_entropy(model(*inputs).logits, torch.as_tensor(label), reduction="sum").item()
    return total / len(test)


if __name__ == "__main__":
    main()
