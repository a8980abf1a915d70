"""Continued pretraining: a run that begins with the weights of an encoder, and of its decoder where it has one."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

from alliance.blocks import FusionConfig
from alliance.checkpoint import SavedDecoder, digest_of, load_decoder, load_encoder, load_weights
from alliance.decoder import DecoderConfig
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.model import Alliance
from alliance.sensors import Sensor
from engine.log import logger
from pretrain.config import PretrainConfig

OWN = ("drop_path",)  # settings of the encoder that are the run's, not the weights'
Settings = TypeVar("Settings", bound=Any)


class Start(NamedTuple):
    """What a run begins with."""

    place: str
    encoder: AllianceEncoder
    decoder: SavedDecoder | None
    digest: str  # of the weights

    def settle(self, config: PretrainConfig) -> PretrainConfig:
        """The settings with the encoder, and the decoder if there is one, that the weights are of.

        Raises:
            InputError: a setting was given that is not theirs.
        """
        model = config.model
        encoder = _agreed(model.encoder, self.encoder.config, f"model.encoder of --init {self.place}", OWN)
        decoder = model.decoder
        if self.decoder is not None:
            decoder = _agreed(
                decoder, _decoder_config(self.decoder, self.place), f"model.decoder of --init {self.place}"
            )
        return dataclasses.replace(config, model=dataclasses.replace(model, encoder=encoder, decoder=decoder))

    def load(self, model: Alliance) -> None:
        """Put the weights into a model that was built from the settled settings.

        Raises:
            InputError: they do not fit, with a table.
        """
        load_weights(model.encoder, self.encoder.state_dict(), source=f"the encoder of --init {self.place}")
        if self.decoder is not None:
            load_weights(model.decoder, self.decoder.weights, source=f"the decoder of --init {self.place}")
        begun = "its decoder" if self.decoder is not None else "a new decoder: it has none"
        logger.info("begins with the encoder of %s and %s", self.place, begun)

    def sensors(self, found: dict[str, Sensor]) -> list[Sensor]:
        """The sensors of the shards, and those of the encoder that the shards have not."""
        return [*found.values(), *(sensor for name, sensor in self.encoder.sensors.items() if name not in found)]


def open_start(config: PretrainConfig) -> Start | None:
    """What `init` names; None: nothing.

    Raises:
        InputError: no encoder of ours is there.
    """
    if not config.init:
        return None
    encoder = load_encoder(config.init)
    encoder.keep_special = False
    return Start(config.init, encoder, load_decoder(config.init), digest_of(config.init))


def _agreed(given: Settings, theirs: Settings, what: str, own: tuple[str, ...] = ()) -> Settings:
    """Their settings, but for `own` ones; a given one that is neither theirs nor the default is refused."""
    for field in dataclasses.fields(theirs):
        value, wanted = getattr(given, field.name), getattr(theirs, field.name)
        usual = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        if field.name not in own and value not in (wanted, usual):
            raise InputError(f"{field.name} is {value!r}, but {what} is {wanted!r}; leave the setting out")
    return dataclasses.replace(theirs, **{name: getattr(given, name) for name in own})


def _decoder_config(decoder: SavedDecoder, place: str) -> DecoderConfig:
    try:
        settings = dict(decoder.settings)
        fusion = dict(settings.pop("fusion"))
        fusion["cuts"] = tuple(fusion["cuts"])
        return DecoderConfig(**settings, fusion=FusionConfig(**fusion))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--init {place}: the decoder's settings are damaged ({error}); export it again") from error
