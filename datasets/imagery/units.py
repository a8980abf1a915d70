"""What stored numbers mean: the file's own scale and offset against the sensor's."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from alliance.errors import InputError
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor, sensor_names
from datasets.imagery.scenes import Scene

TOLERANCE = 1e-6  # relative
IDENTITY = (1.0, 0.0)
Line = tuple[float, float]  # physical value = stored value * first + second


def settle_units(sensor: Sensor, scene: Scene, bands: Sequence[int]) -> Sensor:
    """The sensor with the scale and offset that hold for a scene.

    Where the sensor says none (scale 1, offset 0), it takes the file's; where the file says none, the sensor's hold.

    Args:
        bands: places of the sensor's bands in the scene.
    Raises:
        InputError: both say something else, or the scene is a product of another level.
    """
    _check_level(sensor, scene)
    lines = [file_line(scene, place) for place in bands]
    if all(line == IDENTITY for line in lines):
        return sensor
    settled = [_settle(band, line) for band, line in zip(sensor.bands, lines, strict=True)]
    differing = [index for index, band in enumerate(settled) if band is None]
    if differing:
        index = differing[0]
        theirs, ours = lines[index], _line(sensor.bands[index])
        raise InputError(
            f"band {sensor.bands[index].name}: the {_whose(scene)} says {_said(theirs)}, sensor {sensor.name} "
            f"{_said(ours)}; {_mend(sensor, lines)}"
        )
    return replace(sensor, bands=tuple(band for band in settled if band is not None))


def file_line(scene: Scene, band: int) -> Line:
    """Scale and offset that the file says for a band; (1, 0) where it says nothing."""
    return scene.scales[band] if scene.scales else 1.0, scene.offsets[band] if scene.offsets else 0.0


def _line(band: Band) -> Line:
    return band.scale, band.offset


def _agree(one: Line, other: Line) -> bool:
    near = 1e-12  # of offsets beside 0
    return math.isclose(one[0], other[0], rel_tol=TOLERANCE) and math.isclose(
        one[1], other[1], rel_tol=TOLERANCE, abs_tol=near
    )


def _settle(band: Band, line: Line) -> Band | None:
    """The band with the scale and offset that hold; None where file and sensor differ."""
    if line == IDENTITY or _agree(_line(band), line):
        return band
    return replace(band, scale=line[0], offset=line[1]) if _line(band) == IDENTITY else None


def _mend(sensor: Sensor, lines: Sequence[Line]) -> str:
    """The shipped sensor of the same bands that says what the file says, else how to write one."""
    for name in difflib.get_close_matches(sensor.name, sensor_names(), n=len(sensor_names()), cutoff=0):
        other = find_sensor(name)
        if other.band_names == sensor.band_names and all(map(_agree, map(_line, other.bands), lines)):
            return f"pass --sensor {name}"
    scale, offset = lines[0]
    if all(
        line[0] and _agree((1 / line[0], line[1]), _line(band)) for line, band in zip(lines, sensor.bands, strict=True)
    ):
        return f"the file's is a divisor that is called a scale factor: write {1 / scale:.10g} there"
    wanted = f"scale: {scale:.10g} and offset: {offset:.10g}"
    if sensor.description.startswith("generated"):
        return f"pass --scale {scale:.10g}, or none to take the file's"
    return (
        f"if the file is right, copy the YAML of {sensor.name} under another name, with {wanted}, and pass its path as "
        f"--sensor; if not, mend its tags (gdal_edit.py -scale S -offset O)"
    )


def _whose(scene: Scene) -> str:
    product = scene.facts.get("baseline")
    return f"product of processing baseline {product}" if product else "file"


def _said(line: Line) -> str:
    return f"scale {line[0]:.10g} and offset {line[1]:.10g}"


def _check_level(sensor: Sensor, scene: Scene) -> None:
    """Levels 1 and 2 are different quantities: at the top of the atmosphere, and at the ground."""
    found = scene.facts.get("level", "")[1:2]
    wanted = re.search(r"\b(?:level |L)([12])[A-Z]?\b", sensor.description)
    if not found or not wanted or found == wanted[1]:
        return
    fitting = [
        name
        for name in sensor_names()
        if (other := find_sensor(name)).description
        and (level := re.search(r"\b(?:level |L)([12])[A-Z]?\b", other.description))
        and level[1] == found
        and set(other.band_names) & set(sensor.band_names)
    ]
    mend = f"pass --sensor {' or '.join(fitting)}" if fitting else "write a sensor of its own for it"
    raise InputError(
        f"is a product of level {scene.facts['level']} ({scene.facts.get('product', scene.name)}), sensor {sensor.name} "
        f"is of level {wanted[1]}; {mend}"
    )
