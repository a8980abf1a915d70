"""An encoder as a backbone of terratorch. Importing this module registers it; then `backbone: alliance_encoder` names it.

terratorch's command imports `custom_modules`: put `import alliance.integrations.terratorch_backbone` there.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from alliance.integrations.timm_features import Numbers, TimmFeatures

try:
    REGISTRY: Any = import_module("terratorch.registry").TERRATORCH_BACKBONE_REGISTRY
except ImportError as error:
    raise ImportError(f"this module registers encoders in terratorch ({error}); pip install terratorch") from error


class AllianceBackbone(nn.Module):
    """What terratorch asks of a backbone: `out_channels`, and `forward` gives a list of maps, finest block last."""

    def __init__(self, features: TimmFeatures) -> None:
        super().__init__()
        self.features = features
        self.out_channels: list[int] = features.feature_info.channels()
        self.patch_size = features.encoder.patch_size

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (b, c, h, w) -> maps (b, d, h / patch, w / patch)."""
        return self.features(x)


@REGISTRY.register
def alliance_encoder(
    checkpoint: str,
    sensor: str | None = None,
    model_bands: Sequence[str] = (),
    out_indices: Sequence[int] | int | None = None,
    numbers: Numbers = "standardised",
    pretrained: bool = True,
    patch_size: int | None = None,
    padding: str | None = None,
) -> AllianceBackbone:
    """An encoder by what `alliance.load_encoder` takes; other arguments as of `TimmFeatures`.

    Args:
        numbers: terratorch's data modules standardise.
        pretrained: weights are those of the checkpoint in any case.
        patch_size, padding: read by terratorch itself, which fills images up to multiples of the patch.
    """
    features = TimmFeatures(checkpoint, sensor, bands=model_bands, out_indices=out_indices, numbers=numbers)
    return AllianceBackbone(features)
