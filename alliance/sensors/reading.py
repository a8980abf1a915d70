"""Sensor files: YAML, each key once, one file extending another."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from alliance.errors import InputError
from alliance.sensors.sensor import Sensor


def read_sensor(path: Path | str) -> Sensor:
    """Read one YAML file. `extends: NAME` starts from the file NAME.yaml beside it and overrides its keys.

    Raises:
        InputError: no such file, no YAML, a key twice, or a sensor that makes no sense.
    """
    return Sensor.from_dict(read_record(Path(path)), source=str(path))


class _Loader(yaml.SafeLoader):
    """Plain data alone, and no key twice: YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_record(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a sensor file, with those that it takes from the files it extends."""
    try:
        record = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(
            f"{path}: there is no such sensor file; check the name, or write one beside the others"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: a sensor file holds keys such as name, gsd_m and bands")
    parent = record.pop("extends", None)
    if parent is None:
        return record
    if not isinstance(parent, str) or path in children:
        raise InputError(f"{path}: extends {parent!r}; name another file beside it, without its suffix")
    return read_record(path.with_name(f"{parent}.yaml"), (*children, path)) | record
