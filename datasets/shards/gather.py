"""Find the scenes of one sensor in files and folders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import (
    find_sensor,
    generated_sensor,
    has_band,
    sensor_names,
    to_nanometres,
)
from alliance.sensors.templates import Template, find_template
from datasets.imagery import cubes, rasters
from datasets.imagery.cubes import CubeOptions, describe_cube
from datasets.imagery.rasters import RasterScene, describe_raster, join_bands
from datasets.imagery.scenes import Scene, Skipped, Unreadable, summarise
from datasets.shards.guess import INSPECT, fit_scene, guess_sensor, name_unit, sift

AUTO, GENERATED = "auto", "hsi"  # what may stand in the place of a sensor's name
WAVELENGTH_TOLERANCE = 2.0  # nm, between cubes of one sensor


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What `--sensor hsi` makes of a cube."""

    name: str | None = None  # default hsi<band count>
    wavelengths: str | None = None  # file with one number per band, or start:stop in nm; None: as in the image
    unit: str | None = None  # None: reflectance, or digital numbers where the values are none
    scale: float = 1.0  # stored value to unit
    nodata: float | None = None  # None: as in the image


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sensor and the files or folders of its scenes."""

    sensor: str  # name, YAML file, "auto" or "hsi"
    paths: tuple[Path, ...]
    cube: CubeOptions = CubeOptions()
    generated: Generated = Generated()
    force: bool = False  # take scenes whose numbers are not what the sensor says


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The scenes of one sensor, each with the places of the sensor's bands in it."""

    sensor: Sensor
    scenes: tuple[tuple[Scene, tuple[int, ...]], ...]
    skipped: tuple[Skipped, ...]
    forced: tuple[Skipped, ...] = ()  # scenes that are kept against the evidence, and what that is


@dataclass
class _Found:
    scenes: list[Scene] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


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
    if request.sensor == AUTO:
        guessed = guess_sensor(found.scenes)
        if isinstance(guessed, Sensor):
            named = guessed
        else:
            request = _by_template(request, guessed)
            unknown = [scene for scene in found.scenes if scene.wavelengths is None]
            found.scenes = [scene for scene in found.scenes if scene.wavelengths is not None]
            reason = "it gives no wavelengths; pass --sensor hsi for it"
            found.skipped.extend(Skipped(source, reason) for scene in unknown for source in scene.sources)
    sensor = named or _generate(request, found.scenes[0])
    kept = _of_sensor(sensor, request, found)
    if kept and request.sensor == GENERATED and request.generated.unit is None:
        sensor = name_unit(sensor, kept)
    doubtful = sift(sensor, kept)
    if not request.force:
        refused = {entry.file for entry in doubtful}
        kept = [(scene, bands) for scene, bands in kept if not refused.intersection(scene.sources)]
        found.skipped.extend(doubtful)
    if not kept:
        raise InputError(_nothing(request, found.skipped))
    forced = tuple(doubtful) if request.force else ()
    return Collection(sensor=sensor, scenes=tuple(kept), skipped=tuple(sorted(found.skipped)), forced=forced)


def _of_sensor(sensor: Sensor, request: Request, found: _Found) -> list[tuple[Scene, tuple[int, ...]]]:
    """The scenes that have the sensor's bands, sorted by name, with the places of the bands."""
    kept = []
    for scene in sorted(found.scenes, key=lambda scene: (scene.name, scene.sources)):
        try:
            if request.sensor == GENERATED:
                _refuse_other_cube(scene, found.scenes[0])
            kept.append((scene, fit_scene(sensor, scene, named=request.sensor != GENERATED)))
        except InputError as error:
            found.skipped.extend(Skipped(source, str(error)) for source in scene.sources)
    return kept


def find_scenes(request: Request) -> tuple[list[Scene], list[Skipped]]:
    """All images below the request's paths, whatever they are of, and the files that cannot be used."""
    named = (
        None if request.sensor in (AUTO, GENERATED) or find_template(request.sensor) else find_sensor(request.sensor)
    )
    found = _describe_all(request, named)
    _join_singles(found, named)
    return sorted(found.scenes, key=lambda scene: (scene.name, scene.sources)), found.skipped


def _by_template(request: Request, template: Template | None) -> Request:
    """The request as one for cubes of any instrument, with what is known of this one where nobody said otherwise."""
    given, made = request.generated, {}
    if template is not None:
        scale = template.scale if template.scale is not None and given.scale == Generated.scale else given.scale
        nodata = template.nodata if given.nodata is None else given.nodata
        made = {
            "name": given.name or template.name,
            "scale": scale,
            "nodata": nodata,
            "unit": given.unit or template.unit,
        }
    return replace(request, sensor=GENERATED, generated=replace(given, **made))


def _describe_all(request: Request, sensor: Sensor | None) -> _Found:
    found = _Found()
    cube = replace(request.cube, bands=len(sensor.bands)) if sensor else request.cube
    files = [(file, root) for path in request.paths for file, root in _files(path)]
    for file, root in tqdm(files, desc="reading headers", unit="file", leave=False, disable=None):
        try:
            is_cube = file.suffix.lower() in cubes.SUFFIXES
            found.scenes.append(describe_cube(file, root, cube) if is_cube else describe_raster(file, root))
        except Unreadable as error:
            found.skipped.append(Skipped(file.relative_to(root).as_posix(), str(error)))
    return found


def _files(path: Path) -> list[tuple[Path, Path]]:
    """The images at a path, sorted, each with its root."""
    known = (*rasters.SUFFIXES, *cubes.SUFFIXES)
    if path.is_file():
        if path.suffix.lower() not in known:
            raise InputError(f"{path}: no image format we read; known suffixes: {' '.join(known)}")
        return [(path, path.parent)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give scenes, or folders of them")
    return [(file, path) for file in sorted(path.rglob("*")) if file.suffix.lower() in known and file.is_file()]


def _join_singles(found: _Found, sensor: Sensor | None) -> None:
    sensors = [sensor] if sensor else [find_sensor(name) for name in sensor_names()]
    several = [sensor for sensor in sensors if len(sensor.bands) > 1]
    files = [scene for scene in found.scenes if isinstance(scene, RasterScene)]
    joined, refused = join_bands(files, lambda suffix: any(has_band(sensor, suffix) for sensor in several))
    found.scenes = [*joined, *(scene for scene in found.scenes if not isinstance(scene, RasterScene))]
    reason = "its bands lie in files of different footprints"
    found.skipped.extend(Skipped(source, reason) for scene in refused for source in scene.sources)


def _refuse_other_cube(scene: Scene, first: Scene) -> None:
    """The first cube makes the sensor: another one must measure the same wavelengths."""
    ours, theirs = (to_nanometres(one.wavelengths or ()) for one in (scene, first))
    if len(ours) == len(theirs) and not np.allclose(ours, theirs, atol=WAVELENGTH_TOLERANCE):
        raise InputError(f"other wavelengths than {first.name}; make shards of it on its own, with --name")


def _generate(request: Request, scene: Scene) -> Sensor:
    count, options = scene.shape[0], request.generated
    if count < 2:
        raise InputError(f"{scene.sources[0]}: one band is no hyperspectral cube; save it as (bands, rows, columns)")
    nodata = next(iter(scene.nodata), None) if options.nodata is None else options.nodata
    nodata = None if nodata is not None and math.isnan(nodata) else nodata  # NaN is always missing
    wavelengths = scene.wavelengths if options.wavelengths is None else _wavelengths(options.wavelengths, count)
    name = options.name or f"{GENERATED}{count}"
    unit = options.unit or "reflectance"
    return generated_sensor(name, count, wavelengths, unit=unit, scale=options.scale, nodata=nodata)


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
