"""An encoder as timm's backbones with `features_only=True`: images of one sensor in, a list of maps out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from timm.models import FeatureInfo
from torch import Tensor, nn

from alliance.checkpoint import load_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, sensor_names

Numbers = Literal["stored", "physical", "standardised"]
MAPS = 4  # where nobody says how many


class TimmFeatures(nn.Module):
    """`forward(x) -> list of maps (b, d, h / patch, w / patch)`, one per entry of `out_indices`, band groups averaged.

    `feature_info` is timm's, with `channels()`, `reduction()` and `module_name()`; every map passes a module of its
    name, so that forward hooks find it.

    Args:
        encoder: or what `alliance.load_encoder` takes.
        sensor: whose images it gets, by name or itself; None: the only one that the encoder was trained with.
        bands: names of the bands of the images, in their order; empty: all of the sensor, in its order.
        out_indices: numbers of blocks, negative from the end; a count takes the last ones, as in timm; None: four evenly
            spaced ones.
        numbers: stored as in the files, physical as for `encoder.forward`, or standardised: (value - mean) / std.
    Raises:
        InputError: no such encoder, sensor, band or block, or statistics that are needed and not known.
    """

    def __init__(
        self,
        encoder: AllianceEncoder | str | Path,
        sensor: Sensor | str | None = None,
        *,
        bands: Sequence[str] = (),
        out_indices: Sequence[int] | int | None = None,
        numbers: Numbers = "physical",
    ) -> None:
        super().__init__()
        if numbers not in get_args(Numbers):
            raise InputError(f"numbers {numbers!r} are none of {', '.join(get_args(Numbers))}")
        self.encoder = encoder if isinstance(encoder, AllianceEncoder) else load_encoder(encoder)
        own = choose_sensor(self.encoder, sensor)
        self.sensor = own.select(bands) if bands else own
        self.numbers: Numbers = numbers
        if numbers != "standardised" and not self.sensor.has_statistics:
            raise InputError(
                f"sensor {self.sensor.name} has no mean and std; give standardised numbers, or another sensor"
            )
        depth = len(self.encoder.blocks)
        self.out_indices = block_numbers(out_indices, depth)
        self.outputs = nn.ModuleList(nn.Identity() for _ in range(depth))
        d, patch = self.encoder.embed_dim, self.encoder.patch_size
        info = [{"num_chs": d, "reduction": patch, "module": f"outputs.{index}"} for index in range(depth)]
        self.feature_info = FeatureInfo(info, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (b, c, h, w), h and w multiples of the patch, missing pixels not finite -> maps (b, d, h / patch, w / patch).

        Raises:
            InputError: channels, size or values do not fit the sensor.
        """
        image = self.sensor.to_physical(x) if self.numbers == "stored" else x
        standardised = self.numbers == "standardised"
        if standardised:
            image = image.nan_to_num(0.0, 0.0, 0.0)
        maps = self.encoder.forward_intermediates(image, self.sensor, self.out_indices, standardised=standardised)
        return [self.outputs[index](one) for index, one in zip(self.out_indices, maps, strict=True)]


def choose_sensor(encoder: AllianceEncoder, sensor: Sensor | str | None) -> Sensor:
    """One of the sensors of an encoder, or a shipped one that it was not trained with.

    Raises:
        InputError: none of that name, or several to choose from.
    """
    if sensor is None:
        if len(encoder.sensors) != 1:
            known = ", ".join(encoder.sensors) or "none"
            raise InputError(f"the encoder knows the sensors {known}; name one, or give an alliance.Sensor")
        return next(iter(encoder.sensors.values()))
    if isinstance(sensor, str) and sensor not in encoder.sensors and sensor in sensor_names():
        return find_sensor(sensor)
    return encoder.find_sensor(sensor)


def block_numbers(given: Sequence[int] | int | None, depth: int) -> tuple[int, ...]:
    """Numbers of blocks from 0 on, rising order not required.

    Raises:
        InputError: one that does not exist, or none.
    """
    if given is None:
        count = min(MAPS, depth)
        return tuple(depth * (place + 1) // count - 1 for place in range(count))
    wanted = tuple(range(-given, 0)) if isinstance(given, int) else tuple(given)
    if not wanted or any(not -depth <= index < depth for index in wanted):
        raise InputError(f"out_indices {given} do not fit an encoder of {depth} blocks, 0 to {depth - 1}")
    return tuple(index % depth for index in wanted)
