"""An Alliance encoder as the source of features of a task's network.

Which weights it starts from, what of it learns, and which of its sensors measured the channels that the network gets.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from alliance.checkpoint import load_encoder
from alliance.encoder import AllianceEncoder, EncoderConfig, Features
from alliance.errors import InputError
from alliance.model import model_config
from alliance.ranges import Ranged, ranged
from alliance.records import from_record, require_present
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, generated_sensor
from datasets.imagery.images import ImageSource
from engine.optim import Rule
from finetune.backbones.lora import LoraConfig, add_adapters, merge_adapters

Mode = Literal["frozen", "full", "lora"]
StatisticsOf = Literal["auto", "sensor", "data"]


@dataclass(frozen=True, kw_only=True)
class InputSensor(Ranged):
    """What measured the channels of one input of a network."""

    sensor: str
    """Name of one the encoder was trained with, of a shipped one, or a YAML file; any name with `wavelengths`."""
    bands: tuple[str, ...] = ()
    """Bands of the sensor, one per channel, in the order of the channels; empty: all, in its order."""
    channels: tuple[int, ...] = ranged((), 0, 65535)
    """Channels of the input that are read, from 0; empty: all. [0] for one band that is given three times."""
    wavelengths: tuple[float, ...] = ranged((), 0, 1000000000.0, above=True)
    """Wavelengths of the channels, nm or micrometres, or the first and last of evenly spaced ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bands", "channels", "wavelengths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.bands and self.wavelengths:
            raise InputError(f"sensor {self.sensor} has both bands and wavelengths; give one of them")


@dataclass(frozen=True, kw_only=True)
class TransferConfig(Ranged):
    """How a task uses a pretrained encoder."""

    model: str = "alliance_base_patch8"
    """Name of an untrained encoder, see alliance.list_models(); not read where the task has a `checkpoint`."""
    mode: Mode = "frozen"
    """frozen: nothing of it learns; full: all weights learn; lora: adapters beside its layers learn."""
    layer_decay: float = ranged(0.9, 0, 1, above=True)
    """Factor of the learning rate from a block to the one before it, in mode full."""
    drop_path: float = ranged(0.0, 0, 1, below=True)
    """Share of samples that skip the last block in training, rising linearly from 0; none where frozen."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Size of the adapters, in mode lora."""
    statistics: StatisticsOf = "auto"
    """By whose means and deviations images are standardised: of the encoder's sensors, or of the data as its description says;
    auto: of the sensors where the encoder is trained, frozen and knows them, else of the data.
    """
    sensors: dict[str, InputSensor] = field(default_factory=dict)
    """Sensor of each input of the network that the encoder reads, by name: rgb, sar; spectral, passive, active."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("mode", Mode), ("statistics", StatisticsOf)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"encoder.{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kinds))}")

    def with_sensors(self, images: Mapping[str, ImageSource]) -> "TransferConfig":
        """The same, an image whose sensor is not named taking that of its description.

        Raises:
            InputError: a sensor is named for an image that is not there.
        """
        known = dict(self.sensors)
        for name, source in images.items():
            if name not in known and source.description is not None:
                known[name] = InputSensor(sensor=source.sensor, bands=source.description.band_names)
        strange = [name for name in known if name not in images]
        if strange:
            raise InputError(f"encoder.sensors names the input {strange[0]}; the inputs are {', '.join(images)}")
        return dataclasses.replace(self, sensors=known)


class Reading(NamedTuple):
    """How the encoder reads an input: bands, and the channels of the image that hold them."""

    sensor: Sensor
    channels: tuple[int, ...]


class TransferredEncoder(nn.Module):
    """An encoder that reads one or several inputs of a network, and what of it learns.

    Images come standardised, (value - mean) / std, 0 where missing; `finetune.backbones.standardising` settles by whose means. So
    the encoder takes them as they are, as from a sensor with mean 0 and deviation 1, and clamps them to +-5. A frozen encoder stays in evaluation mode, and no gradient passes through it.

    Args:
        channels: of each input that is read; `config.sensors` must name the sensor of each.
        record: of `record()`; the same network without weights, which are loaded later.
        checkpoint: run folder, export folder or model.safetensors to begin with; empty: an untrained `config.model`.
    Raises:
        InputError: no such checkpoint, model or sensor, or channels that do not fit the bands.
    """

    def __init__(
        self,
        config: TransferConfig,
        channels: Mapping[str, int],
        record: Mapping[str, Any] | None = None,
        *,
        checkpoint: str = "",
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = _open(config, checkpoint) if record is None else _rebuild(record)
        self.readings = {
            name: read_input(config, name, count, self.encoder.sensors) if record is None else _recorded(record, name)
            for name, count in channels.items()
        }
        self.encoder.keep_special = config.mode != "full"
        if config.mode == "frozen":
            self.encoder.requires_grad_(False)
        if config.mode == "lora":
            add_adapters(self.encoder, config.lora)
        self.train()

    @property
    def embed_dim(self) -> int:
        return self.encoder.embed_dim

    @property
    def patch_size(self) -> int:
        return self.encoder.patch_size

    def maps(self, image: Tensor, name: str, indices: Sequence[int] | int) -> list[Tensor]:
        """Features after some blocks, band groups averaged.

        Args:
            image: (b, c, h, w) of the input `name`, standardised; filled up with zeros to multiples of the patch.
            indices: as of `AllianceEncoder.forward_intermediates`.
        Returns:
            One map (b, d, h / patch, w / patch) per index, sizes rounded up.
        """
        image, sensor = self._read(image, name)
        with self._learning():
            return self.encoder.forward_intermediates(image, sensor, indices, standardised=True)

    def features(self, image: Tensor, name: str) -> Features:
        """cls (b, d), frequency tokens (b, k, d) and tokens (b, g, n, d) of an image, as `maps` takes it."""
        image, sensor = self._read(image, name)
        with self._learning():
            return self.encoder(image, sensor, standardised=True)

    def _read(self, image: Tensor, name: str) -> tuple[Tensor, Sensor]:
        sensor, channels = self.readings[name]
        h, w = image.shape[-2:]
        return nn.functional.pad(image[:, list(channels)], (0, -w % self.patch_size, 0, -h % self.patch_size)), sensor

    def _learning(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode != "frozen")

    def train(self, mode: bool = True) -> "TransferredEncoder":
        super().train(mode)
        if self.config.mode == "frozen":
            self.encoder.eval()
        return self

    def parameter_rules(self) -> Iterator[tuple[nn.Parameter, Rule]]:
        """Layer decay where all weights learn: the last block at the whole rate, the embedding at the lowest."""
        if self.config.mode == "full":
            for name, parameter in self.encoder.named_parameters():
                yield parameter, Rule(self.config.layer_decay ** blocks_above(name, len(self.encoder.blocks)))

    def merged(self) -> AllianceEncoder:
        """A plain encoder with the present weights, adapters folded in, for `alliance.save_encoder`."""
        encoder = copy.deepcopy(self.encoder)
        merge_adapters(encoder)
        return encoder

    def record(self) -> dict[str, Any]:
        """What rebuilds this network but for its weights, ready for JSON."""
        return {
            "encoder": dataclasses.asdict(self.encoder.config),
            "sensors": [sensor.to_dict() for sensor in self.encoder.sensors.values()],
            "inputs": {
                name: {"sensor": sensor.to_dict(), "channels": list(channels)}
                for name, (sensor, channels) in self.readings.items()
            },
        }


class EncoderInput(NamedTuple):
    """One input of an encoder. A module that keeps it does not own the encoder's parameters, so several may."""

    encoder: TransferredEncoder
    name: str

    def maps(self, image: Tensor, indices: Sequence[int] | int) -> list[Tensor]:
        """Image (b, c, h, w) -> maps (b, d, h / patch, w / patch), as `TransferredEncoder.maps`."""
        return self.encoder.maps(image, self.name, indices)


def blocks_above(name: str, depth: int) -> int:
    """How many blocks follow a parameter of the encoder: 0 in the last one and the final norm, all for the embedding."""
    if name.startswith("blocks."):
        return depth - 1 - int(name.split(".")[1])
    return 0 if name.startswith("norm.") else depth


def _open(config: TransferConfig, checkpoint: str) -> AllianceEncoder:
    if not checkpoint:
        return AllianceEncoder(dataclasses.replace(model_config(config.model).encoder, drop_path=config.drop_path))
    loaded = load_encoder(checkpoint)
    settings = dataclasses.replace(loaded.config, drop_path=config.drop_path)
    encoder = AllianceEncoder(settings, tuple(loaded.sensors.values()))
    encoder.load_state_dict(loaded.state_dict())
    return encoder


class _SavedInput(NamedTuple):
    sensor: Mapping[str, Any]
    channels: tuple[int, ...]


class _Saved(NamedTuple):
    """What `record` gives."""

    encoder: EncoderConfig
    sensors: tuple[Mapping[str, Any], ...]
    inputs: Mapping[str, _SavedInput]


def _rebuild(record: Mapping[str, Any]) -> AllianceEncoder:
    saved = from_record(_Saved, record, "encoder")
    return AllianceEncoder(saved.encoder, [Sensor.from_dict(entry) for entry in saved.sensors])


def _recorded(record: Mapping[str, Any], name: str) -> Reading:
    inputs = from_record(_Saved, record, "encoder").inputs
    require_present(inputs, (name,), "encoder: inputs")
    return Reading(Sensor.from_dict(inputs[name].sensor), inputs[name].channels)


def read_input(config: TransferConfig, name: str, count: int, known: Mapping[str, Sensor]) -> Reading:
    """Find the sensor of an input of `count` channels, and order the channels as its bands are.

    Args:
        known: sensors of the encoder, by name.
    Raises:
        InputError: no sensor is named for the input, there is none of that name, or the channels do not fit its bands.
    """
    if name not in config.sensors:
        listed = ", ".join(config.sensors) or "none"
        raise InputError(f"encoder.sensors names no sensor for the input {name} (it has {listed}); add {name}: {{...}}")
    given = config.sensors[name]
    channels = given.channels or tuple(range(count))
    if not all(0 <= channel < count for channel in channels):
        raise InputError(f"encoder.sensors.{name}.channels are {list(channels)}, the input has 0 to {count - 1}")
    if given.wavelengths:
        return Reading(_sensor_at(given, len(channels)), channels)
    sensor = known[given.sensor] if given.sensor in known else find_sensor(given.sensor)
    chosen = sensor.select(given.bands or sensor.band_names)
    if len(chosen.bands) != len(channels):
        raise InputError(
            f"encoder.sensors.{name}: {len(channels)} channels are read, but sensor {sensor.name} has the bands "
            f"{', '.join(chosen.band_names)}; name one band per channel with bands, or choose channels"
        )
    ordered = [band for band in sensor.band_names if band in chosen.band_names]
    return Reading(chosen.select(ordered), tuple(channels[chosen.band_names.index(band)] for band in ordered))


def _sensor_at(given: InputSensor, count: int) -> Sensor:
    centres = given.wavelengths
    if len(centres) == 2 < count:
        centres = tuple(np.linspace(centres[0], centres[1], count).tolist())
    if len(centres) != count:
        raise InputError(
            f"sensor {given.sensor}: {len(centres)} wavelengths for {count} channels; give one each, or first and last"
        )
    return generated_sensor(given.sensor, count, centres)
