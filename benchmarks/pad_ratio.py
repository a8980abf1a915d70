"""What PAD's fusion costs: each fusion block against the ConvNeXt stage of both encoders before it, as ratios of one run.

    python benchmarks/pad_ratio.py --pixels 512 --rounds 3
    python benchmarks/pad_ratio.py --device cuda --batch 4 --steps 20       # also the training step of the whole network

The parts take turns, so that a slow moment of the machine meets all of them; the fastest of each is compared.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import torch
from torch import Tensor, nn

from finetune.pad.fusion import STAGES
from finetune.pad.losses import LossConfig, composite_loss
from finetune.pad.model import Pad, PadConfig

Timing = tuple[float, float]  # seconds of forward, and of forward and backward


class Part(NamedTuple):
    """Something to time: its modules, and its pass over synthetic maps."""

    modules: list[nn.Module]
    run: Callable[[], list[Tensor]]


def parts(model: Pad, stage: int, pixels: int, batch: int) -> tuple[Part, Part]:
    """Both encoders' stage with its norm, and the fusion block after it."""
    encoders, block = list(model.encoders.values()), model.fusions[str(stage)]
    widths = encoders[0].channels
    device = next(block.parameters()).device
    before = 2 ** max(stage, 2)  # stride of the maps that the stage gets
    shape = (batch, widths[max(stage - 2, 0)], pixels // before, pixels // before)
    inputs = [torch.randn(shape, device=device, requires_grad=True) for _ in encoders]
    side = pixels // 2 ** (stage + 1)
    maps = [torch.randn(batch, widths[stage - 1], side, side, device=device, requires_grad=True) for _ in encoders]

    def run_stages() -> list[Tensor]:
        return [encoder.run_stages(x, start=stage, stop=stage)[0] for encoder, x in zip(encoders, inputs, strict=True)]

    modules = [module for encoder in encoders for module in (encoder.stages[stage - 1], encoder.norms[stage - 1])]
    return Part(modules, run_stages), Part([block], lambda: list(block(*maps)))


def seconds(part: Part) -> Timing:
    began = now()
    outputs = part.run()
    forward = now() - began
    sum(output.sum() for output in outputs).backward()
    return forward, now() - began


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def megabytes_for_backward(part: Part) -> float:
    """What the forward pass keeps for the backward one, weights left out."""
    weights = {p.untyped_storage().data_ptr() for module in part.modules for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = part.run()  # held until all is counted, so that no address is used twice
    assert outputs
    return sum(kept.values()) / 1e6


def millions(modules: list[nn.Module]) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def print_ratios(model: Pad, pixels: int, batch: int, rounds: int) -> None:
    pairs = {stage: parts(model, stage, pixels, batch) for stage in STAGES}
    times: dict[tuple[int, int], list[Timing]] = {(stage, which): [] for stage in STAGES for which in (0, 1)}
    for turn in range(rounds + 1):
        for stage, which in times:
            taken = seconds(pairs[stage][which])
            if turn:  # the first round warms up
                times[stage, which].append(taken)
    best = {key: [1000 * min(column) for column in zip(*taken, strict=True)] for key, taken in times.items()}
    memory = {(stage, which): megabytes_for_backward(pairs[stage][which]) for stage, which in times}
    print("stages of both encoders | fusion block | block / stages")
    print(f"{'stage':>5} {'M':>7} {'fwd ms':>8} {'+bwd ms':>8} {'MB':>7}", end=" | ")
    print(f"{'M':>6} {'fwd ms':>8} {'+bwd ms':>8} {'MB':>7} | {'M':>5} {'fwd':>5} {'+bwd':>5} {'MB':>5}")
    totals = [[0.0] * 4, [0.0] * 4]
    for stage in STAGES:
        rows = [[millions(pairs[stage][w].modules), *best[stage, w], memory[stage, w]] for w in (0, 1)]
        totals = [[a + b for a, b in zip(total, row, strict=True)] for total, row in zip(totals, rows, strict=True)]
        print_row(str(stage), rows)
    print_row("all", totals)


def print_row(name: str, rows: list[list[float]]) -> None:
    (m, forward, both, kept), (m_block, forward_block, both_block, kept_block) = rows
    print(f"{name:>5} {m:7.2f} {forward:8.0f} {both:8.0f} {kept:7.0f}", end=" | ")
    print(f"{m_block:6.2f} {forward_block:8.0f} {both_block:8.0f} {kept_block:7.0f}", end=" | ")
    ratios = [b / a for a, b in zip(*rows, strict=True)]
    print(f"{ratios[0]:5.2f} {ratios[1]:5.2f} {ratios[2]:5.2f} {ratios[3]:5.2f}")


def print_steps(model: Pad, pixels: int, batch: int, steps: int) -> None:
    """Training steps of the whole network with AdamW, float32 and bfloat16 autocast."""
    device = next(model.parameters()).device
    rgb, sar = (torch.randn(batch, 3, pixels, pixels, device=device) for _ in range(2))
    labels = torch.randint(model.config.classes, (batch, pixels, pixels), device=device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for name, autocast in (("float32", False), ("bfloat16 autocast", True)):
        taken = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(steps + 2):
            began = now()
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                output = model(rgb, sar)
            composite_loss(output, labels, LossConfig()).total.backward()
            optimiser.step()
            optimiser.zero_grad()
            taken.append(now() - began)
        middle = statistics.median(taken[2:])  # the first two warm up
        print(
            f"step of {batch} x {pixels}^2, {name}: {1000 * middle:.0f} ms, peak memory {peak_gigabytes(device):.2f} GB"
        )


def peak_gigabytes(device: torch.device) -> float:
    """On a GPU since the last reset, of tensors; else of the whole process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="large")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the whole network; default: 20 on a GPU, else none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    with device:
        model = Pad(PadConfig(size=options.size)).train()
    heads = [millions([head]) for head in (model.decoder, model.auxiliary)]
    print(
        f"PAD {options.size}: {millions([model]):.2f} M parameters, UPerHead {heads[0]:.2f} M, FCN head {heads[1]:.2f} M"
    )
    print_ratios(model, options.pixels, options.batch, options.rounds)
    print(f"peak memory so far {peak_gigabytes(device):.2f} GB")
    model.zero_grad()
    steps = (20 if device.type == "cuda" else 0) if options.steps is None else options.steps
    if steps:
        print_steps(model, options.pixels, options.batch, steps)


if __name__ == "__main__":
    main()
