"""A PAD network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alliance.checkpoint import CONFIG, WEIGHTS, differences
from alliance.errors import InputError
from engine.runs import write_whole
from finetune.pad.fusion import FusionConfig
from finetune.pad.model import Pad, PadConfig

FORMAT = 1


def save_pad(config: PadConfig, weights: Mapping[str, Tensor], folder: str | Path, **notes: Any) -> Path:
    """Write a network so that `load_pad` gives the same one.

    Args:
        weights: its state dict; written as float32, counters as they are.
        notes: more entries of `config.json`, for whoever uses the network.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.detach().float() if value.is_floating_point() else value.detach()).cpu().contiguous().clone()
        for name, value in weights.items()
    }
    partial = folder / f"{WEIGHTS}.partial"
    save_file(state, partial)
    os.replace(partial, folder / WEIGHTS)
    record = {"format": FORMAT, "task": "pad", "model": dataclasses.asdict(config), **notes}
    write_whole(folder / CONFIG, json.dumps(record, indent=2))
    return folder


def load_pad(folder: str | Path, *, device: str | torch.device = "cpu") -> Pad:
    """Load a network that `save_pad` wrote or that was converted, in evaluation mode.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    with torch.device("meta"):  # nothing is initialised that is overwritten
        model = Pad(read_config(folder))
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read ({error}); write or convert the network again") from error
    rows = differences(model.state_dict(), weights)
    if rows:
        raise InputError(f"{folder / WEIGHTS} does not fit {CONFIG} beside it:\n" + "\n".join(rows))
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def find_pad(path: str | Path) -> Path:
    """The folder that holds a network, given the folder, its weights file, or a run folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    for folder in (path, path / "model", path.parent):
        if (folder / WEIGHTS).is_file() and (folder != path.parent or path.name == WEIGHTS):
            return folder
    raise InputError(
        f"{path} holds no PAD network ({WEIGHTS}, {CONFIG}); give a run folder, its model/ folder, or the folder of a "
        f"converted release"
    )


def read_config(folder: Path) -> PadConfig:
    """Settings of the network in a folder.

    Raises:
        InputError: none there, or damaged.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text())
        if record["task"] != "pad" or record["format"] != FORMAT:
            raise ValueError(f"it is of task {record['task']}, format {record['format']}")
        settings = record["model"]
        fusion = FusionConfig(**{**settings["fusion"], "stages": tuple(settings["fusion"]["stages"])})
        return PadConfig(**{**settings, "fusion": fusion})
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not the configuration of a PAD network ({error}); write it again") from error
