"""Satellite products as they are unpacked: what their names and metadata say, and their band files joined to scenes."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alliance.files import regular
from datasets.imagery.grids import one_footprint
from datasets.imagery.rasters import RasterScene
from datasets.imagery.scenes import Skipped, Unreadable
from datasets.storage.standins import open_bytes

SENTINEL2 = re.compile(r"(S2[A-D])_MSI(L1C|L2A)_\d{8}T\d{6}_N(\d{4})_R\d{3}_T\w{5}_\d{8}T\d{6}")
LANDSAT = re.compile(r"(L[CEOTM]0[1-9])_(L[12][A-Z]{2})_\d{6}_\d{8}_\d{8}_(\d{2})_[A-Z][A-Z0-9]")
HLS = re.compile(r"HLS\.([LS]30)\.T\w{5}\.\d{7}T\d{6}\.v\d\.\d")
THEIA = re.compile(r"(SENTINEL2[A-D])_\d{8}-\d{6}-\d{3}_(L\w{2})_T\w{5}(?:_[A-Z]_V[\d-]+)?")
SENTINEL1 = re.compile(r"(s1[a-d]-\w+-\w+)-(vv|vh|hh|hv)-([\w-]+?)-\d{3}", re.IGNORECASE)
RESOLUTION = re.compile(r"_(10|20|60)m$")
RESOLUTION_FOLDER = re.compile(r"R(10|20|60)m")
REFLECTANCE = 1e-4  # of a stored 1, Sentinel-2 (all levels)
OFFSET_BASELINE, OFFSET = (
    400,
    -0.1,
)  # from processing baseline 04.00 on (ESA, S2 products specification, RADIO_ADD_OFFSET)
NO_BASELINE = "9999"  # processed by somebody else, who tells nothing
# USGS, Landsat Collection 2 level 2 and level 1 product guides: scale and offset by the band's prefix.
LANDSAT_LINES = {"SR": (2.75e-5, -0.2), "ST": (0.00341802, 149.0)}
LANDSAT8_LEVEL1 = (2e-5, -0.1)  # reflectance at the top of the atmosphere, bands 1 to 9 of OLI
FLAT, SURFACE = "_FRE", "_SRE"  # Theia's reflectance with and without the correction of slopes
METADATA_BYTES = 4_000_000
NUMBER = r"[-+]?\d{1,20}(?:\.\d{0,20})?(?:[Ee][-+]?\d{1,4})?"
SENTINEL2_OFFSETS = re.compile(rf"<(?:BOA|RADIO)_ADD_OFFSET[^>]*>\s*({NUMBER})\s*<")
LANDSAT_NUMBERS = re.compile(rf"\bREFLECTANCE_(MULT|ADD)_BAND_(\d{{1,2}})\s*=\s*({NUMBER})(?![\w.+-])")


@dataclass(frozen=True)
class BandFile:
    """Which image a band's file belongs to."""

    folder: Path
    prefix: str  # of the names of the image's files; "": its folder holds nothing else
    band: str


def product_facts(path: Path) -> dict[str, str]:
    """What the names of a file and its folders tell: product, spacecraft, level ("L1", "L2" and more), baseline."""
    for part in (path.name, *(parent.name for parent in path.parents)):
        if found := SENTINEL2.search(part):
            baseline = {} if found[3] == NO_BASELINE else {"baseline": f"{found[3][:2]}.{found[3][2:]}"}
            return {"product": found[0], "spacecraft": found[1], "level": found[2]} | baseline
        if found := LANDSAT.search(part):
            return {"product": found[0], "spacecraft": found[1], "level": found[2], "collection": found[3]}
        if found := HLS.search(part):
            return {"product": found[0], "spacecraft": f"HLS {found[1]}", "level": "L2"}
        if found := THEIA.search(part):
            return {"product": found[0], "spacecraft": found[1], "level": found[2]}
    return {}


def join_bands(
    scenes: Sequence[RasterScene], is_band: Callable[[str], bool]
) -> tuple[list[RasterScene], list[Skipped]]:
    """Join single-band files of one image, and leave out what else their product holds.

    The band is the end of the name, after `_`, `.` or `-` and before a resolution (`X_B02.tif`, `X-B02.tif`,
    `X_B02_10m.jp2`), the whole name (`B02.tif`), or a polarisation (`s1a-iw-grd-vv-...-001.tiff`). Of a band that is
    there in several resolutions the finest is taken.

    Args:
        is_band: whether a text names a band; files with other names stay as they are.
    Returns:
        The scenes, and what was left out: coarser copies, bands of other ground, quality layers and previews.
    """
    groups: dict[tuple[Path, str], list[tuple[str, RasterScene]]] = defaultdict(list)
    single: list[RasterScene] = []
    for scene in scenes:
        found = band_file(scene.files[0], is_band) if scene.shape[0] == 1 else None
        if found is None:
            single.append(scene)
        else:
            groups[found.folder, found.prefix].append((found.band, scene))
    skipped = _without_slopes(groups)
    joined = []
    for (folder, prefix), members in groups.items():
        if len(members) == 1:
            single.append(members[0][1])
            continue
        bands, coarser = _finest(members)
        skipped.extend(coarser)
        if one_footprint([scene for _, scene in bands]):
            joined.append(_join(bands, folder, prefix))
        else:
            reason = "its bands lie in files of different footprints"
            skipped.extend(Skipped(source, reason) for _, scene in bands for source in scene.sources)
    alone, others = _without_products(single, joined)
    kept, unread = _with_products([*joined, *alone])
    return kept, skipped + others + unread


def band_file(path: Path, is_band: Callable[[str], bool]) -> BandFile | None:
    """Which image and which band a file's name tells; None where it names no band."""
    radar = SENTINEL1.fullmatch(path.stem)
    if radar and is_band(radar[2]):
        return BandFile(path.parent, f"{radar[1]}-{radar[3]}", radar[2])
    folder = path.parent.parent if RESOLUTION_FOLDER.fullmatch(path.parent.name) else path.parent
    stem = RESOLUTION.sub("", path.stem)
    if is_band(stem):
        return BandFile(folder, "", stem)
    for cut in [match.start() for match in re.finditer(r"[_.-]", stem)][:-3:-1]:
        if cut and is_band(stem[cut + 1 :]):
            return BandFile(folder, stem[:cut], stem[cut + 1 :])
    return None


def _with_products(scenes: Sequence[RasterScene]) -> tuple[list[RasterScene], list[Skipped]]:
    """The scenes with what their products say, and those whose products cannot be read or say no numbers."""
    kept, skipped = [], []
    for scene in scenes:
        try:
            kept.append(with_product(scene))
        except Unreadable as error:
            skipped.extend(Skipped(source, str(error)) for source in scene.sources)
    return kept, skipped


def metadata_of(path: Path) -> Path | None:
    """The file beside a product's band that scale and offset are read from; None: there is none.

    Raises:
        OSError: a folder cannot be entered.
    """
    product = product_facts(path).get("product", "")
    if SENTINEL2.match(product):
        folder = next((parent for parent in path.parents if SENTINEL2.search(parent.name)), path.parent)
        return min(folder.glob("MTD_MSIL*.xml"), default=None)
    if LANDSAT.match(product):
        return min(path.parent.glob("*_MTL.txt"), default=None)
    return None


def is_metadata(path: Path) -> bool:
    """Whether a file has the name of a product's metadata."""
    return path.match("MTD_MSIL*.xml") or path.match("*_MTL.txt")


def metadata_numbers(path: Path) -> bytes:
    """What of a product's metadata numbers depend on.

    Raises:
        OSError: it cannot be read.
    """
    text = _read(path)
    told = [*SENTINEL2_OFFSETS.findall(text), *map(" ".join, LANDSAT_NUMBERS.findall(text))]
    return "\n".join(told).encode()


def with_product(scene: RasterScene) -> RasterScene:
    """The scene with its product's facts, and with the scale and offset that the product's metadata give.

    Raises:
        Unreadable: the metadata cannot be read, or say no numbers.
    """
    facts = product_facts(scene.files[0])
    lines = _product_lines(scene, facts) if facts and not scene.scales else None
    if lines is None:
        return replace(scene, facts={**scene.facts, **facts}) if facts else scene
    scales, offsets = zip(*lines, strict=True)
    return replace(scene, facts={**scene.facts, **facts}, scales=scales, offsets=offsets)


def _product_lines(scene: RasterScene, facts: Mapping[str, str]) -> list[tuple[float, float]] | None:
    """Scale and offset of each band as the product says, where the files are the product's own and it says it."""
    product, first = facts["product"], scene.files[0]
    if SENTINEL2.match(product) and "baseline" in facts and _is_untouched(first):
        return [(REFLECTANCE, _sentinel2_offset(first, facts["baseline"]))] * scene.shape[0]
    if THEIA.match(product):
        return [(REFLECTANCE, 0.0)] * scene.shape[0]
    if LANDSAT.match(product) and scene.dtype == "uint16" and scene.band_names:
        stems = [file.stem for file in scene.files] if len(scene.files) > 1 else scene.band_names
        found: dict[str, float] = {}
        for kind, band, value in LANDSAT_NUMBERS.findall(_text(first)):
            found.setdefault(f"{kind} {int(band)}", float(value))
        told = [_landsat_line(stem, facts, found) for stem in stems]
        return [line or (1.0, 0.0) for line in told] if any(told) else None
    return None


def _is_untouched(file: Path) -> bool:
    """Whether a Sentinel-2 band lies as ESA gives it; others may have taken the offset away."""
    return file.suffix.lower() == ".jp2" or any(parent.suffix.upper() == ".SAFE" for parent in file.parents)


def _sentinel2_offset(file: Path, baseline: str) -> float:
    """Offset of the reflectance: as the product's metadata say it, else by its processing baseline."""
    told = SENTINEL2_OFFSETS.findall(_text(file))
    if told:
        return float(told[0]) * REFLECTANCE
    return OFFSET if int(baseline.replace(".", "")) >= OFFSET_BASELINE else 0.0


def _landsat_line(stem: str, facts: Mapping[str, str], told: Mapping[str, float]) -> tuple[float, float] | None:
    """Scale and offset of a band of a Landsat Collection 2 product; None where nothing tells them.

    Args:
        told: numbers of the metadata, by MULT or ADD and the band's number.
    """
    found = re.search(r"(?:(SR|ST)_)?B(\d+)$", stem)
    if not found:
        return None
    if facts["level"].startswith("L2"):
        return LANDSAT_LINES.get(found[1] or "SR")
    line = [told.get(f"{kind} {int(found[2])}") for kind in ("MULT", "ADD")]
    if line[0] is not None and line[1] is not None:
        return line[0], line[1]
    is_oli = facts["spacecraft"] in ("LC08", "LC09", "LO08", "LO09") and int(found[2]) <= 9
    return LANDSAT8_LEVEL1 if is_oli else None


def _text(band: Path) -> str:
    """The metadata of the product that a band's file is of; empty where there are none."""
    try:
        metadata = metadata_of(band)
        return _read(metadata) if metadata else ""
    except OSError as error:
        name = Path(error.filename or band).name
        raise Unreadable(f"its product's metadata {name} cannot be read: {error.strerror}") from error


def _read(path: Path) -> str:
    with open_bytes(regular(path)) as file:
        return file.read(METADATA_BYTES).decode("latin-1")


def _without_slopes(groups: dict[tuple[Path, str], list[tuple[str, RasterScene]]]) -> list[Skipped]:
    """Take Theia's bands without slope correction out where those with it are there."""
    out = [(folder, prefix) for folder, prefix in groups if (folder, prefix.replace(SURFACE, FLAT)) in groups]
    reason = f"the same bands as {FLAT[1:]}, without the correction of slopes; give these files alone to take them"
    return [
        Skipped(source, reason)
        for key in out
        if SURFACE in key[1]
        for _, scene in groups.pop(key)
        for source in scene.sources
    ]


def _finest(members: Iterable[tuple[str, RasterScene]]) -> tuple[list[tuple[str, RasterScene]], list[Skipped]]:
    """The largest file of each band, in the order in which bands come first, and the others."""
    by_band: dict[str, list[RasterScene]] = defaultdict(list)
    for band, scene in members:
        by_band[band.upper()].append(scene)
    kept, skipped = [], []
    for band, files in by_band.items():
        best = max(files, key=lambda scene: scene.shape[1] * scene.shape[2])
        kept.append((band, best))
        reason = f"another file of its image holds its band, {best.shape[1]} x {best.shape[2]} pixels or finer"
        skipped.extend(Skipped(source, reason) for scene in files if scene is not best for source in scene.sources)
    return kept, skipped


def _join(members: Sequence[tuple[str, RasterScene]], folder: Path, prefix: str) -> RasterScene:
    scenes = [scene for _, scene in members]
    finest = max(scenes, key=lambda scene: scene.shape[1] * scene.shape[2])
    place = folder.relative_to(finest.root)
    own = prefix or (place.name or finest.root.name)
    return replace(
        finest,
        files=tuple(scene.files[0] for scene in scenes),
        name=((place / own) if prefix else place.with_name(own) if place.name else Path(own)).as_posix(),
        shape=(len(scenes), *finest.shape[1:]),
        dtype=np.result_type(*(scene.dtype for scene in scenes)).name,
        band_names=tuple(band for band, _ in members),
        wavelengths=None,
        nodata=_each([scene.nodata for scene in scenes], None),
        masked=any(scene.masked for scene in scenes),
        scales=_each([scene.scales for scene in scenes], 1.0),
        offsets=_each([scene.offsets for scene in scenes], 0.0),
        units=_each([scene.units for scene in scenes], ""),
    )


def _each(values: Sequence[tuple], default: object) -> tuple:
    """Values of files of one band each; () where none says one."""
    return tuple(value[0] if value else default for value in values) if any(values) else ()


def _without_products(
    single: Sequence[RasterScene], joined: Sequence[RasterScene]
) -> tuple[list[RasterScene], list[Skipped]]:
    """Leave out quality layers, masks and previews of products whose bands were joined."""
    known = {product for scene in joined if (product := product_facts(scene.files[0]).get("product"))}
    alone: list[RasterScene] = []
    skipped: list[Skipped] = []
    for scene in single:
        product = product_facts(scene.files[0]).get("product")
        if product in known:
            skipped.append(Skipped(scene.sources[0], f"part of product {product}, but none of the sensor's bands"))
        else:
            alone.append(scene)
    return alone, skipped
