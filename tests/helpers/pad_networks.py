"""Synthetic pairs on disk and PAD networks small enough that their answers are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.imagery.images import ImageSource
from datasets.imagery.labels import LabelSource
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import Tiles
from datasets.synthetic.pair_trees import write_plain
from datasets.synthetic.pairs import SyntheticPair
from finetune.backbones.convnext import Backbone
from finetune.pad.fusion import FusionConfig
from finetune.pad.model import Pad, PadConfig, PadOutput
from finetune.pixel_network import PixelNetwork

COLOURS = [(204, 102, 0), (255, 0, 0), (255, 255, 0), (0, 0, 255), (85, 167, 0), (0, 255, 255), (153, 102, 153)]
OPTICAL, SAR = (100.0, 40.0), (60.0, 30.0)  # mean and deviation that the description states


def write_tiles(root: Path, pairs: Sequence[SyntheticPair], classes: int) -> Tiles:
    """The pairs as tiles of one split, read with their first three optical bands and one of SAR."""
    for number, pair in enumerate(pairs):
        for role, pixels in (("optical", pair.optical), ("sar", pair.sar), ("label", pair.label[None])):
            write_plain(root / role / f"{number}.tif", pixels)
    optical = ImageSource(files="optical", bands=(1, 2, 3), dtype="uint8", mean=OPTICAL[:1] * 3, std=OPTICAL[1:] * 3)
    sar = ImageSource(files="sar", bands=(1,), dtype="uint8", mean=SAR[:1], std=SAR[1:])
    named = {f"class {index}": COLOURS[index] for index in range(classes)}
    label = LabelSource(files="label")
    described = LabelledSet(
        name="synthetic",
        root=root,
        images={"optical": optical, "sar": sar},
        label=label,
        classes=named,
        splits={"test": None},
    )
    return Tiles(described, "test")


def flat_pair(optical: np.ndarray, sar: np.ndarray, label: np.ndarray) -> SyntheticPair:
    """Grey optical images of these pixels, (h, w) each."""
    return SyntheticPair(*(np.uint8(image) for image in (np.stack([optical] * 3), sar[None], label)))


class Threshold(PixelNetwork):
    """Says class 1 where the standardised grey value plus the SAR one lies above zero, pixel by pixel, else 0."""

    def __init__(self) -> None:
        self.config = PadConfig(classes=2, sar_channels=1)
        super().__init__(self.config.roles, self.config.classes)
        self.classify = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.classify.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 1]])[..., None, None])
            self.classify.bias.copy_(torch.tensor([1e-3, 0]))

    def forward(self, rgb: Tensor, sar: Tensor) -> PadOutput:
        logits = self.classify(torch.cat([rgb, sar], dim=1))
        return PadOutput(logits, logits, torch.zeros(()))


class Averages(Backbone):
    """Maps of local averages: the image's channels at their places among four, zeros elsewhere."""

    channels = (4, 4, 4, 4)

    def __init__(self, first: int, count: int) -> None:
        super().__init__()
        self.margins = (first, 4 - first - count)

    def forward(self, image: Tensor) -> list[Tensor]:
        padded = nn.functional.pad(image, (0, 0, 0, 0, *self.margins))
        return [nn.functional.avg_pool2d(padded, 4 * 2**stage) for stage in range(4)]


def averaging_pad(classes: int) -> Pad:
    """RGB in channels 0 to 2, SAR in channel 3, their sum after fusion: exactly what each place shows."""
    config = PadConfig(classes=classes, sar_channels=1, fusion=FusionConfig(stages=()))
    return Pad(config, {"rgb": Averages(0, 3), "sar": Averages(3, 1)})
