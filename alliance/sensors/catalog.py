"""The shipped sensors: find one by name, see whether an image fits one, or make one for a hyperspectral cube."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alliance.errors import InputError
from alliance.sensors import Band, Sensor, read_sensor
from alliance.sensors.sensor import plain_name
from alliance.sensors.wavelengths import to_nanometres

FOLDER = Path(__file__).resolve().parent
RELEASED = FOLDER / "released"
APART = 30.0  # nm, between the wavelength of a band and the one that a file gives, and less than the band is wide
NUMBERED = re.compile(r"(band|channel|layer|lyr|ch)?[\s_.#-]*\d+", re.IGNORECASE)  # as exporters call what has no name
# What lies beside the measurements in many products: quality, masks, angles, by-products.
BESIDE = re.compile(
    r"qa|qc\d*$|scl|mask|msk|cloud|snow|^aot|^wvp|angle|incid|^lia|alpha|udm|quality|label|class|"
    r"^[sv][az]a|zenith|azimuth|clear|confidence|shadow|haze|valid|flag|layover|^tci"
)


def sensor_names() -> list[str]:
    """Names of the shipped sensors, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def released_names() -> list[str]:
    """Names of the sensors of encoders that other projects released, sorted. No image is taken for one of them unasked."""
    return sorted(path.stem for path in RELEASED.glob("*.yaml"))


@cache
def find_sensor(name: str) -> Sensor:
    """A shipped sensor by name, also of a released encoder, or one from a YAML file by path.

    Raises:
        InputError: unknown name or missing file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if name in released_names():
        path = RELEASED / f"{name}.yaml"
    if path.exists():
        return read_sensor(path)
    if path.parent != FOLDER:
        raise InputError(f"no sensor file {name}; give the name of a shipped one: {', '.join(sensor_names())}")
    close = difflib.get_close_matches(name, [*sensor_names(), *released_names()], n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise InputError(f"unknown sensor {name!r}{hint} Known: {', '.join(sensor_names())}, or a YAML file")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself, without its pixels."""

    count: int  # bands
    dtype: str
    names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None  # nm
    path: str = ""  # of its files
    joined: bool = False  # its bands are files, so that their names are those of a product
    scaled: bool = False  # it says its own scale and offset, so that any dtype may hold the numbers

    @property
    def shown(self) -> str:
        """For messages: `4 bands blue, green, red, nir of uint16`."""
        names = "without names" if self.names is None else ", ".join(self.names[:13]) + ", ..." * (self.count > 13)
        return f"{self.count} band{'s' * (self.count > 1)} {names} of {self.dtype}"


class Verdict(NamedTuple):
    """Whether an image is of a sensor."""

    sensor: Sensor
    bands: tuple[int, ...]  # places of the sensor's bands in the image; () where they cannot be told
    reason: str  # why it is not, or not surely; "" where all that the header says fits
    beside: tuple[str, ...] = ()  # bands of the image that are left out
    product: bool = False  # the path is one of this sensor's product


def fit(
    sensor: Sensor,
    names: Sequence[str] | None,
    count: int,
    dtype: str,
    wavelengths: Sequence[float] | None = None,
    *,
    scaled: bool = False,
) -> tuple[int, ...]:
    """Where each band of a named sensor stands in an image; without names the bands must be as many, in its order.

    Args:
        wavelengths: of the image's bands, nm, where it gives them.
        scaled: the image gives its own scale, so that the dtype says nothing.
    Raises:
        InputError: the image is not of this sensor.
    """
    places = _places(sensor, names, count)
    _check_numbers(sensor, places, dtype, wavelengths if wavelengths and len(wavelengths) == count else None, scaled)
    return places


def _places(sensor: Sensor, names: Sequence[str] | None, count: int) -> tuple[int, ...]:
    if names is not None and are_numbers(names) and not all(has_band(sensor, name) for name in names):
        names = None
    if names is None:
        if count != len(sensor.bands):
            bands = f"{count} band{'s' * (count > 1)} without names"
            raise InputError(f"{bands}, sensor {sensor.name} has {len(sensor.bands)}")
        return tuple(range(count))
    if count < len(sensor.bands):
        listed = ", ".join(names[:4]) + (", ..." if count > 4 else "")
        raise InputError(f"{count} band{'s' * (count > 1)} ({listed}), sensor {sensor.name} has {len(sensor.bands)}")
    return tuple(sensor.match(names))


def _check_numbers(
    sensor: Sensor, places: Sequence[int], dtype: str, wavelengths: Sequence[float] | None, scaled: bool
) -> None:
    """Refuse an image whose dtype or wavelengths are not the sensor's."""
    if sensor.dtypes and dtype not in sensor.dtypes and not scaled:
        counts = "; whole numbers are amplitudes or counts: calibrate them" if sensor.is_sar and "int" in dtype else ""
        raise InputError(f"holds {dtype}, sensor {sensor.name} needs {' or '.join(sensor.dtypes)}{counts}")
    for band, place in zip(sensor.bands, places, strict=True):
        found = wavelengths[place] if wavelengths else None
        if found and band.wavelength and abs(band.wavelength - found) > max(APART, band.bandwidth or 0.0):
            raise InputError(
                f"its band for {band.name} is at {found:g} nm, that of sensor {sensor.name} at {band.wavelength:g} nm"
            )


def are_numbers(names: Sequence[str]) -> bool:
    """Whether band names only count: `Band 1`, `channel_02`, `7`."""
    return all(NUMBERED.fullmatch(name.strip()) for name in names)


def judge(sensor: Sensor, header: Header) -> Verdict:
    """Whether an image whose sensor nobody has named is surely of this one, by all that its header says."""
    known = header.names is None or any(has_band(sensor, name) for name in header.names)
    product = known and bool(sensor.product) and re.search(sensor.product, header.path) is not None
    bands: tuple[int, ...] = ()
    try:
        bands = _places(sensor, header.names, header.count)
        fit(sensor, header.names, header.count, header.dtype, header.wavelengths, scaled=header.scaled)
    except InputError as error:
        return Verdict(sensor, bands, str(error), product=product)
    names = header.names or ()
    beside = tuple(name for place, name in enumerate(names) if place not in bands)
    measured = [name for name in beside if not BESIDE.search(plain_name(name))]
    if header.names is None or are_numbers(header.names):
        return Verdict(sensor, bands, "only the number of bands fits, they have no names", beside, product)
    if measured and not product:
        return Verdict(sensor, bands, f"leaves out {', '.join(measured[:4])}", beside, product)
    ordinal = not header.joined and [plain_name(name) for name in names] == [
        f"b{place}" for place in range(1, header.count + 1)
    ]
    if ordinal and not product and header.count > 1:
        return Verdict(sensor, bands, "only numbers fit, B1 to the last: they count, they do not name", beside, product)
    return Verdict(sensor, bands, "", beside, product)


def judge_all(header: Header) -> list[Verdict]:
    """The verdict on every shipped sensor of real images."""
    real = (find_sensor(name) for name in sensor_names() if not name.startswith("synthetic"))
    return [judge(sensor, header) for sensor in real]


def candidates(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of the verdicts that speak for their sensor, those with the best grounds.

    Where the path names a product, they are of that product; else of sensors that are of no particular one; else all.
    """
    fitting = [verdict for verdict in verdicts if not verdict.reason]
    if any(verdict.product for verdict in verdicts):
        return [verdict for verdict in fitting if verdict.product]
    return [verdict for verdict in fitting if not verdict.sensor.product] or fitting


def has_band(sensor: Sensor, name: str) -> bool:
    """Whether the sensor has a band of this name or alias."""
    try:
        sensor.select([name])
    except InputError:
        return False
    return True


def generated_sensor(
    name: str,
    count: int,
    wavelengths: Sequence[float] | None = None,
    *,
    unit: str = "reflectance",
    scale: float = 1.0,
    nodata: float | None = None,
) -> Sensor:
    """A sensor for an unnamed cube: bands b001, b002, ... at these wavelengths (nm, um or m).

    Raises:
        InputError: the name cannot be part of a file name, or the wavelengths are not as many as the bands.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"sensor name {name!r}: use letters, digits, - and _ only")
    if wavelengths is not None and len(wavelengths) != count:
        raise InputError(f"{len(wavelengths)} wavelengths given for {count} bands; give one per band (--wavelengths)")
    digits = max(3, len(str(count)))
    centres = [None] * count if wavelengths is None else to_nanometres(wavelengths)
    bands = tuple(
        Band(name=f"b{index:0{digits}d}", wavelength=centre, unit=unit, scale=scale)
        for index, centre in enumerate(centres, start=1)
    )
    return Sensor(name=name, bands=bands, nodata=nodata, description=f"generated, {count} bands")
