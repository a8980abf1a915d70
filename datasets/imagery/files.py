"""Files as they lie in folders: images and cubes, links followed once, and everything else that looks like imagery."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alliance.errors import InputError
from datasets.imagery import cubes, envi, rasters
from datasets.imagery.scenes import Skipped, Unreadable
from datasets.imagery.vrt import format_of
from datasets.storage.standins import open_bytes, size_of

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
OTHER_FORMATS = (
    *(".bmp", ".gif", ".webp", ".heic", ".ntf", ".nitf", ".ecw", ".sid", ".grb", ".grb2", ".grib", ".grib2", ".pix"),
    *(".hdf", ".he4", ".hdf4", ".j2k", ".ers", ".rst", ".dem", ".hgt", ".dt1", ".dt2", ".kea", ".mbtiles", ".bsb"),
)
BESIDE = (  # stands beside images and holds none of its own
    *(".hdr", ".ovr", ".msk", ".aux", ".xml", ".txt", ".json", ".csv", ".md", ".html", ".yaml", ".yml", ".pdf", ".py"),
    *(".tfw", ".jgw", ".pgw", ".j2w", ".wld", ".prj", ".gml", ".kml", ".geojson", ".shp", ".shx", ".dbf", ".cpg"),
)
HDF_SUFFIXES = (".hdf", ".hdf4", ".he4")  # HDF4 or HDF5
HDF4 = b"\x0e\x03\x13\x01"
HDF5 = b"\x89HDF\r\n\x1a\n"
STORES = (".zarr",)  # folders that are one image


class ImageFile(NamedTuple):
    """A file that may be an image."""

    path: Path
    root: Path  # the folder that was given, or the folder of the file that was given
    is_cube: bool


@dataclass
class _Search:
    """What was found below one path, and what was met before by its real place."""

    root: Path
    met: dict[str, Path]
    found: list[ImageFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(path.relative_to(self.root).as_posix(), reason))


def find_images(paths: Sequence[Path]) -> tuple[list[ImageFile], list[Skipped]]:
    """The images at some paths, sorted below each, and what looks like imagery but is left out, with the reason.

    Links are followed; each real file is taken once, where it lies rather than where it is linked.

    Raises:
        InputError: a path does not exist, or is a file of no format we read.
    """
    found: list[ImageFile] = []
    skipped: list[Skipped] = []
    met: dict[str, Path] = {}
    for path in paths:
        if not path.is_dir():
            found.append(_given(path))
            continue
        search = _Search(path, met)
        _walk(search)
        found.extend(sorted(search.found))
        skipped.extend(sorted(search.skipped))
    return found, skipped


def _given(path: Path) -> ImageFile:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give scenes, or folders of them")
    try:
        is_cube = _is_cube(path, {path.name, *(other.name for other in path.parent.iterdir())})
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error
    if is_cube is None:
        known = " ".join((*rasters.SUFFIXES, *cubes.SUFFIXES))
        raise InputError(f"{path}: no image format we read; known suffixes: {known}, and any file beside an ENVI .hdr")
    return ImageFile(path, path.parent, is_cube)


def _walk(search: _Search) -> None:
    """Real folders first, then those that links lead to, so that a file is found where it lies."""
    folders: deque[tuple[Path, bool]] = deque([(search.root, False)])
    links: deque[tuple[Path, bool]] = deque()
    linked_files: list[tuple[Path, set[str]]] = []
    while folders or links:
        folder, hidden = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(folder)
        if real in search.met:
            search.skip(folder, f"a link to {_shown(search, real)}, which is read once")
            continue
        search.met[real] = folder
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            search.skip(folder, f"cannot be listed: {error.strerror}")
            continue
        names = {entry.name for entry in entries}
        for entry in entries:
            path, inside = folder / entry.name, hidden or _is_hidden(entry.name)
            if entry.is_dir():
                if path.suffix.lower() in STORES:
                    search.skip(path, "a Zarr store is not read; save the scene as netCDF-4 or GeoTIFF")
                else:
                    (links if entry.is_symlink() else folders).append((path, inside))
            elif entry.is_symlink() and not inside:
                linked_files.append((path, names))
            else:
                _take(search, path, os.path.join(real, entry.name), names, inside)
    for path, names in linked_files:
        _take(search, path, os.path.realpath(path), names, hidden=False)


def _take(search: _Search, path: Path, real: str, names: set[str], hidden: bool) -> None:
    try:
        is_cube = _is_cube(path, names)
    except Unreadable as error:
        search.skip(path, str(error))
        return
    if is_cube is None:
        return
    if hidden:
        search.skip(path, "hidden, as tools leave copies (its name or its folder's begins with a dot)")
    elif real in search.met:
        search.skip(path, f"a link to {_shown(search, real)}, which is read once")
    else:
        search.met[real] = path
        search.found.append(ImageFile(path, search.root, is_cube))


def _shown(search: _Search, real: str) -> str:
    """The place of what was met before, below the root if it lies there."""
    place = search.met[real]
    return place.relative_to(search.root).as_posix() or "." if place.is_relative_to(search.root) else place.name


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_cube(path: Path, names: set[str]) -> bool | None:
    """True for arrays, False for rasters, None for what is no imagery.

    Raises:
        Unreadable: it looks like imagery but is not read, with the mend.
    """
    suffix = path.suffix.lower()
    if suffix in BESIDE:
        return None
    known = suffix in rasters.SUFFIXES or suffix in cubes.SUFFIXES
    if known and path.is_symlink() and not path.exists():
        raise Unreadable("is a link to nothing; put the file back, or take the link away")
    if not path.is_file():
        if known:
            raise Unreadable("is no regular file; put a file in its place, or take it away")
        return None
    if suffix in rasters.SUFFIXES and suffix != ".img":
        return False
    if suffix in cubes.SUFFIXES and suffix not in HDF_SUFFIXES:
        return True
    if any(name in names for name in _headers(path)) and _is_envi(path):
        return False
    if suffix == ".img":
        return False
    return _unknown(path)


def _headers(path: Path) -> Iterator[str]:
    for name in (path.name, path.stem):
        yield from (f"{name}.hdr", f"{name}.HDR")


def _is_envi(path: Path) -> bool:
    """Whether an ENVI header is this file's: it is as long as the header says.

    Raises:
        Unreadable: it is shorter, though its suffix is one of ENVI's.
    """
    header = envi.header_beside(path)
    if header is None:
        return False
    if path.suffix.lower() in ("", *envi.SUFFIXES):
        envi.check_size(path, header)
        return True
    return size_of(path) >= max(envi.promised_bytes(header), 1)


def _unknown(path: Path) -> bool | None:
    """What the first bytes of a file of another suffix tell."""
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        raise Unreadable("is an archive, which is not looked into; unpack it and give the folder")
    try:
        with open_bytes(path) as file:
            start = file.read(16)
        form = format_of(path)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if start.startswith(HDF4):
        raise Unreadable(
            f"is HDF4, which is not read; convert it with h4toh5, or gdal_translate its subdataset (gdalinfo {path.name})"
        )
    if start.startswith(HDF5) and suffix in HDF_SUFFIXES:
        return True
    if form or start.startswith(HDF5):
        wanted = {"TIFF": ".tif", "PNG": ".png", "JPEG": ".jpg", "JPEG 2000": ".jp2", "ERDAS Imagine": ".img"}
        raise Unreadable(f"is {form or 'HDF5'} under another suffix; rename it to {wanted.get(form or '', '.h5')}")
    if suffix in envi.SUFFIXES and suffix not in (".dat", ".raw"):
        raise Unreadable("has no ENVI header (.hdr) beside it; put it there")
    if suffix in OTHER_FORMATS:
        raise Unreadable(f"format {suffix} is not read; convert it: gdal_translate IN{suffix} OUT.tif")
    return None
