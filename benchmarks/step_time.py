"""Parameters and time of one training step, Alliance against the baseline inside the same code, as ratios of one run.

    python benchmarks/step_time.py --size small --bands 10 --pixels 96 --batch 8 --rounds 5

The variants take turns, so that a slow moment of the machine meets all of them; the median of each is compared.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

import torch

from alliance.model import Alliance, AllianceConfig, model_config
from alliance.sensors import Band, Sensor
from alliance.tokens import mask_noise

# Sentinel-2 without its atmospheric bands, in the three groups of SatMAE: centre wavelengths, nm.
WAVELENGTHS = (492, 560, 665, 833, 704, 741, 783, 865, 1614, 2202)
GROUPS = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))


def ten_bands() -> Sensor:
    bands = tuple(
        Band(name=f"b{i}", wavelength=float(nm), bandwidth=30.0, mean=0.0, std=1.0) for i, nm in enumerate(WAVELENGTHS)
    )
    return Sensor(name="ten-bands", bands=bands, groups=tuple(tuple(f"b{i}" for i in group) for group in GROUPS))


def variants(size: str) -> dict[str, AllianceConfig]:
    """Alliance and its baseline, and Alliance with one part taken out at a time."""
    full = model_config(f"alliance_{size}_patch8")
    encoder, decoder, replace = full.encoder, full.decoder, dataclasses.replace
    return {
        "alliance": full,
        "baseline": replace(
            full,
            encoder=replace(encoder, tokens="plain", amplitude=False),
            decoder=replace(decoder, stages=1, attention="plain"),
        ),
        "plain attention": replace(full, decoder=replace(decoder, attention="plain")),
        "one stage": replace(full, decoder=replace(decoder, stages=1)),
        "no amplitude": replace(full, encoder=replace(encoder, amplitude=False)),
    }


def step_seconds(
    model: Alliance, optimiser: torch.optim.Optimizer, image: torch.Tensor, sensor: Sensor, noise
) -> float:
    began = time.perf_counter()
    model(image, sensor, noise, 0.5).total.backward()
    optimiser.step()
    optimiser.zero_grad()
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sensor, generator = ten_bands(), torch.Generator().manual_seed(0)
    image = torch.randn(options.batch, 10, options.pixels, options.pixels, generator=generator).to(options.device)
    tokens = len(GROUPS) * (options.pixels // 8) ** 2
    noise = mask_noise(0, 0, range(options.batch), tokens).to(options.device)
    models = {name: Alliance(config, [sensor]).to(options.device) for name, config in variants(options.size).items()}
    optimisers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            seconds = step_seconds(model, optimisers[name], image, sensor, noise)
            if turn:  # the first round warms up
                times[name].append(seconds)
    base = statistics.median(times["baseline"])
    print(f"{'variant':16} {'encoder M':>10} {'total M':>9} {'ms/step':>9} {'ratio':>6}")
    for name, model in models.items():
        total = sum(p.numel() for p in model.parameters()) / 1e6
        encoder = sum(p.numel() for p in model.encoder.parameters()) / 1e6
        median = statistics.median(times[name])
        print(f"{name:16} {encoder:10.2f} {total:9.2f} {1000 * median:9.0f} {median / base:6.2f}")


if __name__ == "__main__":
    main()
