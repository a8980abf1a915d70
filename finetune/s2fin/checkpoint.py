"""An S2Fin network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alliance.checkpoint import CONFIG
from alliance.errors import InputError
from finetune.backbones.alliance_encoder import TransferConfig
from finetune.model_files import FORMAT, fill_model, write_model
from finetune.s2fin.attention import AttentionConfig
from finetune.s2fin.enhancement import EnhancementConfig
from finetune.s2fin.network import S2Fin, S2FinConfig
from finetune.s2fin.resonance import ResonanceConfig

PARTS = {"attention": AttentionConfig, "hfset": EnhancementConfig, "hfrm": ResonanceConfig}


def save_network(model: S2Fin, weights: Mapping[str, Tensor], folder: str | Path, classes: Sequence[str]) -> Path:
    """Write a network so that `load_network` gives the same one.

    Args:
        weights: its state dict (sharded training gathers it elsewhere).
        classes: names, in the order of the logits. The statistics of the scenes are not kept: they come with the scenes.
    """
    sizes = {"bands": model.sizes["spectral"], "components": model.sizes["passive"], "channels": model.sizes["active"]}
    record = {"task": "s2fin", "model": dataclasses.asdict(model.config), "sizes": sizes, "classes": list(classes)}
    record["encoder"] = None if model.encoder is None else model.encoder.record()
    return write_model(folder, record, weights)


def load_network(folder: str | Path, *, device: str | torch.device = "cpu") -> S2Fin:
    """Load a network that `save_network` wrote, in evaluation mode.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    path = Path(folder) / CONFIG
    try:
        record = json.loads(path.read_text())
        if record["task"] != "s2fin" or record["format"] != FORMAT:
            raise ValueError(f"it is of task {record['task']}, format {record['format']}")
        settings = record["model"] | {name: kind(**record["model"][name]) for name, kind in PARTS.items()}
        if settings["encoder"] is not None:
            settings["encoder"] = TransferConfig.from_record(settings["encoder"])
        sizes, classes = record["sizes"], len(record["classes"])
        with torch.device("meta"):  # nothing is initialised that is overwritten
            model = S2Fin(S2FinConfig(**settings), **sizes, classes=classes, record=record["encoder"])
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not the configuration of an S2Fin network ({error}); write it again") from error
    return fill_model(model, Path(folder)).to(device).eval()
