"""A network that labels images as files: `model.safetensors` and `config.json`. Reading them executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError
from alliance.export_files import CONFIG
from alliance.records import as_type, from_record, require_present
from finetune.chips.model import BESIDE, IMAGE, ChipConfig, ChipNetwork
from finetune.model_files import (
    ImageInput,
    Inputs,
    described_network,
    fill_model,
    read_inputs,
    read_record,
    write_model,
)

ChipTaskName = Literal["scene", "multilabel"]
TASKS: tuple[ChipTaskName, ...] = ("scene", "multilabel")  # in config.json: one label of an image, or several


class Labeller(NamedTuple):
    """A trained network, and what it needs to know of new images."""

    network: ChipNetwork
    inputs: Inputs
    task: ChipTaskName

    @property
    def image(self) -> ImageInput:
        """What it takes, or the first of two."""
        return self.inputs.images[IMAGE]

    @property
    def beside(self) -> ImageInput | None:
        """The second image, if it takes two."""
        return self.inputs.images.get(BESIDE)

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of their indices."""
        return tuple(self.inputs.classes)


def probabilities(logits: Tensor, task: ChipTaskName) -> Tensor:
    """Logits (b, k) -> probabilities (b, k) float32: of one class of all, or of each class alone."""
    return logits.float().softmax(dim=1) if task == "scene" else logits.float().sigmoid()


def save_chips(
    model: ChipNetwork, weights: Mapping[str, Tensor], folder: str | Path, inputs: Inputs, *, task: ChipTaskName
) -> Path:
    """Write a network so that `load_chips` gives the same one.

    Args:
        weights: its state dict; written as float32.
        inputs: its classes, and its image.
    """
    record = {
        "task": task,
        "model": dataclasses.asdict(model.config),
        "channels": model.channels[IMAGE],
        "beside": model.channels.get(BESIDE, 0),
        "size": model.size,
        "encoder": model.encoder.record(),
    }
    return write_model(folder, {**record, **inputs.to_record()}, weights)


def load_chips(folder: str | Path, *, device: str | torch.device = "cpu") -> Labeller:
    """Load a network that `save_chips` wrote, in evaluation mode. The checkpoint of its encoder is not needed.

    Raises:
        InputError: nothing to load there, damaged files, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record["task"] not in TASKS:
        raise InputError(f"{folder / CONFIG} is of a network of task {record['task']}; needed is {' or '.join(TASKS)}")
    with described_network(folder, "a network that labels images"):
        require_present(record, ("model", "channels", "classes", "size", "encoder"), "it")
        config = from_record(ChipConfig, record["model"], "model")
        own, size = (as_type(int, record[name], name) for name in ("channels", "size"))
        beside = as_type(int, record.get("beside", 0), "beside")
        channels = {IMAGE: own} | ({BESIDE: beside} if beside else {})
        classes = len(as_type(dict[str, Any], record["classes"], "classes"))
        model = ChipNetwork(config, channels, classes, size, record=record["encoder"])
    inputs = read_inputs(folder, channels, classes)
    return Labeller(fill_model(model, folder).to(device).eval(), inputs, record["task"])
