"""Which sensor scenes are of, and whether their numbers are what a sensor says: by all that the files tell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import Header, Verdict, are_numbers, candidates, find_sensor, fit, judge_all
from alliance.sensors.plausible import UNITS, Seen, faults, look
from alliance.sensors.templates import Template, find_template, template_names
from datasets.imagery.samples import sample_pixels
from datasets.imagery.scenes import AGAINST, Scene, Skipped, Unreadable
from datasets.imagery.units import settle_units

HYPERSPECTRAL = 17  # bands: more than any multispectral sensor
ASKED = 8  # scenes of one kind whose pixels are looked at
COUNTS = "digital number"
STEP = 1e-3  # reflectance: the coarsest step in which whole numbers are stored
PER_CENT = 0.0105  # reflectance that 105 per cent seem to be where steps of 1e-4 are expected
LISTED = 6  # sensors in a message
INSPECT = "look at it with: python launch/shards.py --inspect"
Kept = Sequence[tuple[Scene, tuple[int, ...]]]


def header_of(scene: Scene) -> Header:
    """What a scene says of itself."""
    return Header(
        count=scene.shape[0],
        dtype=scene.dtype,
        names=scene.band_names,
        wavelengths=scene.wavelengths,
        path="/".join([scene.root.name, *scene.sources[:1]]),
        joined=len(scene.files) > 1,
        scaled=bool(scene.scales or scene.offsets),
    )


def fit_scene(sensor: Sensor, scene: Scene, places: Sequence[int] | None = None) -> tuple[int, ...]:
    """Where each band of the sensor stands in the scene, or among these of its bands.

    Raises:
        InputError: the scene is not of this sensor.
    """
    header = header_of(scene)
    chosen = range(header.count) if places is None else places
    names = None if header.names is None else [header.names[place] for place in chosen]
    waves = None if header.wavelengths is None else [header.wavelengths[place] for place in chosen]
    found = fit(sensor, names, len(chosen), header.dtype, waves, scaled=header.scaled)
    return tuple(chosen[place] for place in found)


def guess_sensor(scenes: Sequence[Scene]) -> Sensor | Template | None:
    """The one sensor that fits all scenes that fit any: a shipped one, a spectrometer, or None for any other cube.

    Raises:
        InputError: several fit or none does; the message lists them, each with why, and what was seen.
    """
    judged = {scene.name: judge_scene(scene) for scene in _some_of_each(scenes)}
    votes = [{verdict.sensor.name for verdict in candidates(verdicts)} for verdicts in judged.values()]
    heard = [vote for vote in votes if vote]
    if heard:
        common = [find_sensor(name) for name in set.intersection(*heard)]
        if len(common) == 1 and (not common[0].product or _named_by(judged.values(), common[0])):
            return common[0]
    cubes = [scene for scene in scenes if _is_cube(scene)]
    if cubes and not heard:
        return _spectrometer(cubes[0])
    raise InputError(_undecided(scenes, judged))


def judge_scene(scene: Scene) -> list[Verdict]:
    """The verdict of header and pixels on every shipped sensor."""
    verdicts = []
    for verdict in judge_all(header_of(scene)):
        if not verdict.reason:
            found = doubts(scene, verdict.bands, verdict.sensor)
            verdict = verdict._replace(reason="; ".join(found))
        verdicts.append(verdict)
    return verdicts


def doubts(scene: Scene, bands: Sequence[int], sensor: Sensor) -> list[str]:
    """Why a scene's numbers cannot be what the sensor says, each in a phrase; empty: nothing speaks against it."""
    try:
        seen = look_at(scene, bands, sensor)
        return faults(sensor, seen) or _fractions(scene, bands, sensor, seen)
    except InputError as error:
        return [str(error)]
    except Unreadable:
        return []  # said when its tiles are cut


def _fractions(scene: Scene, bands: Sequence[int], sensor: Sensor, seen: Seen) -> list[str]:
    """Numbers that should count steps of 1e-4 of reflectance, yet have fractions and end at 1 %: they are per cent."""
    counted = all(band.unit == "reflectance" and 0 < band.scale <= STEP and not scene.scales for band in sensor.bands)
    highest = float(seen.high.nan_to_num(-1).max())
    if not counted or np.dtype(scene.dtype).kind != "f" or not highest < PER_CENT:
        return []
    pixels = sample_pixels(scene, bands)
    known = pixels[pixels.isfinite()]
    if not len(known) or bool((known == known.round()).all()):
        return []
    return [
        f"no pixel has a reflectance above {highest:.2g}, and stored numbers have fractions "
        f"(likely per cent, or scaled before it was written)"
    ]


def look_at(scene: Scene, bands: Sequence[int], sensor: Sensor) -> Seen:
    """What some of a scene's pixels hold, in the sensor's units."""
    settled = settle_units(sensor, scene, bands)
    return look(settled, settled.to_physical(sample_pixels(scene, bands)))


def sift(sensor: Sensor, kept: Kept) -> list[Skipped]:
    """Of the scenes, those whose numbers are not what the sensor says, with the reason."""
    if all(_holds_anything(sensor, scene) for scene, _ in kept):
        return []
    refused = []
    for scene, bands in kept:
        for doubt in doubts(scene, bands, sensor)[:1]:
            reason = (
                f"{AGAINST}{sensor.name}: {doubt}; pass the sensor of that product, or a sensor file with its scale and "
                f"offset, or --force to take it as it is"
            )
            refused.extend(Skipped(source, reason) for source in scene.sources)
    return refused


def name_unit(sensor: Sensor, kept: Kept) -> Sensor:
    """A sensor made of a cube, whose unit nobody has said: digital numbers where its values are no reflectance."""
    scene, bands = kept[0]
    limits = UNITS["reflectance"]._asdict()
    strict = replace(sensor, bands=tuple(replace(band, **limits) for band in sensor.bands))
    if any(band.scale != 1 or band.offset for band in sensor.bands) or not doubts(scene, bands, strict):
        return sensor
    return replace(sensor, bands=tuple(replace(band, unit=COUNTS) for band in sensor.bands))


def _holds_anything(sensor: Sensor, scene: Scene) -> bool:
    """Whether no stored number can be wrong: 8-bit pictures are whatever they are."""
    return scene.dtype == "uint8" and all(band.unit.startswith("normalised") for band in sensor.bands)


def _some_of_each(scenes: Sequence[Scene]) -> list[Scene]:
    """A few scenes of every kind of header."""
    kinds: dict[tuple, list[Scene]] = {}
    for scene in scenes:
        kinds.setdefault((scene.band_names, scene.shape[0], scene.dtype), []).append(scene)
    some = []
    for members in kinds.values():
        places = np.unique(np.linspace(0, len(members) - 1, min(ASKED, len(members))).round().astype(int))
        some.extend(members[place] for place in places)
    return some


def _named_by(judged: Iterable[Sequence[Verdict]], sensor: Sensor) -> bool:
    """Whether the path of a scene says that it is the sensor's product."""
    return any(verdict.product and verdict.sensor is sensor for verdicts in judged for verdict in verdicts)


def _is_cube(scene: Scene) -> bool:
    named = scene.band_names is not None and not are_numbers(scene.band_names)
    return scene.wavelengths is not None and (scene.shape[0] >= HYPERSPECTRAL or not named) and scene.shape[0] > 1


def _spectrometer(scene: Scene) -> Template | None:
    path = header_of(scene).path
    found = [template for name in template_names() if (template := find_template(name)) is not None]
    return next((template for template in found if template.is_of(path, scene.shape[0])), None)


def _undecided(scenes: Sequence[Scene], judged: Mapping[str, Sequence[Verdict]]) -> str:
    """Why the sensor is not to be told, with the candidates, what was seen, and the mend."""

    def promise(scene: Scene) -> tuple[int, bool, int]:
        fits = sum(not verdict.reason for verdict in judged.get(scene.name, ()))
        return fits, scene.band_names is not None, scene.shape[0]

    scene = max((scene for scene in scenes if scene.name in judged), key=promise)
    header, verdicts = header_of(scene), judged.get(scene.name, [])
    fitting = [verdict for verdict in verdicts if not verdict.reason]
    lines = [f"{verdict.sensor.name} fits{_unproven(verdict)}" for verdict in fitting]
    others = {one.sensor.name: name for name, all_ in judged.items() for one in all_ if not one.reason}
    lines += [f"{name} fits {at}" for name, at in others.items() if name not in {one.sensor.name for one in fitting}]
    lines += _misses([verdict for verdict in verdicts if verdict.bands and verdict.reason])
    start = "the sensor is not to be told" if fitting else "no shipped sensor fits"
    mend = "pass --sensor NAME of the right one, or a sensor file (YAML) of your own"
    if header.count >= HYPERSPECTRAL or header.names is None or are_numbers(header.names):
        mend += "; for a spectrometer --sensor hsi with --wavelengths FILE or start:stop"
    listed = f": {'; '.join(lines)}" if lines else ""
    return f"{start}{listed} ({scene.name}: {header.shown}, {_values(scene)}); {mend}; {INSPECT} {scene.files[0]}"


def _misses(verdicts: Sequence[Verdict]) -> list[str]:
    """The nearest sensors that do not fit, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: len(verdict.beside)):
        by_reason.setdefault(verdict.reason.replace(f" {verdict.sensor.name}", " it"), []).append(verdict.sensor.name)
    return [f"not {', '.join(names)}: {reason}" for reason, names in list(by_reason.items())[:LISTED]]


def _unproven(verdict: Verdict) -> str:
    return (
        " if it is that product, which its name does not say" if verdict.sensor.product and not verdict.product else ""
    )


def _values(scene: Scene) -> str:
    try:
        pixels = sample_pixels(scene, range(scene.shape[0]))
    except Unreadable:
        return "values cannot be read"
    known = pixels[pixels.isfinite()]
    if not len(known):
        return "no values where it was looked at"
    return f"stored values {known.min():.5g} to {known.max():.5g}, median {known.median():.5g}"
