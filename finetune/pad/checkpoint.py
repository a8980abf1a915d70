"""A PAD network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alliance.checkpoint import load_weights
from alliance.errors import InputError
from alliance.export_files import CONFIG, WEIGHTS
from alliance.records import from_record, require_present
from finetune.backbones.alliance_encoder import TransferredEncoder
from finetune.model_files import fill_model, read_model_weights, read_record, write_model
from finetune.pad.model import Pad, PadConfig, build_backbones

TASK = "pad"  # in config.json
RESIZED = (".conv_seg.weight", ".conv_seg.bias", ".stem.0.weight")  # weights whose shape follows classes or channels


def save_pad(
    config: PadConfig,
    weights: Mapping[str, Tensor],
    folder: str | Path,
    *,
    encoder: TransferredEncoder | None = None,
    **notes: Any,
) -> Path:
    """Write a network so that `load_pad` gives the same one.

    Args:
        weights: its state dict; written as float32, counters as they are.
        encoder: `model.transferred`; needed where `config.backbone` has an Alliance encoder.
        notes: more entries of `config.json`: those of `finetune.pad.inputs.describe`, without which it cannot map scenes.
    """
    assert (encoder is None) == (config.backbone == "convnext"), "save_pad needs encoder=model.transferred"
    record = {"task": TASK, "model": dataclasses.asdict(config)}
    record |= {} if encoder is None else {"encoder": encoder.record()}
    return write_model(folder, {**record, **notes}, weights)


def load_pad(folder: str | Path, *, device: str | torch.device = "cpu") -> Pad:
    """Load a network that `save_pad` wrote or that was converted, in evaluation mode.

    The checkpoint of an Alliance encoder inside is not needed.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    config, encoder = _read(folder)
    try:
        with torch.device("meta"):  # nothing is initialised that is overwritten
            model = Pad(config, None if encoder is None else build_backbones(config, encoder))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return fill_model(model, folder).to(device).eval()


def start_from(model: Pad, folder: str | Path) -> list[str]:
    """Copy the weights of a saved or converted network into `model`, which may have an Alliance encoder beside.

    Classifiers and first layers of another size, for other classes or channels, stay as they are.

    Returns:
        The names of these.
    Raises:
        InputError: nothing to load there, damaged files, or a table of weights that do not fit.
    """
    folder = Path(folder)
    read_record(folder, TASK)
    weights, own = read_model_weights(folder), model.state_dict()
    added = [name for name in own if ".alliance." in name and name not in weights]
    anew = [
        name for name in own if name.endswith(RESIZED) and name in weights and own[name].shape != weights[name].shape
    ]
    load_weights(model, weights, allow=[*added, *anew], source=str(folder / WEIGHTS))
    return anew


def read_config(folder: Path) -> PadConfig:
    """Settings of the network in a folder.

    Raises:
        InputError: none there, or damaged.
    """
    return _read(folder)[0]


def _read(folder: Path) -> tuple[PadConfig, dict[str, Any] | None]:
    """Settings, and the record of the Alliance encoder if there is one."""
    record = read_record(folder, TASK)
    try:
        require_present(record, ("model",), "it")
        config = from_record(PadConfig, record["model"], "model")
        require_present(record["model"], ("fusion", "encoder", "pyramid"), "model")
        require_present(record, ("encoder",) * (config.backbone != "convnext"), "it")
        return config, record.get("encoder") if config.backbone != "convnext" else None
    except InputError as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder / CONFIG} is not the configuration of a PAD network ({error}); write it again")
