"""An Alliance encoder that reads one or several images, their features joined, and a head that labels pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.imagery.images import ImageSource
from finetune.backbones.alliance_encoder import EncoderInput, TransferConfig, TransferredEncoder
from finetune.backbones.convnext import Backbone
from finetune.backbones.pyramid import STRIDES, AllianceBackbone, PyramidConfig
from finetune.heads import DPTHead, FPNHead, Head, LinearHead, UPerHead, resize
from finetune.pixel_network import PixelNetwork, same_size

HeadKind = Literal["linear", "fpn", "upernet", "dpt"]
Joining = Literal["concat", "change"]
HEADS: Mapping[HeadKind, Callable[..., Head]] = {
    "linear": LinearHead,
    "fpn": FPNHead,
    "upernet": UPerHead,
    "dpt": DPTHead,
}


@dataclass(frozen=True, kw_only=True)
class DenseConfig(Ranged):
    """An Alliance encoder for all images of a sample, and the head on its features."""

    encoder: TransferConfig = field(default_factory=TransferConfig)
    """The encoder; `sensors` by the role of an image; where none is named, that of the data's description is taken."""
    images: tuple[str, ...] = ()
    """Roles of the images that the network takes; empty: all of the description."""
    head: HeadKind = "upernet"
    """linear: one layer on the tokens of the last block; fpn, upernet, dpt: on four maps from four depths."""
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    """From the tokens of the encoder to four maps; not of the linear head."""
    width: int = ranged(256, 1, 65536)
    """Channels inside the head; the linear one has none."""
    dropout: float = ranged(0.1, 0, 1, below=True)
    """Share of channels that are dropped before the classifier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "images", tuple(self.images))
        if self.head not in HEADS:
            raise InputError(f"head {self.head!r} is not one of {', '.join(HEADS)}")

    @property
    def normalises_batches(self) -> bool:
        """Whether passes need two samples."""
        return self.head != "linear"

    def with_sensors(self, images: Mapping[str, ImageSource]) -> "DenseConfig":
        """The same, an image whose sensor is not named taking that of its description."""
        return replace(self, encoder=self.encoder.with_sensors(images))


class DenseOutput(NamedTuple):
    """logits (b, classes, h, w) at the size of the images."""

    logits: Tensor


class DenseNetwork(PixelNetwork):
    """One encoder for all images, their features joined level by level, and a head.

    Args:
        channels: of each image, by its role.
        joining: concat: features side by side; change: those of two images and their absolute difference, and what
            reads images of one sensor is shared (Daudt et al., arXiv 1810.08462).
        record, checkpoint: of the encoder, see `TransferredEncoder`.
    Raises:
        InputError: the encoder cannot be had, an image has no sensor, or there are not two images to compare.
    """

    def __init__(
        self,
        config: DenseConfig,
        channels: Mapping[str, int],
        classes: int,
        *,
        joining: Joining = "concat",
        record: Mapping[str, Any] | None = None,
        checkpoint: str = "",
    ) -> None:
        super().__init__({role: role for role in channels}, classes)
        if joining not in get_args(Joining) or (joining == "change" and len(channels) != 2):
            raise InputError(f"joining {joining!r} of {len(channels)} images; a change is that from one to another")
        self.config, self.channels, self.joining = config, dict(channels), joining
        self.encoder = TransferredEncoder(config.encoder, channels, record, checkpoint=checkpoint)
        first, *others = channels
        alike = joining == "change" and all(self._read_as(first, other) for other in others)
        self.readers = nn.ModuleList(self._reader(role) for role in ([first] if alike else channels))
        widths = [width * (3 if joining == "change" else len(channels)) for width in self._widths()]
        self.head = HEADS[config.head](widths, classes, width=config.width, dropout=config.dropout)

    def forward(self, **images: Tensor) -> DenseOutput:
        """Standardised images (b, c, h, w) of one size by role, 0 where missing -> `DenseOutput`.

        Raises:
            InputError: an image is missing, has other channels, or they differ in size.
        """
        given = [self._required(role, images.get(role)) for role in self.channels]
        if not same_size(given):
            raise InputError(
                f"images differ in count or size: {[tuple(image.shape) for image in given]}; crop them alike"
            )
        h, w = given[0].shape[-2:]
        margins = (0, -w % STRIDES[-1], 0, -h % STRIDES[-1])
        padded = [nn.functional.pad(image, margins) for image in given]
        readers = [*self.readers] * (len(padded) // len(self.readers))
        maps = [reader(image) for reader, image in zip(readers, padded, strict=True)]
        joined = [self._join(level) for level in zip(*maps, strict=True)]
        extent = [side * self.stride for side in joined[-1].shape[-2:]]
        return DenseOutput(resize(self.head(joined), extent)[..., :h, :w])

    @property
    def stride(self) -> int:
        """Pixels along a side of a place in the last map."""
        return self.encoder.patch_size if self.config.head == "linear" else STRIDES[-1]

    def _join(self, level: Sequence[Tensor]) -> Tensor:
        """Maps (b, d, h, w) of each image -> (b, d', h, w)."""
        difference = [(level[1] - level[0]).abs()] if self.joining == "change" else []
        return torch.cat([*level, *difference], dim=1)

    def _reader(self, role: str) -> Backbone:
        source = EncoderInput(self.encoder, role)
        if self.config.head == "linear":
            return TokenMap(source)
        return AllianceBackbone(source, self.config.pyramid, self.channels[role], owner=False)

    def _read_as(self, role: str, other: str) -> bool:
        return (
            self.encoder.readings[role] == self.encoder.readings[other] and self.channels[role] == self.channels[other]
        )

    def _widths(self) -> Sequence[int]:
        return [self.encoder.embed_dim] if self.config.head == "linear" else self.config.pyramid.widths

    def _required(self, role: str, image: Tensor | None) -> Tensor:
        if image is None or image.ndim != 4 or image.shape[1] != self.channels[role]:
            found = "missing" if image is None else tuple(image.shape)
            raise InputError(f"the {role} image is {found}; give one of (b, {self.channels[role]}, h, w)")
        return image


class TokenMap(Backbone):
    """The tokens of the last block of an encoder as one map, normalised. It does not own the encoder."""

    def __init__(self, source: EncoderInput) -> None:
        super().__init__()
        self.source, self.channels = source, [source.encoder.embed_dim]
        self.norm = LayerNorm2d(source.encoder.embed_dim, eps=1e-6)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> a map (b, d, h / patch, w / patch), rounded up."""
        return [self.norm(self.source.maps(image, 1)[0])]
