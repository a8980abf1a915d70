"""Scenes: images of any format, described by their header and read window by window."""

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io.matlab import MatReadError

from alliance.ranges import GREATEST, SMALLEST, Range
from datasets.storage.standins import refuse_failure


class Window(NamedTuple):
    """A part of an image as it stands in its file."""

    stored: np.ndarray  # (c, h, w), the file's numbers
    missing: np.ndarray | None = None  # (c, h, w) bool, what the file itself calls missing; None: it says nothing


class Box(NamedTuple):
    """A rectangle of pixels of an image."""

    row: int
    col: int
    height: int
    width: int


# Kinds of places without a grid.
CONTROL, POLYNOMIALS, SWATH = "ground control points", "rational polynomials", "latitudes and longitudes of its pixels"
WARPS = {CONTROL: "-tps", POLYNOMIALS: "-rpc", SWATH: "-geoloc"}  # options of gdalwarp
SCALE, OFFSET = Range(SMALLEST, GREATEST), Range(-GREATEST, GREATEST)  # as of a band of a sensor
AGAINST = "is not "  # begins why a scene is not of a sensor
NUMBER = re.compile(r"(?<![\w.-])-?\d+(\.\d+)?(e[+-]?\d+)?(?![\w])")  # not those in names
SHOWN = 60  # characters of a file's path in a summary
COMPLEX = (
    "holds {} values, pixels are integers or floats; of complex SAR take the amplitude, or decibels: "
    "gdal_calc.py -A IN --calc='20*log10(abs(A)+1e-6)' --type=Float32 --outfile=OUT.tif"
)
Read = Callable[[int, int, int, int], Window]  # row, col, height, width

OPENER = re.compile(r"/vsi[a-z]+_[0-9a-f]{32}/")  # before paths that rasterio opens through Python

# What rasterio, h5py, scipy and numpy raise on damaged or unexpected files; rasterio's errors are OSErrors.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile, MatReadError),
)


class Unreadable(Exception):
    """A file cannot be used; the message is the reason, without the file's name."""

    file: Path | None = None  # which one, where several are read together


class Damaged(Unreadable):
    """Bytes of the file are missing or changed: another copy of it helps, nothing else."""


class Points(NamedTuple):
    """Where an image lies whose pixels lie on no even grid."""

    kind: str  # what places it
    places: tuple[tuple[float, float, float, float], ...]  # row and column (from 0, of pixels' corners), x, y
    crs: str | None = None

    @property
    def warp(self) -> str:
        """The option of gdalwarp that puts such an image on a grid."""
        return WARPS[self.kind]


class Skipped(NamedTuple):
    """A file that was left out, by its path below the given folder, and why."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scene(ABC):
    """What is known of an image without reading its pixels. Plain data: it travels to worker processes."""

    root: Path  # the folder that was given, or the folder of the file that was given
    files: tuple[Path, ...]
    name: str  # path below the root without suffix
    shape: tuple[int, int, int]  # (c, h, w)
    dtype: str
    band_names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None  # nm
    nodata: tuple[float | None, ...] = ()  # of each band, as the file says it; (): it says nothing
    masked: bool = False  # the file holds, or has beside it, a mask of missing pixels
    scales: tuple[float, ...] = ()  # of each band: physical = stored * scale + offset; (): the file says nothing
    offsets: tuple[float, ...] = ()
    units: tuple[str, ...] = ()  # of each band, of the physical values; (): the file says nothing
    good: tuple[bool, ...] = ()  # of each band, False: its maker calls it bad; (): the file says nothing
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # a b c d e f: x = a col + b row + c, y = d col + e row + f
    points: Points | None = None  # of an image without a transform
    date: str | None = None  # ISO
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)  # colours that the file gives its numbers
    facts: Mapping[str, str] = field(default_factory=dict)  # of its product: "product", "level", "baseline", ...

    def __post_init__(self) -> None:
        for name, stated, values in (("scale", SCALE, self.scales), ("offset", OFFSET, self.offsets)):
            wrong = [value for value in values if not stated.holds(value)]
            if wrong:
                raise Unreadable(f"says the {name} {wrong[0]:g}; a {name} is a number {stated}: mend the file's tags")

    @abstractmethod
    def open(self, bands: Sequence[int]) -> AbstractContextManager[Read]:
        """Open the files for reading windows of these bands, in this order, in the source dtype.

        Raises:
            Unreadable: on opening, or from the window that cannot be read.
        """

    @property
    def marks_missing(self) -> bool:
        """Whether the file says in any way which pixels are missing."""
        return self.masked or any(value is not None for value in self.nodata)

    @property
    def sources(self) -> tuple[str, ...]:
        """The files below the root, as they are written into samples."""
        return tuple(file.relative_to(self.root).as_posix() for file in self.files)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into `Unreadable` with a one-line reason; so is what is no regular file.

    Raises:
        StoreFailure: what was read is not what a store holds.
    """
    if path.exists() and not path.is_file():
        unreadable = Unreadable("is no regular file; put a file in its place, or take it away")
        unreadable.file = path
        raise unreadable
    try:
        yield
    except (*DAMAGE, Unreadable) as error:
        refuse_failure()
        if isinstance(error, Unreadable):
            raise
        text = OPENER.sub("", str(error)).replace(str(path), path.name)
        unreadable = Damaged(f"cannot be read: {' '.join(text.split())[:200] or type(error).__name__}")
        unreadable.file = path
        raise unreadable from error
    refuse_failure()


def check_dtype(dtype: np.dtype) -> str:
    """The dtype's name, if pixels may have it."""
    if dtype.kind == "c":
        raise Unreadable(COMPLEX.format(dtype))
    if dtype.kind not in "iuf":
        raise Unreadable(f"holds {dtype} values; pixels are integers or floats")
    return dtype.name


def find_date(path: Path, tags: Mapping[str, str] | None = None) -> str | None:
    """Acquisition date from the tags, else from yyyymmdd in the file name, else the time the TIFF was written."""
    tags = {key.upper(): value for key, value in (tags or {}).items()}
    keys = ("ACQUISITIONDATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED")
    texts = [*(tags.get(key, "") for key in keys), path.stem, tags.get("TIFFTAG_DATETIME", "")]
    for text in texts:
        for found in re.finditer(r"(?<!\d)((?:19|20)\d\d)[-:_]?([01]\d)[-:_]?([0-3]\d)(?!\d)", text):
            try:
                return date(*map(int, found.groups())).isoformat()
            except ValueError:
                continue
    return None


def summarise(skipped: Iterable[Skipped], limit: int = 3) -> list[str]:
    """One line per reason, the most frequent first: the first files' names, how many more, and the reason.

    What speaks against a sensor is told of the first file, where only its numbers are other in the next ones.
    """
    by_reason: dict[str, list[Skipped]] = {}
    for entry in skipped:
        key = NUMBER.sub("#", entry.reason) if entry.reason.startswith(AGAINST) else entry.reason
        by_reason.setdefault(key, []).append(entry)
    lines = []
    for entries in sorted(by_reason.values(), key=lambda entries: -len(entries)):
        rest = f", ... ({len(entries) - limit} more)" if len(entries) > limit else ""
        names = ", ".join(_short(entry.file) for entry in entries[:limit])
        other = sum(entry.reason != entries[0].reason for entry in entries)
        told = f" (of the first; {other} more with other numbers)" if other else ""
        lines.append(f"{names}{rest}: {entries[0].reason}{told}")
    return lines


def _short(file: str) -> str:
    """The end of a long path."""
    return file if len(file) <= SHOWN else f"...{file[-SHOWN:]}"


def equals(stored: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray | None:
    """Where a band (c, h, w) has its nodata value, also NaN; None where no band has one."""
    if all(value is None for value in nodata):
        return None
    found = np.zeros(stored.shape, dtype=bool)
    for band, value in enumerate(nodata):
        if value is not None:
            found[band] = np.isnan(stored[band]) if np.isnan(value) else stored[band] == value
    return found
