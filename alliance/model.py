"""The pretraining model: hide tokens, encode the rest, decode low -> mid -> high, compare with the image's bands."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from alliance.decoder import DecoderConfig, ProgressiveDecoder
from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.losses import (
    LossConfig,
    Losses,
    assemble,
    group_patches,
    masked_mean,
    patch_statistics,
    spectral_distance,
    stage_targets,
    stage_weights,
    token_errors,
)
from alliance.sensors import Sensor
from alliance.summary import SummaryHead, summarise_image, summary_error
from alliance.tokens import (
    Groups,
    GroupTable,
    Mask,
    MaskingConfig,
    draw_mask,
    group_table,
    patchify,
    ungroup,
    unpatchify,
)


@dataclass(frozen=True, kw_only=True)
class AllianceConfig:
    """Everything that defines the model (docs/model.md)."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """From pixels to features (docs/model.md 3 and 5)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """From visible tokens to images, low to high (docs/model.md 6)."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which tokens are hidden (docs/model.md 4)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What the decoder shall predict, and how it is weighed (docs/model.md 8)."""


class Prediction(NamedTuple):
    """What the decoder says of one batch, and what it could see."""

    stages: Tensor  # (k, b, g, n, m, p), low to high
    mask: Mask
    standardised: Tensor  # (b, c, h, w)
    valid: Tensor  # (b, 1, h, w) bool
    special: Tensor  # (b, s, d) cls and frequency tokens behind the encoder
    code: Tensor  # (c, CODE_WIDTH), of all bands


class Reconstruction(NamedTuple):
    """Images for people to look at, in standard deviations; bands of groups that were not drawn are NaN."""

    targets: Tensor  # (k, b, c, h, w), cumulative, low to high; the last one is the image
    stages: Tensor  # (k, b, c, h, w), what the decoder says of them
    masked: Tensor  # (b, c, h, w) bool, where the encoder did not look
    valid: Tensor  # (b, 1, h, w) bool
    told: bool = False  # patches of the last stage have the true mean and deviation (`loss.normalise`)


class Alliance(nn.Module):
    """Masked spectral-spatial-frequency autoencoder."""

    def __init__(self, config: AllianceConfig, sensors: Sequence[Sensor] = ()) -> None:
        super().__init__()
        self.config = config
        encoder, frequency = config.encoder, config.encoder.tokens == "frequency"
        self.encoder = AllianceEncoder(encoder, sensors)
        self.decoder = ProgressiveDecoder(
            config.decoder, encoder.embed_dim, encoder.patch, frequency=frequency, tokenizer=encoder.tokenizer,
            sensors=sensors,
        )  # fmt: skip
        self.decoder.reset_parameters(self.encoder.patch_embed.code)
        asked = config.loss.summary and encoder.tokens != "none"
        self.summary = SummaryHead(encoder.embed_dim, encoder.tokenizer, sensors) if asked else None
        if self.summary is not None:
            self.summary.reset_parameters(self.encoder.patch_embed.code)

    def predict(self, image: Tensor, sensor: Sensor, noise: Tensor, groups: Groups) -> Prediction:
        """Hide, encode, decode: the overview figure of the paper. Arguments as of `forward`: (b, c, h, w), (b, g * n)."""
        patch = self.config.encoder.patch
        standardised, valid = sensor.standardise(image)
        h, w = image.shape[-2] // patch, image.shape[-1] // patch
        embedded = self.encoder.embed(standardised, sensor, groups)
        mask = draw_mask(noise, patch_validity(valid, patch), len(groups), self.config.masking)
        encoded = self.encoder.encode(embedded, mask.visible)[-1]
        stages = self.decoder(encoded, embedded, mask, sensor, groups, h, w)
        special = encoded[:, : len(embedded.special.cls) + len(embedded.special.frequency)]
        return Prediction(stages, mask, standardised, valid, special, embedded.code)

    def forward(
        self, image: Tensor, sensor: Sensor, noise: Tensor, progress: float = 0.0, groups: Groups | None = None
    ) -> Losses:
        """
        Args:
            image: (b, c, h, w) float32 in the sensor's units, NaN where data is missing.
            noise: (b, g * n) uniform, see `tokens.mask_noise`: the least are visible.
            progress: fraction of the run, moves the stage weights.
            groups: band groups to use; None: all of the sensor.
        """
        longest = max(map(len, sensor.group_indices))
        table = group_table(groups or sensor.group_indices, image.device, longest)
        weights = stage_weights(
            progress, self.config.decoder.stages, self.config.loss, sar=sensor.is_sar, device=image.device
        )
        prediction = self.predict(image, sensor, noise, table)
        with torch.autocast(image.device.type, enabled=False):
            return self._losses(prediction, sensor, weights, table)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile the blocks of encoder and decoder one by one, arguments as of `torch.compile`.

        Blocks of a kind share what is compiled: a graph for each kind and grid of tokens, whatever the depth. The whole step as one graph
        fails in torch 2.14, by two constant tables of one name.
        """
        dynamo = importlib.import_module("torch._dynamo")
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 4 * len(self.encoder.sensors) + 8)
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            block.compile(*arguments, **options)

    def reconstruct(self, image: Tensor, sensor: Sensor, noise: Tensor, groups: Groups | None = None) -> Reconstruction:
        """What the model makes of the masked image (b, c, h, w), stage by stage; arguments as of `forward`."""
        groups = group_table(groups or sensor.group_indices, image.device)
        config, patch, c = self.config.loss, self.config.encoder.patch, len(sensor.bands)
        h, w = image.shape[-2] // patch, image.shape[-1] // patch
        prediction = self.predict(image, sensor, noise, groups)
        stages, target = prediction.stages.float(), prediction.standardised
        if config.normalises:
            mean, deviation = patch_statistics(group_patches(target, patch, groups), groups.real)
            stages = torch.cat([stages[:-1], stages[-1:] * deviation + mean])
        stages = assemble(unpatchify(ungroup(stages, groups, c), h, w), sensor, config)
        targets = assemble(stage_targets(target, sensor, patch, len(stages), config, prediction.valid), sensor, config)
        masked = rearrange(prediction.mask.masked, "b (g n) -> b g n 1 1", g=len(groups)).float()
        masked = masked.expand(-1, -1, -1, groups.channels.shape[1], patch**2)
        masked = unpatchify(ungroup(masked, groups, c), h, w) != 0
        return Reconstruction(targets, stages, masked, prediction.valid, config.normalises)

    def _losses(self, prediction: Prediction, sensor: Sensor, weights: Tensor, groups: GroupTable) -> Losses:
        config, patch = self.config.loss, self.config.encoder.patch
        k = len(prediction.stages)
        with torch.no_grad():
            images = stage_targets(prediction.standardised, sensor, patch, k, config, prediction.valid)
            targets = group_patches(images, patch, groups)
            if config.normalises:
                mean, deviation = patch_statistics(targets[-1], groups.real)
                targets[-1] = (targets[-1] - mean) / deviation
        pixels = rearrange(patchify(prediction.valid, patch), "b 1 n p -> b n p")
        errors = token_errors(prediction.stages, targets, pixels, groups.real)
        usable = patch_validity(prediction.valid, patch)
        stages = masked_mean(errors, prediction.mask.masked, usable)
        total = (weights * stages).sum()
        if config.fft:
            total = total + config.fft * self._spectral_loss(prediction, targets[-1], groups)
        if self.summary is None:
            return Losses(total, stages.detach())
        summary = summarise_image(prediction.standardised, config.cutoffs_for(patch))
        error = summary_error(self.summary(prediction.special, prediction.code, sensor, groups), summary, groups)
        return Losses(total + config.summary * error, stages.detach(), error.detach())

    def _spectral_loss(self, prediction: Prediction, target: Tensor, groups: GroupTable) -> Tensor:
        """Spectral distance of the last stage, true pixels where the encoder could see or data is missing (A2MIM)."""
        patch = self.config.encoder.patch
        h, w = (size // patch for size in prediction.standardised.shape[-2:])
        masked = rearrange(prediction.mask.masked, "b (g n) -> b g n 1 1", g=len(groups))
        valid = rearrange(patchify(prediction.valid, patch), "b 1 n p -> b 1 n 1 p")
        mixed = torch.where(masked & valid, prediction.stages[-1].float(), target)
        pair = ungroup(torch.stack([mixed, target]), groups, prediction.standardised.shape[1])
        images = unpatchify(pair[:, :, groups.used], h, w)
        return spectral_distance(images[0], images[1])


def patch_validity(valid: Tensor, patch: int) -> Tensor:
    """Patches (b, n) with at least half of their pixels valid; `valid` is (b, 1, h, w)."""
    share = reduce(valid.float(), "b 1 (y i) (x j) -> b (y x)", "mean", i=patch, j=patch)
    return share >= 0.5


SIZES = {  # of the encoder: embed_dim, depth, heads
    "nano": (96, 4, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
LARGE_DECODER = ("base", "large")  # 512 wide; smaller encoders have a decoder of 256


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return [f"alliance_{size}_patch{patch}" for size in SIZES for patch in (8, 16)]


def model_config(name: str) -> AllianceConfig:
    """Configuration of a named model, for example `alliance_small_patch8`."""
    if name not in list_models():
        raise InputError(f"no model is called {name!r}; alliance.list_models() gives {', '.join(list_models())}")
    _, size, patch = name.split("_")
    embed_dim, depth, heads = SIZES[size]
    encoder = EncoderConfig(embed_dim=embed_dim, depth=depth, heads=heads, patch=int(patch.removeprefix("patch")))
    return AllianceConfig(encoder=encoder, decoder=DecoderConfig(embed_dim=512 if size in LARGE_DECODER else 256))


def create_model(name: str, sensors: Sequence[Sensor] = ()) -> Alliance:
    """An untrained pretraining model; its `.encoder` is what fine-tuning uses."""
    return Alliance(model_config(name), sensors)
