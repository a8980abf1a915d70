"""All that only a GPU can tell, within minutes:  python benchmarks/gpu.py --out gpu.md --minutes 9

What is computed there beside what a CPU computes; training steps of all sizes with and without torch.compile beside models
of others; runs of launch/pretrain.py at every ZeRO stage, precision and pass size on one card (NCCL of one rank); inference;
PAD and S2Fin. Each part is a process of its own. A part that fails or has no time left is named with the end of what it said,
and the others go on. "Share of the product rate" is the model FLOPs of a forward and a backward pass (matrix products,
attention, convolutions; recomputed ones not counted) over the time of the step and the rate that this card reaches in large
products of that number format: MFU against a measured ceiling. Peak MB are of the step beside weights and optimiser.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import torch

HERE = Path(__file__).resolve().parents[1]
TOLD = 3000  # characters of the end of what a failed part said
STEP = ("benchmarks/step.py", "--device", "cuda", "--dtype", "bfloat16", "--rounds", "20", "--warm", "5")
RIVALS = ("alliance", "timm ViT, encoder alone", "transformers ViTMAE")
STEPS = 40  # of a run
RUNS: dict[str, Sequence[str]] = {  # settings of launch/pretrain.py beside those of configs/pretrain/small.yaml
    "ZeRO 1, bf16 (the default)": [],
    "ZeRO 1, compiled": ["--engine.compile", "true"],
    "ZeRO 0, autocast": ["--engine.zero", "0"],
    "ZeRO 2": ["--engine.zero", "2"],
    "ZeRO 3": ["--engine.zero", "3"],
    "ZeRO 0, fp32": ["--engine.zero", "0", "--engine.precision", "fp32"],
    "blocks recomputed": ["--engine.activation_checkpointing", "true"],
    "passes of 64": ["--engine.micro_batch", "64"],
    "passes of 1024": ["--optim.batch", "1024"],
    "8 threads that read": ["--data.workers", "8"],
    "no thread that reads": ["--data.workers", "0"],
}


class Part(NamedTuple):
    """Something to measure."""

    title: str
    run: Callable[[float], str]  # seconds it may take -> Markdown


def command(*arguments: str) -> Callable[[float], str]:
    """A command of this repository, whose output is the result."""

    def run(seconds: float) -> str:
        given = [sys.executable, *arguments]
        done = subprocess.run(given, cwd=HERE, timeout=seconds, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-TOLD:]}")
        return f"`python {' '.join(arguments)}`\n\n{done.stdout.strip()}"

    return run


def machine() -> str:
    """The card, and what it reaches in copies and products."""
    from benchmarks.step import now, product_rate

    card = torch.cuda.get_device_properties(0)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target, taken = torch.empty_like(source), []
    for _ in range(9):
        began = now()
        target.copy_(source)
        taken.append(now() - began)
    rates = {str(dtype): product_rate("cuda", dtype) / 1e3 for dtype in (torch.float32, torch.bfloat16)}
    told = "; ".join(f"{name[6:]} {rate:.0f} TFLOP/s" for name, rate in rates.items())
    return (f"{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}. Products of 8192 x 8192: {told}. "
            f"Copy of 1 GiB, bytes read and written: {2 * 2**30 / statistics.median(taken) / 1e12:.2f} TB/s.")  # fmt: skip


def agreement() -> str:
    """Losses and gradients of one batch beside those of the CPU in float32."""
    from alliance.model import create_model
    from alliance.tokens import mask_noise
    from benchmarks.step import GROUPS, ten_bands
    from engine.build import COMPILE

    sensor, image = ten_bands(), torch.randn(8, 10, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = mask_noise(0, 0, range(8), len(GROUPS) * 64)

    def computed(device: str, bf16: bool, compiled: bool) -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        model = create_model("alliance_nano_patch8", [sensor]).to(device)
        if compiled:
            model.compile(**COMPILE)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(image.to(device), sensor, noise.to(device), 0.5).total
        loss.backward()
        gradients = [each.grad.flatten().cpu() for each in model.parameters() if each.grad is not None]
        return loss.item(), torch.cat(gradients)

    loss, gradient = computed("cpu", False, False)
    lines = ["| on the card | loss, relative difference | gradient, relative distance |", "|---|---|---|"]
    for compiled in (False, True):
        for bf16 in (False, True):
            name = ("bf16 autocast" if bf16 else "float32") + (", compiled" if compiled else "")
            try:
                other, own = computed("cuda", bf16, compiled)
            except Exception:  # of the compiler, whatever it is: the others are still told
                lines.append(f"| {name} | {traceback.format_exc()[-TOLD:]} | |")
                continue
            distance = ((own - gradient).norm() / gradient.norm()).item()
            lines.append(f"| {name} | {abs(other - loss) / loss:.1e} | {distance:.1e} |")
    return "\n".join(lines)


def kernels() -> str:
    """How many kernels a step of small starts, how long they run, and which take longest."""
    from benchmarks.step import ours, step_seconds

    autocast = torch.autocast("cuda", torch.bfloat16)
    lines = ["| 64 images | kernels | ms they run | ms of a step |", "|---|---|---|---|"]
    longest = ""
    for name, rival in ours(argparse.Namespace(batch=64, pixels=96, device="cuda", size="small")).items():
        optimiser = torch.optim.AdamW(rival.model.parameters(), lr=1e-4)
        for _ in range(3):
            step_seconds(rival, optimiser, autocast)
        taken = statistics.median(step_seconds(rival, optimiser, autocast) for _ in range(9))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step_seconds(rival, optimiser, autocast)
        found = [each for each in profile.key_averages() if each.self_device_time_total]
        busy = sum(each.self_device_time_total for each in found) / 1e3
        lines.append(f"| {name} | {sum(each.count for each in found)} | {busy:.1f} | {1000 * taken:.1f} |")
        if name == "alliance":
            found.sort(key=lambda each: -each.self_device_time_total)
            longest = "\n".join(
                f"{each.self_device_time_total / 1e3:7.2f} ms {each.count:5d} x {each.key[:110]}" for each in found[:25]
            )
    return "\n".join([*lines, "", "Of Alliance:", "", "```", longest, "```"])


def s2fin() -> str:
    """Training steps of the light network at the size of Houston 2013."""
    from benchmarks.step import now
    from finetune.s2fin.network import S2Fin, S2FinConfig, classification_loss

    lines = ["| S2Fin, batch 64, patch 7 | ms/step |", "|---|---|"]
    for mixer in ("scan", "gru"):
        config = S2FinConfig(mixer=mixer)
        model = S2Fin(config, bands=144, components=30, channels=1, classes=15).cuda()
        spectral, passive, active = (torch.randn(64, count, 7, 7, device="cuda") for count in (144, 30, 1))
        labels = torch.randint(15, (64,), device="cuda")
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        taken = []
        for _ in range(30):
            began = now()
            classification_loss(model(spectral, passive, active), labels, config).backward()
            optimiser.step()
            optimiser.zero_grad()
            taken.append(now() - began)
        lines.append(f"| {mixer} | {1000 * statistics.median(taken[10:]):.1f} |")
    return "\n".join(lines)


ALONE = {each.__name__: each for each in (machine, agreement, kernels, s2fin)}


def alone(part: Callable[[], str]) -> Callable[[float], str]:
    """A part of this file in a process of its own: what it holds of the card goes with it."""
    return command("benchmarks/gpu.py", "--alone", part.__name__)


def shards(scratch: Path) -> Callable[[float], str]:
    """Synthetic scenes as shards, which the runs read."""

    def run(seconds: float) -> str:
        until = time.monotonic() + seconds
        command("launch/synthetic.py", "scenes", str(scratch / "scenes"), "--scenes", "4", "--size", "960")(seconds)
        command("launch/shards.py", str(scratch / "scenes/optical"), "--out", str(scratch / "shards"), "--tile", "96", "--workers", "4",
                "--sensor", "synthetic-optical")(until - time.monotonic())  # fmt: skip
        return "400 tiles of 96 x 96."

    return run


def training(scratch: Path, name: str) -> Callable[[float], str]:
    """A short run by the command that users have: a line of the table of runs."""
    sources = json.dumps([{"shards": str(scratch / "shards")}])

    def run(seconds: float) -> str:
        place = scratch / f"run_{list(RUNS).index(name)}"
        command("launch/pretrain.py", "--config", "configs/pretrain/small.yaml", "--run.dir", str(place), "--run.steps", str(STEPS),
                "--run.log_every", "4", "--run.picture_every", "0", "--run.save_every", str(STEPS), "--run.page", "false", "--optim.batch", "256",
                "--data.sources", sources, *RUNS[name])(seconds)  # fmt: skip
        logged = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        steps = [each for each in logged if "samples_per_s" in each][len(logged) // 3 :]
        middle = {key: statistics.median(each[key] for each in steps) for key in ("samples_per_s", "data_wait")}
        return (f"| {name} | {middle['samples_per_s']:.0f} | {100 * middle['data_wait']:.1f} | "
                f"{max(each['memory_gb'] for each in steps):.2f} | {steps[-1]['loss']:.4f} |")  # fmt: skip

    return run


def parts(scratch: Path) -> Iterator[Part]:
    """All that is measured, what matters most first."""
    yield Part("The card", alone(machine))
    yield Part("What is computed", alone(agreement))
    yield Part("Kernels", alone(kernels))
    for size, batch in (("small", 64), ("small", 256), ("base", 64), ("base", 256), ("nano", 64)):
        yield Part(f"Steps of {size}, {batch} images", command(*STEP, "--size", size, "--batch", str(batch)))
    yield Part("Shards", shards(scratch))
    head = "Runs: small, 256 samples of 96 x 96 a step unless said"
    yield Part(head, lambda _: "| run | samples/s | data wait, % | memory GB | loss |\n|---|---|---|---|---|")
    for name in RUNS:
        yield Part(f"Run: {name}", training(scratch, name))
    for size in ("small", "base"):
        yield Part(f"Inference of {size}", command(*STEP, "--size", size, "--batch", "64", "--inference"))
    yield Part("S2Fin", alone(s2fin))
    yield Part("PAD", command("benchmarks/pad_ratio.py", "--device", "cuda", "--batch", "4", "--steps", "10"))
    rows = (*STEP, "--size", "small", "--batch", "64", "--compile", "--only", *RIVALS)
    yield Part("Steps of small, compiled", command(*rows))


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """Each part that there is time for; the file is written after every one."""
    until, told = time.monotonic() + 60 * options.minutes, []
    for part in parts(scratch):
        if not any(word in part.title for word in options.only):
            continue
        began, left = time.monotonic(), until - time.monotonic()
        try:
            found = part.run(left) if left > 0 else "not measured: no time was left"
        except Exception as error:  # whatever a part meets, the others go on
            found = f"not measured: {type(error).__name__}: {str(error)[-TOLD:]}"
        is_row = found.startswith("| ") and "\n" not in found
        told.append(found if is_row else f"\n## {part.title}\n\n{found}")
        options.out.write_text("\n".join(told) + "\n")
        print(f"[{time.monotonic() - began:.0f} s] {told[-1]}", flush=True)


def main() -> None:
    """Measure, or print one of the parts that are measured in this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), metavar="FILE.md", help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=9, help="in all (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORDS", help="parts whose title holds one of these")
    parser.add_argument("--alone", choices=ALONE, help="print this part, and measure nothing else")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use; benchmarks/step.py measures on CPUs")
    if options.alone:
        print(ALONE[options.alone]())
        return
    with tempfile.TemporaryDirectory() as scratch:  # for shards and runs
        measure(options, Path(scratch))


if __name__ == "__main__":
    main()
