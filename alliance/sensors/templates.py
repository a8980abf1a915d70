"""Imaging spectrometers: their files give the wavelengths, so a sensor is made of each file by its instrument's rule."""

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from alliance.errors import InputError
from alliance.ranges import GREATEST, MANY, REQUIRED, SMALLEST, ranged
from alliance.sensors.checks import as_text, check_rising
from alliance.sensors.reading import read_record
from alliance.sensors.sensor import Numbered

FOLDER = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Template(Numbered):
    """What the files of one instrument share. Physical value = stored value * scale."""

    name: str
    description: str
    bands: tuple[float, float] = ranged(REQUIRED, 1, MANY)
    """Fewest and most."""
    scale: float | None = ranged(None, SMALLEST, GREATEST)
    """None: each file gives its own."""
    nodata: float | None = ranged(None)
    unit: str = "reflectance"
    product: str = ""  # regular expression that the paths of its files match

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising(self.bands, f"{self.name}: bands")
        for field in ("name", "description", "unit"):
            as_text(getattr(self, field), f"{self.name}: {field}")

    def is_of(self, path: str, count: int) -> bool:
        """Whether a file of this path and number of bands is one of this instrument."""
        low, high = self.bands
        return low <= count <= high and re.search(self.product, path) is not None


def template_names() -> list[str]:
    """Names of the spectrometers, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def find_template(name: str) -> Template | None:
    """A spectrometer by name; None: it is none."""
    if name not in template_names():
        return None
    record = read_record(FOLDER / f"{name}.yaml")
    unknown = set(record) - {field.name for field in fields(Template)}
    if unknown:
        raise InputError(f"{name}.yaml: unknown key {sorted(unknown)[0]!r}")
    return Template(**record)
