"""A probe inside pretraining: every so many steps, how well the encoder's features of labelled images tell them apart."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from alliance.readout import ReadOut
from alliance.sensors import Sensor
from datasets.chips.reading import Fit
from engine.probe_images import ProbeSet, open_probe_set
from engine.probing import Kind, Labelled, evaluating, probe
from engine.runs import due


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Ranged):
    """Labelled images whose classes are told from the encoder's features, while it learns without them."""

    data: str = ""
    """Folder of the images, class/file or train|test/class/file; empty: no probe."""
    sensor: str = ""
    """Sensor of the images, one of the run's; empty: its only one."""
    every: int = ranged(1000, 1, MANY)
    """Steps between two probes; there is one after the first step too, where the encoder is as good as untrained, and one
    after the last.
    """
    kind: Kind = "knn"
    """By the 20 nearest images, or a linear classifier, which takes longer."""
    readout: ReadOut = "mean_std"
    """What is read from the encoder: its cls token, the mean of its tokens, their mean and deviation, or these of every band
    group side by side.
    """
    images: int = ranged(1000, 2, MANY)
    """Images to learn from at most, and as many to score, every class alike."""
    fit: Fit = "resize"
    """How images get one size: resized whole, or their middles cut out."""
    batch: int = ranged(64, 1, MANY)
    """Images at once."""


class Probe:
    """The images of a probe; all ranks read them and go forward together, as they may share weights."""

    def __init__(self, config: ProbeConfig, sensors: Mapping[str, Sensor], patch: int) -> None:
        """
        Raises:
            InputError: no such images or sensor, or images that are not of the sensor.
        """
        self.config = config
        name = config.sensor or next(iter(sensors))
        if name not in sensors or (not config.sensor and len(sensors) > 1):
            raise InputError(
                f"probe.sensor is {config.sensor!r}, the run has {', '.join(sensors)}; say which of them made the images of "
                f"probe.data"
            )
        self.images: ProbeSet = open_probe_set(
            Path(config.data), sensors[name], patch, most=config.images, fit=config.fit
        )
        self.raw = self._percent(*(part.statistics() for part in (self.images.train, self.images.test)))["accuracy"]

    def due(self, done: int, *, last: bool) -> bool:
        """Whether to probe after so many steps."""
        return done == 1 or due(done, self.config.every, last=last)

    def run(self, encoder: AllianceEncoder, *, is_main: bool) -> dict[str, Any]:
        """Probe the encoder as it is now, on all ranks; what the main one logs, accuracies in percent, `raw_statistics` that of the
        images' mean and deviation in place of features.
        """
        began = time.perf_counter()
        with evaluating(encoder):
            train, test = self.images.features(encoder, self.config.readout, self.config.batch)
        if not is_main:
            return {}
        told = {"data": self.images.name, "kind": self.config.kind, "readout": self.config.readout}
        found = {**told, **self._percent(train, test), "raw_statistics": self.raw}
        return {**found, "seconds": round(time.perf_counter() - began, 2)}

    def _percent(self, train: Labelled, test: Labelled) -> dict[str, float]:
        found = probe(self.config.kind, train, test)
        return {name: round(100 * value, 2) for name, value in found._asdict().items()}
