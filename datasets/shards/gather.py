"""Find the scenes of one sensor in files and folders."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alliance.errors import InputError
from alliance.ranges import GREATEST, SMALLEST, Ranged, ranged
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import (
    find_sensor,
    generated_sensor,
    sensor_names,
    to_nanometres,
)
from alliance.sensors.templates import Template, find_template
from alliance.words import counted
from datasets.imagery import cubes, rasters
from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.duplicates import find_repeats
from datasets.imagery.files import find_images
from datasets.imagery.products import join_bands
from datasets.imagery.rasters import RasterScene, describe_raster
from datasets.imagery.scenes import Scene, Skipped, Unreadable, summarise
from datasets.imagery.units import settle_units
from datasets.shards.choose import choices, common_choice, unasked_bands
from datasets.shards.guess import INSPECT, LISTED, fit_scene, guess_sensor, name_unit, sift

AUTO, GENERATED = "auto", "hsi"  # what may stand in the place of a sensor's name
WAVELENGTH_TOLERANCE = 2.0  # nm, between cubes of one sensor


@dataclass(frozen=True, kw_only=True)
class Generated(Ranged):
    """What `--sensor hsi` makes of a cube."""

    name: str | None = None
    """Of the sensor; None: hsi and the band count."""
    wavelengths: str | None = None
    """File with one number per band, or start:stop in nm; None: as in the image."""
    unit: str | None = None
    """Of the physical values; None: reflectance, or digital numbers where the values are none."""
    scale: float = ranged(1.0, SMALLEST, GREATEST)
    """Physical value of a stored 1."""
    nodata: float | None = ranged(None)
    """Stored value of missing pixels, beside NaN; None: as in the image."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sensor and the files or folders of its scenes."""

    sensor: str  # name, YAML file, "auto" or "hsi"
    paths: tuple[Path, ...]
    cube: CubeOptions = CubeOptions()
    generated: Generated = Generated()
    drop: str | None = None  # bands that are left out: numbers from 1, ranges, names; "none": not even the bad ones
    force: bool = False  # take scenes whose numbers are not what the sensor says


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The scenes of one sensor, each with the places of the sensor's bands in it."""

    sensor: Sensor
    scenes: tuple[tuple[Scene, tuple[int, ...]], ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()  # what was chosen for the user, in words
    forced: tuple[Skipped, ...] = ()  # scenes that are kept against the evidence, and what that is


@dataclass
class _Found:
    scenes: list[Scene] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, scene: Scene, reason: str) -> None:
        self.skipped.extend(Skipped(source, reason) for source in scene.sources)


Chosen = list[tuple[Scene, tuple[int, ...]]]  # scenes with the places of the sensor's bands


def gather(request: Request) -> Collection:
    """Describe every image below the request's paths and keep those of its sensor, sorted by name.

    Raises:
        InputError: a path does not exist, the sensor is unknown or not to be told, or no image is of it.
    """
    template = find_template(request.sensor)
    request = _by_template(request, template) if template else request
    named = None if request.sensor in (AUTO, GENERATED) else find_sensor(request.sensor)
    found = _describe_all(request, named)
    if request.sensor != GENERATED:
        _join_singles(found, named)
    if not found.scenes:
        raise InputError(_nothing(request, found.skipped))
    found.scenes.sort(key=lambda scene: (scene.name, scene.sources))
    if request.sensor == AUTO:
        request, named = _guess(request, found)
    sensor, kept = _of_sensor(named, request, found) if named else _as_generated(request, found)
    others = sum(len(scene.sources) for scene in found.scenes) - sum(len(scene.sources) for scene, _ in kept)
    repeated = find_repeats([scene for scene, _ in kept])
    for index in repeated:
        found.skip(kept[index][0], repeated[index].reason)
    kept = [entry for index, entry in enumerate(kept) if index not in repeated]
    sensor, kept = _settle(sensor, kept, found)
    if kept and request.sensor == GENERATED and request.generated.unit is None:
        sensor = name_unit(sensor, kept)
    doubtful = sift(sensor, kept)
    if not request.force:
        refused, before = {entry.file for entry in doubtful}, len(kept)
        kept = [(scene, bands) for scene, bands in kept if not refused.intersection(scene.sources)]
        found.skipped.extend(doubtful)
        found.notes.extend(_minority(request, sensor, len(kept), before - len(kept), others))
    if not kept:
        raise InputError(_nothing(request, found.skipped))
    return Collection(
        sensor=sensor,
        scenes=tuple(kept),
        skipped=tuple(sorted(found.skipped)),
        notes=(*found.notes, *_notes(kept), *(_unasked(request, kept) if named else ())),
        forced=tuple(doubtful) if request.force else (),
    )


def _guess(request: Request, found: _Found) -> tuple[Request, Sensor | None]:
    """The sensor that all files speak for; None: the request is one for cubes with wavelengths now."""
    guessed = guess_sensor(found.scenes)
    if isinstance(guessed, Sensor):
        return request, guessed
    for scene in found.scenes:
        if scene.wavelengths is None:
            found.skip(scene, "it gives no wavelengths; pass --sensor hsi for it")
    found.scenes = [scene for scene in found.scenes if scene.wavelengths is not None]
    return _by_template(request, guessed), None


def find_scenes(request: Request) -> tuple[list[Scene], list[Skipped]]:
    """All images below the request's paths, whatever they are of, and the files that cannot be used."""
    cubes_only = request.sensor in (AUTO, GENERATED) or find_template(request.sensor)
    found = _describe_all(request, None if cubes_only else find_sensor(request.sensor))
    _join_singles(found, None if cubes_only else find_sensor(request.sensor))
    return sorted(found.scenes, key=lambda scene: (scene.name, scene.sources)), found.skipped


def _by_template(request: Request, template: Template | None) -> Request:
    """The request as one for cubes of any instrument, with what is known of this one where nobody said otherwise."""
    given, made = request.generated, {}
    if template is not None:
        scale = template.scale if template.scale is not None and given.scale == Generated.scale else given.scale
        nodata = template.nodata if given.nodata is None else given.nodata
        unit = given.unit or template.unit
        made = {"name": given.name or template.name, "scale": scale, "nodata": nodata, "unit": unit}
    return replace(request, sensor=GENERATED, generated=replace(given, **made))


def _describe_all(request: Request, sensor: Sensor | None) -> _Found:
    files, skipped = find_images(request.paths)
    found = _Found(skipped=list(skipped))
    cube = replace(request.cube, bands=len(sensor.bands)) if sensor else request.cube
    for file, root, is_cube in tqdm(files, desc="reading headers", unit="file", leave=False, disable=None):
        try:
            found.scenes.append(describe_cube(file, root, cube) if is_cube else describe_raster(file, root))
        except Unreadable as error:
            found.skipped.append(Skipped(file.relative_to(root).as_posix(), str(error)))
    return found


def _as_generated(request: Request, found: _Found) -> tuple[Sensor, Chosen]:
    """A sensor made of the first cube, and the cubes that measure the same."""
    first = found.scenes[0]
    alike = []
    for scene in found.scenes:
        try:
            _refuse_other_cube(scene, first)
            if scene.shape[0] != first.shape[0]:
                raise InputError(
                    f"{scene.shape[0]} bands, but {first.shape[0]} in {first.name}; make shards of it alone"
                )
            alike.append(scene)
        except InputError as error:
            found.skip(scene, str(error))
    kept, notes = common_choice(alike, request.drop, request.generated.nodata)
    found.notes.extend(notes)
    return _generate(request, first, kept), [(scene, kept) for scene in alike]


def _of_sensor(sensor: Sensor, request: Request, found: _Found) -> tuple[Sensor, Chosen]:
    """The sensor, and the scenes that have its bands."""
    kept: Chosen = []
    for scene in found.scenes:
        try:
            kept.append((scene, _places(sensor, scene, request.drop)))
        except InputError as error:
            found.skip(scene, str(error))
    return sensor, kept


def _places(sensor: Sensor, scene: Scene, drop: str | None) -> tuple[int, ...]:
    """Where the sensor's bands stand in a scene; without names, among the bands that are good or hold values."""
    refused: list[InputError] = []
    for places in choices(scene, len(sensor.bands), drop):
        try:
            return fit_scene(sensor, scene, places)
        except InputError as error:
            refused.append(error)
    surplus = scene.band_names is None and scene.shape[0] > len(sensor.bands)
    last = f"{len(sensor.bands) + 1}-{scene.shape[0]}" if scene.shape[0] > len(sensor.bands) + 1 else scene.shape[0]
    mend = f"; leave bands out with --drop, such as --drop {last} for the last" if surplus else ""
    raise InputError(f"{refused[0]}{mend}")


def _settle(sensor: Sensor, kept: Chosen, found: _Found) -> tuple[Sensor, Chosen]:
    """The sensor with the scale and offset of most scenes, and those scenes."""
    settled: dict[tuple, tuple[Sensor, Chosen]] = {}
    for scene, bands in kept:
        try:
            own = settle_units(sensor, scene, bands)
        except InputError as error:
            found.skip(scene, str(error))
            continue
        lines = tuple((band.scale, band.offset) for band in own.bands)
        settled.setdefault(lines, (own, []))[1].append((scene, bands))
    if not settled:
        return sensor, []
    most = max(settled, key=lambda lines: len(settled[lines][1]))
    for lines, (_, scenes) in settled.items():
        if lines != most:
            (ours, offset), (theirs, other) = lines[0], most[0]
            reason = (
                f"scale {ours:.10g} and offset {offset:.10g}, but {theirs:.10g} and {other:.10g} in most scenes; make "
                f"shards of it on its own, or mend its tags (gdal_edit.py -scale S -offset O)"
            )
            for scene, _ in scenes:
                found.skip(scene, reason)
    return settled[most]


def _minority(request: Request, sensor: Sensor, kept: int, doubtful: int, others: int) -> Iterator[str]:
    """A warning where fewer scenes are used than are left out: the sensor may be the wrong one for all.

    Args:
        doubtful: scenes that are left out for their numbers.
        others: files that are not of the sensor by their headers.
    """
    used = counted(kept, "scene")
    if kept and doubtful >= kept:
        yield f"{used} used, {doubtful} left out because their numbers are not what {sensor.name} measures: look at both"
    elif request.sensor == AUTO and kept < others:
        yield f"{used} used, {counted(others, 'file')} left out as not of the sensor that {AUTO} found; --sensor NAME says which is meant"


def _notes(kept: Chosen) -> list[str]:
    """What the user should know of the scenes that are used."""
    count, notes = len(kept), []
    placed = Counter(scene.points.kind for scene, _ in kept if scene.points)
    for kind, number in placed.items():
        notes.append(
            f"{number} of {count} scenes have {kind} and no transform: their place is not kept; "
            f"gdalwarp puts them on a grid"
        )
    bad = sum(bool(scene.good) and not all(scene.good[place] for place in bands) for scene, bands in kept)
    if bad:
        notes.append(f"{bad} of {count} scenes use bands that their maker calls bad; leave them out with --drop")
    return notes


def _unasked(request: Request, kept: Chosen) -> list[str]:
    """Which measurements the sensor that was asked for lacks."""
    several = [unasked_bands(scene, bands, request.drop) for scene, bands in kept]
    names, count = list(dict.fromkeys(name for each in several for name in each)), sum(map(bool, several))
    if not names:
        return []
    told = ", ".join(names[:LISTED]) + f", ... ({len(names) - LISTED} more)" * (len(names) > LISTED)
    mend = "" if request.sensor == AUTO else f"; --sensor {AUTO} tells products apart"
    bands = f"band{'s' * (len(names) > 1)}"
    return [f"left out of {count} of {len(kept)} scenes: {bands} {told}, which this sensor does not have{mend}"]


def _join_singles(found: _Found, sensor: Sensor | None) -> None:
    sensors = [sensor] if sensor else [find_sensor(name) for name in sensor_names()]
    several = [sensor for sensor in sensors if len(sensor.bands) > 1]
    known = {name for sensor in several for band in sensor.bands for name in band.known_as}
    files = [scene for scene in found.scenes if isinstance(scene, RasterScene)]
    joined, left_out = join_bands(files, lambda text: not known.isdisjoint(Band(name=text).known_as))
    found.scenes = [*joined, *(scene for scene in found.scenes if not isinstance(scene, RasterScene))]
    found.skipped.extend(left_out)


def _refuse_other_cube(scene: Scene, first: Scene) -> None:
    """The first cube makes the sensor: another one must measure the same wavelengths."""
    ours, theirs = (to_nanometres(one.wavelengths or ()) for one in (scene, first))
    if len(ours) == len(theirs) and not np.allclose(ours, theirs, atol=WAVELENGTH_TOLERANCE):
        raise InputError(f"other wavelengths than {first.name}; make shards of it on its own, with --name")


def _generate(request: Request, scene: Scene, kept: Sequence[int]) -> Sensor:
    """A sensor of the bands that are kept; they are numbered as in the file."""
    count, options = scene.shape[0], request.generated
    if count < 2:
        raise InputError(f"{scene.sources[0]}: one band is no hyperspectral cube; save it as (bands, rows, columns)")
    nodata = next(iter(scene.nodata), None) if options.nodata is None else options.nodata
    nodata = None if nodata is not None and math.isnan(nodata) else nodata  # NaN is always missing
    wavelengths = scene.wavelengths if options.wavelengths is None else _wavelengths(options.wavelengths, count)
    name = options.name or f"{GENERATED}{len(kept)}"
    unit = options.unit or "reflectance"
    sensor = generated_sensor(name, count, wavelengths, unit=unit, scale=options.scale, nodata=nodata)
    if len(kept) == count:
        return sensor
    chosen = sensor.select([sensor.band_names[place] for place in kept])
    return replace(chosen, description=f"generated, {len(kept)} of {count} bands")


def _wavelengths(text: str, count: int) -> list[float]:
    try:
        if not Path(text).is_file():
            start, stop = map(float, text.split(":"))
            return np.linspace(start, stop, count).tolist()
        return [float(word) for word in Path(text).read_text().replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--wavelengths {text}: give a file of numbers, or start:stop in nm") from error


def _nothing(request: Request, skipped: Sequence[Skipped]) -> str:
    where = ", ".join(map(str, request.paths))
    if not skipped:
        return f"{where}: no images; known suffixes: {' '.join((*rasters.SUFFIXES, *cubes.SUFFIXES))}"
    reasons = "; ".join(summarise(skipped)[:3])
    advice = "" if INSPECT in reasons else f"; {INSPECT} {where}"
    return f"{where}: no usable image of sensor {request.sensor}: {reasons}{advice}"
