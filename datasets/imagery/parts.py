"""Files beside an image, or inside a virtual one, that its numbers depend on."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from alliance.files import regular
from datasets.imagery.envi import header_beside
from datasets.imagery.products import is_metadata, metadata_numbers, metadata_of
from datasets.imagery.rasters import DRIVERS
from datasets.imagery.scenes import Unreadable
from datasets.imagery.vrt import nested_files
from datasets.storage.standins import open_bytes

MARGIN = ".aux.xml"  # what GDAL and people note beside an image
MAX_MARGIN = 2**20  # bytes; larger ones count as they are
MEANING = ("Scale", "Offset", "NoDataValue", "UnitType", "Description", "ColorInterp", "ColorTable")  # of a band there
STATISTICS = re.compile(r"STATISTICS_\w*|PyramidResamplingType|LAYER_TYPE")  # written by whoever looks at an image


def parts(path: Path) -> Iterator[Path]:
    """The files, besides `path` itself, whose change may change what is read from it, in an order that does not change.

    ENVI's header, ERDAS' second file, masks, notes of GDAL, metadata of products; of a virtual raster all that it reads, and
    what lies beside that.
    """
    suffix = path.suffix.lower()
    if suffix == ".vrt":
        try:
            inside = nested_files(path, path.parent)
        except Unreadable:  # what reads it says so
            inside = ()
        for file in inside:
            yield file
            yield from _beside(file)
    yield from _beside(path)


def _beside(path: Path) -> Iterator[Path]:
    suffix = path.suffix.lower()
    header = header_beside(path) if suffix not in DRIVERS or suffix == ".img" else None
    others = [path.with_suffix(".ige")] if suffix == ".img" else []
    others += [path.with_name(path.name + ending) for ending in (".msk", MARGIN)]
    yield from ([header] if header else []) + [other for other in others if other.is_file()]
    if metadata := metadata_of(path):
        yield metadata


def speaks_of_more(path: Path) -> bool:
    """Whether a file beside an image also says what its numbers do not depend on."""
    return path.name.endswith(MARGIN) or is_metadata(path)


def told(path: Path) -> bytes:
    """What of such a file numbers depend on; empty: nothing.

    Raises:
        OSError: it cannot be read.
    """
    return noted(path) if path.name.endswith(MARGIN) else metadata_numbers(path)


def noted(path: Path) -> bytes:
    """What an `.aux.xml` says of the meaning of numbers: scale, offset, nodata, names and colours of bands, tags.

    Statistics and places are left out: programs write them there when somebody looks at an image. What is no such file
    counts as it is.

    Raises:
        OSError: it cannot be read.
    """
    with open_bytes(regular(path)) as file:
        content = file.read(MAX_MARGIN + 1)
    if len(content) > MAX_MARGIN or b"<!" in content:
        return content
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        return content
    told = []
    for owner in (root, *root.iter("PAMRasterBand")):
        found = [each for name in MEANING for each in owner.findall(name)]
        found += [each for each in owner.findall("Metadata/MDI") if not STATISTICS.fullmatch(each.get("key", ""))]
        told += [ElementTree.tostring(each).strip() for each in found]
        told += [f"band {owner.get('band')}".encode()] * bool(found)
    return b"\n".join(told)
