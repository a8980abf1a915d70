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
    "alliance.checkpoint": ("load_encoder", "save_encoder"),
    "alliance.encoder": ("AllianceEncoder", "EncoderConfig", "Features"),
    "alliance.errors": ("InputError",),
    "alliance.model": ("Alliance", "AllianceConfig", "create_model", "list_models"),
    "alliance.sensors": ("Band", "Sensor", "read_sensor"),
    "alliance.sensors.catalog": ("find_sensor", "sensor_names"),
}


def __getattr__(name: str) -> Any:
    wanted = "sensor_names" if name == "list_sensors" else name
    for place, names in _PLACES.items():
        if name in __all__ and wanted in names:
            globals()[name] = value = getattr(import_module(place), wanted)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
