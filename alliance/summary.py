"""What tokens are asked for beside pixels: radial log-power of the whole image, and of their patch (docs/model.md 8.6 and 8.7)."""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from alliance.decoder import BandHead
from alliance.embedding import GroupKernels, reference_bands
from alliance.encoder import initialise_linear
from alliance.frequency import dct2, float32_island, patch_dct
from alliance.kept import kept
from alliance.losses import masked_mean, token_errors
from alliance.sensors import Sensor
from alliance.tokens import GroupTable, Mask

RINGS = 6  # two in each of low, mid, high
FLOOR = 1e-3  # of a ring's mean power, in squared standard deviations
SPAN = 3.0  # by which its logarithm is divided, so that targets are of order 1
GAIN = 0.1  # of the initial kernels, as of the decoder's head


@kept(32)
def _rings(h: int, w: int, cutoffs: tuple[float, float], device: torch.device) -> Tensor:
    """Share of every DCT coefficient in the mean of its ring, without the mean of the image: (RINGS, h, w) float32."""
    low, mid = cutoffs
    edges = torch.tensor([low / 2, low, (low * mid) ** 0.5, mid, 2 * mid])
    down, along = (torch.arange(size) / (2 * size) for size in (h, w))
    ring = torch.bucketize(torch.hypot(down[:, None], along[None, :]), edges)
    member = torch.nn.functional.one_hot(ring, RINGS).float()
    member[0, 0] = 0
    return rearrange(member / member.sum((0, 1)).clamp(min=1), "h w r -> r h w").to(device)


def summarise_image(image: Tensor, cutoffs: tuple[float, float]) -> Tensor:
    """Mean and log-power of rings, low to high, of standardised images: (b, c, h, w) -> (b, c, 1 + RINGS) float32."""
    power = dct2(image).square()
    shares = _rings(image.shape[-2], image.shape[-1], cutoffs, image.device)
    rings = torch.stack([(power * share).sum((-2, -1)) for share in shares], dim=-1)
    mean = rearrange(image.float().mean((-2, -1)), "b c -> b c 1")
    return torch.cat([mean, torch.log(rings + FLOOR) / SPAN], dim=-1)


def patch_rings(patches: Tensor, patch: int) -> Tensor:
    """Log-power of rings, low to high, inside standardised patches: (..., patch * patch) -> (..., RINGS) float32.

    Their borders are twice those of the image, as a patch holds no lower frequency than half a wave; rings that it has no
    coefficient in are constant.
    """
    shares = rearrange(_rings(patch, patch, (1 / patch, 2 / patch), patches.device), "r i j -> (i j) r")
    with float32_island(patches):
        return torch.log(patch_dct(patches, patch).square() @ shares + FLOOR) / SPAN


class RingHeads(nn.Module):
    """Tokens -> rings of their patches: of the hidden ones behind the decoder, of the visible ones behind the encoder."""

    def __init__(self, encoder_dim: int, decoder_dim: int, tokenizer: str, sensors: Sequence[Sensor]) -> None:
        super().__init__()
        self.hidden, self.visible = (BandHead(d, RINGS, tokenizer, sensors) for d in (decoder_dim, encoder_dim))

    def reset_parameters(self, encoder_code: nn.Module) -> None:
        """As of `SummaryHead`."""
        initialise_linear(self)
        with torch.no_grad():
            reference = encoder_code(reference_bands())
        for head in (self.hidden, self.visible):
            head.kernels.reset_parameters(reference, GAIN)

    def forward(
        self, decoded: Tensor, seen: Tensor, mask: Mask, code: Tensor, sensor: Sensor, groups: GroupTable
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            decoded: (k, b, g, n, E), tokens behind the decoder.
            seen: (b, v, d), visible tokens behind the encoder.
        Returns:
            What is said of all patches by the one, (k, b, g, n, m, RINGS), and by the other, (1, b, g, n, m, RINGS), which
            means something where the encoder looked.
        """
        k, b, g, n, _ = decoded.shape
        places = seen.new_zeros(b, g * n, seen.shape[-1])
        places = places.scatter(1, repeat(mask.visible, "b v -> b v d", d=seen.shape[-1]), seen)
        hidden = self.hidden(rearrange(decoded, "k b g n d -> (k b) g n d"), code, sensor, groups)
        visible = self.visible(rearrange(places, "b (g n) d -> b g n d", g=g), code, sensor, groups)
        return rearrange(hidden, "(k b) ... -> k b ...", k=k), visible[None]


def ring_error(said: Tensor, rings: Tensor, asked: Tensor, whole: Tensor, groups: GroupTable) -> Tensor:
    """Mean squared error of what each stage says of its part of the rings, low to high; a scalar.

    Args:
        said: (k, b, g, n, m, RINGS), of k stages.
        rings: (b, g, n, m, RINGS) of `patch_rings`.
        asked: tokens that are asked, (b, g * n) bool.
        whole: patches without a missing pixel, (b, n) bool.
    """
    k = len(said)
    own = torch.stack([stage.chunk(k, dim=-1)[index] for index, stage in enumerate(said)])
    wanted = rearrange(rings, "b g n m (k r) -> k b g n m r", k=k)
    errors = token_errors(own, wanted, repeat(whole, "b n -> b n r", r=wanted.shape[-1]), groups.real)
    return masked_mean(errors, asked, whole).mean()


class SummaryHead(nn.Module):
    """Tokens of the whole image -> summaries of whatever bands it has, by kernels generated from their codes."""

    def __init__(self, d: int, tokenizer: str, sensors: Sequence[Sensor]) -> None:
        super().__init__()
        self.kernels = GroupKernels(tokenizer, sensors, d, 1 + RINGS, bias=True)

    def reset_parameters(self, encoder_code: nn.Module) -> None:
        """Scaled on the codes that the encoder's band code gives to reference bands; first predictions are nearly zero."""
        initialise_linear(self)
        with torch.no_grad():
            self.kernels.reset_parameters(encoder_code(reference_bands()), GAIN)

    def forward(self, tokens: Tensor, code: Tensor, sensor: Sensor, groups: GroupTable) -> Tensor:
        """(b, s, d) -> (b, s, g, m, 1 + RINGS)."""
        weight, bias, _ = self.kernels(code, sensor, groups)
        assert bias is not None
        flat = tokens.to(weight.dtype) @ rearrange(weight, "g m d r -> d (g m r)") + rearrange(bias, "g m r -> (g m r)")
        return rearrange(flat, "b s (g m r) -> b s g m r", g=weight.shape[0], m=weight.shape[1])


def summary_error(said: Tensor, summary: Tensor, groups: GroupTable) -> Tensor:
    """Mean squared error of what cls says of everything, and each frequency token of the two rings of its band; a scalar.

    Args:
        said: (b, s, g, m, 1 + RINGS) of cls and, where there are any, of the tokens low to high.
        summary: (b, c, 1 + RINGS) of `summarise_image`.
    """
    wanted = summary[:, groups.channels]
    weight = groups.real.float() / groups.real.sum()
    squared = torch.einsum("bsgmr,gm->bsr", (said.float() - wanted[:, None]).square(), weight).mean(0)
    total = squared[0].mean()
    for k in range(len(squared) - 1):
        total = total + squared[k + 1, 1 + 2 * k : 3 + 2 * k].mean() / (len(squared) - 1)
    return total
