"""A task's network as two files, weights as safetensors and settings as JSON, written so that neither is half there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alliance.checkpoint import CONFIG, WEIGHTS, differences, save_tensors
from alliance.errors import InputError
from engine.runs import write_whole

FORMAT = 1
Model = TypeVar("Model", bound=nn.Module)


def write_model(folder: str | Path, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Write weights, as float32 and counters as they are, and the record that rebuilds their network."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.detach().float() if value.is_floating_point() else value.detach()).cpu().contiguous().clone()
        for name, value in weights.items()
    }
    save_tensors(state, folder / WEIGHTS)
    write_whole(folder / CONFIG, json.dumps({"format": FORMAT, **record}, indent=2))
    return folder


def fill_model(model: Model, folder: Path) -> Model:
    """Put the weights of a folder into the network of its configuration, which may be on the meta device.

    Raises:
        InputError: the file cannot be read, or does not fit.
    """
    weights = read_model_weights(folder)
    rows = differences(model.state_dict(), weights)
    if rows:
        raise InputError(f"{folder / WEIGHTS} does not fit {CONFIG} beside it:\n" + "\n".join(rows))
    model.load_state_dict(weights, assign=True)
    return model


def read_model_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read ({error}); write or convert the network again") from error
