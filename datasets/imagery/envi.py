"""ENVI headers: what GDAL leaves in its metadata, and which file a header belongs to."""

import re
from pathlib import Path

import numpy as np
import rasterio

from datasets.imagery.scenes import Unreadable, readable
from datasets.storage.standins import open_bytes, size_of

SUFFIXES = (".img", ".bil", ".bip", ".bsq", ".dat", ".raw", ".envi")
ITEM_BYTES = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 9: 16, 12: 2, 13: 4, 14: 8, 15: 8}  # of ENVI's data types
HEADER_BYTES = 1_000_000


def header_beside(path: Path) -> Path | None:
    """The ENVI header `x.hdr` or `x.dat.hdr` of a file `x.dat`."""
    for header in (path.with_name(stem + suffix) for stem in (path.name, path.stem) for suffix in (".hdr", ".HDR")):
        if header != path and header.is_file() and _text(header).lstrip().startswith("ENVI"):
            return header
    return None


def promised_bytes(header: Path) -> int:
    """How many bytes the header says its file has, at least; 0 where it is compressed.

    Raises:
        Unreadable: it does not say the size.
    """
    numbers = dict(re.findall(r"^\s*([a-z][a-z ]*?)\s*=\s*(\d+)", _text(header).lower(), re.MULTILINE))
    if numbers.get("file compression", "0") != "0":
        return 0
    try:
        lines, samples, bands, kind = (int(numbers[key]) for key in ("lines", "samples", "bands", "data type"))
        return int(numbers.get("header offset", 0)) + lines * samples * bands * ITEM_BYTES[kind]
    except KeyError as error:
        raise Unreadable(f"its header {header.name} lacks {error}; write the header again") from error


def check_size(path: Path, header: Path | None) -> None:
    """GDAL reads what is not there as zeros.

    Raises:
        Unreadable: the file is shorter than its header says.
    """
    if header is None:
        return
    size, promised = size_of(path), promised_bytes(header)
    if size < promised:
        raise Unreadable(f"is cut off: {size} bytes, its header {header.name} says {promised}; fetch it again")


def stored_factor(dataset: rasterio.DatasetReader) -> float | None:
    """The factor that reflectance is stored with, as the header says it; None: it says nothing.

    Raises:
        Unreadable: it is no positive number.
    """
    factor = dataset.tags(ns="ENVI").get("reflectance_scale_factor")
    if factor is None:
        return None
    try:
        if not 0 < float(factor) < np.inf:
            raise ValueError(factor)
    except ValueError as error:
        raise Unreadable(f"its reflectance scale factor is {factor!r}; mend the header") from error
    return float(factor)


def check_lists(dataset: rasterio.DatasetReader) -> None:
    """GDAL takes the lists of a header as far as they go.

    Raises:
        Unreadable: a list of one number per band is not as long as there are bands.
    """
    header = dataset.tags(ns="ENVI")
    for key in ("wavelength", "data_gain_values", "data_offset_values"):
        numbers = [word for word in re.split(r"[\s,]+", header.get(key, "").strip("{} \n")) if word]
        if numbers and len(numbers) != dataset.count:
            raise Unreadable(
                f"its list of {key.replace('_', ' ')} has {len(numbers)} numbers for {dataset.count} bands; mend the header"
            )


def good_bands(dataset: rasterio.DatasetReader) -> tuple[bool, ...]:
    """Which bands the header's list of bad bands (`bbl`, 0: bad) calls good; () without such a list.

    Raises:
        Unreadable: the list is not as long as there are bands.
    """
    text = dataset.tags(ns="ENVI").get("bbl")
    if text is None:
        return ()
    values = re.findall(r"[-+.\de]+", text.lower())
    try:
        good = tuple(float(value) != 0 for value in values)
    except ValueError as error:
        raise Unreadable(f"its list of bad bands is not of numbers: {text[:40]}; mend the header") from error
    if len(good) != dataset.count:
        raise Unreadable(f"its list of bad bands has {len(good)} entries for {dataset.count} bands; mend the header")
    return good


def _text(header: Path) -> str:
    with readable(header), open_bytes(header) as file:
        return file.read(HEADER_BYTES).decode("latin-1")
