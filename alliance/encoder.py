"""The encoder: a plain ViT over band-group tokens. The only part that fine-tuning loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange, repeat
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alliance.embedding import (
    FrequencyEmbedding,
    PatchEmbedding,
    PlainTokens,
    PositionLayout,
    SpecialTokens,
    TokenPosition,
)
from alliance.errors import InputError
from alliance.images import as_float
from alliance.kept import exporting
from alliance.positions import Frequencies, Order, Resampling, SpatialCode
from alliance.ranges import LARGE, Ranged, ranged
from alliance.sensors import Sensor
from alliance.sensors.plausible import GLANCE, drift, faults, look, statistics_fit
from alliance.tokens import Groups, patchify, take, token_grid_shape


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with the epsilon of vision transformers."""

    def __init__(self, d: int, eps: float = 1e-6, **placement: Any) -> None:
        super().__init__(d, eps=eps, **placement)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Ranged):
    """Size and options of the encoder (docs/model.md 3 and 5)."""

    embed_dim: int = ranged(384, 4, 65536)
    """Width d of the tokens, a multiple of 4 and of `heads`."""
    depth: int = ranged(12, 1, 1024)
    """Number of transformer blocks."""
    heads: int = ranged(6, 1, 1024)
    """Attention heads of every block."""
    patch: int = ranged(8, 2, 4096)
    """Side of a patch, pixels; an image is a multiple of it."""
    amplitude: bool = True
    """Embed the log-amplitude of frequencies inside each patch beside its pixels (docs/model.md 3.3)."""
    tokens: Literal["frequency", "plain", "none"] = "frequency"
    """cls and mask tokens: frequency-aware (docs/model.md 3.5), a plain cls as in MAE, or no cls at all."""
    registers: int = ranged(0, 0, 1024)
    """Learned tokens beside a plain cls, as in DINOv2 with registers."""
    jumbo: int = ranged(1, 1, 64)
    """Width of the frequency waves in units of `embed_dim`; 4 as in the published file."""
    tokenizer: Literal["wavelength", "fixed"] = "wavelength"
    """Kernels from the wavelengths of any band (docs/model.md 3.2), or one learned kernel per band of the known
    sensors.
    """
    position: PositionLayout = "add"
    """Spatial and spectral position added, or side by side as in the published file."""
    table: int = ranged(0, 0, 4096)
    """Rows and columns of a learned table of positions, resampled for other grids; 0: the fixed sin-cos code."""
    table_resampling: Resampling = "plain"
    """Bicubic resampling of the table: plain, antialiased as in timm, or with the offset of DINOv2."""
    spatial_order: Order = "sin_first"
    """Channels of the sin-cos code: [sin y, sin x, cos y, cos x], or [sin x, cos x, sin y, cos y] as in MAE (x_first)."""
    spatial_frequencies: Frequencies = "usual"
    """Frequencies of the sin-cos code (docs/model.md 3.4)."""
    spatial_channels: tuple[int, int] | None = ranged(None, 0, 65536)
    """First channel of the sin-cos code and the one past its last; null: all."""
    spatial_unit_m: float = ranged(0.0, 0, LARGE)
    """Metres of one unit of the sin-cos code, by the sensor's pixel size; 0: a token is one unit."""
    patch_offset: int = ranged(0, 0, 4096)
    """Pixels that the first patch begins before the image, which is filled up with zeros there; 1 as in DOFA."""
    norm_eps: float = ranged(1e-6, 0, 1, above=True)
    """Epsilon of the layer norms."""
    qk_norm: bool = False
    """Normalise queries and keys, for the stability of large models."""
    drop_path: float = ranged(0.0, 0, 1, below=True)
    """Share of samples that skip the last block in training, rising linearly from 0 at the first; for fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_dim % self.heads:
            raise InputError(f"encoder.embed_dim {self.embed_dim} is not a multiple of encoder.heads {self.heads}")
        if self.embed_dim % 4:
            raise InputError(f"encoder.embed_dim {self.embed_dim} is not a multiple of 4")
        if self.patch_offset >= self.patch:
            raise InputError(f"encoder.patch_offset {self.patch_offset} is not between 0 and patch {self.patch}")
        if self.registers and self.tokens == "frequency":
            raise InputError("encoder.registers stand beside plain tokens; set encoder.tokens plain, or registers 0")
        self._check_channels()

    def _check_channels(self) -> None:
        if self.spatial_channels is None:
            return
        object.__setattr__(self, "spatial_channels", tuple(self.spatial_channels))
        first, end = self.spatial_channels
        if self.position == "concat" or self.table:
            raise InputError("encoder.spatial_channels goes with position add and no table; leave it out")
        if not 0 <= first < end <= self.embed_dim or (end - first) % 4:
            raise InputError(
                f"encoder.spatial_channels {first}, {end} are not within 0 to {self.embed_dim}, a multiple of 4 apart"
            )

    @property
    def spatial_code(self) -> SpatialCode:
        """The fixed code of rows and columns."""
        return SpatialCode(
            order=self.spatial_order,
            frequencies=self.spatial_frequencies,
            channels=self.spatial_channels,
            unit_m=self.spatial_unit_m,
        )


class Features(NamedTuple):
    """What the encoder says of an image: cls (b, d), frequency tokens (b, k, d) low to high, tokens (b, g, n, d).

    In a layout without cls, the mean of the tokens stands for it.
    """

    cls: Tensor
    frequency: Tensor
    tokens: Tensor


class Embedded(NamedTuple):
    """An image on its way into the blocks."""

    tokens: Tensor  # (b, g, n, d)
    special: SpecialTokens
    code: Tensor  # (c, CODE_WIDTH), of all bands


class AllianceEncoder(nn.Module):
    """Pre-norm ViT on [cls; q_low; q_mid; q_high; tokens of every band group].

    Attribute names are timm's, so ViT weights map one to one. `sensors` are those it was trained with, by name.
    """

    def __init__(self, config: EncoderConfig, sensors: Sequence[Sensor] = ()) -> None:
        super().__init__()
        self.config = config
        self.sensors = {sensor.name: sensor for sensor in sensors}
        d = self.embed_dim = config.embed_dim
        self.patch_size = config.patch
        self.activation_checkpointing = False
        self.patch_embed = PatchEmbedding(
            d,
            config.patch,
            tokenizer=config.tokenizer,
            amplitude=config.amplitude,
            position=TokenPosition(d, config.position, config.spatial_code, config.table, config.table_resampling),
            sensors=sensors,
        )
        self.special = (
            FrequencyEmbedding(d, config.jumbo)
            if config.tokens == "frequency"
            else PlainTokens(d, cls=config.tokens == "plain", registers=config.registers)
        )
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()  # also while building on meta
        norm: Any = partial(LayerNorm, eps=config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(d, config.heads, qkv_bias=True, qk_norm=config.qk_norm, drop_path=rate, norm_layer=norm)
            for rate in rates
        )
        self.norm = norm(d)
        self.keep_special = False  # compute the special tokens once; set by load_encoder, as nothing trains there
        self._kept: SpecialTokens | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for linear layers as in MAE; the embedding and the special tokens initialise themselves."""
        initialise_linear(self)
        self.patch_embed.reset_parameters()
        self.special.reset_parameters()

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of a sequence that stand before those of the image."""
        return {"frequency": 4, "plain": 1, "none": 0}[self.config.tokens] + self.config.registers

    def embed(self, standardised: Tensor, sensor: Sensor, groups: Groups) -> Embedded:
        """Standardised pixels (b, c, h, w) -> tokens of the given band groups, with positions."""
        h, w = token_grid_shape(standardised, self.patch_size)
        moved = shift_patches(standardised, self.config.patch_offset)
        tokens, code = self.patch_embed(patchify(moved, self.patch_size), sensor, groups, h, w)
        return Embedded(tokens, self.special_tokens(), code)

    def special_tokens(self) -> SpecialTokens:
        """The cls and frequency tokens. They do not look at the image: a loaded encoder computes them once (docs/model.md 3.5)."""
        if not self.keep_special or self.training or torch.is_grad_enabled() or exporting():
            return self.special()
        kept = self._kept if self._kept is not None else self.special()
        self._kept = kept
        return kept

    def train(self, mode: bool = True) -> "AllianceEncoder":
        """As of any module; tokens that were computed before are forgotten."""
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AllianceEncoder":
        self._forget()  # another device or dtype
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        self._kept = None

    def encode(self, embedded: Embedded, visible: Tensor | None = None, indices: Sequence[int] = ()) -> list[Tensor]:
        """Run the blocks on all tokens, or on the `visible` (b, v) ones.

        Returns:
            Normalised sequences (b, prefix + tokens, d): after each block of `indices`, then the last one.
        """
        b = embedded.tokens.shape[0]
        tokens = rearrange(embedded.tokens, "b g n d -> b (g n) d")
        if visible is not None:
            tokens = take(tokens, visible)
        prefix = repeat(torch.cat([*embedded.special]), "s d -> b s d", b=b)
        sequence, kept = torch.cat([prefix, tokens], dim=1), []
        for index, block in enumerate(self.blocks):
            sequence = run_block(block, sequence, recompute=self.activation_checkpointing and self.training)
            if index in indices:
                kept.append(self.norm(sequence))
        return [*kept, self.norm(sequence)]

    def forward_features(self, image: Tensor, sensor: Sensor | str) -> Tensor:
        """Physical image (b, c, h, w), NaN where missing -> token sequence (b, prefix + g * n, d), normalised."""
        return self._encode_image(self._as_batch(image), sensor)[-1]

    def forward(self, image: Tensor, sensor: Sensor | str, *, standardised: bool = False) -> Features:
        """Physical image (b, c, h, w) float32 in the sensor's units and band order, NaN where missing -> `Features`.

        Other floats, integers, NumPy arrays, images on another device and one image (c, h, w) are converted.

        Args:
            standardised: as of `forward_intermediates`.
        Raises:
            InputError: sensor, channel count, size or values do not fit; the message says the mend.
        """
        image = self._as_batch(image)
        sequence = self._encode_image(image, sensor, standardised=standardised)[-1]
        prefix = self.num_prefix_tokens
        n = image.shape[-2] * image.shape[-1] // self.patch_size**2
        tokens = rearrange(sequence[:, prefix:], "b (g n) d -> b g n d", n=n)
        registers = prefix - self.config.registers
        if not registers:
            return Features(tokens.mean((1, 2)), sequence[:, :0], tokens)
        return Features(sequence[:, 0], sequence[:, 1:registers], tokens)

    def forward_intermediates(
        self,
        image: Tensor,
        sensor: Sensor | str,
        indices: Sequence[int] | int = 4,
        groups: Literal["mean", "keep"] = "mean",
        *,
        standardised: bool = False,
    ) -> list[Tensor]:
        """Feature maps after some blocks, as dense heads need them.

        Args:
            image: physical, as for `forward`.
            indices: block numbers, negative from the end; a count takes that many evenly spaced ones, the last included.
            groups: average the band groups, or keep them.
            standardised: the image is in standard deviations already, 0 where missing; no statistics are needed.
        Returns:
            One map per index: (b, d, h / patch, w / patch), or (b, g, d, h / patch, w / patch).
        """
        image = self._as_batch(image)
        depth = len(self.blocks)
        if isinstance(indices, int):
            wanted = [depth * (i + 1) // indices - 1 for i in range(indices if 0 < indices <= depth else 0)]
        else:
            wanted = list(indices)
        if not wanted or any(not -depth <= index < depth for index in wanted):
            raise InputError(f"indices {indices} do not fit an encoder of {depth} blocks")
        wanted = [index % depth for index in wanted]
        rows = image.shape[-2] // self.patch_size
        sequences = self._encode_image(image, sensor, wanted, standardised=standardised)
        kept = dict(zip(sorted(set(wanted)), sequences[:-1], strict=True))
        columns = image.shape[-1] // self.patch_size
        shape = {"y": rows, "x": columns}
        maps = {
            index: rearrange(sequence[:, self.num_prefix_tokens :], "b (g y x) d -> b g d y x", **shape)
            for index, sequence in kept.items()
        }
        return [maps[index].mean(1) if groups == "mean" else maps[index] for index in wanted]

    def find_sensor(self, sensor: Sensor | str) -> Sensor:
        """A sensor by name among those of this encoder. One given without statistics takes them from its namesake."""
        if not isinstance(sensor, str | Sensor):
            raise InputError(f"sensor is {type(sensor).__name__}; give an alliance.Sensor, or the name of one")
        name = sensor if isinstance(sensor, str) else sensor.name
        known = self.sensors.get(name)
        if isinstance(sensor, str):
            if known is None:
                raise InputError(
                    f"this encoder knows the sensors {', '.join(self.sensors) or '(none)'}, not {name!r}; "
                    f"give an alliance.Sensor with statistics for another one"
                )
            return known
        if not sensor.has_statistics and known is not None:
            return known.select(sensor.band_names)
        return sensor

    def _as_batch(self, image: Any) -> Tensor:
        """An image of any kind and place as floats (b, c, h, w) on this encoder's device."""
        image = as_float(image, self.norm.weight.device)
        if image.ndim == 3:
            return rearrange(image, "c h w -> 1 c h w")
        if image.ndim != 4 or not image.numel():
            raise InputError(f"image of shape {tuple(image.shape)}: give (b, c, h, w), or (c, h, w) of one image")
        return image

    def _encode_image(
        self, image: Tensor, sensor: Sensor | str, indices: Sequence[int] = (), *, standardised: bool = False
    ) -> list[Tensor]:
        sensor = self.find_sensor(sensor)
        if standardised:
            sensor.check(image)
            clamp = sensor.clamp
            values = image.float() if clamp is None else image.float().clamp(-clamp, clamp)
        else:
            values, _ = sensor.standardise(image)
            if not torch.compiler.is_compiling():
                refuse_wrong_units(image, sensor)
        return self.encode(self.embed(values, sensor, sensor.group_indices), indices=indices)


def shift_patches(image: Tensor, offset: int) -> Tensor:
    """The image (b, c, h, w) as it is seen by patches that begin `offset` pixels before it; the same shape."""
    if not offset:
        return image
    h, w = image.shape[-2:]
    return nn.functional.pad(image, (offset, 0, offset, 0))[..., :h, :w]


def refuse_wrong_units(image: Tensor, sensor: Sensor) -> None:
    """Raise when an image (b, c, h, w) cannot be in the sensor's unit: not scaled, scaled twice, linear power for dB."""
    seen = look(sensor, image, GLANCE)
    found = faults(sensor, seen) if sensor.compiled(_statistics_fit, torch.device("cpu")) else []
    found = found or drift(sensor, seen)
    if found:
        middle = seen.median.nanmean().item()
        expected = sum(band.mean or 0.0 for band in sensor.bands) / len(sensor.bands)
        raise InputError(
            f"image values (median {middle:.4g}) are not {sensor.bands[0].unit} as sensor {sensor.name} measures it "
            f"(mean {expected:.4g}): {found[0]}; convert stored numbers with sensor.to_physical(image), or give the "
            f"sensor that the image has"
        )


def _statistics_fit(sensor: Sensor, _: torch.device) -> bool:
    return statistics_fit(sensor)


def run_block(block: nn.Module, *arguments: Any, recompute: bool) -> Tensor:
    """Apply a block to a sequence (b, n, d), keeping only its input for the backward pass when `recompute`."""
    return checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)


def initialise_linear(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer inside."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def set_explicit_attention(module: nn.Module) -> None:
    """Attention as two products instead of one fused call: 1.3-1.6x faster for bfloat16 on CPUs."""
    for child in module.modules():
        if isinstance(child, Attention):
            vars(child)["fused_attn"] = False
