"""What files hold, before anything is made of them: bands, values, missing pixels, place, and the sensors that fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from alliance.errors import InputError
from alliance.export_files import SENSORS, WEIGHTS, read_sensors
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, sensor_names
from alliance.sensors.plausible import statistics_fit
from alliance.sensors.templates import find_template
from alliance.words import counted
from datasets.figures import save_figure
from datasets.imagery.grids import pixel_size
from datasets.imagery.samples import sample_pixels
from datasets.imagery.scenes import Scene, Skipped, Unreadable, summarise
from datasets.shards.gather import AUTO, GENERATED, Request, find_scenes
from datasets.shards.guess import doubts, fit_scene, header_of, judge_scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = 12  # of scenes that are shown; others are counted
ROWS = 20  # bands in a table
PICTURES = 6  # scenes in a picture
BINS = 100


@dataclass(frozen=True)
class Look:
    """A scene and the stored numbers of some of its pixels."""

    scene: Scene
    alike: int  # scenes with the same bands, dtype, wavelengths and way of being placed, this one included
    pixels: torch.Tensor | None  # (c, n, 1) float64, NaN where the file calls them missing; None: cannot be read


def inspect(request: Request) -> tuple[list[Look], list[str]]:
    """Look at the scenes below the request's paths: one of every kind, and all that there is to say in lines.

    Raises:
        InputError: a path does not exist.
    """
    scenes, skipped = find_scenes(request)
    looks = _kinds(scenes)
    named = None
    if request.sensor not in (AUTO, GENERATED) and find_template(request.sensor) is None:
        named = find_sensor(request.sensor)
    found, kinds, unused = counted(len(scenes), "scene"), counted(len(looks), "kind"), counted(len(skipped), "file")
    lines = [f"{found} of {kinds}, {unused} left out"]
    for seen in looks[:KINDS]:
        lines += ["", *describe(seen, named)]
    lines += [f"({len(looks) - KINDS} kinds more)"] * (len(looks) > KINDS)
    return looks, [*lines, *_left_out(skipped)]


def describe(seen: Look, named: Sensor | None = None) -> list[str]:
    """What is to be said of a scene."""
    scene, header = seen.scene, header_of(seen.scene)
    files = f" of {len(scene.files)} files" if len(scene.files) > 1 else ""
    alike = f", and {seen.alike - 1} more like it" if seen.alike > 1 else ""
    bands, height, width = scene.shape
    lines = [
        f"{scene.name}{files}{alike}",
        f"  size      {bands} band{'s' * (bands > 1)} x {height} x {width} px, {scene.dtype}",
        f"  place     {_place(scene)}",
        f"  missing   {_missing(seen)}",
        f"  numbers   {_conversion(scene)}",
    ]
    return [*lines, *_table(seen), *_sensors(scene, named, header.count)]


def _kinds(scenes: Sequence[Scene]) -> list[Look]:
    kinds: dict[tuple, list[Scene]] = {}
    for scene in scenes:
        placed = scene.transform is not None, scene.points and scene.points.kind
        key = (scene.band_names, scene.shape[0], scene.dtype, scene.wavelengths, placed)
        kinds.setdefault(key, []).append(scene)
    return [look_into(members[0], len(members)) for members in kinds.values()]


def look_into(scene: Scene, alike: int = 1) -> Look:
    """Some of a scene's pixels, of so many scenes that are alike."""
    return Look(scene, alike, _pixels(scene))


def _pixels(scene: Scene) -> torch.Tensor | None:
    try:
        return sample_pixels(scene, range(scene.shape[0]))
    except Unreadable:
        return None


def _place(scene: Scene) -> str:
    taken = f", taken {scene.date}" if scene.date else ""
    if scene.points is not None:
        return f"no transform, {len(scene.points.places)} {scene.points.kind}, {scene.points.crs or 'no CRS'}{taken}"
    if scene.transform is None:
        return f"no georeference{taken}"
    x, y = scene.transform[2], scene.transform[5]
    system = (scene.crs or "an unknown coordinate system")[:60]
    return f"{system}, pixel {pixel_size(scene):.6g}, upper left corner {x:.10g} {y:.10g}{taken}"


def _missing(seen: Look) -> str:
    marks = {value for value in seen.scene.nodata if value is not None}
    numbers = [f"{value:.6g}" for value in sorted(value for value in marks if not math.isnan(value))]
    numbers += ["nan"] * any(map(math.isnan, marks))  # each band may bring a NaN of its own, equal to no other
    said = f"nodata {', '.join(numbers)}" if numbers else "no nodata value"
    masked = "a mask of its own" if seen.scene.masked else "no mask"
    if seen.pixels is None:
        return f"{said}, {masked}; the pixels cannot be read"
    share = float(seen.pixels.isnan().any(0).double().mean())
    return f"{said}, {masked}; {share:.1%} of the pixels in a few windows, not of the whole, lack a band"


def _conversion(scene: Scene) -> str:
    found = [
        f"{word} {', '.join(f'{value:.6g}' for value in sorted(set(values))[:4])}"
        for word, values in (("scale", scene.scales), ("offset", scene.offsets))
        if values
    ]
    units = f"unit {', '.join(sorted(set(scene.units)))}" if scene.units else ""
    return ", ".join([*found, *([units] if units else [])]) or "the file says no scale, offset or unit"


def _table(seen: Look) -> Iterator[str]:
    """One row per band: stored numbers."""
    scene = seen.scene
    if seen.pixels is None:
        return
    values = seen.pixels[..., 0]
    yield f"  {'band':<24}{'nm':>10}{'min':>13}{'median':>13}{'max':>13}{'missing':>10}"
    step = max(1, -(-scene.shape[0] // ROWS))
    for place in range(0, scene.shape[0], step):
        band = values[place]
        known = band[band.isfinite()]
        figures = [known.min(), known.median(), known.max()] if len(known) else []
        name = scene.band_names[place] if scene.band_names else f"({place + 1}, no name)"
        nanometres = f"{scene.wavelengths[place]:.1f}" if scene.wavelengths else "-"
        cells = "".join(f"{float(value):>13.6g}" for value in figures) or f"{'-':>13}" * 3
        yield f"  {name[:23]:<24}{nanometres:>10}{cells}{float(band.isnan().double().mean()):>10.1%}"
    if step > 1:
        yield f"  (every {step} of {scene.shape[0]} bands shown)"


def _sensors(scene: Scene, named: Sensor | None, count: int) -> list[str]:
    if named is not None:
        try:
            found = doubts(scene, fit_scene(named, scene), named)
        except InputError as error:
            found = [str(error)]
        return [f"  sensor    {named.name}: {'; '.join(found) if found else 'fits'}"]
    verdicts = judge_scene(scene)
    lines = []
    for verdict in verdicts:
        beside = f", leaves out {', '.join(verdict.beside)}" if verdict.beside else ""
        sure = "" if not verdict.sensor.product else ", and the path says so" if verdict.product else ", by its numbers"
        if not verdict.reason:
            lines.append(f"  fits      {verdict.sensor.name}{sure}{beside}")
    near = [verdict for verdict in verdicts if verdict.bands and verdict.reason]
    lines += [f"  not       {verdict.sensor.name}: {verdict.reason}" for verdict in near[: ROWS - len(lines)]]
    if scene.wavelengths and count > 1:
        lines.append(f"  fits      {GENERATED}, a sensor made of its {count} wavelengths")
    return lines or [f"  not       any of {len(sensor_names())} shipped sensors has such bands; write a sensor file"]


def _left_out(skipped: Sequence[Skipped]) -> list[str]:
    return ["", "left out:", *(f"  {line}" for line in summarise(skipped))] if skipped else []


def draw(looks: Sequence[Look]) -> "Figure":
    """The histograms of the stored numbers of a few scenes, a line per band."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = [seen for seen in looks if seen.pixels is not None][:PICTURES]
    if not shown:
        raise InputError("there are no pixels to draw")
    figure = Figure(figsize=(8, 2.6 * len(shown)), layout="constrained")
    for axis, seen in zip(np.ravel(figure.subplots(len(shown), 1)), shown, strict=True):
        pixels = np.asarray(seen.pixels)[..., 0]
        known = pixels[np.isfinite(pixels)]
        edges = np.histogram_bin_edges(known, BINS)
        places = range(0, len(pixels), max(1, -(-len(pixels) // ROWS)))
        for place, colour in zip(places, colormaps["turbo"](np.linspace(0.05, 0.95, len(places))), strict=True):
            band = pixels[place][np.isfinite(pixels[place])]
            name = seen.scene.band_names[place] if seen.scene.band_names else str(place + 1)
            axis.hist(band, bins=edges, histtype="step", label=name, color=colour)
        axis.set_title(f"{seen.scene.name[-60:]}, {seen.scene.dtype}", fontsize=9)
        axis.set_xlabel("stored number")
        axis.set_ylabel("pixels")
        axis.legend(fontsize=6, ncols=2)
    return figure


def describe_encoder(folder: Path) -> list[str]:
    """The sensors of an exported encoder, with what their images must be."""
    lines = [f"{folder}: an exported encoder"]
    for sensor in read_sensors(folder / SENSORS):
        lines += ["", f"{sensor.name}: {sensor.description or 'no description'}"]
        lines.append(f"  {'band':<16}{'nm':>10}{'mean':>13}{'std':>13}  unit")
        for band in sensor.bands[:: max(1, -(-len(sensor.bands) // ROWS))]:
            figures = [f"{value:>13.6g}" if value is not None else f"{'-':>13}" for value in (band.mean, band.std)]
            centre = f"{band.wavelength:.1f}" if band.wavelength else "-"
            lines.append(f"  {band.name[:15]:<16}{centre:>10}{''.join(figures)}  {band.unit}")
        if sensor.has_statistics and not statistics_fit(sensor):
            lines.append(
                f"  doubtful  these statistics are not of {sensor.bands[0].unit}: its images cannot be checked"
            )
    return lines


def exported(path: Path) -> Path | None:
    """The folder of an exported encoder at a path, if there is one."""
    folders = (path.parent,) if path.name == WEIGHTS else (path, path / "encoder")
    return next((folder for folder in folders if (folder / WEIGHTS).is_file() and (folder / SENSORS).is_file()), None)


def look_at(request: Request) -> tuple[list[Look], list[str]]:
    """What images and encoders hold, which may stand side by side: what was looked at, and all there is to say.

    Raises:
        InputError: a path does not exist, or an encoder is damaged.
    """
    folders = {path: exported(path) for path in request.paths}
    lines = [line for folder in folders.values() if folder for line in describe_encoder(folder)]
    scenes = tuple(path for path, folder in folders.items() if folder is None)
    if not scenes:
        return [], lines
    looks, said = inspect(Request(sensor=request.sensor, paths=scenes, cube=request.cube))
    return looks, [*lines, *said]


def show(looks: Sequence[Look], lines: Sequence[str], picture: Path | None) -> list[str]:
    """The lines; what was looked at is drawn, if a picture is asked for."""
    if picture is None:
        return list(lines)
    save_figure(draw(looks), picture, dpi=100)
    return [*lines, f"histograms of the stored numbers: {picture}"]
