"""Virtual rasters (VRT), whose XML may name any file or address: which files they read, and whether they may."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from alliance.files import regular
from datasets.imagery.scenes import Unreadable, readable
from datasets.storage.standins import open_bytes, size_of

MAX_BYTES = 64_000_000
MAX_DEPTH = 8  # virtual rasters of virtual rasters
SOURCES = "SimpleSource ComplexSource AveragedSource NoDataFromMaskSource KernelFilteredSource"
PLACE = "SRS GeoTransform GCPList GCP BlockXSize BlockYSize Metadata MDI"
BAND = (
    "VRTRasterBand Description ColorInterp ColorTable Entry NoDataValue HideNoDataValue UnitType Offset Scale MaskBand "
    "CategoryNames Category Histograms HistItem HistMin HistMax BucketCount IncludeOutOfRange Approximate HistCounts "
    "Overview OverviewList PixelFunctionType PixelFunctionArguments SourceTransferType BufferRadius "
    "ImageOffset PixelOffset LineOffset ByteOrder"
)
SOURCE = (
    "SourceFilename SourceBand SourceProperties SrcRect DstRect NODATA UseMaskBand ColorTableComponent Kernel Size Coefs "
    "LUT ScaleOffset ScaleRatio Exponent SrcMin SrcMax DstMin DstMax Clamp"
)
KNOWN = frozenset(f"VRTDataset {PLACE} {BAND} {SOURCES} {SOURCE}".split())  # none of them runs code or opens addresses
NO_ATTRIBUTES = {name.lower() for name in (*KNOWN, "PixelFunctionCode", "PixelFunctionLanguage", "OpenOptions")}
NO_ATTRIBUTES -= {"blockxsize", "blockysize"}  # GDAL takes an attribute for an element of its name
RAW = "VRTRawRasterBand"  # bytes of a file as they are
BAND_KINDS = ("VRTSourcedRasterBand", "VRTDerivedRasterBand", RAW)
MEND = "write it out with gdal_translate IN.vrt OUT.tif"
MAGIC = {  # the first bytes of formats that hold pixels and nothing that is opened in turn
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "ERDAS Imagine": (b"EHFA_HEADER_TAG",),
}


def format_of(path: Path) -> str | None:
    """The format that a file's first bytes tell, if it is one of pixels."""
    with open_bytes(regular(path)) as file:
        start = file.read(16)
    return next((name for name, magic in MAGIC.items() if start.startswith(magic)), None)


def vrt_files(path: Path, root: Path, depth: int = 0) -> tuple[Path, ...]:
    """The real files that a virtual raster reads, those of the virtual rasters in it included.

    Raises:
        Unreadable: it is no plain mosaic or stack of bands, or reads anything but existing image files below the root.
    """
    return tuple(file for file in nested_files(path, root, depth) if file.suffix.lower() != ".vrt")


def nested_files(path: Path, root: Path, depth: int = 0) -> tuple[Path, ...]:
    """As `vrt_files`, with the virtual rasters in it."""
    if depth > MAX_DEPTH:
        raise Unreadable(f"is nested more than {MAX_DEPTH} deep; {MEND}")
    found: list[Path] = []
    for raw, element in _sources(_parse(path)):
        file = _below(path, root, element)
        if file.suffix.lower() == ".vrt" and not raw:
            found += [file, *nested_files(file, root, depth + 1)]
            continue
        if not raw and format_of(file) is None:
            raise Unreadable(f"reads {file.name}, whose first bytes are of none of: {', '.join(MAGIC)}; {MEND}")
        check_sidecars(file)
        found.append(file)
    return tuple(dict.fromkeys(found))


def check_sidecars(path: Path) -> None:
    """GDAL opens these by what they hold, whatever their name: masks and overviews are TIFF files."""
    for suffix in (".msk", ".ovr"):
        sidecar = path.with_name(path.name + suffix)
        if sidecar.is_file() and format_of(sidecar) not in ("TIFF", "ERDAS Imagine"):
            raise Unreadable(f"has {sidecar.name} beside it, which is no TIFF; take it away")


def _parse(path: Path) -> ElementTree.Element:
    with readable(path):
        if size_of(path) > MAX_BYTES:
            raise Unreadable(f"is larger than {MAX_BYTES} bytes; {MEND}")
        with open_bytes(regular(path)) as file:
            text = file.read().decode()
    if re.search(r"<!(?!--)|.<\?", text, re.DOTALL):
        raise Unreadable(f"holds XML declarations; {MEND}")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError) as error:
        raise Unreadable(f"is no XML: {error}; {MEND}") from error


def _sources(root: ElementTree.Element) -> Iterator[tuple[bool, ElementTree.Element]]:
    """Elements that name a file, and whether its bytes are read as they are."""
    kinds = {id(element): _attribute(element, "subclass") for element in root.iter()}
    if root.tag != "VRTDataset" or kinds[id(root)]:
        raise Unreadable(f"is a {kinds[id(root)] or root.tag}, no plain VRTDataset; {MEND}")
    unknown = {element.tag for element in root.iter()} - KNOWN
    unknown |= {name for element in root.iter() for name in element.attrib if name.lower() in NO_ATTRIBUTES}
    unknown |= {kind for kind in kinds.values() if kind and kind not in BAND_KINDS}
    if unknown:
        raise Unreadable(f"holds {', '.join(sorted(unknown))}, more than a mosaic or a stack needs; {MEND}")
    for parent in root.iter():
        for element in parent.iterfind("SourceFilename"):
            yield kinds[id(parent)] == RAW, element


def _attribute(element: ElementTree.Element, name: str) -> str | None:
    """GDAL does not mind the case of names."""
    return next((value for key, value in element.attrib.items() if key.lower() == name), None)


def _below(path: Path, root: Path, element: ElementTree.Element) -> Path:
    """The regular file that an element names, links resolved."""
    text = element.text or ""
    relative = _attribute(element, "relativetovrt") == "1"
    if text != text.strip() or text.startswith("/vsi") or ":" in text or "<" in text:
        raise Unreadable(f"reads {text[:80]!r}, which is no file beside it; {MEND}")
    file = Path(path.parent, text).resolve() if relative else Path(text).resolve()
    if not file.is_relative_to(root.resolve()):
        raise Unreadable(
            f"reads {text[:80]}, outside of the folder that was given; give one that holds both, or {MEND}"
        )
    if not file.is_file():
        raise Unreadable(f"reads {text[:80]}, which is not there; put the file back, or take {path.name} away")
    return file
