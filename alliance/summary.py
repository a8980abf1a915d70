"""What cls and the frequency tokens are asked for: band means and radial log-power of the whole image (docs/model.md 8.6)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from alliance.embedding import GroupKernels, reference_bands
from alliance.encoder import initialise_linear
from alliance.frequency import dct2
from alliance.kept import kept
from alliance.sensors import Sensor
from alliance.tokens import GroupTable

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
