"""Sensors: what each channel of an image measures. The shipped ones are the YAML files in this folder."""

from alliance.sensors.reading import read_sensor
from alliance.sensors.sensor import BANDS_PER_GROUP, CLAMP, MAX_GROUPS, MODALITIES, Band, Sensor

__all__ = ["BANDS_PER_GROUP", "CLAMP", "MAX_GROUPS", "MODALITIES", "Band", "Sensor", "read_sensor"]
