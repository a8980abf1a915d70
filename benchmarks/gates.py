"""Do the frequency selective gates select? Their spread over places and samples, and the error without it.

    python benchmarks/gates.py SHARDS --gate sigmoid softmax --steps 300 --seeds 0 1 2

Trains nano models on shards of one sensor. The last samples (other scenes, where shards are made scene by scene) are kept
apart: on them are measured the mean and the deviation of the gates at masked places, stage by stage, the masked error of
every stage, and the error of the last one when each gate is replaced by its mean (`flat`). Gates by softmax are three a stage.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import torch
from torch import Tensor

from alliance.decoder import DecoderConfig
from alliance.model import SIZES, Alliance, AllianceConfig, EncoderConfig
from alliance.sensors import Sensor
from alliance.tokens import mask_noise
from datasets.shards.read import ShardSource
from engine.optim import OptimConfig, learning_rate
from pretrain.data import fixed_samples, pooled_sensors

PATCH, CROP = 8, 64
HELD = 0.15  # share of the samples that is kept apart


def nano(gate: Literal["sigmoid", "softmax"], sensor: Sensor) -> Alliance:
    """The model of configs/pretrain/nano.yaml with one of the gates."""
    d, depth, heads = SIZES["nano"]
    encoder = EncoderConfig(embed_dim=d, depth=depth, heads=heads, patch=PATCH)
    return Alliance(
        AllianceConfig(encoder=encoder, decoder=DecoderConfig(gate=gate, embed_dim=64, depth=6, heads=4)), [sensor]
    )


def noise_of(images: Tensor, sensor: Sensor, seed: int, step: int) -> Tensor:
    """Noise (b, g * n) of the masks of one batch."""
    count = len(sensor.group_indices) * (images.shape[-2] // PATCH) * (images.shape[-1] // PATCH)
    return mask_noise(seed, step, range(len(images)), count)


def train(model: Alliance, images: Tensor, sensor: Sensor, options: argparse.Namespace, seed: int) -> float:
    """Steps on batches drawn by the seed, with mirrors; seconds per step."""
    optim = OptimConfig(lr=2e-3, warmup=0.1, batch=options.batch)
    optimiser = torch.optim.AdamW(model.parameters(), betas=optim.betas, weight_decay=optim.weight_decay)
    generator, began = torch.Generator().manual_seed(seed), time.perf_counter()
    for step in range(options.steps):
        batch = images[torch.randint(len(images), (options.batch,), generator=generator)]
        batch = batch.flip(-1) if step % 2 else batch
        optimiser.param_groups[0]["lr"] = learning_rate(step, options.steps, optim)
        loss = model(batch, sensor, noise_of(batch, sensor, seed, step), step / options.steps).total
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return (time.perf_counter() - began) / options.steps


@contextmanager
def watched(model: Alliance, replace: list[Tensor] | None, seen: list[Tensor]) -> Iterator[None]:
    """Keep what the gates give, (b, n, gates) of every stage, and put other numbers, (gates,) each, in their place."""

    def hook(_: Any, __: Any, gates: list[Tensor]) -> list[Tensor] | None:
        stage = len(seen)
        seen.append(torch.cat(gates, dim=-1).detach())
        return None if replace is None else [each.expand_as(gates[0]) for each in replace[stage]]

    handle = model.decoder.gates.register_forward_hook(hook)
    yield
    handle.remove()


@torch.no_grad()
def measured(model: Alliance, images: Tensor, sensor: Sensor) -> dict[str, list[float]]:
    """Gates and errors on images that were not trained on, always under the same masks."""
    model.eval()
    noise, seen = noise_of(images, sensor, 99, 0), []
    with watched(model, None, seen):
        stages = model(images, sensor, noise, 1.0).stages
    masked = model.predict(images, sensor, noise, sensor.group_indices).mask.masked
    at_masked = [gates.expand(*masked.shape, -1)[masked] for gates in seen]  # of every stage, (places, gates)
    means = [gates.mean(0) for gates in at_masked]
    with watched(model, means, []):
        flat = model(images, sensor, noise, 1.0).stages
    return {
        "gate mean": [value for mean in means for value in mean.tolist()],
        "gate deviation": [value for gates in at_masked for value in gates.std(0).tolist()],
        "error": stages.tolist(),
        "flat error": flat.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of launch/shards.py, of one sensor")
    parser.add_argument("--gate", nargs="+", choices=("sigmoid", "softmax"), default=["sigmoid", "softmax"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000, help="samples that are read")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = ShardSource(options.shards)
    ((_, sensor),) = pooled_sensors([source], [list(source.sensors)]).items()
    images = fixed_samples([source], sensor, options.images, CROP)
    held = max(round(HELD * len(images)), 1)
    print(f"{sensor.name}: {len(images) - held} images to learn from, {held} kept apart")
    print("| gate | seed | mean | deviation | error low, mid, image | the last, gates flat | ms/step |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for gate in options.gate:
            torch.manual_seed(seed)
            model = nano(gate, sensor)
            seconds = train(model, images[:-held], sensor, options, seed)
            found = {
                name: [f"{value:.3f}" for value in each]
                for name, each in measured(model, images[-held:], sensor).items()
            }
            print(f"| {gate} | {seed} | {', '.join(found['gate mean'])} | {', '.join(found['gate deviation'])} | "
                  f"{', '.join(found['error'])} | {found['flat error'][-1]} | {1000 * seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
