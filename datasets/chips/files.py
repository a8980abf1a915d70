"""Images as they lie in folders: a file each, or a file for every band."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from alliance.errors import InputError
from alliance.sensors import Band
from alliance.sensors.catalog import find_sensor
from datasets.imagery.files import find_images
from datasets.imagery.images import ImageSource, describe
from datasets.imagery.products import BandFile, band_file, join_bands
from datasets.imagery.rasters import RasterScene, describe_raster, named
from datasets.imagery.scenes import Scene, Skipped, Unreadable


class ImageFiles(NamedTuple):
    """One image."""

    name: str  # path below the folder that was given; of a file per band, without the band
    files: tuple[Path, ...]


def list_images(folder: Path, source: ImageSource) -> tuple[list[ImageFiles], list[Skipped]]:
    """The images below a folder, or the one that a file is, sorted by name; and files that are none, with the reason.

    Files of one band each that are named by the bands of the source's sensor are one image.

    Raises:
        InputError: no such folder or file.
    """
    found, skipped = find_images([folder])
    is_band = band_test(source)
    single, groups = [], defaultdict[BandFile, list[Path]](list)
    for path, root, is_cube in found:
        band = None if is_cube else band_file(path, is_band)
        if band is None:
            single.append(ImageFiles(path.relative_to(root).as_posix(), (path,)))
        else:
            groups[BandFile(band.folder, band.prefix, "")].append(path)
    root = folder if folder.is_dir() else folder.parent
    for place, files in groups.items():
        if len(files) > 1 and _has_one_band(files[0]):
            single.append(ImageFiles(_name(place, root), tuple(files)))
        else:
            single += [ImageFiles(path.relative_to(root).as_posix(), (path,)) for path in files]
    return sorted(single), skipped


def describe_image(image: ImageFiles, source: ImageSource) -> Scene:
    """What the headers of an image say.

    Raises:
        InputError: a file cannot be read, or the files of the bands do not make one image.
    """
    first = image.files[0]
    if len(image.files) == 1:
        return describe(first, bands=source.count, axes=source.axes)
    headers: list[RasterScene] = []
    for file in image.files:
        with named(file):
            headers.append(describe_raster(file, first.parent))
    joined, left_out = join_bands(headers, band_test(source))
    if len(joined) != 1 or joined[0].shape[0] == 1:
        reason = left_out[0].reason if left_out else f"they make {len(joined)} images"
        raise InputError(
            f"{first.parent}: files of its bands are not one image: {reason}; mend them, or take them away"
        )
    return joined[0]


def band_test(source: ImageSource) -> Callable[[str], bool]:
    """Whether a text names a band of the source's sensor; of sensors of one band none does."""
    bands = find_sensor(source.sensor).bands if source.sensor else ()
    known = {name for band in bands for name in band.known_as} if len(bands) > 1 else set[str]()
    return lambda text: not known.isdisjoint(Band(name=text).known_as)


def _has_one_band(path: Path) -> bool:
    """Whether a file holds one band; of one that cannot be read, its neighbours tell."""
    try:
        return describe_raster(path, path.parent).shape[0] == 1
    except Unreadable:
        return True


def _name(place: BandFile, root: Path) -> str:
    if place.prefix not in ("", place.folder.name):
        return (place.folder / place.prefix).relative_to(root).as_posix()
    return place.folder.name if place.folder == root else place.folder.relative_to(root).as_posix()
