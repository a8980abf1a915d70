"""Fine-tuning all weights with few labels: what pretraining adds to it.

    python benchmarks/few_labels.py --data ../shared/data --evidence evidence.json --keep runs/evidence --out few_labels.json

The encoders are those of a benchmarks/evidence.py at equal time (same --keep; they are taken as they are,
or trained), and of each variant one with random weights. finetune/scene.py trains each on the same few images of every class,
drawn by the seed, to the last of a fixed number of steps, so that no score chooses, and is scored on the images that the evidence scores.
Intervals hold for 95 in 100 drawings of these and of the seeds.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch import Tensor

from alliance.checkpoint import load_encoder, save_encoder
from benchmarks.evidence import FULL, PLAIN, VARIANTS, Plan, plan_of
from benchmarks.segmentation import call
from benchmarks.yardsticks.chips import SPLIT_SEED, ChipTask
from benchmarks.yardsticks.imagery import SETS, Imagery
from benchmarks.yardsticks.pretraining import CONFIG, make_shards
from benchmarks.yardsticks.scoring import share_right, summarise
from benchmarks.yardsticks.table import interval_text, read_results, write_results
from finetune.probing.command import untrained

UNLEARNT = "untrained "  # before the name of a variant


def encoders_of(plan: Plan, steps: Mapping[str, int], seed: int) -> dict[str, Path]:
    """Of every variant the trained encoder, and one with random weights."""
    found = {}
    for name, count in steps.items():
        found[name] = plan.train(name, count, seed)
        found[f"{UNLEARNT}{name}"] = folder = plan.place / "untrained" / f"{name.replace(' ', '_')}_{seed}"
        if not folder.exists():
            save_encoder(untrained(load_encoder(found[name]), seed), folder)
    return found


def tuned(task: ChipTask, folder: Path, encoder: Path, run: Path, options: argparse.Namespace, seed: int) -> Tensor:
    """Where the network that was trained on a few images is right, 1 or 0 for every scored image, in the order of their names."""
    steps = options.steps
    settings = {
        "run.dir": run, "run.seed": seed, "run.steps": steps, "run.save_every": steps, "run.log_every": steps,
        "run.picture_every": "null", "run.page": "false", "evaluate_every": steps, "checkpoint": encoder,
        "data.path": folder.resolve(), "data.image.sensor": task.sensor, "data.image.statistics": "dataset",
        "data.split": "[0.5,0.0,0.5]", "data.split_seed": SPLIT_SEED, "data.per_class": options.labels, "data.size": task.size,
        "data.workers": 0, "model.readout": "groups", "model.encoder.mode": "full", "model.encoder.layer_decay": 0.75,
        "optim.batch": 32, "optim.lr": options.rate, "optim.warmup": 0.1,
    }  # fmt: skip
    if not (run / "predictions.csv").exists():
        call("finetune/scene.py", *(text for key, each in settings.items() for text in (f"--{key}", each)))
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    return torch.tensor([row["label"] == row["truth"] for row in rows], dtype=torch.float64)


def compare(imagery: Imagery, options: argparse.Namespace, evidence: Mapping[str, int]) -> dict[str, dict]:
    """Fine-tune every encoder on one set: its record, by row.

    Args:
        evidence: steps of pretraining, by variant.
    """
    (task,) = imagery.tasks
    assert isinstance(task, ChipTask), "a set of whole images"
    plan = plan_of(imagery, options.data, options.keep)
    make_shards(plan.images, plan.place)
    found: dict[str, list[Tensor]] = {}
    for seed in options.seeds:
        for row, encoder in encoders_of(plan, evidence, seed).items():
            told = (evidence[row.removeprefix(UNLEARNT)], options.labels, options.steps, options.rate, seed)
            run = plan.place / "tuned" / "_".join([row.replace(" ", "_"), *map(str, told)])
            outcome = tuned(task, plan.folder, encoder, run, options, seed)
            found.setdefault(row, []).append(outcome)
            print(f"{imagery.name}, seed {seed}, {row}: {outcome.mean():.1%}", file=sys.stderr, flush=True)
    return summarise(found, share_right, list(found))


def table(results: Mapping[str, dict]) -> str:
    """A line per set and row: score, and what it is above the plain autoencoder's and above the same with random weights."""
    lines = [
        "| set, labels a class, rate | row | score | above baseline | above its untrained self |",
        "|---|---|---|---|---|",
    ]
    for title, each in results.items():
        for row, found in each["rows"].items():
            gains = [interval_text(found.get(f"above {other}"), "+") for other in (PLAIN, f"{UNLEARNT}{row}")]
            lines.append("| " + " | ".join([title, row, interval_text(found["score"]), *gains]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Fine-tune what the options name, and print the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    results = read_results(options.out)
    evidence = json.loads(options.evidence.read_text())
    for imagery in SETS:
        if imagery.name in options.sets:
            known = evidence.get(f"{imagery.name}, {CONFIG.stem}, equal time", {}).get("steps", {})
            if lacking := [name for name in options.variants if name not in known]:
                raise SystemExit(
                    f"{options.evidence} has no {lacking[0]} of {imagery.name} at equal time; run benchmarks/evidence.py with it"
                )
            steps = {name: known[name] for name in options.variants}
            told = {"labels": options.labels, "steps": options.steps, "rate": options.rate, "seeds": options.seeds}
            told |= {"pretraining": steps}
            key = f"{imagery.name}, {options.labels}, {options.rate}"
            results[key] = told | {"rows": compare(imagery, options, steps)}
            write_results(options.out, results)
    print(table(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = [each.name for each in SETS if len(each.tasks) == 1 and isinstance(each.tasks[0], ChipTask)]
    add("--data", type=Path, required=True, help="folder of the sets")
    add("--evidence", type=Path, required=True, metavar="FILE.json", help="results of benchmarks/evidence.py on them")
    add("--keep", type=Path, required=True, metavar="DIR", help="folder of its runs, and for those of this")
    add("--out", type=Path, required=True, metavar="FILE.json", help="results")
    add("--sets", nargs="+", choices=names, default=["eurosat_rgb"], help="default %(default)s")
    add("--variants", nargs="+", choices=VARIANTS, default=[FULL, PLAIN], help="default %(default)s")
    add("--labels", type=int, default=10, help="images of every class that are learnt from (default %(default)s)")
    add("--steps", type=int, default=200, help="of fine-tuning (default %(default)s)")
    add("--rate", type=float, default=1e-3, help="of learning (default %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
    return parser


if __name__ == "__main__":
    main()
