"""What a run knows of its sensors before it starts: pooled statistics, and a few fixed samples of each."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.losses import LossConfig, measure_spread
from alliance.sensors import Sensor
from datasets.augment import size_of_crop
from datasets.shards.read import ShardSource

SPREAD_SAMPLES = 256  # on which the frequency increments of a sensor are measured


def pooled_sensors(sources: Sequence[ShardSource], names: Sequence[Sequence[str]]) -> dict[str, Sensor]:
    """The sensors of all sources by name; one that stands in several gets statistics over all of them.

    Args:
        names: of the sensors that are used, for each source.
    Raises:
        InputError: two sources call different bands by one sensor name.
    """
    holders: dict[str, list[ShardSource]] = {}
    for source, used in zip(sources, names, strict=True):
        for name in used:
            holders.setdefault(name, []).append(source)
    return {name: _pool(name, found) for name, found in holders.items()}


def _pool(name: str, sources: Sequence[ShardSource]) -> Sensor:
    first = sources[0].sensors[name]
    for source in sources[1:]:
        if source.sensors[name].band_names != first.band_names:
            raise InputError(
                f"{sources[0].folder} and {source.folder} hold different bands of sensor {name}; "
                f"make one of them anew with its own --name"
            )
    count, mean, std = (
        np.array([source.index.statistics[name][field] for source in sources]) for field in ("count", "mean", "std")
    )
    share = count / count.sum(0)
    pooled = (share * mean).sum(0)
    variance = (share * (std**2 + (mean - pooled) ** 2)).sum(0)
    return first.with_statistics(pooled.tolist(), np.where(variance > 0, np.sqrt(variance), 1.0).tolist())


def fixed_samples(sources: Sequence[ShardSource], sensor: Sensor, count: int, crop: int | None) -> Tensor:
    """Evenly spaced samples of the first source that has the sensor, centre-cropped: (b, c, h, w) physical."""
    source = next(source for source in sources if sensor.name in source.sensors)
    numbers = np.unique(np.linspace(0, source.samples - 1, min(count, source.samples)).round().astype(np.int64))
    ends = np.cumsum(source.counts)
    shards = np.searchsorted(ends, numbers, side="right")
    stored = source.read(sensor.name, shards, numbers - (ends - source.counts)[shards]).stored
    h, w = size_of_crop(stored.shape[-2:], crop)
    top, left = (stored.shape[-2] - h) // 2, (stored.shape[-1] - w) // 2
    return sensor.to_physical(torch.from_numpy(stored[..., top : top + h, left : left + w]))


def measure_spreads(
    sources: Sequence[ShardSource], sensors: dict[str, Sensor], patch: int, crop: int | None, loss: LossConfig
) -> dict[str, Sensor]:
    """The sensors with the spread of their frequency increments, measured on fixed samples."""
    measured = {}
    for name, sensor in sensors.items():
        image, _ = sensor.standardise(fixed_samples(sources, sensor, SPREAD_SAMPLES, crop))
        measured[name] = sensor.with_spread(measure_spread(image, patch, loss).tolist())
    return measured
