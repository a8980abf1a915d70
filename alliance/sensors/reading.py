"""Sensor files: YAML, each key once, one file extending another."""

from pathlib import Path
from typing import Any

from alliance.errors import InputError
from alliance.sensors.sensor import Sensor
from alliance.yaml_files import read_yaml


def read_sensor(path: Path | str) -> Sensor:
    """Read one YAML file. `extends: NAME` starts from the file NAME.yaml beside it and overrides its keys.

    Raises:
        InputError: no such file, no YAML, a key twice, or a sensor that makes no sense.
    """
    return Sensor.from_dict(read_record(Path(path)), source=str(path))


def read_record(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a sensor file, with those that it takes from the files it extends."""
    record = read_yaml(path)
    if not record:
        raise InputError(f"{path}: a sensor file holds keys such as name, gsd_m and bands")
    parent = record.pop("extends", None)
    if parent is None:
        return record
    if not isinstance(parent, str) or path in children:
        raise InputError(f"{path}: extends {parent!r}; name another file beside it, without its suffix")
    return read_record(path.with_name(f"{parent}.yaml"), (*children, path)) | record
