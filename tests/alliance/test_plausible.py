"""Images of every kind of ground pass as images of their sensor; numbers of another unit do not, and the cause is named."""

import numpy as np
import pytest
import torch
from torch import Tensor

from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor, sensor_names
from alliance.sensors.plausible import drift, faults, look, recall, statistics_fit

# Reflectance at the top of the atmosphere at 443, 560, 665, 865, 1375, 1610 and 2200 nm, and its relative variation.
GROUND = {
    "deep water": ((0.11, 0.05, 0.025, 0.012, 0.001, 0.004, 0.002), 0.05),
    "calm water, almost without noise": ((0.10, 0.05, 0.02, 0.008, 0.001, 0.002, 0.001), 0.002),
    "snow": ((0.95, 0.92, 0.9, 0.8, 0.004, 0.1, 0.06), 0.1),
    "desert": ((0.2, 0.3, 0.42, 0.5, 0.002, 0.6, 0.55), 0.1),
    "forest": ((0.11, 0.07, 0.04, 0.3, 0.001, 0.12, 0.05), 0.2),
    "clouds": ((0.7, 0.7, 0.72, 0.75, 0.05, 0.6, 0.45), 0.4),
    "bright clouds with glints": ((1.3, 1.3, 1.3, 1.35, 0.3, 0.9, 0.7), 0.2),
    "city": ((0.14, 0.13, 0.14, 0.2, 0.001, 0.22, 0.2), 0.5),
}
NANOMETRES = (443, 560, 665, 865, 1375, 1610, 2200)
SENTINEL_2 = ("sentinel2-l1c", "sentinel2-l1c-baseline4", "sentinel2-l2a", "sentinel2-l2a-baseline4")
# VV and VH backscatter, dB
RADAR = {"water": (-24, -31), "forest": (-8, -14), "fields": (-12, -19), "city": (0, -8), "harbour": (6, -3)}


def ground(name: str, sensor: Sensor) -> Tensor:
    """Physical pixels (c, 48, 48) of a kind of ground as a sensor sees it."""
    levels, variation = GROUND[name]
    centres = np.interp([band.wavelength or 0 for band in sensor.bands], NANOMETRES, levels)
    noise = 1 + variation * np.random.default_rng(0).standard_normal((len(centres), 48, 48))
    return torch.from_numpy(centres[:, None, None] * noise.clip(0.2))


def radar(name: str) -> Tensor:
    """Speckle of four looks about a mean power, as power (2, 48, 48)."""
    speckle = np.random.default_rng(0).gamma(4, 1 / 4, (2, 48, 48))
    return torch.from_numpy(10 ** (np.array(RADAR[name])[:, None, None] / 10) * speckle)


def stored(sensor: Sensor, physical: Tensor) -> Tensor:
    """The numbers a product holds, as 16 bits."""
    scale, offset = sensor.bands[0].scale, sensor.bands[0].offset
    return ((physical - offset) / scale).round().clamp(1, 65535)


@pytest.mark.parametrize(
    "name", [*SENTINEL_2, "landsat8", "landsat9-l1", "landsat7", "hls-s30", "planetscope-sr-8band"]
)
@pytest.mark.parametrize("kind", GROUND)
def test_every_kind_of_ground_passes(name: str, kind: str) -> None:
    sensor = find_sensor(name)
    assert faults(sensor, look(sensor, sensor.to_physical(stored(sensor, ground(kind, sensor))))) == []


@pytest.mark.parametrize("kind", RADAR)
def test_every_kind_of_backscatter_passes(kind: str) -> None:
    power, decibels, linear = radar(kind), find_sensor("sentinel1-grd-db"), find_sensor("sentinel1-rtc-linear")
    assert faults(linear, look(linear, power)) == []
    assert faults(decibels, look(decibels, 10 * power.log10())) == []


@pytest.mark.parametrize("name", [name for name in sensor_names() if find_sensor(name).bands[0].unit == "reflectance"])
@pytest.mark.parametrize("kind", ["forest", "desert", "city", "snow"])
def test_reflectance_that_is_scaled_already_is_told(name: str, kind: str) -> None:
    sensor = find_sensor(name)
    (fault,) = faults(sensor, look(sensor, sensor.to_physical(ground(kind, sensor))))
    assert "likely reflectance already, scaled before it was written" in fault


def test_decibels_are_no_stored_reflectance() -> None:
    """Light is not negative everywhere, however small the scale makes the numbers."""
    sensor = find_sensor("sentinel2-l2a")
    decibels = 10 * radar("fields")[:1].log10().expand(len(sensor.bands), -1, -1)
    assert decibels.max() < 0
    (fault,) = faults(sensor, look(sensor, sensor.to_physical(decibels)))
    assert "no pixel has a reflectance above -" in fault
    assert faults(sensor, look(sensor, torch.zeros(len(sensor.bands), 8, 8))) == []  # a blank image is no other unit


@pytest.mark.parametrize("kind", ["forest", "fields", "city"])
def test_power_amplitudes_and_hundredths_are_no_decibels(kind: str) -> None:
    sensor, power = find_sensor("sentinel1-grd-db"), radar(kind)
    wrong = {
        "likely linear power": power,
        "likely amplitudes or counts": (power.sqrt() * 700).round(),
        "likely dB x 100": 1000 * power.log10(),
        "less than any speckle": 0.1 * power.log10() / 10,
    }
    for cause, image in wrong.items():
        if cause == "likely dB x 100" and kind == "city":
            continue  # about 0 dB, so 100 times as much is hardly negative
        assert any(cause in fault for fault in faults(sensor, look(sensor, image))), cause


@pytest.mark.parametrize(
    ("read_as", "made_for"),
    [
        ("sentinel2-l1c-baseline4", "sentinel2-l1c"),
        ("sentinel2-l1c", "sentinel2-l1c-baseline4"),
        ("sentinel2-l2a-baseline4", "sentinel2-l2a"),
    ],
)
def test_another_processing_baseline_is_told_where_the_numbers_show_it(read_as: str, made_for: str) -> None:
    """Not of level 2A with its offset read without: all bands .1 brighter may be a desert."""
    sensor = find_sensor(read_as)
    numbers = stored(find_sensor(made_for), ground("forest", sensor))
    (fault,) = faults(sensor, look(sensor, sensor.to_physical(numbers)))
    assert "another processing baseline" in fault


@pytest.mark.parametrize(
    ("unit", "low", "high"), [("m", -400, 8800), ("ft", -1300, 29000), ("cm", -40000, 880000), ("km", -0.4, 8.8)]
)
def test_elevation_in_any_unit_that_a_sensor_file_declares_passes(unit: str, low: float, high: float) -> None:
    sensor = Sensor.from_dict({"name": "dem", "bands": [{"name": "z", "modality": "elevation", "unit": unit}]})
    assert faults(sensor, look(sensor, torch.linspace(low, high, 4096).reshape(1, 64, 64))) == []


def test_elevation_in_centimetres_is_none_in_metres() -> None:
    sensor = find_sensor("elevation")
    assert faults(sensor, look(sensor, torch.full((1, 8, 8), 812.5))) == []
    assert "in m of elevation" in faults(sensor, look(sensor, torch.full((1, 8, 8), 81250.0)))[0]


def test_what_is_missing_says_nothing() -> None:
    sensor = find_sensor("sentinel2-l1c")
    assert faults(sensor, look(sensor, torch.full((13, 8, 8), torch.nan))) == []
    image = ground("forest", sensor)
    image[:, :40] = torch.nan
    image[4] = torch.nan
    assert faults(sensor, look(sensor, image)) == []


def test_a_sensor_states_what_its_numbers_can_be() -> None:
    sensor = Sensor(name="s", bands=(Band(name="t", unit="degrees", valid=(-80, 60), typical=(-60, 50)),))
    assert faults(sensor, look(sensor, torch.full((1, 8, 8), 20.0))) == []
    assert "median 293" in faults(sensor, look(sensor, torch.full((1, 8, 8), 293.0)))[0]
    bare = Sensor(name="s", bands=(Band(name="x"),))  # nothing is said of it
    assert faults(bare, look(bare, torch.full((1, 8, 8), 1e6))) == []


def test_noise_in_the_water_vapour_bands_of_a_spectrometer_is_no_fault() -> None:
    bands = tuple(Band(name=str(nm), wavelength=nm) for nm in np.linspace(400, 2500, 100).tolist())
    sensor, image = Sensor(name="cube", bands=bands), torch.full((100, 8, 8), 0.2)
    image[45:55] = 9.0
    assert faults(sensor, look(sensor, image)) == []
    assert faults(sensor, look(sensor, image * 100)) != []


def test_statistics_are_looked_at_like_pixels() -> None:
    sensor = find_sensor("sentinel1-grd-db")
    assert faults(sensor, recall(sensor, [-11, -18], [4, 4], [-40, -45], [20, 10])) == []
    assert "without one negative value" in faults(sensor, recall(sensor, [0.08, 0.01], [0.1, 0.1], [0, 0], [9, 9]))[0]


def test_statistics_of_another_unit_hold_no_image_to_it() -> None:
    sensor = find_sensor("sentinel2-l2a")
    count = len(sensor.bands)
    assert statistics_fit(sensor.with_statistics([0.2] * count, [0.1] * count))
    assert not statistics_fit(sensor.with_statistics([0.0] * count, [1.0] * count))
    assert not statistics_fit(sensor.with_statistics([2000.0] * count, [900.0] * count))


def test_an_image_may_differ_from_the_training_images_but_not_in_kind() -> None:
    sensor = find_sensor("sentinel2-l1c")
    mean = ground("city", sensor).mean((1, 2))
    sensor = sensor.with_statistics(mean.tolist(), (0.3 * mean).tolist())
    for kind in GROUND:
        assert drift(sensor, look(sensor, ground(kind, sensor))) == [], kind
    assert "offset of 1000" in drift(sensor, look(sensor, ground("city", sensor) + 0.1))[0]


@pytest.mark.parametrize(
    ("factor", "said"), [(1.0, None), (1e-4, "scaled down once too often"), (100.0, "another unit")]
)
def test_numbers_without_a_unit_are_compared_with_the_training_images(factor: float, said: str | None) -> None:
    sensor = Sensor(name="s", bands=(Band(name="x", unit="digital number", mean=2000.0, std=900.0),))
    image = 2000 + 900 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = drift(sensor, look(sensor, image * factor))
    assert found == [] if said is None else said in found[0]
