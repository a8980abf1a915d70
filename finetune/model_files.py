"""A trained network as two files, whatever the task: weights as safetensors; as JSON its settings, its classes, and what
its images must be and become before it gets them. Neither file is ever half there; reading them executes nothing.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.export_files import CONFIG, WEIGHTS, differences, read_tensors, save_tensors
from alliance.json_files import read_json
from alliance.records import as_type, from_record, require_present, shown
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import Colour, as_colour, palette_colour
from datasets.labelled.normalise import Preprocessing
from engine.runs import write_whole

FORMAT = 2  # 1 had no preprocessing of every task
UNUSED = ("files", "axes", "statistics", "mean", "std")  # of an image source, beside weights
SHOWN = 40  # rows of a table of differences
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInput:
    """One of the images that a network takes: which numbers of a file, and what becomes of them."""

    source: ImageSource
    """Bands, dtype, missing value, scale and logarithm; its files and statistics are not looked at."""
    preprocessing: Preprocessing
    """Means and deviations, and principal components."""

    @property
    def channels(self) -> int:
        """How many bands are read."""
        return len(self.preprocessing.mean)

    @property
    def described(self) -> ImageSource:
        """The source with the means and deviations of training."""
        mean, std = tuple(self.preprocessing.mean.tolist()), tuple(self.preprocessing.std.tolist())
        return dataclasses.replace(self.source, statistics="given", mean=mean, std=std)

    def to_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        given = {
            field.name: (getattr(self.source, field.name), field.default) for field in dataclasses.fields(ImageSource)
        }
        told = {name: value for name, (value, usual) in given.items() if value != usual and name not in UNUSED}
        return told | self.preprocessing.to_record()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ImageInput":
        """What `to_record` gave.

        Raises:
            InputError: it is damaged.
        """
        preprocessing = Preprocessing.from_record(record)
        told = {name: value for name, value in record.items() if name not in ("mean", "std", "axes", "offsets")}
        source = from_record(ImageSource, told, "image")
        if len(source.bands) not in (0, len(preprocessing.mean)):
            raise InputError(f"bands {list(source.bands)} do not fit the {len(preprocessing.mean)} means")
        return cls(source=source, preprocessing=preprocessing)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Classes in the order of their indices, and the images that a network takes, by name."""

    classes: Mapping[str, Colour]
    images: Mapping[str, ImageInput] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """The entries of config.json."""
        return {
            "classes": {name: list(colour) for name, colour in self.classes.items()},
            "inputs": {name: image.to_record() for name, image in self.images.items()},
        }


def image_input(source: ImageSource, fitted: Preprocessing | None = None) -> ImageInput:
    """What a network that is trained on these images reads of others.

    Args:
        fitted: preprocessing of the training images; None: the means and deviations of the source.
    Raises:
        InputError: they are not known.
    """
    if fitted is None:
        mean, std = (np.array(column, dtype=np.float64) for column in source.moments)
        fitted = Preprocessing(mean=mean, std=std)
    every = not source.bands and not source.sensor  # then the file must have no other ones
    kept = dataclasses.replace(source, count=source.count or (len(fitted.mean) if every else None))
    return ImageInput(source=kept, preprocessing=fitted)


def nameless(count: int) -> dict[str, Colour]:
    """Names and colours for classes of which only the number is known."""
    return {f"class {index}": palette_colour(index) for index in range(count)}


def write_model(folder: str | Path, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Write weights, as float32 and counters as they are, and the record that rebuilds their network."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.detach().float() if value.is_floating_point() else value.detach()).cpu().contiguous().clone()
        for name, value in weights.items()
    }
    save_tensors(state, folder / WEIGHTS)
    entries = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": FORMAT, **record}.items())
    write_whole(folder / CONFIG, "{\n" + ",\n".join(entries) + "\n}\n")  # a line per entry: axes hold many numbers
    return folder


def find_network(path: str | Path) -> Path:
    """The folder that holds a network, given the folder, its weights file, or a run folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    for folder in (path, path / "model", path.parent):
        if (folder / WEIGHTS).is_file() and (folder != path.parent or path.name == WEIGHTS):
            return folder
    seeds = sorted(each.name for each in path.glob("seed_*") if (each / "model" / WEIGHTS).is_file())
    choice = "give a run folder, its model/ folder, or the folder of a converted release"
    if seeds:
        choice = f"choose one of its seeds, such as {path / seeds[0]}"
    elif (path / "encoder" / WEIGHTS).is_file():
        choice = (
            f"it holds an encoder; train a task with --checkpoint {path} and give that run; --embeddings takes features"
        )
    there = "" if path.exists() else ", as there is no such folder"
    raise InputError(f"{path} holds no trained network ({WEIGHTS}, {CONFIG}){there}; {choice}")


def read_record(folder: Path, task: str | None = None) -> dict[str, Any]:
    """The content of config.json.

    Args:
        task: that it must be of; None: any.
    Raises:
        InputError: none there, damaged, of another format or task.
    """
    path = folder / CONFIG
    try:
        record = as_type(dict[str, Any], read_json(path), "it")
        require_present(record, ("format", "task"), "it")
        form, found = record["format"], as_type(str, record["task"], "task")
    except InputError as error:
        raise InputError(f"{path} does not describe a trained network ({error}); train or convert it again") from error
    if form != FORMAT or form is True:
        raise InputError(
            f"{path} has format {shown(form)}, this is for format {FORMAT}; convert the release or train again"
        )
    if task not in (None, found):
        raise InputError(f"{path} is of a network of task {found}, needed is {task}; give the folder of one of that")
    return record


def read_inputs(folder: Path, used: Mapping[str, int], classes: int) -> Inputs:
    """Classes and images of the network in a folder.

    Args:
        used: channels of each image that the network takes.
        classes: how many it tells apart.
    Raises:
        InputError: no network there, an image of which mean and std are not known, or entries that do not fit.
    """
    record, path = read_record(folder), folder / CONFIG
    try:
        stored = as_type(dict[str, Any], record.get("inputs") or {}, "inputs")
        colours = as_type(dict[str, tuple[int, int, int]], record.get("classes") or {}, "classes")
    except InputError as error:
        raise InputError(f"{path}: classes or inputs are damaged ({error}); write the network again") from error
    absent = set(used) - set(stored)
    if absent:
        raise InputError(
            f"{path} says no mean and std of the {min(absent)} image under 'inputs'; save the network with the "
            f"description of its images, or convert the release again"
        )
    try:
        names = {name: as_colour(name, rgb) for name, rgb in colours.items()}
        images = {name: ImageInput.from_record(stored[name]) for name in used}
    except InputError as error:
        raise InputError(f"{path}: classes or inputs are damaged ({error}); write the network again") from error
    for name, image in images.items():
        if image.channels != used[name]:
            raise InputError(f"{path}: the network takes {used[name]} {name} bands, 'inputs' has {image.channels}")
    if names and len(names) != classes:
        raise InputError(f"{path}: the network tells {classes} classes apart, 'classes' names {len(names)}")
    return Inputs(classes=names or nameless(classes), images=images)


@contextmanager
def described_network(folder: Path, kind: str) -> Iterator[None]:
    """Inside, a network is built from its configuration, without initialising what its weights will overwrite.

    Args:
        kind: in words, such as "a dense network".
    Raises:
        InputError: the configuration is not that of such a network.
    """
    try:
        with torch.device("meta"):
            yield
    except (TypeError, ValueError, RuntimeError) as error:  # of torch, for sizes that there cannot be
        raise InputError(f"{folder / CONFIG} is not the configuration of {kind} ({error}); train it again") from error


def fill_model(model: Model, folder: Path) -> Model:
    """Put the weights of a folder into the network of its configuration, which may be on the meta device.

    Raises:
        InputError: the file cannot be read, or does not fit.
    """
    weights = read_model_weights(folder)
    refuse_differences(differences(model.state_dict(), weights), f"{folder / WEIGHTS} does not fit {CONFIG} beside it")
    model.load_state_dict(weights, assign=True)
    return model


def refuse_differences(rows: Sequence[str], message: str) -> None:
    """Raise the first rows of a table of differences below a message, if there are any."""
    if rows:
        rest = [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        raise InputError(f"{message}:\n" + "\n".join([*rows[:SHOWN], *rest]))


def read_model_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder, see `read_tensors`."""
    return read_tensors(folder / WEIGHTS, "write or convert the network again")
