"""Which bands of a sensor to show as red, green and blue."""

import torch

from alliance.sensors.sensor import Sensor

TRUE_COLOUR = (665.0, 560.0, 490.0)  # nm
TOLERANCE = 60.0  # nm
MANY_BANDS = 16  # a hyperspectral cube, also where its wavelengths are not known


def display_bands(sensor: Sensor) -> list[int]:
    """Channels to show: red, green, blue where there are any; three spread over many bands; else the first in grey."""
    waves = torch.tensor([band.wavelength or 0.0 for band in sensor.bands])
    nearest = [int((waves - nm).abs().argmin()) for nm in TRUE_COLOUR]
    if all(abs(waves[index] - nm) <= TOLERANCE for index, nm in zip(nearest, TRUE_COLOUR, strict=True)):
        return nearest
    c = len(sensor.bands)
    return [c // 2, c // 4, c // 8] if c >= MANY_BANDS else [0, 0, 0]
