"""An Alliance encoder, its features read out as one vector, and a head that labels the image."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from alliance.readout import ReadOut, read_out, read_out_width
from datasets.chips.reading import Fit
from datasets.imagery.images import ImageSource
from finetune.backbones.alliance_encoder import TransferConfig, TransferredEncoder

IMAGE, BESIDE = "image", "beside"  # the encoder's names for its input, and for a second one
HeadKind = Literal["linear", "mlp"]


@dataclass(frozen=True, kw_only=True)
class ChipConfig(Ranged):
    """The network."""

    encoder: TransferConfig = field(default_factory=TransferConfig)
    """The encoder; its input is called image, a second one beside; each has the sensor of the data unless `sensors` names one."""
    fit: Fit = "resize"
    """How an image gets the network's size: it is resized whole, or its middle is cut out. Probes have the same choice."""
    readout: ReadOut = "mean_std"
    """What stands for an image: cls, the mean of its tokens, their mean and deviation, or these for every band group."""
    head: HeadKind = "linear"
    """linear: layer norm and one layer; mlp: a hidden layer between them."""
    width: int = ranged(512, 1, 65536)
    """Width of the hidden layer."""
    dropout: float = ranged(0.0, 0, 1, below=True)
    """Share of features that are dropped before the last layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("fit", Fit), ("readout", ReadOut), ("head", HeadKind)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kinds))}")

    def with_sensors(self, images: Mapping[str, ImageSource]) -> "ChipConfig":
        """The same; where no sensor is named, that of the images."""
        return replace(self, encoder=self.encoder.with_sensors(images))


class ChipOutput(NamedTuple):
    """logits (b, classes)."""

    logits: Tensor


class ChipNetwork(nn.Module):
    """Labels of whole images.

    Args:
        channels: of each image, by the encoder's names, in their order: image, and perhaps beside.
        size: pixels of their sides, a multiple of the encoder's patch.
        record, checkpoint: of the encoder, see `TransferredEncoder`.
    Raises:
        InputError: the encoder cannot be had, its read-out is not there, or the size is no multiple of the patch.
    """

    def __init__(
        self,
        config: ChipConfig,
        channels: Mapping[str, int],
        classes: int,
        size: int,
        *,
        record: Mapping[str, Any] | None = None,
        checkpoint: str = "",
    ) -> None:
        super().__init__()
        self.config, self.channels, self.classes, self.size = config, dict(channels), classes, size
        self.encoder = TransferredEncoder(config.encoder, channels, record, checkpoint=checkpoint)
        patch = self.encoder.patch_size
        if size % patch:
            near = max(round(size / patch), 1) * patch
            raise InputError(
                f"data.size is {size}, the encoder's patch {patch} pixels; give a multiple, such as {near}"
            )
        if config.readout == "cls" and not self.encoder.encoder.num_prefix_tokens:
            raise InputError("model.readout is cls, which this encoder does not have; set it to mean_std")
        groups = [len(reading.sensor.group_indices) for reading in self.encoder.readings.values()]
        width = sum(read_out_width(config.readout, self.encoder.embed_dim, count) for count in groups)
        hidden = [nn.Linear(width, config.width), nn.GELU()] if config.head == "mlp" else []
        last = config.width if hidden else width
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(*hidden, nn.Dropout(config.dropout), nn.Linear(last, classes))
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> ChipOutput:
        """Standardised images (b, c, size, size), 0 where missing -> `ChipOutput`; channels of a second image follow those of the first.

        Raises:
            InputError: other channels or another size.
        """
        count = sum(self.channels.values())
        if image.shape[1:] != (count, self.size, self.size):
            raise InputError(
                f"images are {tuple(image.shape)}, the network takes (b, {count}, {self.size}, {self.size}); resize them"
            )
        parts = zip(self.channels, image.split(list(self.channels.values()), dim=1), strict=True)
        found = [read_out(self.encoder.features(part, name), self.config.readout) for name, part in parts]
        return ChipOutput(self.head(self.norm(torch.cat(found, dim=1))))
