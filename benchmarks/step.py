"""Time, memory and operations of one training step: Alliance, its own baseline, and models of others, as ratios of one run.

    python benchmarks/step.py --size small --pixels 96 --batch 8 --rounds 5
    python benchmarks/step.py --size small --inference

All see as many tokens of the same patch, hide the same share of them and are as wide and deep; ViTMAEForPreTraining, which
takes square images alone, gets the square that comes nearest, and takes part where `transformers` is installed. The models
take turns, so that a slow moment of the machine meets all of them; the median of each is compared. FLOPs are those of
matrix products, attention and convolutions, a product and its sum counted as two.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alliance.model import SIZES, Alliance, AllianceConfig, model_config
from alliance.sensors import Band, Sensor
from alliance.tokens import mask_noise
from engine.build import COMPILE

# Sentinel-2 without its atmospheric bands, in the three groups of SatMAE: centre wavelengths, nm.
WAVELENGTHS = (492, 560, 665, 833, 704, 741, 783, 865, 1614, 2202)
GROUPS = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
PATCH, CHANNELS = 8, 4  # bands of the models of others: those of our largest group
RATIO = 0.75
VIT, MAE = "timm ViT, encoder alone", "transformers ViTMAE"  # rows of others
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the products by which the machine is measured


class Competitor(NamedTuple):
    """A model with the loss of one batch."""

    model: nn.Module
    loss: Callable[[], Tensor]
    tokens: int  # of an image, hidden ones included


def ten_bands() -> Sensor:
    """Three groups of four, four and two bands."""
    bands = tuple(
        Band(name=f"b{i}", wavelength=float(nm), bandwidth=30.0, mean=0.0, std=1.0) for i, nm in enumerate(WAVELENGTHS)
    )
    return Sensor(name="ten-bands", bands=bands, groups=tuple(tuple(f"b{i}" for i in group) for group in GROUPS))


def variants(size: str) -> dict[str, AllianceConfig]:
    """Alliance and its baseline, and Alliance with one part taken out at a time."""
    full = model_config(f"alliance_{size}_patch{PATCH}")
    encoder, decoder, replace = full.encoder, full.decoder, dataclasses.replace
    return {
        "alliance": full,
        "baseline": replace(
            full,
            encoder=replace(encoder, tokens="plain", amplitude=False),
            decoder=replace(decoder, stages=1, attention="plain", depth=6),
            loss=replace(full.loss, summary=0.0),
        ),
        "plain attention": replace(full, decoder=replace(decoder, attention="plain")),
        "one stage": replace(full, decoder=replace(decoder, stages=1)),
        "no amplitude": replace(full, encoder=replace(encoder, amplitude=False)),
        "no summary": replace(full, loss=replace(full.loss, summary=0.0)),
        "six blocks": replace(full, decoder=replace(decoder, depth=6)),
    }


def ours(options: argparse.Namespace) -> dict[str, Competitor]:
    """The variants on one batch of three band groups."""
    sensor, generator = ten_bands(), torch.Generator().manual_seed(0)
    image = torch.randn(options.batch, 10, options.pixels, options.pixels, generator=generator).to(options.device)
    tokens = len(GROUPS) * (options.pixels // PATCH) ** 2
    noise = mask_noise(0, 0, range(options.batch), tokens).to(options.device)

    def competitor(config: AllianceConfig) -> Competitor:
        model = Alliance(config, [sensor]).to(options.device)
        return Competitor(model, lambda: model(image, sensor, noise, 0.5).total, tokens)

    return {name: competitor(config) for name, config in variants(options.size).items()}


def others(options: argparse.Namespace) -> dict[str, Competitor]:
    """Models of others: as many tokens, on one image that is three times as high."""
    d, depth, heads = SIZES[options.size]
    shape = (len(GROUPS) * options.pixels, options.pixels)
    image = torch.randn(options.batch, CHANNELS, *shape, device=options.device)
    vit = VisionTransformer(
        shape, PATCH, CHANNELS, 0, embed_dim=d, depth=depth, num_heads=heads, patch_drop_rate=RATIO, class_token=True
    ).to(options.device)
    tokens = len(GROUPS) * (options.pixels // PATCH) ** 2
    found = {VIT: Competitor(vit, lambda: vit.forward_features(image).square().mean(), tokens)}
    if find_spec("transformers") is None:
        print("transformers is not installed: ViTMAEForPreTraining takes no part")
        return found
    from transformers import ViTMAEConfig, ViTMAEForPreTraining  # pyright: ignore[reportMissingImports]

    e, rows = variants(options.size)["baseline"].decoder, round(tokens**0.5)
    square = torch.randn(options.batch, CHANNELS, rows * PATCH, rows * PATCH, device=options.device)
    settings = ViTMAEConfig(
        image_size=rows * PATCH, patch_size=PATCH, num_channels=CHANNELS, mask_ratio=RATIO, hidden_size=d, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * d, decoder_hidden_size=e.embed_dim,
        decoder_num_hidden_layers=e.depth, decoder_num_attention_heads=e.heads, decoder_intermediate_size=4 * e.embed_dim,
    )  # fmt: skip
    mae = ViTMAEForPreTraining(settings).to(options.device)
    return found | {MAE: Competitor(mae, lambda: mae(square).loss, rows**2)}


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a model one by one, as `Alliance.compile` does; those of a kind share what is compiled."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    for block in (each for several in lists for each in several if type(each).__name__.endswith(("Block", "Layer"))):
        block.compile(**COMPILE)


def step_seconds(competitor: Competitor, optimiser: torch.optim.Optimizer, autocast: Any) -> float:
    """One step: forward, backward, update."""
    began = now()
    with autocast:
        loss = competitor.loss()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return now() - began


def now() -> float:
    """Seconds, after what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_megabytes(competitor: Competitor, optimiser: torch.optim.Optimizer, autocast: Any) -> float:
    """What a step takes on a GPU beside what is held before it, at its highest; nan on a CPU."""
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step_seconds(competitor, optimiser, autocast)
    return (torch.cuda.max_memory_allocated() - held) / 1e6


def kept_megabytes(competitor: Competitor, autocast: Any) -> float:
    """What a forward pass keeps for the backward one, each storage once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in competitor.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = competitor.loss()  # what is kept lives as long as this does
    total = sum(kept.values()) / 1e6
    del loss
    return total


def giga_operations(competitor: Competitor) -> float:
    """GFLOP of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        competitor.loss().backward()
    competitor.model.zero_grad()
    return counter.get_total_flops() / 1e9


def product_rate(device: str, dtype: torch.dtype) -> float:
    """GFLOP a second that the machine reaches in products of square matrices."""
    side = MATRIX[device]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(9):
        began = now()
        torch.mm(a, b)
        taken.append(now() - began)
    return 2 * side**3 / statistics.median(taken) / 1e9


def print_steps(options: argparse.Namespace) -> None:
    """The table of training steps."""
    models = ours(options) | others(options)
    unknown = set(options.only or ()) - set(models)
    if unknown:
        raise SystemExit(f"--only {min(unknown)!r} is no row here; there are {', '.join(map(repr, models))}")
    models = {name: model for name, model in models.items() if not options.only or name in {"baseline", *options.only}}
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    autocast = torch.autocast(options.device, dtype, enabled=dtype != torch.float32)
    operations = {name: giga_operations(model) for name, model in models.items()}
    kept = {name: kept_megabytes(model, autocast) for name, model in models.items()}
    if options.compile:
        for model in models.values():
            compile_blocks(model.model)
    optimisers = {name: torch.optim.AdamW(model.model.parameters(), lr=1e-4) for name, model in models.items()}
    rate = product_rate(options.device, dtype)
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + options.warm):
        for name, model in models.items():
            seconds = step_seconds(model, optimisers[name], autocast)
            if turn >= options.warm:
                times[name].append(seconds)
    peak = {name: peak_megabytes(model, optimisers[name], autocast) for name, model in models.items()}
    print(
        f"products of {MATRIX[options.device]} x {MATRIX[options.device]} {options.dtype} matrices: {rate:.0f} GFLOP/s"
    )
    columns = ("model", "tokens", "total M", "ms/step", "ratio", "least", "images/s", "kept MB", "ratio", "peak MB", "GFLOP",
               "share of the product rate")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    base = times["baseline"]
    for name, model in models.items():
        millions = sum(p.numel() for p in model.model.parameters()) / 1e6
        median = statistics.median(times[name])
        ratio, least = median / statistics.median(base), min(times[name]) / min(base)
        print(f"| {name} | {model.tokens} | {millions:.2f} | {1000 * median:.1f} | {ratio:.2f} | {least:.2f} | {options.batch / median:.1f} | "
              f"{kept[name]:.0f} | {kept[name] / kept['baseline']:.2f} | {peak[name]:.0f} | {operations[name]:.1f} | "
              f"{operations[name] / median / rate:.3f} |", flush=True)  # fmt: skip


@torch.inference_mode()
def print_inference(options: argparse.Namespace) -> None:
    """Images a second of the encoder beside a ViT of timm that is as wide and sees as many tokens."""
    d, depth, heads = SIZES[options.size]
    sensor, shape = ten_bands(), (len(GROUPS) * options.pixels, options.pixels)
    encoder = (
        Alliance(model_config(f"alliance_{options.size}_patch{PATCH}"), [sensor]).encoder.to(options.device).eval()
    )
    encoder.keep_special = True  # as `load_encoder` does
    vit = (
        VisionTransformer(shape, PATCH, CHANNELS, 0, embed_dim=d, depth=depth, num_heads=heads)
        .to(options.device)
        .eval()
    )
    image = torch.randn(options.batch, 10, options.pixels, options.pixels, device=options.device)
    other = torch.randn(options.batch, CHANNELS, *shape, device=options.device)
    calls: dict[str, Callable[[], Any]] = {
        "alliance encoder": lambda: encoder(image, sensor),
        "alliance encoder, standardised images": lambda: encoder(image, sensor, standardised=True),
        "timm ViT": lambda: vit.forward_features(other),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds + options.warm):
        for name, call in calls.items():
            began = now()
            call()
            if turn >= options.warm:
                times[name].append(now() - began)
    base = statistics.median(times["timm ViT"])
    print("| encoder | images/s | ratio |\n|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"| {name} | {options.batch / median:.1f} | {base / median:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pixels", type=int, default=96, help="side of an image, a multiple of 8")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1, help="rounds before these, which do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks of every model")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows beside the baseline's (default: all)")
    parser.add_argument("--inference", action="store_true", help="the encoder alone, without gradients")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    (print_inference if options.inference else print_steps)(options)


if __name__ == "__main__":
    main()
