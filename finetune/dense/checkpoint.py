"""A dense network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alliance.records import as_type, from_record, require_present
from finetune.dense.model import DenseConfig, DenseNetwork, Joining
from finetune.model_files import Inputs, described_network, fill_model, read_inputs, read_record, write_model

TASK = "dense"  # in config.json


def save_dense(model: DenseNetwork, weights: Mapping[str, Tensor], folder: str | Path, inputs: Inputs) -> Path:
    """Write a network so that `load_dense` gives the same one.

    Args:
        weights: its state dict; written as float32, counters as they are.
        inputs: its classes and images.
    """
    record = {
        "task": TASK,
        "model": dataclasses.asdict(model.config),
        "channels": model.channels,
        "joining": model.joining,
        "encoder": model.encoder.record(),
    }
    return write_model(folder, {**record, **inputs.to_record()}, weights)


def load_dense(folder: str | Path, *, device: str | torch.device = "cpu") -> DenseNetwork:
    """Load a network that `save_dense` wrote, in evaluation mode. The checkpoint of its encoder is not needed.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    record = read_record(folder, TASK)
    with described_network(folder, "a dense network"):
        require_present(record, ("model", "channels", "classes", "joining", "encoder"), "it")
        config = from_record(DenseConfig, record["model"], "model")
        channels = as_type(dict[str, int], record["channels"], "channels")
        classes = len(as_type(dict[str, Any], record["classes"], "classes"))
        joining = as_type(Joining, record["joining"], "joining")
        model = DenseNetwork(config, channels, classes, joining=joining, record=record["encoder"])
    return fill_model(model, folder).to(device).eval()


def read_dense_inputs(folder: Path, model: DenseNetwork) -> Inputs:
    """What the network in a folder needs to know of new images.

    Raises:
        InputError: as `read_inputs`.
    """
    return read_inputs(folder, model.channels, model.classes)
