"""The encoder's file format: `model.safetensors`, `config.json`, `sensors.json`. Reading it executes nothing.

Beside them may stand `decoder.safetensors`, of the decoder that the encoder was pretrained with; `--init` goes on with it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.export_files import (
    CONFIG,
    DECODER,
    SENSORS,
    WEIGHTS,
    differences,
    read_sensors,
    read_tensors,
    save_tensors,
)
from alliance.files import remove_tree, replace_file
from alliance.hub import fetch, is_hub_id, snapshot_of
from alliance.json_files import read_json
from alliance.records import from_record, shown

FORMAT = 1
FOREIGN = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # weights of other projects, as they are called


class SavedDecoder(NamedTuple):
    """A decoder beside an encoder: its settings, JSON-ready, and its weights by name."""

    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def save_encoder(
    encoder: AllianceEncoder,
    folder: str | Path,
    weights: Mapping[str, Tensor] | None = None,
    decoder: SavedDecoder | None = None,
) -> Path:
    """Write an encoder so that `load_encoder` gives the same features. An older export there is replaced whole.

    Args:
        weights: state dict to write instead of the encoder's own (sharded training gathers them elsewhere).
        decoder: to go on pretraining with; `load_encoder` does not look at it.
    """
    folder = Path(folder)
    partial, aside = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for left in (partial, aside):  # by a kill
        remove_tree(left)
    partial.mkdir(parents=True)
    state = encoder.state_dict() if weights is None else weights
    save_tensors(_plain(state), partial / WEIGHTS)
    record: dict[str, Any] = {"format": FORMAT, "encoder": dataclasses.asdict(encoder.config)}
    if decoder is not None:
        save_tensors(_plain(decoder.weights), partial / DECODER)
        record["decoder"] = dict(decoder.settings)
    replace_file(partial / CONFIG, json.dumps(record, indent=2).encode())
    sensors = [sensor.to_dict() for sensor in encoder.sensors.values()]
    replace_file(partial / SENSORS, json.dumps(sensors, indent=2).encode())
    if folder.exists():
        os.replace(folder, aside)
    os.replace(partial, folder)
    remove_tree(aside)
    return folder


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu().contiguous().clone() for name, value in weights.items()}


def load_encoder(
    path: str | Path, *, allow: Collection[str] = (), device: str | torch.device = "cpu"
) -> AllianceEncoder:
    """Load an exported or converted encoder, in evaluation mode.

    Args:
        path: an export folder, its `model.safetensors`, a run folder that holds `encoder/`, or the id of one on the
            Hugging Face hub (owner/name, owner/name@revision), which is looked for in the cache first.
        allow: names of weights that may be missing, unexpected or of another shape.
    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit.
    """
    folder = find_export(path)
    config, weights = _read_config(folder / CONFIG), read_tensors(folder / WEIGHTS)
    if not allow:
        _refuse_growth(config, sum(each.numel() for each in weights.values()), folder)
    encoder = AllianceEncoder(config, read_sensors(folder / SENSORS))
    load_weights(encoder, weights, allow=allow, source=str(folder / WEIGHTS))
    encoder.keep_special = True
    return encoder.to(device).eval()


def load_decoder(path: str | Path) -> SavedDecoder | None:
    """The decoder of an export, as settings and weights; None: it holds none. `path` is that of `load_encoder`.

    Raises:
        InputError: nothing to load there, or damaged files.
    """
    folder = find_export(path)
    if not (folder / DECODER).is_file():
        return None
    settings = _read_mapping(folder / CONFIG).get("decoder")
    if not isinstance(settings, dict):
        raise InputError(f"{folder / CONFIG} says nothing of {DECODER}; remove that file, or export the encoder again")
    return SavedDecoder(settings, read_tensors(folder / DECODER))


def digest_of(path: str | Path) -> str:
    """One checksum of an export: of its weights, those of its decoder included, its configuration and its sensors."""
    digest, folder = hashlib.sha256(), find_export(path)
    for file in (folder / WEIGHTS, folder / DECODER, folder / CONFIG, folder / SENSORS):
        if file.is_file():
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def find_export(path: str | Path) -> Path:
    """The folder that holds an export, given the folder, its weights file, a run folder or an id of the hub."""
    if is_hub_id(path):
        return fetch(str(path), (WEIGHTS, CONFIG, SENSORS, DECODER))
    path = Path(path)
    folder = path.parent if path.name == WEIGHTS else path
    for candidate in (folder, folder / "encoder", snapshot_of(folder)):
        if candidate is not None and (candidate / WEIGHTS).is_file() and (candidate / CONFIG).is_file():
            return candidate
    if path.is_file() and path.suffix in FOREIGN:
        raise InputError(
            f"{path} is no export of ours; if it is of another project, convert it first: "
            f"python launch/convert.py FORMAT {path} OUT"
        )
    there = "" if path.exists() else ", as there is no such folder"
    raise InputError(
        f"{path} holds no exported encoder ({WEIGHTS}, {CONFIG}, {SENSORS}){there}; "
        f"give a run folder, its encoder/ folder, or the {WEIGHTS} inside"
    )


def load_weights(
    module: torch.nn.Module, weights: Mapping[str, Tensor], *, allow: Collection[str] = (), source: str = "weights"
) -> None:
    """Copy weights into a module; refuse, with a table, what differs from its own and is not in `allow`."""
    own = module.state_dict()
    rows = {row.split()[1]: row for row in differences(own, weights)}
    refused = [row for name, row in rows.items() if name not in allow]
    if refused:
        raise InputError(
            f"{source} does not fit the model; name what may differ with allow=[...]:\n" + "\n".join(refused)
        )
    fitting = {name: value for name, value in weights.items() if name not in rows}
    module.load_state_dict(fitting, strict=False)


def _read_config(path: Path) -> EncoderConfig:
    record = _read_mapping(path)
    if not isinstance(record.get("encoder"), dict):
        raise InputError(f"{path} is not the configuration of an encoder; export the encoder again")
    if record.get("format") != FORMAT:
        raise InputError(f"{path}: format {shown(record.get('format'))} is not {FORMAT}; update alliance-rs")
    unknown = sorted(set(record["encoder"]) - {field.name for field in dataclasses.fields(EncoderConfig)})
    if unknown:
        raise InputError(f"{path}: unknown encoder setting {shown(unknown[0])}; update alliance-rs")
    try:
        return from_record(EncoderConfig, record["encoder"], "encoder")
    except InputError as error:
        raise InputError(f"{path} holds wrong values ({error}); export the encoder again") from error


def _refuse_growth(config: EncoderConfig, numbers: int, folder: Path) -> None:
    """Refuse settings of an encoder with more weights than there are, before memory is asked for them."""
    d = config.embed_dim
    parts = (12 * config.depth * d**2, config.table**2 * d, config.registers * d, config.patch**2)
    if max(*parts, config.jumbo * d * (config.tokens == "frequency")) > numbers:
        raise InputError(
            f"{folder / CONFIG} is of a larger encoder than the {numbers} weights in {WEIGHTS}; export the encoder again"
        )


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; export the encoder again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is not the configuration of an encoder; export the encoder again")
    return record
