"""Does the frequency machinery help, and does pretraining?

    python benchmarks/evidence.py --data ../shared/data --out evidence.json --keep runs/evidence

Variants of a model learn from the same images without labels, each for as many steps (--equal steps) or for as long as
the plain masked autoencoder (--equal time: what a step of each costs is measured first, in turns, in one process; the results
keep it, so that further variants are added at the same costs). Linear probes of their features are scored on images that none
has seen, beside raw statistics and the untrained model. Every seed is another pretraining with draws of labels of its own,
the same for all rows. Intervals hold for 95 in 100 drawings of the scored images and of the seeds; what each seed gave stands in the
file. The same command goes on where an earlier one stopped, and one with more --variants or --seeds trains these
alone. Settings of launch/pretrain.py behind -- hold for all variants:

    python benchmarks/evidence.py ... --config configs/pretrain/tiny.yaml --jobs 6 -- --optim.batch 256 --engine.compile true
"""

import argparse
import hashlib
import multiprocessing
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch

from alliance.checkpoint import load_encoder
from alliance.model import Alliance
from alliance.sensors import Sensor
from alliance.tokens import mask_noise
from benchmarks.step import Competitor, step_seconds
from benchmarks.yardsticks.imagery import SETS, Imagery
from benchmarks.yardsticks.pretraining import CONFIG, Images, make_shards, pretrain_steps, settings_of
from benchmarks.yardsticks.scoring import RAW, UNTRAINED, Answers
from benchmarks.yardsticks.table import interval_text, read_results, write_results
from engine.build import COMPILE
from engine.settings import parse_settings
from finetune.probing.command import untrained
from pretrain.config import PretrainConfig

FULL, PLAIN = "alliance", "baseline"
PIXELS_ALONE, ONE_STAGE = ["--model.encoder.amplitude", "false"], ["--model.decoder.stages", "1"]
PLAIN_ATTENTION, PLAIN_TOKENS = ["--model.decoder.attention", "plain"], ["--model.encoder.tokens", "plain"]
NOT_NORMALISED, NOT_ASKED = ["--model.loss.normalise", "none"], ["--model.loss.summary", "0"]
SIX = ["--model.decoder.depth", "6"]
SATMAE = [*PLAIN_TOKENS, *ONE_STAGE, *PLAIN_ATTENTION, *NOT_ASKED]
VARIANTS: Mapping[str, Sequence[str]] = {  # settings of launch/pretrain.py beside those of the config
    FULL: [],
    PLAIN: [*SATMAE, *PIXELS_ALONE, *SIX],
    "baseline, three blocks": [*SATMAE, *PIXELS_ALONE],
    "baseline, not normalised": [*SATMAE, *PIXELS_ALONE, *SIX, *NOT_NORMALISED],
    "baseline + amplitude": [*SATMAE, *SIX],
    "without amplitude": PIXELS_ALONE,
    "without stages": ONE_STAGE,
    "without fusion attention": PLAIN_ATTENTION,
    "without frequency tokens": PLAIN_TOKENS,
    "without summary": NOT_ASKED,
    "not normalised": NOT_NORMALISED,
    "six blocks": SIX,
    "before": [*SIX, *NOT_NORMALISED, *NOT_ASKED],  # our default until these measurements
    "mask ratio 0.6": ["--model.masking.ratio", "0.6"],
    "mask ratio 0.9": ["--model.masking.ratio", "0.9"],
}
ROUNDS = 15  # of steps, by which the cost of one is told


class Plan(NamedTuple):
    """What is trained on one set, and how."""

    name: str  # of the set, by which other processes find it
    images: Images
    folder: Path  # of the set
    place: Path  # for its shards and runs
    config: Path  # of launch/pretrain.py
    more: Sequence[str]  # settings of all variants

    @property
    def imagery(self) -> Imagery:
        """The set."""
        return next(each for each in SETS if each.name == self.name)

    def settings(self, variant: str) -> list[str]:
        """Of launch/pretrain.py."""
        return [*VARIANTS[variant], *self.more]

    def run(self, variant: str, steps: int, seed: int) -> str:
        """Name of a run: other settings, another name."""
        name = f"{variant.replace(' ', '_')}_{steps}_{seed}"
        if self.config == CONFIG and not self.more:
            return name
        return f"{self.config.stem}_{hashlib.sha256(repr(self.more).encode()).hexdigest()[:8]}_{name}"

    def train(self, variant: str, steps: int, seed: int) -> Path:
        """The encoder of a run, which is made where it is not there."""
        given = [*self.settings(variant), "--run.seed", str(seed)]
        return pretrain_steps(self.images, steps, self.place, self.run(variant, steps, seed), given, self.config)


def plan_of(imagery: Imagery, data: Path, keep: Path, config: Path = CONFIG, more: Sequence[str] = ()) -> Plan:
    """For a set that lies in `data`, with its runs in `keep`."""
    folder, place = data / imagery.name, (keep / imagery.name).resolve()
    files = imagery.unlabelled(folder, place / "cut")
    images = Images(files, {name: imagery.sensor(name) for name in files}, imagery.tile, imagery.patch)
    return Plan(imagery.name, images, folder, place, config, more)


def step_costs(plan: Plan, names: Sequence[str]) -> dict[str, float]:
    """What a step of each variant takes in units of the baseline's, on the set's first sensor: medians of steps in turns."""
    sensor = next(iter(plan.images.sensors.values()))
    known = sensor.with_statistics([0.0] * len(sensor.bands), [1.0] * len(sensor.bands))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    rivals = {name: _rival(plan, name, known, device) for name in dict.fromkeys([PLAIN, *names])}
    optimisers = {name: torch.optim.AdamW(each.model.parameters(), lr=1e-4) for name, each in rivals.items()}
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(ROUNDS + 1):
        for name, rival in rivals.items():
            seconds = step_seconds(rival, optimisers[name], autocast)
            if turn:  # the first warms up
                taken[name].append(seconds)
    base = statistics.median(taken[PLAIN])
    return {name: round(statistics.median(each) / base, 3) for name, each in taken.items()}


def _rival(plan: Plan, variant: str, sensor: Sensor, device: str) -> Competitor:
    """A variant with a batch of its own."""
    given = settings_of(plan.images, "none", 1, [{"shards": "none"}], plan.config)
    config = parse_settings(PretrainConfig, None, [*given, *plan.settings(variant)])
    side = (config.data.crop or plan.images.tile) // plan.images.patch * plan.images.patch
    batch = config.optim.batch
    image = torch.randn(batch, len(sensor.bands), side, side, device=device)
    model = Alliance(config.model, [sensor]).to(device)
    tokens = len(sensor.group_indices) * (side // plan.images.patch) ** 2
    noise = mask_noise(0, 0, range(batch), tokens).to(device)
    if config.engine.compile:
        model.compile(**COMPILE)
    return Competitor(model, lambda: model(image, sensor, noise, 0.5).total, tokens)


def score(plan: Plan, steps: Mapping[str, int], seed: int) -> list[Answers]:
    """What the features of every variant, trained for so many steps, say of the tasks of a set, for one seed."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoders = {name: load_encoder(plan.train(name, count, seed), device=device) for name, count in steps.items()}
    encoders[UNTRAINED] = untrained(next(iter(encoders.values())), seed)
    sensors = next(iter(encoders.values())).sensors
    return [each for task in plan.imagery.tasks for each in task.answers(plan.folder, encoders, sensors, [seed])]


def of_all_seeds(parts: Sequence[Sequence[Answers]]) -> list[Answers]:
    """The answers of several seeds as draws of the same tasks."""
    return [
        each[0]._replace(rows={row: [draw for one in each for draw in one.rows[row]] for row in each[0].rows})
        for each in zip(*parts, strict=True)
    ]


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


def run(plan: Plan, options: argparse.Namespace, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score on one set: its record.

    Args:
        earlier: the record of an earlier command, whose costs hold.
    """
    costs = dict(earlier.get("costs", {})) if options.equal == "time" else dict.fromkeys(options.variants, 1.0)
    missing = [name for name in options.variants if name not in costs]
    costs |= step_costs(plan, missing) if missing else {}
    steps = {name: round(options.steps / costs[name]) for name in options.variants}
    make_shards(plan.images, plan.place)
    with ThreadPoolExecutor(options.jobs) as pool:  # of processes that train
        runs = [(*each, seed) for seed in options.seeds for each in steps.items()]
        list(pool.map(lambda each: plan.train(*each), runs))
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        found = of_all_seeds(list(pool.map(partial(score, plan, steps), options.seeds)))
    return {
        "steps": steps,
        "costs": costs,
        "seeds": options.seeds,
        "settings": [plan.config.name, *plan.more],
        "tasks": [each.record((PLAIN, UNTRAINED, RAW, FULL)) for each in found],
    }


def main() -> None:
    """Train and score what the options name, and print the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    results = read_results(options.out)
    for imagery in SETS:
        if imagery.name not in options.sets or not (options.data / imagery.name).is_dir():
            continue
        plan = plan_of(imagery, options.data, options.keep, options.config, options.settings)
        key = f"{imagery.name}, {options.config.stem}, equal {options.equal}"
        results[key] = run(plan, options, results.get(key, {}))
        write_results(options.out, results)
        print(table({key: results[key]}), file=sys.stderr, flush=True)
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
    add("--config", type=Path, default=CONFIG, help="of launch/pretrain.py (default configs/pretrain/nano.yaml)")
    add("--jobs", type=int, default=1, help="runs that train at once (default %(default)s)")
    add("settings", nargs="*", help="further ones of launch/pretrain.py, behind --")
    return parser


if __name__ == "__main__":
    main()
