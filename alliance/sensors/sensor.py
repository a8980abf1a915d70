"""Sensors: what each channel of an image measures, and how stored numbers become physical ones.

A `Sensor` is plain frozen data. It is read from `the YAML files beside it`, completed with the statistics of the shards,
and travels inside every checkpoint, so that an image is never standardised with another sensor's numbers.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.images import as_tensor
from alliance.kept import constant, exporting
from alliance.ranges import GREATEST, LARGE, MANY, SMALLEST, Ranged, ranged, stated_ranges
from alliance.sensors.checks import (
    BANDWIDTHS,
    as_text,
    as_texts,
    bandwidth_mend,
    check_rising,
    plain,
    wavelength_mend,
)
from alliance.sensors.standardise import standardise
from alliance.sensors.wavelengths import RANGE

T = TypeVar("T")

# The order is part of every checkpoint: append, never reorder.
MODALITIES = ("optical", "thermal", "sar", "sar-vv", "sar-vh", "sar-hh", "sar-hv", "elevation", "other")
CLAMP = 5.0  # standard deviations
MAX_GROUPS = 12
BANDS_PER_GROUP = 16
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DTYPES = (*INTEGERS, "float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Numbered(Ranged):
    """A record whose numbers may be given as texts or as NumPy's, and are kept as Python's."""

    def __post_init__(self) -> None:
        for field, _ in stated_ranges(type(self)):
            object.__setattr__(self, field, plain(getattr(self, field)))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Band(Numbered):
    """One channel. Physical value = stored value * scale + offset."""

    name: str
    aliases: tuple[str, ...] = ()
    wavelength: float | None = ranged(None, *RANGE, mend=wavelength_mend)
    """Centre, nm; None where a wavelength means nothing (SAR, elevation)."""
    bandwidth: float | None = ranged(None, *BANDWIDTHS, mend=bandwidth_mend)
    """Full width at half maximum, nm."""
    modality: str = "optical"
    unit: str = "reflectance"
    scale: float = ranged(1.0, SMALLEST, GREATEST)
    offset: float = ranged(0.0, -GREATEST, GREATEST)
    valid: tuple[float, float] | None = ranged(None, -GREATEST, GREATEST)
    """Physical values that can occur; None: what the unit allows."""
    typical: tuple[float, float] | None = ranged(None, -GREATEST, GREATEST)
    """Where the median of an image can lie; None: what the unit allows."""
    mean: float | None = ranged(None, -GREATEST, GREATEST)
    """Of the physical values."""
    std: float | None = ranged(None, SMALLEST, GREATEST)
    spread: tuple[float, ...] | None = ranged(None, 0, GREATEST)
    """Rms of each frequency increment, in standard deviations."""

    def __post_init__(self) -> None:
        as_text(self.name, "a band's name")
        here = f"band {self.name}"
        if self.modality not in MODALITIES:
            raise InputError(f"{here}: modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        as_text(self.unit, f"{here}: unit")
        object.__setattr__(self, "aliases", as_texts(self.aliases, f"{here}: aliases"))
        super().__post_init__()
        for field in ("valid", "typical"):
            if getattr(self, field) is not None:
                check_rising(getattr(self, field), f"{here}: {field}")
        if self.spread is not None and not isinstance(self.spread, tuple):
            raise InputError(f"{here}: spread must be a list of numbers, got {self.spread!r}")

    def _place(self, field: str) -> str:
        return f"band {self.name}: {field}"

    @property
    def known_as(self) -> set[str]:
        """Name and aliases in the form in which names are compared."""
        return {plain_name(name) for name in (self.name, *self.aliases)}


@dataclass(frozen=True, kw_only=True)
class Sensor(Numbered):
    """An ordered set of bands with one pixel size and one nodata value."""

    name: str
    bands: tuple[Band, ...]
    gsd_m: float | None = ranged(None, 0, MANY, above=True)
    """Ground sampling distance, metres."""
    nodata: float | None = ranged(None)
    """Stored value that marks a missing pixel; NaN is always missing."""
    groups: tuple[tuple[str, ...], ...] = ()  # bands of one token, by name; empty: windows by wavelength
    clamp: float | None = ranged(CLAMP, 0, LARGE, above=True)
    """Largest magnitude of a standardised value; None: any."""
    dtypes: tuple[str, ...] = ()  # in which the numbers may be stored; empty: in any
    product: str = ""  # regular expression that the paths of this product's files, and of no other, match
    description: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", as_text(self.name, "a sensor's name")):
            raise InputError(f"sensor name {self.name!r}: use letters, digits, - and _ only; it names files")
        here = f"sensor {self.name}"
        if not self.bands:
            raise InputError(f"{here} has no bands")
        super().__post_init__()
        if not isinstance(self.description, str):
            raise InputError(f"{here}: description must be a text, got {self.description!r:.80}")
        object.__setattr__(self, "dtypes", as_texts(self.dtypes, f"{here}: dtypes"))
        unknown = [dtype for dtype in self.dtypes if dtype not in DTYPES]
        if unknown:
            raise InputError(f"{here}: dtypes holds {unknown[0]!r}, known are {', '.join(DTYPES)}")
        self._check_names()

    def _place(self, field: str) -> str:
        return f"sensor {self.name}: {field}"

    def _check_names(self) -> None:
        names = [band.name for band in self.bands]
        known = [name for band in self.bands for name in band.known_as]
        repeated = sorted(name for name, count in Counter(known).items() if count > 1)
        if repeated:
            raise InputError(f"sensor {self.name}: band names and aliases must differ, repeated: {', '.join(repeated)}")
        groups = tuple(as_texts(group, f"sensor {self.name}: groups") for group in self.groups)
        object.__setattr__(self, "groups", groups)
        if groups and sorted(name for group in groups for name in group) != sorted(names):
            raise InputError(f"sensor {self.name}: its groups must hold each band once, got {groups}")
        try:
            re.compile(self.product)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"sensor {self.name}: product {self.product!r} is no regular expression") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables of `compiled`, which belong to this process and its devices."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def _tables(self) -> dict[Any, Any]:
        return {}

    def compiled(self, build: Callable[["Sensor", torch.device], T], device: torch.device) -> T:
        """`build(sensor, device)`, done once for each device: small tensors need no copy in every pass."""
        return build(self, device) if exporting() else _table(self, build, device)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, in their order."""
        return tuple(band.name for band in self.bands)

    @property
    def in_decibels(self) -> bool:
        """Whether every band is backscatter in dB."""
        return all(band.unit.casefold() == "db" for band in self.bands)

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
        seen = [plain_name(name) for name in names]
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
                f"give images of that sensor, or name their own one (in Python sensor.select([...]) keeps fewer bands)"
            )
        return places

    def arrange(self, image: Tensor | np.ndarray, names: Sequence[str]) -> Tensor:
        """Channels of `image` (..., c, h, w), which are called `names`, in this sensor's order."""
        image = as_tensor(image)
        if image.ndim < 3 or image.shape[-3] != len(names):
            channels = image.shape[-3] if image.ndim >= 3 else "no"
            raise InputError(
                f"image of shape {tuple(image.shape)} has {channels} channels but {len(names)} band names were given; "
                f"give (c, h, w) or (b, c, h, w) and one name per channel"
            )
        return image[..., self.match(names), :, :]

    def select(self, names: Sequence[str]) -> "Sensor":
        """The same sensor with these bands only, in this order."""
        places = {name: band for band in self.bands for name in band.known_as}
        unknown = [name for name in names if plain_name(name) not in places]
        if unknown:
            raise InputError(f"sensor {self.name} has no band {_brief(unknown)}; it has {_brief(self.band_names)}")
        bands = tuple(places[plain_name(name)] for name in names)
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

    def to_physical(self, stored: Tensor | np.ndarray) -> Tensor:
        """Stored numbers (..., c, h, w) of any dtype -> float32 in physical units, NaN where data is missing."""
        stored = as_tensor(stored)
        self.check(stored)
        value = stored.float()
        if self.nodata is not None:
            value = value.masked_fill(value == self.nodata, math.nan)  # of `stored`, -9999 would wrap to 241 in uint8
        columns = self.compiled(_columns, value.device)
        return value * columns.scale + columns.offset

    def standardise(self, image: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Physical image -> zero mean, unit deviation per channel, clamped (`clamp`, +-5); pixels that miss a channel are 0.

        Args:
            image: (b, c, h, w) float32, NaN where data is missing.
        Returns:
            (b, c, h, w) float32 and the pixels where every channel is present, (b, 1, h, w) bool.
        Raises:
            InputError: the channel count differs, or the sensor has no statistics.
        """
        image = as_tensor(image)
        self.check(image)
        columns = self._statistics(image.device)
        return standardise(image, columns.mean, columns.std, clamp=self.clamp)

    def restore(self, standardised: Tensor) -> Tensor:
        """Inverse of `standardise`: (..., c, h, w) standard deviations -> physical units."""
        columns = self._statistics(standardised.device)
        return standardised * columns.std + columns.mean

    def _statistics(self, device: torch.device) -> "_Columns":
        if not self.has_statistics:
            raise InputError(
                f"sensor {self.name} has no mean and std; take the sensor from a shards index or a checkpoint, "
                f"or give them with sensor.with_statistics(mean, std)"
            )
        return self.compiled(_columns, device)

    def check(self, image: Tensor) -> None:
        """Refuse an image (..., c, h, w) whose channel count is not this sensor's."""
        if image.ndim < 3 or image.shape[-3] != len(self.bands):
            last = image.ndim >= 3 and image.shape[-1] == len(self.bands)
            raise InputError(
                f"image of shape {tuple(image.shape)} does not fit sensor {self.name}, which has {len(self.bands)} "
                f"bands ({_brief(self.band_names)}); give (b, c, h, w) in that order, see sensor.arrange and .select"
                + ("; its channels stand last: image.movedim(-1, -3)" if last else "")
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; fields at their default are left out."""
        return _without_defaults(self) | {"bands": [_without_defaults(band) for band in self.bands]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, source: str = "sensor") -> "Sensor":
        """From `to_dict` or YAML. Keys of `Band` beside `bands` are defaults for every band."""
        band_fields = {field.name for field in dataclasses.fields(Band)}
        own_fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(record, Mapping):
            raise InputError(f"{source}: a sensor has keys such as name and bands, got {record!r:.80}")
        own = {key: value for key, value in record.items() if key in own_fields}
        shared = {key: value for key, value in record.items() if key in band_fields - own_fields}
        unknown = [key for key in record if key not in own | shared]
        if unknown:
            raise InputError(f"{source}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(own_fields))}")
        bands = own.pop("bands", None) or ()
        if not isinstance(bands, list | tuple) or not all(isinstance(entry, Mapping) for entry in bands):
            raise InputError(f"{source}: bands is a list with keys such as name and wavelength for each band")
        wrong = [key for entry in bands for key in entry if key not in band_fields]
        if wrong:
            raise InputError(f"{source}: unknown band key {wrong[0]!r}; known: {', '.join(sorted(band_fields))}")
        lacking = (
            ["name"] if "name" not in own else [f"name of band {i + 1}" for i, b in enumerate(bands) if "name" not in b]
        )
        if lacking:
            raise InputError(f"{source}: the {lacking[0]} is missing")
        try:
            groups = own.get("groups") or ()
            if not isinstance(groups, list | tuple):
                raise InputError(f"groups must be a list of lists of band names, got {groups!r:.80}")
            own["groups"] = tuple(as_texts(group, "groups") for group in groups)
            return cls(**own, bands=tuple(Band(**(shared | dict(entry))) for entry in bands))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error


@constant
def _table(sensor: Sensor, build: Callable[[Sensor, torch.device], T], device: torch.device) -> T:
    tables = sensor._tables
    if (build, device) not in tables:
        with torch.inference_mode(False), torch.no_grad():
            tables[build, device] = build(sensor, device)
    return tables[build, device]


class _Columns(NamedTuple):
    """One number per band, (c, 1, 1) float32."""

    scale: Tensor
    offset: Tensor
    mean: Tensor  # NaN where it is not known
    std: Tensor


def _columns(sensor: Sensor, device: torch.device) -> _Columns:
    columns = []
    for field in _Columns._fields:
        values = [getattr(band, field) for band in sensor.bands]
        numbers = [math.nan if value is None else value for value in values]
        columns.append(torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None])
    return _Columns(*columns)


def plain_name(name: str) -> str:
    """A band name without case, separators and leading zeros: `B02`, `b2` and `B_02` are one band, 40.2 and 402 two."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"[\s_\-]|(?<!\d)\.|\.(?!\d)", "", name.casefold()))


def _brief(names: Sequence[str], limit: int = 14) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _without_defaults(record: Any) -> dict[str, Any]:
    fields = dataclasses.fields(record)
    return {
        f.name: getattr(record, f.name) for f in fields if getattr(record, f.name) != f.default and f.name != "bands"
    }
