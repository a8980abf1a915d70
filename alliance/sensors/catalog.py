"""The shipped sensors: find one by name, guess one from an image, or make one for a hyperspectral cube."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from alliance.errors import InputError
from alliance.sensors import Band, Sensor, read_sensor
from alliance.sensors.wavelengths import to_nanometres

FOLDER = Path(__file__).resolve().parent
DTYPES = ("uint8", "uint16", "int16", "float32")  # a sensor called ...-uint8 holds nothing else


def sensor_names() -> list[str]:
    """Names of the shipped sensors, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def find_sensor(name: str) -> Sensor:
    """A shipped sensor by name, or one from a YAML file by path.

    Raises:
        InputError: unknown name or missing file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.is_file():
        return read_sensor(path)
    if path.parent != FOLDER:
        raise InputError(f"no sensor file {name}; give the name of a shipped one: {', '.join(sensor_names())}")
    close = difflib.get_close_matches(name, sensor_names(), n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"unknown sensor {name!r}{hint} Known: {', '.join(sensor_names())}, or a YAML file")


def fit(sensor: Sensor, names: Sequence[str] | None, count: int, dtype: str) -> tuple[int, ...]:
    """Where each band of the sensor stands in an image; without names the bands must be as many, in its order.

    Raises:
        InputError: the image is not of this sensor.
    """
    wanted = sensor.name.rpartition("-")[2]
    if wanted in DTYPES and dtype != wanted:
        raise InputError(f"holds {dtype}, sensor {sensor.name} needs {wanted}")
    if names is not None and count < len(sensor.bands):
        listed = ", ".join(names[:4]) + (", ..." if count > 4 else "")
        raise InputError(f"{count} band{'s' * (count > 1)} ({listed}), sensor {sensor.name} has {len(sensor.bands)}")
    if names is not None:
        return tuple(sensor.match(names))
    if count != len(sensor.bands):
        bands = f"{count} band{'s' * (count > 1)} without names"
        raise InputError(f"{bands}, sensor {sensor.name} has {len(sensor.bands)}")
    return tuple(range(count))


def fits(sensor: Sensor, names: Sequence[str] | None, count: int, dtype: str) -> bool:
    """Whether an image is of this sensor."""
    try:
        fit(sensor, names, count, dtype)
    except InputError:
        return False
    return True


def candidates(names: Sequence[str] | None, count: int, dtype: str) -> list[Sensor]:
    """The shipped sensors of real images an image may come from: of those that fit, the ones that use most bands."""
    real = (find_sensor(name) for name in sensor_names() if not name.startswith("synthetic"))
    found = [sensor for sensor in real if fits(sensor, names, count, dtype)]
    most = max((len(sensor.bands) for sensor in found), default=0)
    return [sensor for sensor in found if len(sensor.bands) == most]


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
