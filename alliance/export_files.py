"""The files of an exported encoder: their names, and what reads and writes tensors and sensors. Reading executes nothing."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alliance.errors import InputError
from alliance.files import new_file, regular, sync
from alliance.json_files import read_json
from alliance.records import shown
from alliance.sensors import Sensor

WEIGHTS, CONFIG, SENSORS = "model.safetensors", "config.json", "sensors.json"
DECODER = "decoder.safetensors"


def save_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole and on the disk, with the rights that the umask gives.

    Raises:
        OSError: it cannot be written; an older file stays.
    """
    with new_file(path) as part:
        save_file(dict(weights), part)
        sync(part)


def read_tensors(path: Path, mend: str = "export the encoder again") -> dict[str, Tensor]:
    """All tensors of a safetensors file, of any shape, by name.

    Raises:
        InputError: it cannot be read; the message ends with the mend.
    """
    try:
        return load_file(regular(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); {mend}") from error


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One row, to be shown, for every name that is missing, unexpected, of another shape or kind, or not finite."""
    rows = [f"  missing     {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    rows += [f"  unexpected  {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    shapes = [(name, tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found]
    rows += [f"  reshaped    {name} {seen} -> {wanted}" for name, seen, wanted in shapes if seen != wanted]
    for name in (name for name, seen, wanted in shapes if seen == wanted and expected[name].is_floating_point()):
        if not found[name].is_floating_point():
            rows.append(f"  not-floating-point  {name} {found[name].dtype}")
        elif not found[name].isfinite().all():
            rows.append(f"  not-finite  {name} {tuple(found[name].shape)}")
    return rows


def read_sensors(path: Path) -> list[Sensor]:
    """The sensors of an export, from its `sensors.json`."""
    try:
        record = read_json(path)
        if not isinstance(record, list):
            raise InputError(f"it holds {shown(record)}")
        return [Sensor.from_dict(entry, source=str(path)) for entry in record]
    except InputError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path} is not a list of sensors ({message}); export the encoder again") from error
