"""Does the frequency machinery help, and does pretraining?

    python benchmarks/evidence.py --data ../shared/data --out evidence.json --keep runs/evidence

Variants of the nano model learn from the same images without labels, each for as many steps (--equal steps) or for as long as
the plain masked autoencoder (--equal time: what a step of each costs is measured first, in turns, in one process). Linear
probes of their features are scored on images that none has seen, beside raw statistics and the untrained default. Every seed
is another pretraining and another draw of labels, the same for all rows. Intervals hold for 95 in 100 drawings of the scored
images, of the mean over the seeds; what each seed gave stands in the file. The same command goes on where an earlier one
stopped, and one with more --variants or --seeds trains these alone.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from alliance.checkpoint import load_encoder
from alliance.model import Alliance
from alliance.sensors import Sensor
from alliance.tokens import mask_noise
from benchmarks.step import Competitor, step_seconds
from benchmarks.yardsticks.imagery import SETS, Imagery
from benchmarks.yardsticks.pretraining import BATCH, CONFIG, Images, pretrain_steps
from benchmarks.yardsticks.scoring import RAW, UNTRAINED, Answers
from benchmarks.yardsticks.table import interval_text, read_results, write_results
from engine.settings import parse_settings
from finetune.probing.command import untrained
from pretrain.config import PretrainConfig

FULL, PLAIN = "alliance", "baseline"
PIXELS_ALONE, ONE_STAGE = ["--model.encoder.amplitude", "false"], ["--model.decoder.stages", "1"]
PLAIN_ATTENTION, PLAIN_TOKENS = ["--model.decoder.attention", "plain"], ["--model.encoder.tokens", "plain"]
NORMALISED, THREE = ["--model.loss.normalise", "patch_group"], ["--model.decoder.depth", "3"]
ASKED = ["--model.loss.summary", "0.1"]
VARIANTS: Mapping[str, Sequence[str]] = {  # settings of launch/pretrain.py beside those of nano
    FULL: [],
    PLAIN: [*PLAIN_TOKENS, *PIXELS_ALONE, *ONE_STAGE, *PLAIN_ATTENTION],
    "baseline + amplitude": [*PLAIN_TOKENS, *ONE_STAGE, *PLAIN_ATTENTION],
    "without amplitude": PIXELS_ALONE,
    "without stages": ONE_STAGE,
    "without fusion attention": PLAIN_ATTENTION,
    "without frequency tokens": PLAIN_TOKENS,
    "three blocks in the decoder": THREE,
    "targets normalised by patch": NORMALISED,
    "mask ratio 0.6": ["--model.masking.ratio", "0.6"],
    "summary tokens asked": ASKED,
    "baseline, targets normalised by patch": [*PLAIN_TOKENS, *PIXELS_ALONE, *ONE_STAGE, *PLAIN_ATTENTION, *NORMALISED],
    "three blocks, targets normalised": [*THREE, *NORMALISED],
    "three blocks, targets normalised, summary asked": [*THREE, *NORMALISED, *ASKED],
}
ROUNDS = 7  # of steps, by which the cost of one is told


def step_costs(images: Images, names: Sequence[str]) -> dict[str, float]:
    """What a step of each variant takes in units of the baseline's, on the set's first sensor: medians of steps in turns."""
    sensor = next(iter(images.sensors.values()))
    known = sensor.with_statistics([0.0] * len(sensor.bands), [1.0] * len(sensor.bands))
    side = min(images.tile, 64) // images.patch * images.patch
    image = torch.randn(BATCH, len(sensor.bands), side, side)
    models = {name: _model(VARIANTS[name], known, images.patch) for name in dict.fromkeys([PLAIN, *names])}
    noise = mask_noise(0, 0, range(BATCH), len(known.group_indices) * (side // images.patch) ** 2)
    taken: dict[str, list[float]] = {name: [] for name in models}
    optimisers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    for turn in range(ROUNDS + 1):
        for name, model in models.items():
            rival = Competitor(model, lambda model=model: model(image, known, noise, 0.5).total, 0)
            seconds = step_seconds(rival, optimisers[name], torch.autocast("cpu", enabled=False))
            if turn:  # the first warms up
                taken[name].append(seconds)
    base = statistics.median(taken[PLAIN])
    return {name: statistics.median(each) / base for name, each in taken.items()}


def _model(settings: Sequence[str], sensor: Sensor, patch: int) -> Alliance:
    given = ["--config", str(CONFIG), "--run.dir", "none", "--data.sources", '[{"shards": "none"}]']
    config = parse_settings(PretrainConfig, None, [*given, "--model.encoder.patch", str(patch), *settings])
    return Alliance(config.model, [sensor])


def score(
    imagery: Imagery, images: Images, folder: Path, place: Path, options: argparse.Namespace, steps: Mapping[str, int]
) -> list[Answers]:
    """What every variant's features say of the tasks of a set, over all seeds.

    Args:
        folder: of the set.
        place: for its shards and runs.
        steps: of each variant.
    """
    merged: dict[str, Answers] = {}
    for seed in options.seeds:
        encoders = {}
        for name, count in steps.items():
            run = f"{name.replace(' ', '_')}_{count}_{seed}"
            found = pretrain_steps(images, count, place, run, [*VARIANTS[name], "--run.seed", str(seed)])
            encoders[name] = load_encoder(found)
        encoders[UNTRAINED] = untrained(next(iter(encoders.values())), seed)
        sensors = next(iter(encoders.values())).sensors
        for task in imagery.tasks:
            for each in task.answers(folder, encoders, sensors, [seed]):
                earlier = merged.get(each.task)
                rows = {row: [*(earlier.rows[row] if earlier else []), *own] for row, own in each.rows.items()}
                merged[each.task] = each._replace(rows=rows)
    return list(merged.values())


def table(results: Mapping[str, dict]) -> str:
    """A line per task and row: score, and what it is above the baseline, the untrained default and raw statistics."""
    lines = [
        "| task | row | steps | score | above baseline | above untrained | above raw |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results.values():
        for task in each["tasks"]:
            for row, found in task["rows"].items():
                gains = [interval_text(found.get(f"above {other}"), "+") for other in (PLAIN, UNTRAINED, RAW)]
                cells = [
                    f"{task['task']} ({task['measure']})",
                    row,
                    str(each["steps"].get(row, "-")),
                    interval_text(found["score"]),
                ]
                lines.append("| " + " | ".join([*cells, *gains]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train and score what the options name, and print the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    results = read_results(options.out)
    for imagery in SETS:
        folder, place = options.data / imagery.name, (options.keep / imagery.name).resolve()
        if imagery.name not in options.sets or not folder.is_dir():
            continue
        files = imagery.unlabelled(folder, place / "cut")
        images = Images(files, {name: imagery.sensor(name) for name in files}, imagery.tile, imagery.patch)
        costs = step_costs(images, options.variants) if options.equal == "time" else {}
        steps = {name: round(options.steps / costs.get(name, 1.0)) for name in options.variants}
        found = score(imagery, images, folder, place, options, steps)
        results[f"{imagery.name}, equal {options.equal}"] = {
            "steps": steps,
            "costs": {name: round(cost, 3) for name, cost in costs.items()},
            "seeds": options.seeds,
            "tasks": [each.record((PLAIN, UNTRAINED, RAW)) for each in found],
        }
        write_results(options.out, results)
        print(table({imagery.name: results[f"{imagery.name}, equal {options.equal}"]}), file=sys.stderr, flush=True)
    print(table(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, names = parser.add_argument, [each.name for each in SETS]
    add("--data", type=Path, required=True, help="folder of the sets")
    add("--out", type=Path, required=True, metavar="FILE.json", help="results")
    add("--keep", type=Path, required=True, metavar="DIR", help="folder for shards and runs, which are gone on with")
    add("--sets", nargs="+", choices=names, default=["eurosat_rgb", "resisc12"], help="default %(default)s")
    add("--variants", nargs="+", choices=VARIANTS, default=[FULL, PLAIN], help="default %(default)s")
    add("--steps", type=int, default=2000, help="of the baseline (default %(default)s)")
    add(
        "--equal",
        choices=("time", "steps"),
        default="time",
        help="what the variants have in common (default %(default)s)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
    return parser


if __name__ == "__main__":
    main()
