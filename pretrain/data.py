"""What a run knows of its sensors before it starts: pooled statistics, and a few fixed samples of each."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.losses import LossConfig, measure_spread
from alliance.sensors import Sensor
from alliance.sensors.plausible import faults, recall
from alliance.tokens import token_grid_shape
from datasets.sampling.faults import BrokenSample
from datasets.sampling.placement import size_of_crop
from datasets.shards.batches import LoaderConfig, Source
from datasets.shards.loader import ShardLoader
from datasets.shards.read import ShardSource
from datasets.shards.stream import StreamSource
from engine.build import deal_batch
from engine.log import logger
from engine.ranks import World
from engine.settings import to_record
from pretrain.config import PretrainConfig

APART = 8.0  # deviations between the means of two folders of one sensor, in the middle one of its bands
SPREAD_SAMPLES = 256  # on which the frequency increments of a sensor are measured
NOT_LEARNT = (
    "sources",
    "workers",
    "verify",
    "allow_pipe",
    "timeout",
    "patience",
    "cache",
    "cache_gb",
    "max_broken",
)  # of the data settings: may change when a run goes on
PROBE_SAMPLES = 8  # of each sensor, drawn in every picture


class Inputs:
    """What a run reads: the loader, the sensors with pooled statistics, and the samples that pictures show.

    Opening them needs no other rank, so that a mistake seen by one can be raised by all.

    Args:
        known: sensors of the encoder that the run begins with; a sensor that is one of them keeps its statistics.
    """

    def __init__(self, config: PretrainConfig, world: World, known: Mapping[str, Sensor]) -> None:
        data, loss, patch = config.data, config.model.loss, config.model.encoder.patch
        batching = deal_batch(config.optim.batch, config.engine.micro_batch, world.size)
        loading = LoaderConfig(
            seed=config.run.seed, micro=batching.micro, accumulation=batching.accumulation,
            workers=data.workers, crop=data.crop, flips=data.augment, verify=data.verify,
            timeout=data.timeout, patience=data.patience, cache=data.cache, cache_gb=data.cache_gb,
        )  # fmt: skip
        self.batching = batching
        self.loader = ShardLoader(data.sources, loading, rank=world.rank, world=world.size, allow_pipe=data.allow_pipe)
        sources, names = self.loader.sources, self.loader.sensor_names
        self.missing = [
            fault
            for source in sources
            if world.is_main and isinstance(source, ShardSource)
            for fault in source.check(data.max_broken)
        ]
        for source, used in zip(sources, names, strict=True):
            for name in used:
                h, w = size_of_crop(source.shape(name)[-2:], data.crop)
                token_grid_shape(torch.empty(0, h, w), patch)
        self.sensors = adopt_statistics(pooled_sensors(sources, names), known)
        if loss.targets == "increments":
            self.sensors = measure_spreads(sources, self.sensors, patch, data.crop, loss)
        self.probes = {
            name: fixed_samples(sources, sensor, PROBE_SAMPLES, data.crop) for name, sensor in self.sensors.items()
        }

    def identity(self, config: PretrainConfig) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run: settings that shape it, and the shards' content."""
        record = to_record(config)
        data = {key: value for key, value in record["data"].items() if key not in NOT_LEARNT}
        shards = [
            [source.index.digest, given.weight, list(given.sensors), *(["streamed"] * isinstance(source, StreamSource))]
            for source, given in zip(self.loader.sources, config.data.sources, strict=True)
        ]
        return {
            "model": record["model"],
            "optim": record["optim"],
            "data": data,
            "seed": config.run.seed,
            "shards": shards,
            "sensors": {name: _measured(sensor) for name, sensor in self.sensors.items()},
        }


def _measured(sensor: Sensor) -> dict[str, str]:
    """Checksums of what a sensor's numbers mean, and of its statistics."""
    statistics = [(band.mean, band.std, band.spread) for band in sensor.bands]
    parts = {"bands, scale, offset and nodata": _bare(sensor).to_dict(), "statistics": statistics}
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:32] for name, part in parts.items()}


def pooled_sensors(sources: Sequence[Source], names: Sequence[Sequence[str]]) -> dict[str, Sensor]:
    """The sensors of all sources by name; one that stands in several gets statistics over all of them.

    Args:
        names: of the sensors that are used, for each source.
    Raises:
        InputError: two sources mean different things by one sensor name.
    """
    holders: dict[str, list[Source]] = {}
    for source, used in zip(sources, names, strict=True):
        for name in used:
            holders.setdefault(name, []).append(source)
    return {name: _pool(name, found) for name, found in holders.items()}


def _pool(name: str, sources: Sequence[Source]) -> Sensor:
    first = sources[0].sensors[name]
    for source in sources[1:]:
        if _bare(source.sensors[name]) != _bare(first):
            raise InputError(
                f"{sources[0].folder} and {source.folder} mean different things by sensor {name} (bands, wavelengths, "
                f"scale, offset or nodata); make one of them anew under another sensor name"
            )
    _refuse_unlike(name, sources)
    count, mean, std = (
        np.array([source.index.statistics[name][field] for source in sources]) for field in ("count", "mean", "std")
    )
    share = count / count.sum(0)
    pooled = (share * mean).sum(0)
    variance = (share * (std**2 + (mean - pooled) ** 2)).sum(0)
    return first.with_statistics(pooled.tolist(), np.where(variance > 0, np.sqrt(variance), 1.0).tolist())


def _refuse_unlike(name: str, sources: Sequence[Source]) -> None:
    """Images of one unit may differ, summer from winter and sea from city; numbers of two units must not be mixed.

    Numbers that are not what the sensor says may be learnt from alone, where they were taken for it on purpose.

    Raises:
        InputError: they are mixed, or nobody said that they are meant.
    """
    if len(sources) == 1 and sources[0].index.forced:
        return
    figures = [source.index.statistics[name] for source in sources]
    for source, one in zip(sources, figures, strict=True):
        sensor = source.sensors[name]
        unknown = [math.nan] * len(sensor.bands)
        low, high = one.get("min", unknown), one.get("max", unknown)
        found = faults(sensor, recall(sensor, one["mean"], one["std"], low, high))
        if found:
            others = ", ".join(str(other.folder) for other in sources if other is not source)
            raise InputError(
                f"{source.folder}{' does not go with ' * bool(others)}{others}: its {name} is none: {found[0]}; make it anew "
                f"with the right sensor, or with --force, and train on it alone"
            )
    if len(sources) == 1:
        return
    means, stds = (np.array([one[field] for one in figures]) for field in ("mean", "std"))
    apart = np.abs(means[1:] - means[0]) / np.maximum(np.sqrt((stds[1:] ** 2 + stds[0] ** 2) / 2), 1e-12)
    gaps = np.median(np.where(means[1:] == means[0], 0.0, apart), axis=1)
    if gaps.max() > APART:
        other = sources[1 + int(gaps.argmax())]
        raise InputError(
            f"{sources[0].folder} and {other.folder} hold different numbers under sensor {name}: their means are "
            f"{gaps.max():.3g} deviations apart ({means[0][0]:.4g} and {means[1 + int(gaps.argmax())][0]:.4g} in band "
            f"{sources[0].sensors[name].bands[0].name}); look at both with launch/inspect.py, and make one anew"
        )


def adopt_statistics(found: Mapping[str, Sensor], known: Mapping[str, Sensor]) -> dict[str, Sensor]:
    """The sensors with the statistics that weights were trained with, where those know the same bands under this name."""
    adopted = {}
    for name, sensor in found.items():
        old = known.get(name)
        if old is not None and _measures(old) == _measures(sensor) and old.has_statistics:
            sensor = sensor.with_statistics(*([getattr(band, f) or 0.0 for band in old.bands] for f in ("mean", "std")))
        elif old is not None:
            logger.warning(
                "sensor %s of the shards is not the one of this name that the weights were trained with", name
            )
        adopted[name] = sensor
    return adopted


def _measures(sensor: Sensor) -> list[tuple[Any, ...]]:
    """What must be the same for statistics to be: names, wavelengths, modalities and units of the bands."""
    return [(band.name, band.wavelength, band.bandwidth, band.modality, band.unit) for band in sensor.bands]


def _bare(sensor: Sensor) -> Sensor:
    """The sensor without what was measured of it, and without what only its files are checked by."""
    checked = {"valid": None, "typical": None, "aliases": ()}
    bands = (dataclasses.replace(band, mean=None, std=None, spread=None, **checked) for band in sensor.bands)
    return dataclasses.replace(sensor, bands=tuple(bands), description="", dtypes=(), product="")


def fixed_samples(sources: Sequence[Source], sensor: Sensor, count: int, crop: int | None) -> Tensor:
    """Evenly spaced samples of the first source that has the sensor, centre-cropped: (b, c, h, w) physical."""
    source = next(source for source in sources if sensor.name in source.sensors)
    stored = (
        source.first(sensor.name, count) if isinstance(source, StreamSource) else _spread_out(source, sensor, count)
    )
    h, w = size_of_crop(stored.shape[-2:], crop)
    top, left = (stored.shape[-2] - h) // 2, (stored.shape[-1] - w) // 2
    return sensor.to_physical(torch.from_numpy(stored[..., top : top + h, left : left + w]))


def _spread_out(source: ShardSource, sensor: Sensor, count: int) -> np.ndarray:
    numbers = np.unique(np.linspace(0, source.samples - 1, min(count, source.samples)).round().astype(np.int64))
    ends = np.cumsum(source.counts)
    shards = np.searchsorted(ends, numbers, side="right")
    try:
        return source.read(sensor.name, shards, numbers - (ends - source.counts)[shards], verify=True).stored
    except BrokenSample as error:
        raise InputError(f"{source.folder}: {error}; {source.mend}") from error


def measure_spreads(
    sources: Sequence[Source], sensors: dict[str, Sensor], patch: int, crop: int | None, loss: LossConfig
) -> dict[str, Sensor]:
    """The sensors with the spread of their frequency increments, measured on fixed samples."""
    measured = {}
    for name, sensor in sensors.items():
        image, _ = sensor.standardise(fixed_samples(sources, sensor, SPREAD_SAMPLES, crop))
        measured[name] = sensor.with_spread(measure_spread(image, patch, loss).tolist())
    return measured
