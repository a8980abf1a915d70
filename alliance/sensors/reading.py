"""Sensor files: YAML, each key once, one file extending another."""

from pathlib import Path
from typing import Any

from alliance.errors import InputError
from alliance.records import shown
from alliance.sensors.sensor import Sensor
from alliance.yaml_files import read_yaml

MAX_CHAIN = 16  # files that extend each other


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
    if not isinstance(parent, str) or not parent or path in children:
        itself = ", which extends itself in the end" if path in children else ""
        raise InputError(f"{path}: extends {shown(parent)}{itself}; name another file beside it, without its suffix")
    if len(children) >= MAX_CHAIN:
        raise InputError(f"{children[0]}: more than {MAX_CHAIN} files extend each other; write the keys into fewer")
    return read_record(path.with_name(f"{parent}.yaml"), (*children, path)) | record
