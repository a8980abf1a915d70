"""What turns an image into four maps: the interface, and the ConvNeXt V2 of the paper."""

from collections.abc import Sequence
from typing import Literal

import timm
from timm.layers.norm import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

Size = Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large"]
StageNorms = Literal["inline", "output"]


class Backbone(nn.Module):
    """Encoder of one modality: another one derives from this, or is any module with these two members.

    `channels` are the widths of the four maps.
    """

    channels: Sequence[int]

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        """Image (b, c, h, w) -> four maps (b, channels[i], h / s, w / s) of strides s = 4, 8, 16, 32, rounded down."""
        raise NotImplementedError


class ConvNeXtV2(Backbone):
    """ConvNeXt V2 with a layer norm after each stage. `stem` and `stages` have timm's names.

    Args:
        size: widths and depths as timm's `convnextv2_<size>`; linear layers in the blocks at every size.
        norms: `inline`, the normalised map also feeds the next stage (release), or `output`, the usual use.
        drop_path: rate of the last of all blocks, rising linearly from 0.
        stages: how many there are; fewer than four give as many maps.
    """

    def __init__(
        self,
        size: Size = "large",
        in_channels: int = 3,
        *,
        norms: StageNorms = "inline",
        drop_path: float = 0.4,
        stages: int = 4,
    ) -> None:
        super().__init__()
        net = timm.create_model(
            f"convnextv2_{size}", in_chans=in_channels, drop_path_rate=drop_path, num_classes=0, conv_mlp=False
        )
        assert isinstance(net, ConvNeXt), "timm builds ConvNeXt V2 from its class ConvNeXt"
        self.channels = [stage["num_chs"] for stage in net.feature_info][:stages]
        self.inline = norms == "inline"
        self.stem, self.stages = net.stem, net.stages[:stages]
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-6) for width in self.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b, c, h, w) -> maps (b, channels[i], h / s, w / s), see `Backbone`."""
        return self.run_stages(self.stem(image))

    def draw_biases(self, std: float) -> None:
        """Biases of all convolutions and linear layers from N(0, std^2), in place of 0.

        A place of zeros, such as a margin, otherwise gives the stem's layer norm a vector of zeros, and every such norm
        multiplies the gradient by 1 / sqrt(eps) = 1000.
        """
        for layer in (*self.stem.modules(), *self.stages.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.bias, std=std)

    def run_stages(self, running: Tensor, *, start: int = 1, stop: int = 4) -> list[Tensor]:
        """What feeds stage `start`, (b, d, h, w) -> the maps of the stages `start` to `stop`, (b, d_i, h_i, w_i) each."""
        maps = []
        for stage, norm in list(zip(self.stages, self.norms, strict=True))[start - 1 : stop]:
            running = stage(running)
            maps.append(norm(running))
            running = maps[-1] if self.inline else running
        return maps
