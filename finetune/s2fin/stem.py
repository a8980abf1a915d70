"""A stem made of Alliance features instead of a convolution."""

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional

from alliance.errors import InputError
from finetune.backbones.alliance_encoder import EncoderInput
from finetune.s2fin.layers import conv_norm_gelu

BRANCH_INPUTS = {"passive": ("spectral", "passive"), "active": ("active",)}  # what an encoder may read for each branch


def encoder_input(branch: str, sensors: Collection[str]) -> str | None:
    """Which input the encoder reads for a branch; None: the branch has a convolution.

    Raises:
        InputError: both images of the passive branch have a sensor.
    """
    given = [name for name in BRANCH_INPUTS[branch] if name in sensors]
    if len(given) > 1:
        raise InputError(f"encoder.sensors names {' and '.join(given)}, which are one image; name one of them")
    return given[0] if given else None


class EncoderStem(nn.Module):
    """Resize a patch, encode it, take the last map back to the patch's pixels, project to width d, norm, GELU.

    Args:
        side: pixels to which a patch is resized, a multiple of the encoder's patch; 0: one token per pixel.
    """

    def __init__(self, source: EncoderInput, d: int, side: int = 0) -> None:
        super().__init__()
        patch = source.encoder.patch_size
        if side % patch or side < 0:
            raise InputError(f"model.encoder_side {side} is not a multiple of the encoder's patch {patch}; 0 suits it")
        self.source, self.side = source, side
        self.project = conv_norm_gelu(source.encoder.embed_dim, d, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(b, c, patch, patch), standardised -> (b, d, patch, patch)."""
        own = image.shape[-1]
        side = self.side or own * self.source.encoder.patch_size
        large = functional.interpolate(image.float(), size=(side, side), mode="bilinear")
        features = self.source.maps(large, [-1])[0]
        return self.project(functional.interpolate(features, size=(own, own), mode="bilinear"))
