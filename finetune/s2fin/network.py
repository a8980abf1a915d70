"""The whole network: three inputs around one pixel -> scores of its class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from alliance.errors import InputError
from alliance.ranges import LARGE, Ranged, ranged
from engine.optim import Rule
from finetune.backbones.alliance_encoder import EncoderInput, TransferConfig, TransferredEncoder
from finetune.s2fin.attention import AttentionConfig
from finetune.s2fin.channels import AdaptiveFrequencyChannels
from finetune.s2fin.enhancement import EnhancementConfig, HighFrequencyEnhancement, HighFrequencyFilter
from finetune.s2fin.fusion import SpatialSpectralFusion
from finetune.s2fin.layers import HighPass, conv_norm_gelu
from finetune.s2fin.mixer import HEAD, GruMixer, ScanMixer
from finetune.s2fin.resonance import HighFrequencyResonance, ResonanceConfig
from finetune.s2fin.stem import EncoderStem, encoder_input


@dataclass(frozen=True, kw_only=True)
class S2FinConfig(Ranged):
    """Network and loss. None of these values is known from the paper; every one is our choice."""

    width: int = ranged(64, 8, 65536)
    """Channels d, a multiple of 16; 64 is light, 96 gives about the 0.6 to 0.7 million parameters listed for the
    paper.
    """
    patch: int = ranged(7, 3, 1023)
    """Side of the square around the pixel, odd."""
    inputs: Literal["both", "passive", "active"] = "both"
    """Both images, or one: passive alone has no HFRM, active alone no HFSET, SSAF and HFRM."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """How attention is made sparse."""
    hfset: EnhancementConfig = field(default_factory=EnhancementConfig)
    """High-frequency enhancement of signatures (docs/model.md 14.3)."""
    afcm: bool = True
    """Adaptive frequency channel module (docs/model.md 14.5)."""
    ssaf: bool = True
    """Spatial-spectral attention fusion (docs/model.md 14.6)."""
    hfrm: ResonanceConfig = field(default_factory=ResonanceConfig)
    """High-frequency resonance mask (docs/model.md 14.7)."""
    swapped: bool = False
    """HFRM in the shallow place, AFCM in the deep one."""
    mixer: Literal["scan", "gru", "none"] = "scan"
    """Long-range mixing of the pixels: a selective scan, a GRU, or none."""
    mixer_norm: bool = True
    """Mamba-2's norm behind the gate of the scan, whose output then starts at zero; off: neither."""
    temperature: float = ranged(0.05, 0, LARGE, above=True)
    """Softness of all high-pass edges, in units of Nyquist."""
    dropout: float = ranged(0.3, 0, 1, below=True)
    """Share of features that are dropped before the classifier."""
    auxiliary: float = ranged(0.0, 0, 1, below=True)
    """Weight of the loss of each branch's own head; 0.3 where used, 0: no such heads."""
    label_smoothing: float = ranged(0.0, 0, 1, below=True)
    """Share of the label that is spread over all classes; 0.05 where used."""
    encoder: TransferConfig | None = None
    """Alliance features as stem of each branch that has a sensor there; null: convolutions."""
    encoder_side: int = ranged(0, 0, 4096)
    """Side to which a patch is resized for the encoder, pixels; 0: one token per pixel."""
    frequency_rate: float = ranged(10.0, 0, LARGE, above=True)
    """Learning rate of thresholds, cut-offs and masks, in units of optim.lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % HEAD:
            raise InputError(f"model.width {self.width} is not a multiple of {HEAD}; use 64 or 96")
        if self.patch % 2 == 0:
            raise InputError(
                f"model.patch {self.patch} has no centre pixel; use an odd side from 3 on, such as 7 or 11"
            )
        strange = set(self.encoder.sensors if self.encoder else ()) - {"spectral", "passive", "active"}
        if strange:
            raise InputError(f"encoder.sensors names the input {min(strange)}; there are spectral, passive and active")


SIZES = {"light": S2FinConfig(), "paper-size": S2FinConfig(width=96)}


class Prediction(NamedTuple):
    logits: Tensor  # (b, classes), before softmax
    auxiliary: tuple[Tensor, ...]  # the same from HFSET, passive and active branch alone; empty if not asked for
    threshold: Tensor | None  # (b,) of the filter of HFSET, in units of Nyquist


class Stages(NamedTuple):
    """Feature maps (b, d, patch, patch) on their way through the network."""

    shallow: list[Tensor]  # of every spatial branch, as AFCM gets them (HFRM if swapped)
    deep: list[Tensor]  # as HFRM gets them (AFCM if swapped)
    spectral: Tensor | None  # of HFSET, gated by SSAF; None without HFSET
    threshold: Tensor | None  # (b,)


def _mixer(config: S2FinConfig) -> nn.Module:
    if config.mixer == "scan":
        return ScanMixer(config.width, norm=config.mixer_norm)
    return GruMixer(config.width) if config.mixer == "gru" else nn.Identity()


class S2Fin(nn.Module):
    """HFSET -> Z; stems -> AFCM -> conv -> SSAF with Z -> conv -> HFRM; concatenate, mix over the patch, classify.

    Args:
        bands: of the passive image, all of them, for HFSET.
        components: of the passive image for its spatial branch, such as principal components.
        channels: of the active image.
        classes: K.
        record, checkpoint: of the Alliance encoder, see `TransferredEncoder`.
    """

    def __init__(
        self,
        config: S2FinConfig | None = None,
        *,
        bands: int,
        components: int,
        channels: int,
        classes: int,
        record: Mapping[str, Any] | None = None,
        checkpoint: str = "",
    ) -> None:
        super().__init__()
        self.config = config = config or S2FinConfig()
        for name, count in (("bands", bands), ("components", components), ("channels", channels), ("classes", classes)):
            if count < 1:
                raise InputError(f"S2Fin needs at least one of {name}, got {count}")
        d, pixels = config.width, config.patch**2
        self.sizes = {"spectral": bands, "passive": components, "active": channels}
        self.branches = ["passive", "active"] if config.inputs == "both" else [config.inputs]
        k = len(self.branches)
        self.hfset = None
        if config.inputs != "active":
            self.hfset = HighFrequencyEnhancement(bands, d, pixels, config.temperature, config.attention, config.hfset)
        self.stem_inputs, self.encoder = self._stem_inputs(record, checkpoint)
        self.stems = nn.ModuleList(self._stem(branch, name) for branch, name in self.stem_inputs.items())
        self.afcm = AdaptiveFrequencyChannels(d, k, config.temperature) if config.afcm else nn.Identity()
        self.conv1 = nn.ModuleList(conv_norm_gelu(d, d, 3) for _ in range(k))
        self.ssaf = SpatialSpectralFusion(d, k) if config.ssaf and self.hfset is not None else None
        self.conv2 = nn.ModuleList(conv_norm_gelu(d, d, 3) for _ in range(k))
        resonant = k == 2 and config.hfrm.mask != "none"
        self.hfrm = HighFrequencyResonance(d, config.temperature, config.hfrm) if resonant else nn.Identity()
        joined = k + (self.hfset is not None)
        self.join = conv_norm_gelu(joined * d, d, 1)
        self.mixer = _mixer(config)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * d, classes)
        self.branch_heads = nn.ModuleList(nn.Linear(d, classes) for _ in range(joined if config.auxiliary else 0))

    def _stem_inputs(
        self, record: Mapping[str, Any] | None, checkpoint: str
    ) -> tuple[dict[str, str], TransferredEncoder | None]:
        """The image of every branch, and the encoder if it reads one of them."""
        given = self.config.encoder
        if given is None:
            return {branch: branch for branch in self.branches}, None
        read = {branch: encoder_input(branch, given.sensors) for branch in self.branches}
        sizes = {name: self.sizes[name] for name in read.values() if name}
        if not sizes:
            raise InputError(f"encoder.sensors names no image of {', '.join(read)}; add one, or leave the encoder out")
        encoder = TransferredEncoder(given, sizes, record, checkpoint=checkpoint)
        return {branch: name or branch for branch, name in read.items()}, encoder

    def _stem(self, branch: str, name: str) -> nn.Module:
        if self.encoder is None or name not in self.encoder.readings:
            return conv_norm_gelu(self.sizes[branch], self.config.width, 3)
        return EncoderStem(EncoderInput(self.encoder, name), self.config.width, self.config.encoder_side)

    def forward(self, spectral: Tensor, passive: Tensor, active: Tensor) -> Prediction:
        """Classify the centre pixel of patches.

        Args:
            spectral: (b, bands, patch, patch), standardised; not read by inputs "active".
            passive: (b, components, patch, patch), of the same image; not read by inputs "active".
            active: (b, channels, patch, patch), standardised; not read by inputs "passive".
        Raises:
            InputError: a patch has other channels or another size than the network was built for.
        """
        images = {"spectral": spectral, "passive": passive, "active": active}
        self._check(images)
        stages = self.stages(images)
        _, deep = self._in_order()
        maps = [*([] if stages.spectral is None else [stages.spectral]), *deep(stages.deep)]
        u = self.join(torch.cat(maps, dim=1))
        tokens = self.mixer(rearrange(u, "b d h w -> b (h w) d"))
        pooled = torch.cat([reduce(tokens, "b n d -> b d", "mean"), tokens[:, tokens.shape[1] // 2]], dim=1)
        means = (reduce(one, "b d h w -> b d", "mean") for one in maps)
        auxiliary = tuple(head(mean) for head, mean in zip(self.branch_heads, means, strict=False))
        return Prediction(self.head(self.drop(pooled)), auxiliary, stages.threshold)

    def _in_order(self) -> tuple[nn.Module, nn.Module]:
        """The shallow and the deep frequency module."""
        return (self.hfrm, self.afcm) if self.config.swapped else (self.afcm, self.hfrm)

    def stages(self, images: dict[str, Tensor]) -> Stages:
        """Feature maps (b, d, h, w) of the images `spectral`, `passive`, `active`, (b, c, h, w) each, up to the deep frequency module."""
        shallow, _ = self._in_order()
        inputs = self.stem_inputs.values()
        stems = [stem(images[name]) for stem, name in zip(self.stems, inputs, strict=True)]
        maps = [conv(one) for conv, one in zip(self.conv1, shallow(stems), strict=True)]
        spectral = threshold = None
        if self.hfset is not None:
            spectral, threshold = self.hfset(images["spectral"])
        if self.ssaf is not None and spectral is not None:
            spectral, maps = self.ssaf(spectral, maps)
        return Stages(stems, [conv(one) for conv, one in zip(self.conv2, maps, strict=True)], spectral, threshold)

    def _check(self, images: dict[str, Tensor]) -> None:
        side = self.config.patch
        for name in [*self.branches, *([] if self.hfset is None else ["spectral"])]:
            found, wanted = tuple(images[name].shape[1:]), (self.sizes[name], side, side)
            if found != wanted:
                raise InputError(
                    f"{name} patches are {' x '.join(map(str, found))}, the network was built for "
                    f"{' x '.join(map(str, wanted))}; cut such patches or build it for these"
                )

    def frequency_parameters(self) -> list[nn.Parameter]:
        """Thresholds, cut-offs, mask slope, offset and strength."""
        return [parameter for _, module in self._frequency_modules() for parameter in module.frequency_parameters()]

    def parameter_rules(self) -> Iterator[tuple[nn.Parameter, Rule]]:
        """The frequency parameters are few and slow: a higher rate, no weight decay."""
        rule = Rule(lr_scale=self.config.frequency_rate, weight_decay=0.0)
        yield from ((parameter, rule) for parameter in self.frequency_parameters())

    def readings(self) -> dict[str, float]:
        """Values of those parameters to log, by module; frequencies in units of Nyquist."""
        found = ((name, module.readings()) for name, module in self._frequency_modules())
        return {f"{name}.{key}": value for name, values in found for key, value in values.items()}

    def _frequency_modules(self) -> list[tuple[str, HighFrequencyFilter | HighPass | HighFrequencyResonance]]:
        modules: list[tuple[str, nn.Module]] = list(self.named_modules())
        return [
            (name, module)
            for name, module in modules
            if isinstance(module, HighFrequencyFilter | HighPass | HighFrequencyResonance)
        ]


def classification_loss(prediction: Prediction, label: Tensor, config: S2FinConfig) -> Tensor:
    """Cross-entropy of labels (b,) in 0 .. K - 1, plus that of every auxiliary head at its weight: scalar."""

    def entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), label, label_smoothing=config.label_smoothing)

    return entropy(prediction.logits) + config.auxiliary * sum(map(entropy, prediction.auxiliary))
