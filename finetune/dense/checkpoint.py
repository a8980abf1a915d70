"""A dense network as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from alliance.checkpoint import CONFIG
from alliance.errors import InputError
from finetune.dense.model import DenseConfig, DenseNetwork
from finetune.model_files import Inputs, fill_model, read_inputs, read_record, write_model

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
    try:
        config, channels = DenseConfig.from_record(record["model"]), dict(record["channels"])
        with torch.device("meta"):  # nothing is initialised that is overwritten
            model = DenseNetwork(
                config, channels, len(record["classes"]), joining=record["joining"], record=record["encoder"]
            )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} is not the configuration of a dense network ({error}); train it again"
        ) from error
    return fill_model(model, folder).to(device).eval()


def read_dense_inputs(folder: Path, model: DenseNetwork) -> Inputs:
    """What the network in a folder needs to know of new images.

    Raises:
        InputError: as `read_inputs`.
    """
    return read_inputs(folder, model.channels, model.classes)
