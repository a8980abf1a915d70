"""Alliance: a spectral-spatial-frequency foundation model for remote sensing.

Symbols, the same everywhere:
    b batch, c channels (spectral bands), h w rows and columns (of pixels or of tokens), g band groups, m bands of a
    group, n tokens of a group, v visible tokens, d width, k frequency bands or stages (low to high), p values of a
    patch, f width of the frequency branch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alliance.checkpoint import load_encoder, save_encoder
    from alliance.encoder import AllianceEncoder, EncoderConfig, Features
    from alliance.errors import InputError
    from alliance.model import Alliance, AllianceConfig, create_model, list_models
    from alliance.sensors import Band, Sensor, read_sensor
    from alliance.sensors.catalog import find_sensor
    from alliance.sensors.catalog import sensor_names as list_sensors

__version__ = "0.1.0"

__all__ = [
    "Alliance",
    "AllianceConfig",
    "AllianceEncoder",
    "Band",
    "EncoderConfig",
    "Features",
    "InputError",
    "Sensor",
    "create_model",
    "find_sensor",
    "list_models",
    "list_sensors",
    "load_encoder",
    "read_sensor",
    "save_encoder",
]

_PLACES = {  # imported on use: torch and timm take seconds, and a command may need neither
    "Alliance": "alliance.model",
    "AllianceConfig": "alliance.model",
    "AllianceEncoder": "alliance.encoder",
    "Band": "alliance.sensors",
    "EncoderConfig": "alliance.encoder",
    "Features": "alliance.encoder",
    "InputError": "alliance.errors",
    "Sensor": "alliance.sensors",
    "create_model": "alliance.model",
    "find_sensor": "alliance.sensors.catalog",
    "list_models": "alliance.model",
    "list_sensors": "alliance.sensors.catalog",
    "load_encoder": "alliance.checkpoint",
    "read_sensor": "alliance.sensors",
    "save_encoder": "alliance.checkpoint",
}
_CALLED = {"list_sensors": "sensor_names"}  # where they are made


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_PLACES[name]), _CALLED.get(name, name))
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
