"""What an image with bands is: files, a choice of bands, what its numbers mean and which of them are missing.

One description serves tiles, labelled scenes, prediction and studies. A number means, in this order:

* with a sensor: its physical unit, by the sensor's scale and offset, or by the file's own where the sensor has none;
* with `scale` or `offset`: stored * scale + offset;
* where the file says a scale or offset itself: by that;
* else: what is stored.

Two of these that contradict each other are refused by name. A pixel is missing where the file says so (nodata of a band,
a mask, transparency), where the description or the sensor says so, and where the number is not finite.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alliance.errors import InputError
from alliance.ranges import GREATEST, MANY, SMALLEST, Ranged, ranged
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, fit
from alliance.sensors.standardise import standardise
from datasets.imagery import cubes, rasters
from datasets.imagery.marks import refuse_undeclared
from datasets.imagery.rasters import named
from datasets.imagery.scenes import Box, Read, Scene, Unreadable, Window
from datasets.imagery.units import file_line, settle_units

Statistics = Literal["given", "dataset", "sensor"]
SAME = 1e-6  # relative difference of two scales that are one


@dataclass(frozen=True, kw_only=True)
class ImageSource(Ranged):
    """The images of one role in a set, such as the optical ones."""

    files: str | None = None
    """A pattern with `{key}`, a folder, or FILE[:KEY] of an array; None: the lists of the splits name them."""
    bands: tuple[int | str, ...] = ranged((), 1, MANY)
    """Numbers in the file from 1, or names of the sensor's bands, in the network's order; may repeat; empty: all."""
    sensor: str = ""
    """Name of a shipped sensor, or a YAML file; empty: numbers are what the file and this description say."""
    dtype: str | None = None
    """That every file must have; None: any."""
    nodata: float | None = ranged(None)
    """Stored value of a missing pixel, beside what the files say."""
    scale: float | None = ranged(None, SMALLEST, GREATEST)
    """Value of a stored 1; None: as the sensor or the file says, else 1."""
    offset: float | None = ranged(None, -GREATEST, GREATEST)
    """Value of a stored 0; None: as the sensor or the file says, else 0."""
    log: bool = False
    """Take sign(x) log(1 + |x|): for SAR intensities and products of them, not for decibel."""
    count: int | None = ranged(None, 1, MANY)
    """How many bands the file must have; None: any number."""
    axes: str | None = None
    """Order of the axes of a stored array, such as hwc or chw; None: as the file tells."""
    statistics: Statistics = "given"
    """Where mean and deviation come from: the two below, the data set (measured), or the sensor."""
    mean: tuple[float, ...] = ranged((), -GREATEST, GREATEST)
    """Of every entry of `bands`."""
    std: tuple[float, ...] = ranged((), SMALLEST, GREATEST)
    """Of every entry of `bands`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(map(_band, self.bands)))
        super().__post_init__()
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.axes is not None and sorted(self.axes) != ["c", "h", "w"]:
            raise InputError(f"axes are {self.axes!r}; give an order of the letters h, w and c, such as hwc")
        if not self.sensor and any(isinstance(band, str) for band in self.bands):
            raise InputError(
                f"bands are {list(self.bands)}; names are those of a sensor: give `sensor`, or numbers from 1"
            )
        for name in ("mean", "std"):
            found = len(getattr(self, name))
            if found not in (0, len(self.bands) or found):
                raise InputError(f"{name} has {found} numbers for {len(self.bands)} bands")

    @property
    def description(self) -> Sensor | None:
        """The sensor with the chosen bands, in their order; None without a sensor.

        Raises:
            InputError: there is no such sensor or band.
        """
        if not self.sensor:
            return None
        sensor = find_sensor(self.sensor)
        chosen = [sensor.band_names[band - 1] if isinstance(band, int) else band for band in self.bands]
        return sensor.select(chosen) if chosen else sensor

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of every channel.

        Raises:
            InputError: they are not known.
        """
        sensor = self.description if self.statistics == "sensor" else None
        if sensor is not None and sensor.has_statistics:
            return tuple(band.mean or 0.0 for band in sensor.bands), tuple(band.std or 1.0 for band in sensor.bands)
        if not (self.mean and self.std):
            raise InputError("mean and std of the bands are not given; `launch/prepare.py check` measures them")
        return self.mean, self.std

    def standardise(self, image: Tensor) -> Tensor:
        """Numbers (..., c, h, w), not finite where missing -> (value - mean) / std float32, 0 where a band is missing.

        Raises:
            InputError: mean and std are not known, or are for another number of channels.
        """
        mean, std = self.moments
        if image.shape[-3] != len(mean):
            raise InputError(f"image has {image.shape[-3]} channels, mean and std are for {len(mean)}")
        columns = (torch.tensor(column, dtype=torch.float32, device=image.device) for column in (mean, std))
        return standardise(image, *columns)[0]


@dataclass(frozen=True, kw_only=True)
class SensorSource(ImageSource):
    """Images of a sensor that need not be a shipped one, such as an encoder's."""

    known: Sensor
    """The sensor, with the bands that are read."""

    @property
    def description(self) -> Sensor:
        return self.known


class Image(NamedTuple):
    """An image that was read whole."""

    numbers: Tensor  # (c, h, w) float32, NaN where missing
    header: Scene


class Reading(NamedTuple):
    """How the stored numbers of a file become those of a source."""

    places: list[int]  # of the source's bands in the file, from 0
    scale: NDArray[np.float32]  # (c, 1, 1)
    offset: NDArray[np.float32]
    nodata: tuple[float, ...]  # stored values that are missing, beside what the file itself says
    log: bool
    decibels: bool = False  # of backscatter

    def numbers(self, window: Window) -> Tensor:
        """(c, h, w) float32 in the source's unit, NaN where missing.

        Raises:
            Unreadable: a usual mark of missing pixels stands among the numbers, and nothing says that it is one.
        """
        numbers = window.stored.astype(np.float32)
        missing = ~np.isfinite(numbers)
        if window.missing is not None:
            missing |= window.missing
        for value in self.nodata:
            missing |= window.stored == value
        refuse_undeclared(window.stored, missing, decibels=self.decibels)
        if (self.scale != 1).any() or (self.offset != 0).any():
            numbers = numbers * self.scale + self.offset
        if self.log:
            numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
        numbers[missing] = np.nan
        return torch.from_numpy(numbers)


class OpenImage(NamedTuple):
    """An image whose windows can be read."""

    header: Scene
    reading: Reading
    read: Read

    def window(self, row: int, col: int, height: int, width: int) -> Tensor:
        """(c, height, width) float32, NaN where missing.

        Raises:
            InputError: the file is damaged there.
        """
        with named(self.header.files[0]):
            return self.reading.numbers(self.read(row, col, height, width))


@contextmanager
def opened_image(
    path: Path, source: ImageSource, key: str | None = None, *, grid: tuple[int, ...] | None = None
) -> Iterator[OpenImage]:
    """Open an image for reading windows of the source's bands.

    Args:
        grid: rows and columns that an array is known to have.
    Raises:
        InputError: the file cannot be read, or is not what the source says.
    """
    with opened_scene(describe(path, key, bands=source.count, grid=grid, axes=source.axes), source) as image:
        yield image


@contextmanager
def opened_scene(header: Scene, source: ImageSource) -> Iterator[OpenImage]:
    """As `opened_image`, of an image that is described already, such as one of several files.

    Raises:
        InputError: the files cannot be read, or are not what the source says.
    """
    reading = how_to_read(header, source)
    with ExitStack() as stack:
        with named(header.files[0]):
            read = stack.enter_context(header.open(reading.places))
        yield OpenImage(header, reading, read)


def read_image(
    path: Path,
    source: ImageSource,
    key: str | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    box: Box | None = None,
) -> Image:
    """The image, or a part of it, see `opened_image`."""
    with opened_image(path, source, key, grid=grid) as image:
        return Image(image.window(*(box or (0, 0, *image.header.shape[1:]))), image.header)


def describe(
    path: Path,
    key: str | None = None,
    *,
    bands: int | None = None,
    grid: tuple[int, ...] | None = None,
    axes: str | None = None,
) -> Scene:
    """What the header of an image file of any format says.

    Args:
        key: name of the array, for files of arrays.
        bands, grid: how many bands, and rows and columns, an array is known to have.
        axes: their order in an array.
    Raises:
        InputError: no image, or a key for a file that has none.
    """
    with named(path):
        if path.suffix.lower() in cubes.SUFFIXES:
            options = cubes.CubeOptions(key=key, bands=bands, grid=grid, axes=axes, any_rank=True)
            return cubes.describe_cube(path, path.parent, options)
        if path.suffix.lower() not in rasters.SUFFIXES:
            raise Unreadable(f"is none of {', '.join((*cubes.SUFFIXES, *rasters.SUFFIXES))}; save it as one of these")
        if key:
            raise Unreadable(f"is an image without keys, yet {key!r} was asked for; leave the key out")
        return rasters.describe_raster(path, path.parent)


def how_to_read(header: Scene, source: ImageSource) -> Reading:
    """How this file's numbers become those of the source.

    Raises:
        InputError: the file is not what the source says, or contradicts it.
    """
    places = _band_places(header, source)
    scale, offset = (np.asarray(values, dtype=np.float32)[:, None, None] for values in _scale(header, source, places))
    sensor = source.description
    marks = (source.nodata, None if sensor is None else sensor.nodata)
    declared = tuple(value for value in marks if value is not None)
    return Reading(places, scale, offset, declared, source.log, sensor is not None and sensor.in_decibels)


def _band_places(header: Scene, source: ImageSource) -> list[int]:
    """Where the source's bands stand in a file, from 0.

    Raises:
        InputError: another dtype or number of bands, or a band that is not there.
    """
    path, count = header.files[0], header.shape[0]
    if source.dtype not in (None, header.dtype):
        raise InputError(
            f"{path} holds {header.dtype}, expected is {source.dtype}; convert the files, or set `dtype` in the "
            f"description, with mean and std to match"
        )
    if source.count not in (None, count):
        raise InputError(f"{path} has {count} bands, the data set has {source.count}; check file and key")
    sensor = source.description
    if sensor is not None:
        try:
            return list(
                fit(sensor, header.band_names, count, header.dtype, header.wavelengths, scaled=bool(header.scales))
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    numbers = [band for band in source.bands if isinstance(band, int)] or list(range(1, count + 1))
    if max(numbers) > count:
        raise InputError(f"{path} has {count} bands, asked for are {numbers}; mend `bands`")
    return [number - 1 for number in numbers]


def _scale(header: Scene, source: ImageSource, places: Sequence[int]) -> tuple[Sequence[float], Sequence[float]]:
    """Scale and offset of every channel: as the sensor, the description or the file says.

    Raises:
        InputError: two of them say different things.
    """
    sensor = source.description
    if sensor is not None:
        try:
            bands = settle_units(sensor, header, places).bands
        except InputError as error:
            raise InputError(f"{header.files[0]}: {error}") from error
        return [band.scale for band in bands], [band.offset for band in bands]
    lines = [file_line(header, place) for place in places]
    if source.scale is None and source.offset is None:
        return [scale for scale, _ in lines], [offset for _, offset in lines]
    own = (1.0 if source.scale is None else source.scale, source.offset or 0.0)
    if any(line != (1.0, 0.0) and not np.allclose(line, own, rtol=SAME, atol=0) for line in lines):
        raise InputError(
            f"{header.files[0]}: the description says scale {own[0]:g} and offset {own[1]:g}, the file scale "
            f"{lines[0][0]:g} and offset {lines[0][1]:g}; leave both out of the description, or mend the file's tags"
        )
    return [own[0]] * len(lines), [own[1]] * len(lines)


def _band(value: int | str) -> int | str:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
