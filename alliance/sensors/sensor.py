"""Sensors: what each channel of an image measures, and how stored numbers become physical ones.

A `Sensor` is plain frozen data. It is read from `the YAML files beside it`, completed with the statistics of the shards,
and travels inside every checkpoint, so that an image is never standardised with another sensor's numbers.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alliance.errors import InputError
from alliance.sensors.standardise import standardise

# The order is part of every checkpoint: append, never reorder.
MODALITIES = ("optical", "thermal", "sar", "sar-vv", "sar-vh", "sar-hh", "sar-hv", "elevation", "other")
CLAMP = 5.0  # standard deviations
MAX_GROUPS = 12
BANDS_PER_GROUP = 16


@dataclass(frozen=True, kw_only=True)
class Band:
    """One channel. Physical value = stored value * scale + offset."""

    name: str
    aliases: tuple[str, ...] = ()
    wavelength: float | None = None  # centre, nm; None where a wavelength means nothing (SAR, elevation)
    bandwidth: float | None = None  # full width at half maximum, nm
    modality: str = "optical"
    unit: str = "reflectance"
    scale: float = 1.0
    offset: float = 0.0
    mean: float | None = None  # of the physical values
    std: float | None = None
    spread: tuple[float, ...] | None = None  # rms of each frequency increment, in standard deviations

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise InputError(f"band {self.name}: modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        for field in ("wavelength", "bandwidth", "std"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise InputError(f"band {self.name}: {field} must be positive, got {value}")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.spread is not None:
            object.__setattr__(self, "spread", tuple(self.spread))

    @property
    def known_as(self) -> set[str]:
        """Name and aliases in the form in which names are compared."""
        return {_plain(name) for name in (self.name, *self.aliases)}


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """An ordered set of bands with one pixel size and one nodata value."""

    name: str
    bands: tuple[Band, ...]
    gsd_m: float | None = None  # ground sampling distance, metres
    nodata: float | None = None  # stored value that marks a missing pixel; NaN is always missing
    groups: tuple[tuple[str, ...], ...] = ()  # bands of one token, by name; empty: windows by wavelength
    description: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise InputError(f"sensor name {self.name!r}: use letters, digits, - and _ only; it names files")
        names = [band.name for band in self.bands]
        if not names:
            raise InputError(f"sensor {self.name} has no bands")
        known = [name for band in self.bands for name in band.known_as]
        repeated = sorted({name for name in known if known.count(name) > 1})
        if repeated:
            raise InputError(f"sensor {self.name}: band names and aliases must differ, repeated: {', '.join(repeated)}")
        grouped = [name for group in self.groups for name in group]
        if self.groups and sorted(grouped) != sorted(names):
            raise InputError(f"sensor {self.name}: its groups must hold each band once, got {self.groups}")

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, in their order."""
        return tuple(band.name for band in self.bands)

    @property
    def is_sar(self) -> bool:
        """Whether every band is a radar's."""
        return all(band.modality.startswith("sar") for band in self.bands)

    @property
    def has_statistics(self) -> bool:
        """Whether every band has a mean and a deviation."""
        return all(band.mean is not None and band.std is not None for band in self.bands)

    @property
    def group_indices(self) -> tuple[tuple[int, ...], ...]:
        """Channel indices of each band group: the sensor's own groups, else contiguous windows by wavelength."""
        if self.groups:
            place = {name: index for index, name in enumerate(self.band_names)}
            return tuple(tuple(place[name] for name in group) for group in self.groups)
        order = sorted(range(len(self.bands)), key=lambda index: (self.bands[index].wavelength or math.inf, index))
        count = min(max(math.ceil(len(order) / BANDS_PER_GROUP), 1), MAX_GROUPS)
        edges = [round(len(order) * group / count) for group in range(count + 1)]
        return tuple(tuple(order[start:stop]) for start, stop in zip(edges, edges[1:], strict=False))

    def match(self, names: Sequence[str]) -> list[int]:
        """Where each of this sensor's bands stands among `names` (case, zeros and separators do not matter).

        Raises:
            InputError: a band is missing or stands twice; surplus names are allowed.
        """
        seen = [_plain(name) for name in names]
        places, missing = [], []
        for band in self.bands:
            wanted = band.known_as
            found = [index for index, name in enumerate(seen) if name in wanted]
            if len(found) > 1:
                raise InputError(f"band {band.name} of sensor {self.name} stands twice among {', '.join(names)}")
            places.extend(found)
            missing.extend([] if found else [band.name])
        if missing:
            raise InputError(
                f"bands {_brief(names)} lack {_brief(missing)} of sensor {self.name}; "
                f"name the image's own sensor, or keep fewer bands with sensor.select([...])"
            )
        return places

    def arrange(self, image: Tensor, names: Sequence[str]) -> Tensor:
        """Channels of `image` (..., c, h, w), which are called `names`, in this sensor's order."""
        if image.shape[-3] != len(names):
            raise InputError(f"image has {image.shape[-3]} channels but {len(names)} band names were given")
        return image[..., self.match(names), :, :]

    def select(self, names: Sequence[str]) -> "Sensor":
        """The same sensor with these bands only, in this order."""
        places = {name: band for band in self.bands for name in band.known_as}
        unknown = [name for name in names if _plain(name) not in places]
        if unknown:
            raise InputError(f"sensor {self.name} has no band {_brief(unknown)}; it has {_brief(self.band_names)}")
        bands = tuple(places[_plain(name)] for name in names)
        kept = {band.name for band in bands}
        groups = tuple(tuple(name for name in group if name in kept) for group in self.groups)
        return dataclasses.replace(self, bands=bands, groups=tuple(group for group in groups if group))

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> "Sensor":
        """The same sensor with these per-band statistics, in physical units."""
        bands = (
            dataclasses.replace(band, mean=float(m), std=float(s))
            for band, m, s in zip(self.bands, mean, std, strict=True)
        )
        return dataclasses.replace(self, bands=tuple(bands))

    def with_spread(self, spread: Sequence[Sequence[float]]) -> "Sensor":
        """The same sensor with the rms of each band's frequency increments, low to high."""
        bands = (dataclasses.replace(band, spread=tuple(s)) for band, s in zip(self.bands, spread, strict=True))
        return dataclasses.replace(self, bands=tuple(bands))

    def to_physical(self, stored: Tensor) -> Tensor:
        """Stored numbers (..., c, h, w) of any dtype -> float32 in physical units, NaN where data is missing."""
        self.check(stored)
        value = stored.float()
        if self.nodata is not None:
            value = value.masked_fill(value == self.nodata, math.nan)  # of `stored`, -9999 would wrap to 241 in uint8
        return value * self._column("scale", value) + self._column("offset", value)

    def standardise(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Physical image -> zero mean, unit deviation per channel, clamped to +-5; pixels that miss a channel are 0.

        Args:
            image: (b, c, h, w) float32, NaN where data is missing.
        Returns:
            (b, c, h, w) float32 and the pixels where every channel is present, (b, 1, h, w) bool.
        Raises:
            InputError: the channel count differs, or the sensor has no statistics.
        """
        self.check(image)
        if not self.has_statistics:
            raise InputError(
                f"sensor {self.name} has no mean and std; take the sensor from a shards index or a checkpoint, "
                f"or give them with sensor.with_statistics(mean, std)"
            )
        return standardise(image, self._column("mean", image), self._column("std", image), clamp=CLAMP)

    def restore(self, standardised: Tensor) -> Tensor:
        """Inverse of `standardise`: (..., c, h, w) standard deviations -> physical units."""
        return standardised * self._column("std", standardised) + self._column("mean", standardised)

    def check(self, image: Tensor) -> None:
        """Refuse an image (..., c, h, w) whose channel count is not this sensor's."""
        if image.ndim < 3 or image.shape[-3] != len(self.bands):
            raise InputError(
                f"image of shape {tuple(image.shape)} does not fit sensor {self.name}, which has {len(self.bands)} "
                f"bands ({_brief(self.band_names)}); give (b, c, h, w) in that order, see sensor.arrange and .select"
            )

    def _column(self, field: str, like: Tensor) -> Tensor:
        values = [getattr(band, field) for band in self.bands]
        return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; fields at their default are left out."""
        return _without_defaults(self) | {"bands": [_without_defaults(band) for band in self.bands]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, source: str = "sensor") -> "Sensor":
        """From `to_dict` or YAML. Keys of `Band` beside `bands` are defaults for every band."""
        record = dict(record)
        band_fields = {field.name for field in dataclasses.fields(Band)}
        own_fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(record) - band_fields - own_fields)
        if unknown:
            raise InputError(f"{source}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(own_fields))}")
        shared = {key: record.pop(key) for key in band_fields - own_fields & set(record) if key in record}
        bands = []
        for entry in record.pop("bands", None) or ():
            wrong = sorted(set(entry) - band_fields)
            if wrong:
                raise InputError(f"{source}: unknown band key {wrong[0]!r}; known: {', '.join(sorted(band_fields))}")
            bands.append(Band(**(shared | dict(entry))))
        groups = tuple(tuple(group) for group in record.pop("groups", ()))
        return cls(**record, bands=tuple(bands), groups=groups)


def read_sensor(path: Path) -> Sensor:
    """Read one YAML file. `extends: NAME` starts from the file NAME.yaml beside it and overrides its keys."""
    return Sensor.from_dict(_read_record(path), source=str(path))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such sensor file; check the name, or write one beside the others"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: a sensor file holds keys such as name, gsd_m and bands")
    parent = record.pop("extends", None)
    return record if parent is None else _read_record(path.with_name(f"{parent}.yaml")) | record


def _plain(name: str) -> str:
    """A band name without case, separators and leading zeros: `B02`, `b2` and `B_02` are one band, 40.2 and 402 two."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"[\s_\-]|(?<!\d)\.|\.(?!\d)", "", name.casefold()))


def _brief(names: Sequence[str], limit: int = 14) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _without_defaults(record: Any) -> dict[str, Any]:
    fields = dataclasses.fields(record)
    return {
        f.name: getattr(record, f.name) for f in fields if getattr(record, f.name) != f.default and f.name != "bands"
    }
