"""The PAD network: two encoders, a fusion block per stage, UPerHead and an auxiliary head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from finetune.backbones.alliance_encoder import EncoderInput, TransferConfig, TransferredEncoder
from finetune.backbones.convnext import Backbone, ConvNeXtV2, Size, StageNorms
from finetune.backbones.pyramid import AllianceBackbone, ConvNeXtWithAlliance, PyramidConfig
from finetune.heads import FCNHead, UPerHead, resize
from finetune.pad.fusion import STAGES, FusionBlock, FusionConfig
from finetune.pixel_network import SMALLEST, PixelNetwork, same_size

Input = Literal["both", "rgb", "sar"]
BackboneKind = Literal["convnext", "alliance", "convnext+alliance"]

MODALITIES = {"rgb": "optical", "sar": "sar"}  # name in the network -> of the image in a description


@dataclass(frozen=True, kw_only=True)
class PadConfig(Ranged):
    """The network. The defaults are the release for WHU-OPT-SAR."""

    backbone: BackboneKind = "convnext"
    """Two ConvNeXt V2 encoders, one Alliance encoder for both modalities, or both kinds added."""
    size: Size = "large"
    """Size of both ConvNeXt V2 encoders."""
    classes: int = ranged(7, 1, 254)
    """Number of classes; a trainer takes it from the data."""
    rgb_channels: int = ranged(3, 1, 65536)
    """Channels of the optical image."""
    sar_channels: int = ranged(3, 1, 65536)
    """Channels of the SAR image; the release repeats its single band three times."""
    input: Input = "both"
    """Both modalities, or one encoder and no fusion."""
    stage_norms: StageNorms = "inline"
    """Where the norm of a stage acts: inline, so that the next stage gets the normalised map as in the release, or
    on the output alone as usual.
    """
    encoder_bias: float = ranged(0.02, 0, 1)
    """Deviation of the biases that both ConvNeXt V2 encoders begin with, where no weights are loaded; 0: none, as usual,
    and pixels of zeros, such as the margin of a tile, blow the first gradients up (docs/model.md 13.9).
    """
    drop_path: float = ranged(0.4, 0, 1, below=True)
    """Share of samples that skip the last block in training, rising linearly from 0."""
    dropout: float = ranged(0.1, 0, 1, below=True)
    """Share of channels that are dropped before both classifiers."""
    early_fusion: bool = False
    """Fuse at stage 1 alone, the RGB encoder goes on from there; our reading of the paper's term."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """What is fused, and how."""
    encoder: TransferConfig = field(default_factory=TransferConfig)
    """The Alliance encoder, with sensors for the inputs `rgb` and `sar`."""
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    """From the tokens of the Alliance encoder to four maps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"backbone": BackboneKind, "size": Size, "input": Input, "stage_norms": StageNorms}
        for name, kinds in choices.items():
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kinds))}")
        for name in ("classes", "rgb_channels", "sar_channels"):
            if not 1 <= getattr(self, name) < 255:
                raise InputError(f"{name} must be 1 to 254, got {getattr(self, name)}")
        if self.early_fusion and self.backbone != "convnext":
            raise InputError(f"early_fusion runs ConvNeXt V2 stage by stage; backbone {self.backbone!r} cannot")
        if self.early_fusion and (self.input != "both" or not set(self.fusion.stages) <= {1}):
            raise InputError(
                f"early_fusion fuses two modalities at stage 1 alone, got input {self.input!r} and fusion.stages "
                f"{list(self.fusion.stages)}; set input to both and fusion.stages to [1], or [] for a sum"
            )
        strange = set(self.encoder.sensors) - {"rgb", "sar"}
        if strange:
            raise InputError(f"encoder.sensors names the input {min(strange)}; the inputs are rgb and sar")

    @property
    def in_channels(self) -> dict[str, int]:
        """Channels of each modality that is used, RGB first."""
        channels = {"rgb": self.rgb_channels, "sar": self.sar_channels}
        return channels if self.input == "both" else {self.input: channels[self.input]}

    @property
    def roles(self) -> dict[str, str]:
        """Of each modality that is used, the image in a description."""
        return {name: MODALITIES[name] for name in self.in_channels}


class PadOutput(NamedTuple):
    """logits and auxiliary (b, classes, h, w) at the size of the image; penalty (4,) float32, of each stage."""

    logits: Tensor
    auxiliary: Tensor
    penalty: Tensor


class Pad(PixelNetwork):
    """SAR-RGB segmentation (equations 4 to 10).

    Args:
        backbones: encoders by modality ("rgb", "sar") instead of those of `config`; their channels must agree.
        checkpoint: of an Alliance encoder, see `TransferredEncoder`.
    Raises:
        InputError: other modalities than `config.input`, or channels that differ.
    """

    def __init__(
        self, config: PadConfig, backbones: Mapping[str, Backbone] | None = None, *, checkpoint: str = ""
    ) -> None:
        super().__init__(config.roles, config.classes)
        self.config = config
        if backbones is not None and config.early_fusion:
            raise InputError("early_fusion runs ConvNeXt V2 stage by stage; leave it off with other backbones")
        backbones = build_backbones(config, checkpoint=checkpoint) if backbones is None else backbones
        channels = _common_channels(backbones, list(config.in_channels), 1 if config.early_fusion else len(STAGES))
        self.encoders = nn.ModuleDict({name: backbones[name] for name in config.in_channels})
        fusing = config.fusion.stages if config.input == "both" else ()
        self.fusions = nn.ModuleDict(
            {str(stage): FusionBlock(channels[stage - 1], config.fusion) for stage in sorted(fusing)}
        )
        self.decoder = UPerHead(channels, config.classes, dropout=config.dropout)
        self.auxiliary = FCNHead(channels[2], config.classes, dropout=config.dropout)
        with torch.random.fork_rng(devices=[]):  # what is drawn after this is the same without it
            for encoder in self.encoders.values():
                if isinstance(encoder, ConvNeXtV2) and config.encoder_bias:
                    encoder.draw_biases(config.encoder_bias)

    @property
    def transferred(self) -> TransferredEncoder | None:
        """The Alliance encoder, if there is one."""
        return next((module for module in self.modules() if isinstance(module, TransferredEncoder)), None)

    def forward(self, rgb: Tensor | None = None, sar: Tensor | None = None) -> PadOutput:
        """Standardised images (b, c, h, w) of one size, any size from 32 x 32 on -> `PadOutput`.

        What `config.input` does not name is ignored.

        Raises:
            InputError: an image is missing, has other channels, is too small, or the two differ in size.
        """
        images = {name: image for name, image in (("rgb", rgb), ("sar", sar)) if image is not None}
        maps, penalty = self.fuse(self.encode(images))
        size = images[next(iter(self.encoders))].shape[-2:]
        return PadOutput(resize(self.decoder(maps), size), resize(self.auxiliary(maps[2]), size), penalty)

    def encode(self, images: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Images by modality, as for `forward` -> the maps of each before any fusion, RGB first.

        Four maps each; with `early_fusion` that of stage 1 alone.

        Raises:
            InputError: as `forward`.
        """
        images = {name: _required(name, images.get(name), c) for name, c in self.config.in_channels.items()}
        if not same_size(list(images.values())):
            shapes = [tuple(image.shape) for image in images.values()]
            raise InputError(f"rgb and sar differ in count or size: {shapes}; give registered images of one size")
        if self.config.early_fusion:
            pairs = ((cast(ConvNeXtV2, self.encoders[name]), image) for name, image in images.items())
            return [encoder.run_stages(encoder.stem(image), stop=1) for encoder, image in pairs]
        return [list(self.encoders[name](image)) for name, image in images.items()]

    def fuse(self, pyramids: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """What `encode` gives -> four maps, and the penalty of each stage (4,) float32, 0 where nothing is fused."""
        maps = []
        none = torch.zeros((), device=pyramids[0][0].device)
        penalties = [none] * len(STAGES)
        for stage, features in enumerate(zip(*pyramids, strict=True), start=1):
            if str(stage) in self.fusions:
                fused, penalties[stage - 1] = self.fusions[str(stage)](*features)
            else:
                fused = sum(features[1:], start=features[0])
            maps.append(fused)
        if self.config.early_fusion:
            maps += cast(ConvNeXtV2, self.encoders["rgb"]).run_stages(maps[0], start=2)
        return maps, torch.stack(penalties)


def build_backbones(
    config: PadConfig, record: Mapping[str, Any] | None = None, *, checkpoint: str = ""
) -> dict[str, Backbone]:
    """The encoders by modality, as `config.backbone` says.

    Args:
        record, checkpoint: of the Alliance encoder, see `TransferredEncoder`.
    Raises:
        InputError: the Alliance encoder cannot be had, or has no sensor for an input.
    """
    inputs = config.in_channels
    if config.backbone == "convnext":
        return {name: _convnext(config, name) for name in inputs}
    everywhere = config.backbone == "alliance"
    read = {name: count for name, count in inputs.items() if everywhere or name in config.encoder.sensors}
    if not read:
        raise InputError(f"encoder.sensors names none of the inputs {', '.join(inputs)}; add the sensor of one or both")
    encoder, owner = TransferredEncoder(config.encoder, read, record, checkpoint=checkpoint), next(iter(read))
    backbones: dict[str, Backbone] = {}
    for name, count in inputs.items():
        source, owns = EncoderInput(encoder, name), name == owner
        if everywhere:
            backbones[name] = AllianceBackbone(source, config.pyramid, count, owner=owns)
        elif name in read:
            convnext = {"norms": config.stage_norms, "drop_path": config.drop_path}
            backbones[name] = ConvNeXtWithAlliance(source, config.pyramid, config.size, count, owner=owns, **convnext)
        else:
            backbones[name] = _convnext(config, name)
    return backbones


def _convnext(config: PadConfig, name: str) -> ConvNeXtV2:
    """The paper's encoder; after an early fusion the SAR encoder's later stages would have nothing to do."""
    stages = 1 if config.early_fusion and name == "sar" else len(STAGES)
    channels = config.in_channels[name]
    return ConvNeXtV2(config.size, channels, norms=config.stage_norms, drop_path=config.drop_path, stages=stages)


def _common_channels(backbones: Mapping[str, Backbone], wanted: Sequence[str], shared: int) -> list[int]:
    """Widths of the four maps; those of the first `shared` stages must be the same for all modalities."""
    if set(backbones) != set(wanted):
        raise InputError(f"backbones are for {sorted(backbones)}, the model needs {sorted(wanted)}")
    channels = {name: list(backbone.channels) for name, backbone in backbones.items()}
    if len({tuple(widths[:shared]) for widths in channels.values()}) > 1:
        raise InputError(f"channels of the backbones differ: {channels}; project them to common widths")
    return channels[wanted[0]]


def _required(name: str, image: Tensor | None, channels: int) -> Tensor:
    if image is None:
        raise InputError(f"the {name} image is missing; give it, or build the model with another `input`")
    if image.ndim != 4 or image.shape[1] != channels or min(image.shape[-2:]) < SMALLEST:
        raise InputError(
            f"{name} is {tuple(image.shape)}, not (b, {channels}, h, w) of at least {SMALLEST} x {SMALLEST} pixels; "
            f"set {name}_channels, or give the image in that shape"
        )
    return image
