"""What can be exported: an encoder for one sensor, or a trained network, that takes stored numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from alliance import __version__
from alliance.checkpoint import load_encoder
from alliance.embedding import TokenPosition
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.export_files import SENSORS, WEIGHTS
from alliance.hub import is_hub_id
from alliance.sensors import Sensor
from alliance.sensors.plausible import limits
from finetune.chips.checkpoint import TASKS, ChipTaskName, Labeller, load_chips
from finetune.export.folding import for_sensor
from finetune.export.stored import Components, StoredImage, marks, scales
from finetune.mapping.networks import PatchNetwork, SceneNetwork, SegmentationNetwork, open_network
from finetune.model_files import ImageInput, Inputs, find_network, read_record

Sides = tuple[int, int]  # rows and columns, pixels
CONTRACT = 1  # format of what stands in a file's metadata


class Typical(NamedTuple):
    """Middle, spread and ends of stored numbers, (c, 1, 1) each."""

    middle: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random stored numbers (b, c, h, w), the first one of every image missing."""
        noise = torch.randn(shape, generator=generator)
        numbers = torch.minimum(torch.maximum(self.middle + self.spread * noise, self.low), self.high)
        numbers[:, 0, 0, 0] = torch.nan
        return numbers


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A module in evaluation mode, what it takes and gives, and what of the sizes of its images is free."""

    module: nn.Module
    images: Mapping[str, int]
    """Channels of each image, by name, in the order of the module's arguments."""
    outputs: Mapping[str, str]
    """What each output is, by name, in the order in which the module gives them."""
    multiple: int
    """Rows and columns are multiples of this."""
    sides: Sides | None = None
    """The only size there is; None: any."""
    fixed: str = ""
    """Why one file is for one size; empty: it is for any."""
    typical: Mapping[str, "Typical"]
    """Stored numbers as each image may have them, to compare a file with the module."""
    contract: Mapping[str, Any]
    """What a reader of the file must know, ready for JSON."""


def open_exportable(path: str, sensor: str | None = None) -> Exportable:
    """An encoder or a trained network.

    Args:
        path: run folder, folder of an export or of a network, model.safetensors, or an id of the hub.
        sensor: whose images an encoder shall take; None: the only one it was trained with.
    Raises:
        InputError: nothing to load there, damaged files, or a sensor that is not known.
    """
    folder = network_folder(path)
    if folder is None:
        return encoder_for(load_encoder(path), sensor)
    if sensor is not None:
        raise InputError(f"--sensor {sensor}: the network in {folder} has its own images; leave --sensor out")
    opened = open_trained(folder)
    if isinstance(opened, Labeller):
        return whole_images(opened)
    task = read_record(folder)["task"]
    if isinstance(opened, SegmentationNetwork):
        return segmentation(opened, task)
    assert isinstance(opened, PatchNetwork), "the only other kind of network that makes maps"
    return patches(opened, task)


def open_trained(folder: Path) -> SceneNetwork | Labeller:
    """The network of a folder, whatever its task.

    Raises:
        InputError: nothing to load there, damaged files, or a task that is not known.
    """
    return load_chips(folder) if read_record(folder)["task"] in TASKS else open_network(folder, "cpu")


def network_folder(path: str) -> Path | None:
    """The folder of a trained network at a path; None: there is none, but perhaps an encoder.

    Raises:
        InputError: there are several, of several seeds.
    """
    if is_hub_id(path):
        return None
    place = Path(path)
    try:
        folder = find_network(place)
    except InputError:
        if any(place.glob(f"*/model/{WEIGHTS}")):  # a run of several seeds
            raise
        return None
    return None if (folder / SENSORS).is_file() else folder


class EncoderGraph(nn.Module):
    """Stored numbers of one sensor (b, c, h, w) -> cls (b, d) and the map of tokens (b, d, h / patch, w / patch)."""

    def __init__(self, encoder: AllianceEncoder, sensor: Sensor) -> None:
        super().__init__()
        self.encoder, self.sensor = encoder, sensor

    def forward(self, *stored: Tensor) -> tuple[Tensor, Tensor]:
        (image,) = stored
        found = self.encoder(self.sensor.to_physical(image), self.sensor)
        rows = image.shape[-2] // self.encoder.patch_size
        return found.cls, rearrange(found.tokens.mean(1), "b (y x) d -> b d y x", y=rows)


def encoder_for(encoder: AllianceEncoder, name: str | None) -> Exportable:
    """An encoder for the images of one sensor.

    Raises:
        InputError: no such sensor, several to choose from, or one without mean and deviation.
    """
    if name is None and len(encoder.sensors) != 1:
        known = ", ".join(encoder.sensors) or "none"
        raise InputError(f"the encoder knows the sensors {known}, and a file is for one; give --sensor NAME")
    sensor = encoder.find_sensor(name or next(iter(encoder.sensors)))
    if not sensor.has_statistics:
        raise InputError(f"sensor {sensor.name} has no mean and std; name one that the encoder was trained with")
    patch, width = encoder.patch_size, encoder.embed_dim
    outputs = {
        "cls": f"(batch, {width}) feature of the whole image",
        "map": f"(batch, {width}, rows / {patch}, columns / {patch}) features of patches, mean of the band groups",
    }
    images = {"image": {"bands": list(sensor.band_names), "sensor": sensor.to_dict()}}
    return Exportable(
        module=EncoderGraph(for_sensor(encoder, sensor), sensor).eval(),
        images={"image": len(sensor.bands)},
        outputs=outputs,
        multiple=patch,
        fixed=_why_fixed(encoder),
        typical={"image": _typical_of(sensor)},
        contract=_contract("encoder", images, outputs, patch),
    )


class SegmentationGraph(nn.Module):
    """Stored numbers of the images (b, c, h, w) in their order -> logits (b, classes, h, w)."""

    def __init__(self, opened: SegmentationNetwork) -> None:
        super().__init__()
        self.network: Any = opened.network
        self.roles = opened.roles
        images = opened.inputs.images
        self.images = nn.ModuleDict({name: StoredImage(image, whole=True) for name, image in images.items()})

    def forward(self, *stored: Tensor) -> Tensor:
        given = {name: image(each) for (name, image), each in zip(self.images.items(), stored, strict=True)}
        return self.network(**{own: given[role] for own, role in self.roles.items() if role in given}).logits


def segmentation(opened: SegmentationNetwork, task: str) -> Exportable:
    """A network that labels every pixel."""
    outputs = {
        "logits": f"(batch, {len(opened.inputs.classes)}, rows, columns) before softmax; the largest is the class"
    }
    return _of_images(SegmentationGraph(opened), opened.inputs, outputs, task, multiple=opened.smallest)


class PatchGraph(nn.Module):
    """Stored numbers of the patches (b, c, side, side) in their order -> logits (b, classes) of the pixel in the middle."""

    def __init__(self, opened: PatchNetwork) -> None:
        super().__init__()
        self.network = opened.network
        images = opened.inputs.images
        self.images = nn.ModuleDict({name: StoredImage(image, whole=False) for name, image in images.items()})
        self.components = nn.ModuleDict({name: Components(image) for name, image in images.items()})

    def forward(self, *stored: Tensor) -> Tensor:
        given = {name: image(each) for (name, image), each in zip(self.images.items(), stored, strict=True)}
        parts = {name: self.components[name](each) for name, each in given.items()}
        empty = next(iter(given.values()))[:, :0]
        spectral, passive, active = given.get("passive", empty), parts.get("passive", empty), parts.get("active", empty)
        return self.network(spectral, passive, active).logits


def patches(opened: PatchNetwork, task: str) -> Exportable:
    """A network that labels the pixel in the middle of a patch."""
    side = opened.patch
    outputs = {
        "logits": f"(batch, {len(opened.inputs.classes)}) before softmax, of the pixel in the middle of the patch"
    }
    return _of_images(PatchGraph(opened), opened.inputs, outputs, task, multiple=side, sides=(side, side))


LOGITS: Mapping[ChipTaskName, str] = {
    "scene": "before softmax; the largest is the label",
    "multilabel": "before the sigmoid, one for each label; those from 0 on have a probability of 0.5 or more",
}


class ChipGraph(nn.Module):
    """Stored numbers of images (b, c, size, size), one or two of each place -> logits (b, classes) of the whole image."""

    def __init__(self, opened: Labeller) -> None:
        super().__init__()
        self.network = opened.network
        self.images = nn.ModuleList(StoredImage(image, whole=True) for image in opened.inputs.images.values())

    def forward(self, *stored: Tensor) -> Tensor:
        images = [image(numbers) for image, numbers in zip(self.images, stored, strict=True)]
        return self.network(torch.cat(images, dim=1)).logits


def whole_images(opened: Labeller) -> Exportable:
    """A network that labels whole images, of its own size alone."""
    size = opened.network.size
    outputs = {"logits": f"(batch, {len(opened.classes)}) {LOGITS[opened.task]}"}
    return _of_images(ChipGraph(opened), opened.inputs, outputs, opened.task, multiple=size, sides=(size, size))


def _of_images(
    graph: nn.Module, inputs: Inputs, outputs: Mapping[str, str], task: str, multiple: int, sides: Sides | None = None
) -> Exportable:
    images = {name: _image_record(image) for name, image in inputs.images.items()}
    classes = [
        {"index": at, "name": name, "colour": list(rgb)} for at, (name, rgb) in enumerate(inputs.classes.items())
    ]
    return Exportable(
        module=graph.eval(),
        images={name: image.channels for name, image in inputs.images.items()},
        outputs=outputs,
        multiple=multiple,
        sides=sides,
        fixed=_why_fixed(graph),
        typical={name: _typical(image) for name, image in inputs.images.items()},
        contract=_contract(task, images, outputs, multiple) | {"classes": classes},
    )


def _why_fixed(module: nn.Module) -> str:
    """Why a graph of a module can be for one size alone; empty: it need not."""
    tables = (part.table for part in module.modules() if isinstance(part, TokenPosition))
    return "its table of positions is resampled for every size" if any(each is not None for each in tables) else ""


def _image_record(image: ImageInput) -> dict[str, Any]:
    """What of a file makes the channels, and what the graph makes of them."""
    source, sensor = image.source, image.source.description
    scale, offset = scales(source, image.channels)
    record: dict[str, Any] = {
        "bands": list(source.bands) or ("all" if sensor is None else list(sensor.band_names)),
        "stored_dtype": source.dtype,
        "nodata": list(marks(source)),
        "scale": list(scale),
        "offset": list(offset),
        "log": source.log,
        "mean": image.preprocessing.mean.tolist(),
        "std": image.preprocessing.std.tolist(),
    }
    return record if sensor is None else record | {"sensor": sensor.to_dict()}


def _typical(image: ImageInput) -> Typical:
    """Around the mean that the network was trained on."""
    scale, offset = (_column(values) for values in scales(image.source, image.channels))
    mean, std = (_column(values) for values in (image.preprocessing.mean, image.preprocessing.std))
    values = [mean, mean - 2 * std, mean + 2 * std]
    if image.source.log:
        values = [value.sign() * torch.expm1(value.abs()) for value in values]
    middle, *ends = ((value - offset) / scale for value in values)
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return Typical(middle, (high - low) / 4, low, high)


def _typical_of(sensor: Sensor) -> Typical:
    """Around the mean of the sensor, within what its unit allows."""
    columns = []
    for band in sensor.bands:
        allowed = limits(band)
        valid = allowed.valid if allowed else (-torch.inf, torch.inf)
        ends = sorted((value - band.offset) / band.scale for value in valid)
        columns.append(
            [((band.mean or 0.0) - band.offset) / band.scale, abs((band.std or 1.0) / band.scale) / 2, *ends]
        )
    return Typical(*(_column(values) for values in zip(*columns, strict=True)))


def _column(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def _contract(task: str, images: Mapping[str, Any], outputs: Mapping[str, str], multiple: int) -> dict[str, Any]:
    return {
        "contract": CONTRACT,
        "made_by": f"alliance-rs {__version__}",
        "task": task,
        "images": images,
        "numbers": "as they are stored in the file, float32; missing pixels are nodata or not finite",
        "multiple": multiple,
        "outputs": outputs,
    }
