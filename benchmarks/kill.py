"""Kill a training with -9 at random instants, go on with --run.resume auto, and compare with an undisturbed one.

    python benchmarks/kill.py --runs 30 --zero-runs 5         # about 20 minutes on two idle cores
    python benchmarks/kill.py --runs 10 --zero-runs 0 --store # the shards are read as from object storage, on the loopback

Two ranks train on synthetic scenes from two weighted sources, on the CPU in float32. Half of the kills aim at a save,
some at the moment after it (rename, `latest`, removal of old checkpoints, export), the others at any time after the
first step; half of them take one rank a moment before the other; a quarter of the runs is killed twice. The steps'
losses, learning rates, gradient norms and samples and the encoder must be those of the undisturbed run, bit for bit.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from safetensors.numpy import load_file

from benchmarks.yardsticks.serving import BUCKET, serve_folder
from datasets.shards import command
from datasets.synthetic.landscapes import write_scenes

ROOT = Path(__file__).resolve().parents[1]
RANKS, STEPS, BATCH = 2, 14, 8
TIMEOUT = 300  # seconds for one training
AIMS = ("save", "anywhere", "save", "after a save", "save", "anywhere")  # of successive kills
TIMINGS = {"samples_per_s", "data_wait", "memory_gb"}  # of a logged step; all else must repeat
TIMINGS |= {"store_requests", "store_retries", "store_bytes"}
SMALL = [
    *("--config", str(ROOT / "configs/pretrain/nano.yaml"), "--data.crop", "48", "--optim.batch", str(BATCH)),
    *("--model.encoder.embed_dim", "48", "--model.encoder.depth", "2", "--model.decoder.embed_dim", "48"),
    *("--model.decoder.depth", "3", "--run.steps", str(STEPS), "--run.log_every", "1", "--run.picture_every", "0"),
    *("--run.keep", "2", "--engine.precision", "fp32"),
]


@dataclass
class Kill:
    """One kill, what it left, and where the next start went on."""

    in_save: bool  # a checkpoint was half written
    newest: int  # step of the newest checkpoint that has its name, 0: none
    logged: int  # steps in metrics.jsonl
    resumed: int | None = None  # None: the next start was killed before its first step


@dataclass
class Outcome:
    """What happened to a run."""

    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Training:
    """Two ranks of launch/pretrain.py as plain processes of one process group; leaving the context kills them."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.command = [sys.executable, str(ROOT / "launch/pretrain.py"), *SMALL, "--run.dir", str(folder), *arguments]
        self.before, self.stale = set(steps_of(folder)), partials(folder)
        self.ranks: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> "Training":
        kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        kept |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(RANKS)}
        kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        with open(output_of(self.folder), "a") as output:
            for rank in map(str, range(RANKS)):
                own, group = kept | {"RANK": rank, "LOCAL_RANK": rank}, self.ranks[0].pid if self.ranks else 0
                streams = {"stdout": output, "stderr": subprocess.STDOUT}
                self.ranks.append(subprocess.Popen(self.command, cwd=ROOT, env=own, process_group=group, **streams))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.ranks[0].pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()

    def alive(self) -> bool:
        return any(rank.poll() is None for rank in self.ranks)

    def wait(self, seconds: float = TIMEOUT) -> list[int | None]:
        """Exit codes, None where a rank still runs after that time."""
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.005)
        return [rank.poll() for rank in self.ranks]

    def kill(self, rng: random.Random) -> Kill:
        """End both ranks, sometimes one a moment before the other, and see what that leaves."""
        if rng.random() < 0.5:
            rng.choice(self.ranks).kill()
            time.sleep(rng.uniform(0, 0.05))
        self.__exit__()
        logged = max((record["step"] + 1 for record in steps_of(self.folder).values()), default=0)
        return Kill(bool(self.saving()), newest_checkpoint(self.folder), logged)

    def saving(self) -> set[str]:
        """Checkpoints that these ranks have begun; not those that an earlier kill left."""
        return {name for name, _ in partials(self.folder) - self.stale}

    def first_step(self) -> int | None:
        """The first step that these ranks logged."""
        steps = steps_of(self.folder)
        return min((steps[line]["step"] for line in steps.keys() - self.before), default=None)


def reach(aim: str, training: Training, rng: random.Random, seconds: float) -> bool:
    """Sleep until the instant of a kill; False when the training has ended before."""
    until, seen, number = time.monotonic() + TIMEOUT, set(), rng.randint(1, 5)
    while training.alive() and time.monotonic() < until:
        seen |= (saving := training.saving())
        if aim == "anywhere" and training.first_step() is not None:
            training.wait(rng.uniform(0, seconds))
            return training.alive()
        if aim != "anywhere" and len(seen) >= number and (aim == "save" or not saving):
            time.sleep(rng.uniform(0, 0.03))
            return training.alive()
        time.sleep(0.001)
    return False


def disturbed(folder: Path, arguments: Sequence[str], aim: str, rng: random.Random, seconds: float) -> Outcome:
    """Train in `folder`, killed once or twice, and go on to the end."""
    outcome, left = Outcome(), rng.choice([1, 1, 1, 2])
    while True:
        with Training(folder, [*arguments, "--run.resume", "auto"]) as training:
            kill = training.kill(rng) if left and reach(aim, training, rng, seconds) else None
            codes = [0] if kill else training.wait()
            first = training.first_step()
        if outcome.kills:  # no new step: all were done before, or this start was killed before its first
            outcome.kills[-1].resumed = STEPS if first is None and kill is None else first
        if any(code != 0 for code in codes):
            outcome.faults.append(f"a start ended with {codes}: {last_lines(folder)}")
        if kill is None:
            return outcome
        outcome.kills.append(kill)
        if export_of(folder).parent.exists():  # what a kill left must be whole
            outcome.faults += weight_differences(folder, folder)
        aim, left = rng.choice(AIMS), left - 1


def check(outcome: Outcome, folder: Path, reference: Path, save_every: int) -> None:
    """Add what is wrong with a run that was killed and went on."""
    outcome.faults += [] if outcome.kills else ["ended before it was killed"]
    for kill in outcome.kills:
        if kill.resumed not in (None, kill.newest):
            outcome.faults.append(f"went on from step {kill.resumed}, the newest checkpoint is of step {kill.newest}")
        if kill.logged - kill.newest > save_every:
            outcome.faults.append(f"{kill.logged} steps are done, but the newest checkpoint is of step {kill.newest}")
    outcome.faults += step_differences(folder, reference)[:5] + weight_differences(folder, reference)


def step_differences(folder: Path, reference: Path) -> list[str]:
    """Logged steps that are not those of the reference run."""
    found, expected = (list(steps_of(path).values()) for path in (folder, reference))
    if [record["step"] for record in found] != list(range(STEPS)):
        return [f"steps {[record['step'] for record in found]} instead of 0 .. {STEPS - 1}"]
    return [
        f"step {theirs['step']}: {key} is {ours.get(key)} instead of {theirs.get(key)}"
        for ours, theirs in zip(found, expected, strict=True)
        for key in sorted((ours.keys() | theirs.keys()) - TIMINGS)
        if ours.get(key) != theirs.get(key)
    ]


def weight_differences(folder: Path, reference: Path) -> list[str]:
    """Tensors of the exported encoder whose name, type, shape or bytes are not those of the reference."""
    try:
        ours, theirs = (
            {name: (value.dtype, value.shape, value.tobytes()) for name, value in load_file(export_of(path)).items()}
            for path in (folder, reference)
        )
    except Exception as error:  # whatever is wrong with the file
        return [f"the encoder cannot be read: {error}"]
    others = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    return [f"{len(others)} of {len(theirs)} weights of the encoder differ, first {others[0]}"] if others else []


def try_stage(zero: int, runs: int, sources: str, folder: Path, rng: random.Random) -> list[Outcome]:
    """The undisturbed run of a ZeRO stage and all disturbed ones; folders of those that repeat it are removed."""
    common = ["--data.sources", sources, "--engine.zero", str(zero)]
    reference, outcomes = folder / f"zero{zero}_undisturbed", []
    with Training(reference, [*common, "--run.save_every", "1000"]) as training:
        assert training.wait() == [0] * RANKS, last_lines(reference)
    pace = statistics.median(BATCH / record["samples_per_s"] for record in steps_of(reference).values())
    for number in range(runs):
        path, save_every = folder / f"zero{zero}_run{number}", rng.choice([2, 3])
        arguments = [*common, "--run.save_every", str(save_every), "--data.workers", str(number % 2)]
        outcome = disturbed(path, arguments, AIMS[number % len(AIMS)], rng, STEPS * pace + 0.5)
        check(outcome, path, reference, save_every)
        outcomes.append(outcome)
        print(f"ZeRO {zero}, run {number + 1} of {runs}: {outcome.kills} {outcome.faults or 'equal'}", flush=True)
        if not outcome.faults:
            shutil.rmtree(path)
            output_of(path).unlink()
    return outcomes


def row(zero: int, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    resumed = [kill.resumed for kill in kills if kill.resumed is not None]
    repeated = [kill.logged - kill.resumed for kill in kills if kill.resumed is not None]
    spans = " | ".join(f"{min(values)}..{max(values)}" if values else "-" for values in (resumed, repeated))
    in_save, equal = sum(kill.in_save for kill in kills), sum(not outcome.faults for outcome in outcomes)
    return f"| {zero} | {len(outcomes)} | {in_save} of {len(kills)} | {spans} | {equal} of {len(outcomes)} |"


def make_shards(folder: Path, store: bool) -> str:
    """Shards of synthetic optical and SAR scenes, here or in a store; the setting data.sources."""
    write_scenes(folder / "scenes", scenes=2, size=192, seed=0)
    for name in ("optical", "sar"):
        arguments = ["--sensor", f"synthetic-{name}", "--out", str(folder / name), "--tile", "64", "--workers", "1"]
        with contextlib.redirect_stdout(None):
            command.main([str(folder / "scenes" / name), *arguments])
    places = {name: f"s3://{BUCKET}/{name}" if store else str(folder / name) for name in ("optical", "sar")}
    os.environ |= serve_folder(folder) if store else {}
    return json.dumps([{"shards": places["optical"], "weight": 2.0}, {"shards": places["sar"], "weight": 1.0}])


def steps_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The logged steps, by their lines."""
    path, steps = folder / "metrics.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut by a kill
            steps[line] = json.loads(line)
    return {line: record for line, record in steps.items() if "event" not in record}


def partials(folder: Path) -> set[tuple[str, int]]:
    """Names and times of checkpoints that are not whole."""
    found = set()
    with contextlib.suppress(FileNotFoundError):  # it has just got its name
        for path in (folder / "checkpoints").glob("step_*.partial"):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def newest_checkpoint(folder: Path) -> int:
    """Its step, 0 where there is none."""
    names = [path.name for path in (folder / "checkpoints").glob("step_*") if not path.suffix]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def export_of(folder: Path) -> Path:
    return folder / "encoder" / "model.safetensors"


def output_of(folder: Path) -> Path:
    return folder.with_suffix(".out")


def last_lines(folder: Path) -> str:
    return " | ".join(output_of(folder).read_text(errors="replace").splitlines()[-3:])


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="at ZeRO stage 0")
    parser.add_argument("--zero-runs", type=int, default=5, help="at each of stages 1, 2 and 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true", help="let the shards lie in object storage")
    parser.add_argument("--folder", type=Path, help="an empty or new folder, kept; else a temporary one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no ranks are left behind
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="kill_"))).resolve()
    sources, rng = make_shards(folder, options.store), random.Random(options.seed)
    counts = {0: options.runs, 1: options.zero_runs, 2: options.zero_runs, 3: options.zero_runs}
    stages = {zero: try_stage(zero, runs, sources, folder, rng) for zero, runs in counts.items() if runs}
    print("\n| ZeRO | runs | kills in a save | resumed from step | steps repeated | equal bit for bit |")
    print("|---|---|---|---|---|---|", *(row(zero, outcomes) for zero, outcomes in stages.items()), sep="\n")
    faults = [(zero, fault) for zero, outcomes in stages.items() for outcome in outcomes for fault in outcome.faults]
    print(
        "".join(f"\nZeRO {zero}: {fault}" for zero, fault in faults), f"the folders are in {folder}" if faults else ""
    )
    if not options.folder and not faults:
        shutil.rmtree(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
