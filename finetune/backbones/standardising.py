"""By whose means and deviations an encoder's images are standardised: those of its sensors, or those of the task's data."""

import dataclasses
from collections.abc import Mapping, Sequence

from alliance.checkpoint import find_export
from alliance.errors import InputError
from alliance.export_files import SENSORS, read_sensors
from alliance.sensors import Sensor
from datasets.imagery.images import ImageSource
from engine.log import logger
from finetune.backbones.alliance_encoder import Reading, TransferConfig, read_input


class _Unfit(Exception):
    """Why an image cannot be standardised as a sensor is."""


def encoder_statistics(
    transfer: TransferConfig, checkpoint: str, images: Mapping[str, ImageSource]
) -> dict[str, ImageSource]:
    """Images, those that the encoder reads with the means and deviations of its sensors where `transfer.statistics` says so.

    Args:
        images: by the encoder's names of its inputs.
    Raises:
        InputError: `statistics: sensor` cannot be followed.
    """
    if not wants_sensor(transfer, checkpoint):
        return dict(images)
    named = {name: transfer.sensors[name] for name in images.keys() & transfer.sensors.keys()}
    transfer = dataclasses.replace(transfer, sensors=named).with_sensors(images)
    own = {sensor.name: sensor for sensor in read_sensors(find_export(checkpoint) / SENSORS)} if checkpoint else {}
    found = dict(images)
    for name, source in images.items():
        if name not in transfer.sensors:
            continue
        reading = read_input(transfer, name, _count(transfer, name, source), own)
        try:
            found[name] = _standardised_as(reading, own, source)
            logger.info("%s is standardised as sensor %s of the encoder", name, transfer.sensors[name].sensor)
        except _Unfit as reason:
            if transfer.statistics == "sensor":
                raise InputError(
                    f"encoder.statistics is sensor, but {name} cannot be standardised so: {reason}; set it to data"
                ) from None
            logger.info("%s is standardised by the statistics of the data, as %s", name, reason)
    return found


def wants_sensor(transfer: TransferConfig, checkpoint: str) -> bool:
    """Whether images are to be standardised as the encoder's sensors are, if that can be."""
    return transfer.statistics == "sensor" or (transfer.statistics == "auto" and is_fixed(transfer, checkpoint))


def is_fixed(transfer: TransferConfig, checkpoint: str) -> bool:
    """Whether the encoder is a trained one that does not learn any more."""
    return transfer.mode == "frozen" and bool(checkpoint)


def warn_per_scene(transfer: TransferConfig, checkpoint: str, names: Sequence[str]) -> None:
    """Warn of a frozen encoder whose images are standardised scene by scene: its features are not what it was trained for."""
    if names and is_fixed(transfer, checkpoint):
        logger.warning("%s standardised by each scene's own statistics, and the encoder is frozen: its features suffer; "
                       "encoder.statistics sensor takes those it was trained with",
                       " and ".join(names) + (" is" if len(names) == 1 else " are"))  # fmt: skip


def _count(transfer: TransferConfig, name: str, source: ImageSource) -> int:
    """Channels of an image, as its description or else the sensor named for it says."""
    described = source.description
    told = len(source.bands) or len(source.mean) or (len(described.bands) if described else source.count)
    given = transfer.sensors[name]
    return told or len(given.bands) or len(given.wavelengths) or max(given.channels, default=-1) + 1


def _standardised_as(reading: Reading, own: Mapping[str, Sensor], source: ImageSource) -> ImageSource:
    """The image with the sensor's means and deviations in the image's numbers, channel by channel."""
    sensor, channels = reading
    if not sensor.has_statistics:
        known = "" if sensor.name in own else f"; the encoder was trained with {', '.join(own) or 'none'}"
        raise _Unfit(f"sensor {sensor.name} has no mean and std{known}")
    if source.log:
        raise _Unfit(f"its numbers are logarithms, not the {sensor.bands[0].unit} of sensor {sensor.name}")
    count = max(channels) + 1 if not source.mean else len(source.mean)
    mean, std = (list(source.mean), list(source.std)) if source.mean and source.std else ([0.0] * count, [0.0] * count)
    for band, channel in zip(sensor.bands, channels, strict=True):
        _refuse_other_unit(sensor, band.unit, source, channel)
        scale, offset = (band.scale, band.offset) if _holds_stored(source) else (1.0, 0.0)
        mean[channel] = ((band.mean or 0.0) - offset) / scale
        std[channel] = (band.std or 1.0) / abs(scale)
    if not all(std):
        raise _Unfit(f"the encoder does not read channel {std.index(0.0)}, whose mean and std are not given")
    return dataclasses.replace(source, statistics="given", mean=tuple(mean), std=tuple(std))


def _holds_stored(source: ImageSource) -> bool:
    """Whether the numbers of an image are the stored ones, of a whole type, that a sensor's scale turns into its unit."""
    scaled = source.sensor or source.description is not None or source.scale is not None or source.offset is not None
    return not scaled and source.dtype is not None and "int" in source.dtype


def _refuse_other_unit(sensor: Sensor, unit: str, source: ImageSource, channel: int) -> None:
    described = source.description
    found = described.bands[channel].unit if described is not None else unit
    if found != unit:
        raise _Unfit(f"it holds {found}, sensor {sensor.name} {unit}")
