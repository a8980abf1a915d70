"""Four maps of strides 4 to 32 out of a plain ViT, and the two backbones made of them.

Maps of four depths are scaled as by the neck `Feature2Pyramid` of mmsegmentation, with layer norms in place of batch
norms; a small convolution stem adds the detail that tokens lack, as in ViT-Adapter (Chen et al., arXiv 2205.08534)
without its injectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from finetune.backbones.alliance_encoder import EncoderInput
from finetune.backbones.convnext import Backbone, ConvNeXtV2, Size

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Ranged):
    """From the tokens of an Alliance encoder to four maps."""

    blocks: tuple[int, ...] = ranged((), 0, 1023)
    """The four blocks whose tokens are taken, from 0; empty: evenly spaced, the last one included."""
    widths: tuple[int, ...] = ranged((128, 256, 512, 1024), 1, 65536)
    """Channels of the four maps; beside ConvNeXt its own widths are taken."""
    stem: int = ranged(64, 0, 65536)
    """Width of the convolution stem at stride 4; 0: no stem. There is none beside ConvNeXt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("blocks", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(STRIDES):
            raise InputError(f"pyramid.widths are {list(self.widths)}; give the widths of {len(STRIDES)} maps")
        if len(self.blocks) not in (0, len(STRIDES)):
            raise InputError(f"pyramid.blocks are {list(self.blocks)}; give {len(STRIDES)} blocks, or none")


class TokenPyramid(nn.Module):
    """Maps (b, widths[i], h / s, w / s) of strides s = 4, 8, 16, 32, rounded down, of one modality.

    Args:
        source: the modality as an encoder reads it, which other modalities may share.
        owner: the encoder is a part of this module; of several that share it, one should own it.
        zero: the maps start as zeros.
    """

    def __init__(
        self,
        source: EncoderInput,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        owner: bool = True,
        zero: bool = False,
    ) -> None:
        super().__init__()
        patch, d = source.encoder.patch_size, source.encoder.embed_dim
        if patch & (patch - 1) or patch > STRIDES[-1]:
            raise InputError(f"an encoder of patch {patch} gives no maps of strides 4 to 32; use one of patch 8 or 16")
        if owner:
            self.encoder = source.encoder
        self.source, self.indices = source, tuple(blocks) or len(STRIDES)
        self.rescale = nn.ModuleList(rescaling(d, int(math.log2(patch)) - int(math.log2(s))) for s in STRIDES)
        self.project = nn.ModuleList(nn.Conv2d(d, width, 1) for width in widths)
        for layer in self.project if zero else ():
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> four maps (b, widths[i], h / s, w / s)."""
        tokens = self.source.maps(image, self.indices)
        steps = zip(self.rescale, self.project, tokens, strict=True)
        return crop([project(rescale(one)) for rescale, project, one in steps], image)


class ConvStem(nn.Module):
    """Maps of the same sizes straight from the image, by convolutions of stride 2."""

    def __init__(self, in_channels: int, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        inner = [width, 2 * width, 4 * width, 4 * width]
        first = nn.Sequential(halving(in_channels, width), halving(width, width))
        later = [halving(c, d) for c, d in zip(inner, inner[1:], strict=False)]
        self.stages = nn.ModuleList([first, *later])
        self.project = nn.ModuleList(nn.Conv2d(c, d, 1) for c, d in zip(inner, widths, strict=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> four maps (b, widths[i], h / s, w / s) of strides s = 4, 8, 16, 32."""
        running, maps = image, []
        for stage, project in zip(self.stages, self.project, strict=True):
            running = stage(running)
            maps.append(project(running))
        return crop(maps, image)


class AllianceBackbone(Backbone):
    """An Alliance encoder alone: its pyramid, plus the stem, normalised."""

    def __init__(self, source: EncoderInput, config: PyramidConfig, in_channels: int, *, owner: bool = True) -> None:
        super().__init__()
        self.channels = list(config.widths)
        self.alliance = TokenPyramid(source, config.blocks, self.channels, owner=owner)
        self.stem = ConvStem(in_channels, config.stem, self.channels) if config.stem else None
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-6) for width in self.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> maps (b, channels[i], h / s, w / s), see `Backbone`."""
        maps = self.alliance(image)
        if self.stem is not None:
            maps = [one + two for one, two in zip(maps, self.stem(image), strict=True)]
        return [norm(one) for norm, one in zip(self.norms, maps, strict=True)]


class ConvNeXtWithAlliance(ConvNeXtV2):
    """ConvNeXt V2, its maps plus those of an Alliance encoder, which start as zeros: at first it is ConvNeXt V2.

    What is added has names below `alliance`; all other names are those of `ConvNeXtV2`.
    """

    def __init__(
        self,
        source: EncoderInput,
        config: PyramidConfig,
        size: Size,
        in_channels: int,
        *,
        owner: bool = True,
        **convnext: Any,
    ) -> None:
        super().__init__(size, in_channels, **convnext)
        self.alliance = TokenPyramid(source, config.blocks, self.channels, owner=owner, zero=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> maps (b, channels[i], h / s, w / s), see `Backbone`."""
        return [one + two for one, two in zip(super().forward(image), self.alliance(image), strict=True)]


def rescaling(d: int, doublings: int) -> nn.Module:
    """Maps of d channels to 2 ** doublings times their size: transposed convolutions, or maximum pooling."""
    if doublings <= 0:
        return nn.MaxPool2d(2**-doublings) if doublings else nn.Identity()
    layers: list[nn.Module] = []
    for number in range(doublings):
        layers += [LayerNorm2d(d, eps=1e-6), nn.GELU()] if number else []
        layers.append(nn.ConvTranspose2d(d, d, 2, stride=2))
    return nn.Sequential(*layers)


def halving(c: int, d: int) -> nn.Sequential:
    """3 x 3 convolution of stride 2, norm, GELU: (b, c, h, w) -> (b, d, h / 2, w / 2), rounded up."""
    return nn.Sequential(nn.Conv2d(c, d, 3, stride=2, padding=1), LayerNorm2d(d, eps=1e-6), nn.GELU())


def crop(maps: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Maps (b, d, h_i, w_i) of strides 4 to 32 without what lies beyond the image's last whole stride."""
    h, w = image.shape[-2:]
    return [one[..., : h // stride, : w // stride] for one, stride in zip(maps, STRIDES, strict=True)]
