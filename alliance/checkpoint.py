"""The encoder's file format: `model.safetensors`, `config.json`, `sensors.json`. Reading it executes nothing."""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.files import new_file, remove_tree, replace_file, sync
from alliance.sensors import Sensor

FORMAT = 1
WEIGHTS, CONFIG, SENSORS = "model.safetensors", "config.json", "sensors.json"


def save_encoder(encoder: AllianceEncoder, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write an encoder so that `load_encoder` gives the same features. An older export there is replaced whole.

    Args:
        weights: state dict to write instead of the encoder's own (sharded training gathers them elsewhere).
    """
    folder = Path(folder)
    partial, aside = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for left in (partial, aside):  # by a kill
        remove_tree(left)
    partial.mkdir(parents=True)
    state = encoder.state_dict() if weights is None else weights
    save_tensors(
        {name: value.detach().float().cpu().contiguous().clone() for name, value in state.items()}, partial / WEIGHTS
    )
    record = {"format": FORMAT, "encoder": dataclasses.asdict(encoder.config)}
    replace_file(partial / CONFIG, json.dumps(record, indent=2).encode())
    sensors = [sensor.to_dict() for sensor in encoder.sensors.values()]
    replace_file(partial / SENSORS, json.dumps(sensors, indent=2).encode())
    if folder.exists():
        os.replace(folder, aside)
    os.replace(partial, folder)
    remove_tree(aside)
    return folder


def save_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole and on the disk, with the rights that the umask gives.

    Raises:
        OSError, SafetensorError: it cannot be written; an older file stays.
    """
    with new_file(path) as part:
        save_file(dict(weights), part)
        sync(part)


def load_encoder(
    path: str | Path, *, allow: Collection[str] = (), device: str | torch.device = "cpu"
) -> AllianceEncoder:
    """Load an exported encoder, in evaluation mode.

    Args:
        path: an export folder, its `model.safetensors`, or a run folder that holds `encoder/`.
        allow: names of weights that may be missing, unexpected or of another shape.
    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit.
    """
    folder = find_export(Path(path))
    encoder = AllianceEncoder(_read_config(folder / CONFIG), _read_sensors(folder / SENSORS))
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read ({error}); export the encoder again") from error
    load_weights(encoder, weights, allow=allow, source=str(folder / WEIGHTS))
    encoder.keep_special = True
    return encoder.to(device).eval()


def find_export(path: Path) -> Path:
    """The folder that holds an export, given the folder, its weights file or a run folder."""
    folder = path.parent if path.name == WEIGHTS else path
    for candidate in (folder, folder / "encoder"):
        if (candidate / WEIGHTS).is_file():
            return candidate
    raise InputError(
        f"{path} holds no exported encoder ({WEIGHTS}, {CONFIG}, {SENSORS}); "
        f"give a run folder, its encoder/ folder, or the {WEIGHTS} inside"
    )


def load_weights(
    module: torch.nn.Module, weights: Mapping[str, Tensor], *, allow: Collection[str] = (), source: str = "weights"
) -> None:
    """Copy weights into a module; refuse, with a table, names or shapes that differ and are not in `allow`."""
    own = module.state_dict()
    refused = [row for row in differences(own, weights) if row.split()[1] not in allow]
    if refused:
        raise InputError(
            f"{source} does not fit the model; name what may differ with allow=[...]:\n" + "\n".join(refused)
        )
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    module.load_state_dict(fitting, strict=False)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One row, to be shown, for every name that is missing, unexpected or of another shape."""
    rows = [f"  missing     {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    rows += [f"  unexpected  {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    shapes = [(name, tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found]
    return rows + [f"  reshaped    {name} {seen} -> {wanted}" for name, seen, wanted in shapes if seen != wanted]


def _read_config(path: Path) -> EncoderConfig:
    record = _read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("encoder"), dict):
        raise InputError(f"{path} is not the configuration of an encoder; export the encoder again")
    if record.get("format") != FORMAT:
        raise InputError(f"{path}: format {record.get('format')!r} is not {FORMAT}; update alliance-rs")
    unknown = sorted(set(record["encoder"]) - {field.name for field in dataclasses.fields(EncoderConfig)})
    if unknown:
        raise InputError(f"{path}: unknown encoder setting {unknown[0]!r}; update alliance-rs")
    try:
        return EncoderConfig(**record["encoder"])
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path} holds wrong values ({error}); export the encoder again") from error


def _read_sensors(path: Path) -> list[Sensor]:
    try:
        return [Sensor.from_dict(entry, source=str(path)) for entry in _read_json(path)]
    except (TypeError, ValueError, AttributeError) as error:
        message = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path} is not a list of sensors ({message}); export the encoder again") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); export the encoder again") from error
