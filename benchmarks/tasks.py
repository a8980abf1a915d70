"""Tasks on real images by features that are taken as they are:  python benchmarks/tasks.py --data ../shared/data --out tasks.json

For every set that is in the folder, a nano encoder learns from images without labels for some minutes, none of them scored later.
Linear probes of its features stand beside those of the same encoder without training, of Galileo nano where its bands are there,
of raw statistics (mean, deviation, radial log power; of pixels: mean and deviation of the patch) and of the pixels' values. Every
row gets the same labels, drawn anew for each of three seeds. With --budget 2 all takes about 35 minutes on one core. Results are written set by
set; the same command goes on where an earlier one stopped. --pad compares PAD on floods with each image alone and early fusion.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from alliance.checkpoint import load_encoder  # noqa: E402
from alliance.encoder import AllianceEncoder  # noqa: E402
from benchmarks.yardsticks.imagery import SETS, Imagery  # noqa: E402
from benchmarks.yardsticks.pretraining import Images, convert, pretrain  # noqa: E402
from benchmarks.yardsticks.scoring import RELEASED, TRAINED, UNTRAINED  # noqa: E402
from benchmarks.yardsticks.table import read_results, table, write_results  # noqa: E402
from finetune.probing.command import untrained  # noqa: E402


def main() -> None:
    """Run what is missing in the file of results, and print the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    options.out = options.out.resolve()
    if options.pad:
        from benchmarks.yardsticks.pad import compare

        print(compare(options.data / "ombria_flood", options.out, seeds=range(options.seeds), steps=options.pad_steps))
        return
    results = read_results(options.out)
    with tempfile.TemporaryDirectory() as scratch:
        for imagery in SETS:
            name, folder = imagery.name, options.data / imagery.name
            if name in results or (options.only and name not in options.only):
                continue
            if not folder.is_dir():
                print(f"{folder} is not there: left out", file=sys.stderr)
                continue
            results[name] = run(imagery, folder, (options.keep or Path(scratch)).resolve(), options)
            write_results(options.out, results)
            print(table({name: results[name]}), file=sys.stderr, flush=True)
    print(table(results))


def run(imagery: Imagery, folder: Path, keep: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, describe, probe: the results of one set.

    Args:
        folder: of the set.
        keep: for shards, runs and converted weights.
    """
    began, place = time.perf_counter(), keep / imagery.name
    files = imagery.unlabelled(folder, place / "cut")
    sensors = {name: imagery.sensor(name) for name in files}
    found = pretrain(Images(files, sensors, imagery.tile, imagery.patch), options.budget, place)
    trained = load_encoder(found.path)
    encoders: dict[str, AllianceEncoder] = {UNTRAINED: untrained(trained, 0), TRAINED: trained}
    weights = options.weights or options.data.parent / "weights" / "galileo_nano"
    if (weights / "encoder.pt").exists():
        encoders[RELEASED] = load_encoder(convert("galileo", weights / "encoder.pt", keep / "galileo"))
    seeds, known = range(options.seeds), dict(trained.sensors)
    tasks = [each.record() for task in imagery.tasks for each in task.answers(folder, encoders, known, seeds)]
    return {
        "budget": options.budget,
        "unlabelled": {name: len(each) for name, each in files.items()},
        "steps": found.steps,
        "seconds": found.seconds,
        "all_seconds": round(time.perf_counter() - began, 1),
        "tasks": tasks,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the sets: " + ", ".join(each.name for each in SETS))
    add("--out", type=Path, required=True, metavar="FILE.json", help="results; sets that stand there are not run again")
    add("--budget", type=float, default=2.0, metavar="MINUTES", help="of every pretraining (default %(default)s)")
    add("--only", nargs="+", choices=[each.name for each in SETS], metavar="SET", help="some of the sets")
    add("--seeds", type=int, default=3, help="draws of labels (default %(default)s)")
    add("--weights", type=Path, help="folder of Galileo nano (default: weights/galileo_nano beside --data)")
    add("--keep", type=Path, help="folder for shards and runs, to go on with (default: a temporary one)")
    add("--pad", action="store_true", help="PAD on ombria_flood: both images, each alone, early fusion; nothing else")
    add("--pad-steps", type=int, default=300, help="of training PAD (default %(default)s)")
    return parser


if __name__ == "__main__":
    main()
