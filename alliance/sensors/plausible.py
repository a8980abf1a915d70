"""Whether an image's numbers can be what its sensor says: the right unit, scaled once, with its offset removed.

The limits are wide on purpose. Open water, snow, deserts, clouds and cities must pass; numbers of another unit must not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.sensors.sensor import Band, Sensor

SAMPLE = 16_384  # pixels of a band that are looked at
GLANCE = 4_096  # the same, of a batch on its way through an encoder
TOLERATED = 0.1  # part of a band's pixels outside `valid`: noise, glints, a few broken pixels
MANY = 16  # bands, above which some may be nothing but noise: the water vapour windows of imaging spectrometers
NOISY = 0.3  # part of so many bands that may be implausible
ROUNDING = 1e-6  # reflectance that is 0
FAINT = 5e-4  # reflectance that some pixel of some band exceeds, on the darkest water too
EVEN = 0.05  # dB, spread of an image that has no speckle left
CIRRUS = (1340.0, 1420.0)  # nm: water vapour swallows the ground there, so reflectance is near 0 but for high clouds
BASELINE = 0.1  # reflectance: the offset of Sentinel-2 from processing baseline 04.00 on
SQUASHED = 8e-3  # spread of an image in units of the training data's: divided by 255 or more
NO_SPREAD = 1e-6  # of the same, that no image has: the statistics are wrong, whatever it holds
ASTRAY = 20.0  # training deviations of an image's median, where the unit has no limits of its own


class Limits(NamedTuple):
    """What a unit allows."""

    valid: tuple[float, float]
    typical: tuple[float, float]  # of an image's median


# Reflectance: atmospheric correction overshoots below 0 on water and in shade, snow, clouds and glints exceed 1.
# Decibels: thermal noise floors of airborne and satellite radars to bright corner reflectors.
# Power: the same range, a little below 0 where noise was subtracted. Temperatures: of the Earth's surface and cloud tops.
# Metres: deepest sea floor to highest summit.
UNITS = {
    "reflectance": Limits((-0.2, 2.5), (-0.03, 1.7)),
    "normalised brightness": Limits((0.0, 1.0), (0.0, 1.0)),
    "normalised amplitude": Limits((0.0, 1.0), (0.0, 1.0)),
    "db": Limits((-80.0, 50.0), (-50.0, 20.0)),
    "linear power": Limits((-0.01, 1e4), (0.0, 10.0)),
    "k": Limits((100.0, 1500.0), (150.0, 400.0)),
    "m": Limits((-12_000.0, 9_500.0), (-12_000.0, 9_500.0)),
    "%": Limits((-20.0, 250.0), (-3.0, 170.0)),
}


class Seen(NamedTuple):
    """What is seen of each band of an image, in physical units; float64 (c,), NaN where a band has no pixel."""

    median: Tensor
    low: Tensor
    high: Tensor
    std: Tensor
    outside: Tensor  # part of the pixels that `valid` does not allow; 0 where the band has no limits


def limits(band: Band) -> Limits | None:
    """What a band allows: its own ranges, else those of its unit; None: anything, as where only its name is known."""
    unit = UNITS.get(band.unit.casefold())
    bare = band == Band(name=band.name, aliases=band.aliases, mean=band.mean, std=band.std, spread=band.spread)
    if (unit is None or bare) and band.valid is None and band.typical is None:
        return None
    everything = (-math.inf, math.inf)
    valid = band.valid or (unit.valid if unit else everything)
    return Limits(valid, band.typical or (unit.typical if unit and band.valid is None else valid))


def look(sensor: Sensor, image: Tensor, most: int = SAMPLE) -> Seen:
    """Look at a physical image (..., c, h, w) or pixels (c, n), NaN where data is missing, at about `most` of its pixels."""
    planes = image.detach() if image.ndim == 2 else image.detach().flatten(-2)
    step = max(1, image.numel() // len(sensor.bands) // most)
    pixels = planes[..., ::step].movedim(-2, 0).flatten(1).double()
    pixels = torch.where(pixels.isfinite(), pixels, math.nan)
    present = ~pixels.isnan()
    count = present.sum(1)
    low, high = (pixels.new_tensor(column)[:, None] for column in zip(*map(_valid, sensor.bands), strict=True))
    outside = ((pixels < low) | (pixels > high)).sum(1) / count
    squares = (pixels - pixels.nanmean(1, keepdim=True)).square().nanmean(1)
    darkest = torch.where(present, pixels, math.inf).amin(1)
    brightest = torch.where(present, pixels, -math.inf).amax(1)
    figures = torch.stack([pixels.nanmedian(1).values, darkest, brightest, squares.sqrt(), outside])
    return Seen(*torch.where(count > 0, figures, math.nan).cpu())


def recall(
    sensor: Sensor, mean: Sequence[float], std: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> Seen:
    """The same from statistics alone: the mean stands for the median."""
    centre, spread, least, most = (torch.tensor(values, dtype=torch.float64) for values in (mean, std, low, high))
    ends = torch.tensor([_valid(band) for band in sensor.bands], dtype=torch.float64)
    outside = ((centre < ends[:, 0]) | (centre > ends[:, 1])).double()
    return Seen(centre, least, most, spread, outside)


def faults(sensor: Sensor, seen: Seen) -> list[str]:
    """What cannot be true of an image of this sensor, one phrase each, with the likely cause; empty: nothing is wrong."""
    bands = list(sensor.bands)
    odd = [index for index, band in enumerate(bands) if _odd(band, seen, index)]
    found = []
    if len(odd) > (NOISY * len(bands) if len(bands) > MANY else 0):
        found.append(_tell(sensor, seen, odd))
    else:
        found.extend(_tell_alike(sensor, seen))
    if found:
        cause = likely_cause(sensor, seen)
        return [f"{found[0]}{f' (likely {cause})' if cause else ''}"]
    return []


def drift(sensor: Sensor, seen: Seen) -> list[str]:
    """What cannot be true of an image, given the statistics of the images that the sensor was trained on."""
    mean, std = (
        torch.tensor([getattr(band, f) for band in sensor.bands], dtype=torch.float64) for f in ("mean", "std")
    )
    if all(limits(band) is None for band in sensor.bands) and (found := astray(seen, mean, std)):
        return [found]
    shift = seen.median - mean
    cirrus = [index for index, band in enumerate(sensor.bands) if _in_cirrus(band)]
    if cirrus and (shift[cirrus] - BASELINE).abs().max() < 0.03 and (shift.nanmedian() - BASELINE).abs() < 0.05:
        return [f"every band {BASELINE:g} too high: the offset of 1000 of newer Sentinel-2 products was not removed"]
    return []


def astray(seen: Seen, mean: Tensor, std: Tensor) -> str:
    """How an image's numbers differ from those that a network was trained on, if they are of another unit; else nothing.

    Args:
        mean, std: of the training images, (c,) float64.
    """
    gap = ((seen.median - mean) / std).abs().nanmedian()
    shrunk = (seen.std / std).nanmedian()
    if 0 < shrunk < NO_SPREAD:
        return f"spread {shrunk:.2g} of what the statistics say: they are not of such images"
    if 0 < shrunk < SQUASHED and gap > 0.2:
        return f"spread {shrunk:.2g} of the training images': scaled down once too often"
    if gap > ASTRAY:
        return f"median {gap:.3g} deviations from the training images' mean: numbers of another unit"
    return ""


def statistics_fit(sensor: Sensor) -> bool:
    """Whether the sensor's own statistics are plausible, so that its images can be held to its unit."""
    mean, std = ([float(getattr(band, field) or 0.0) for band in sensor.bands] for field in ("mean", "std"))
    widths = [high - low for low, high in map(_typical, sensor.bands)]
    within = all(deviation <= width / 2 for deviation, width in zip(std, widths, strict=True))
    return within and not faults(sensor, recall(sensor, mean, std, [math.nan] * len(mean), [math.nan] * len(mean)))


def likely_cause(sensor: Sensor, seen: Seen) -> str:
    """What was probably done to the numbers, or left undone; empty where nothing explains them."""
    units = {band.unit.casefold() for band in sensor.bands}
    scale, offset = (
        torch.tensor([getattr(band, f) for band in sensor.bands], dtype=torch.float64) for f in ("scale", "offset")
    )
    stored, least = ((value - offset) / scale for value in (seen.median, seen.low))
    if "db" in units:
        return _cause_of_decibels(stored, least)
    if "linear power" in units:
        return "backscatter in dB" if stored.nanmedian() < 0 else "amplitudes or counts, not calibrated"
    if units != {"reflectance"}:
        return ""
    guesses = {"reflectance already, scaled before it was written": stored}
    if bool((scale > 1).all()):
        meant = f"write {1 / float(scale[0]):.10g} where the file says {float(scale[0]):.10g}"
        guesses = {f"a divisor that is called a scale factor: {meant}": stored / scale} | guesses
    if bool((scale != 1).all()):
        guesses["stored numbers, not converted yet"] = seen.median * scale + offset
    if bool((scale == 1e-4).all()):  # Sentinel-2 before and after processing baseline 04.00
        guesses["another processing baseline: these numbers have no offset of 1000"] = stored * 1e-4
        guesses["another processing baseline: these numbers have an offset of 1000"] = (stored - 1000) * 1e-4
    guesses |= {
        "reflectance x 10000, not scaled yet": stored * 1e-4,
        "Landsat Collection 2 level 2: scale 2.75e-5, offset -0.2": stored * 2.75e-5 - 0.2,
        "an 8-bit picture": stored / 255,
        "per cent": stored / 100,
    }
    for cause, value in guesses.items():
        if (value - seen.median).abs().nanmedian() > 1e-9 and _is_reflectance(value):
            return cause
    return ""


def _cause_of_decibels(stored: Tensor, least: Tensor) -> str:
    middle = stored.nanmedian()
    if least[least.isfinite()].amin() >= 0:
        return "linear power: take 10 log10 of it" if middle < 20 else "amplitudes or counts: calibrate, then 10 log10"
    return "dB x 100: divide by 100" if -50 < middle / 100 < 5 else "dB / 100: multiply by 100" if middle > -1 else ""


def _is_reflectance(medians: Tensor) -> bool:
    known = medians[medians.isfinite()]
    return len(known) > 0 and float(known.amin()) > -0.03 and 0.005 < float(known.amax()) < 1.5


def _valid(band: Band) -> tuple[float, float]:
    allowed = limits(band)
    return allowed.valid if allowed else (-math.inf, math.inf)


def _odd(band: Band, seen: Seen, index: int) -> bool:
    allowed, median = limits(band), float(seen.median[index])
    if allowed is None or math.isnan(median):
        return False
    return float(seen.outside[index]) > TOLERATED or not allowed.typical[0] <= median <= allowed.typical[1]


def _tell(sensor: Sensor, seen: Seen, odd: Sequence[int]) -> str:
    """The band that is farthest out, with what it holds and what it may."""

    def distance(index: int) -> float:
        low, high = _typical(sensor.bands[index])
        return max(low - float(seen.median[index]), float(seen.median[index]) - high)

    index = max(odd, key=distance)
    band, (low, high) = sensor.bands[index], _typical(sensor.bands[index])
    more = f", and {len(odd) - 1} more of {len(sensor.bands)} bands" if len(odd) > 1 else ""
    return (
        f"band {band.name} holds {seen.low[index]:.4g} to {seen.high[index]:.4g}, median {seen.median[index]:.4g}{more}; "
        f"in {band.unit} of {sensor.name} the median lies in {low:g} to {high:g}"
    )


def _typical(band: Band) -> tuple[float, float]:
    allowed = limits(band)
    return allowed.typical if allowed else (-math.inf, math.inf)


def _tell_alike(sensor: Sensor, seen: Seen) -> list[str]:
    """What is odd about the bands of one unit together."""
    found = []
    known = [i for i, band in enumerate(sensor.bands) if limits(band) is not None and seen.low[i].isfinite()]
    bright, radar = ([i for i in known if sensor.bands[i].unit.casefold() == unit] for unit in ("reflectance", "db"))
    brightest = max((float(seen.high[i]) for i in bright), default=math.inf)
    blank = all(max(abs(float(seen.low[i])), abs(float(seen.high[i]))) <= ROUNDING for i in bright)
    if brightest < FAINT and not blank:
        found.append(f"no pixel has a reflectance above {brightest:.2g}")
    if radar and float(seen.low[radar].amin()) >= 0 and float(seen.high[radar].amax()) > 0:
        ends = f"{seen.low[radar].amin():.4g} to {seen.high[radar].amax():.4g}"
        found.append(f"backscatter in dB without one negative value ({ends})")
    elif radar and 0 < float(seen.std[radar].amax()) < EVEN:
        found.append(f"backscatter in dB with a spread of {seen.std[radar].amax():.2g} dB, less than any speckle")
    dark = [i for i in bright if _in_cirrus(sensor.bands[i])]
    if dark and abs(float(seen.median[dark[0]]) - BASELINE) < 0.02 and float(seen.std[dark[0]]) < 0.02:
        found.append(
            f"band {sensor.bands[dark[0]].name} has {seen.median[dark[0]]:.3g} everywhere, where water vapour leaves 0: "
            f"the offset of 1000 of newer Sentinel-2 products is not removed"
        )
    return found


def _in_cirrus(band: Band) -> bool:
    return band.wavelength is not None and CIRRUS[0] < band.wavelength < CIRRUS[1] and band.unit == "reflectance"
