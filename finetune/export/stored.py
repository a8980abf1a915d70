"""From the stored numbers of a file to what a network gets, as a part of its graph."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from alliance.sensors.standardise import standardise
from datasets.imagery.images import ImageSource
from finetune.model_files import ImageInput


class StoredImage(nn.Module):
    """Stored numbers (b, c, h, w) -> standardised ones, 0 where missing: as `Reading` and what follows it make them.

    A number is missing where it is not finite, or a mark that the description of the image names.

    Args:
        whole: a pixel that misses a band is missing in all of them; False: in that band alone.
    """

    scale: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, image: ImageInput, *, whole: bool) -> None:
        super().__init__()
        scale, offset = scales(image.source, image.channels)
        self.plain = set(scale) == {1.0} and set(offset) == {0.0}
        self.log, self.marks, self.whole = image.source.log, marks(image.source), whole
        preprocessing = image.preprocessing
        columns = {"scale": scale, "offset": offset, "mean": preprocessing.mean, "std": preprocessing.std}
        for name, values in columns.items():
            column = torch.as_tensor(values, dtype=torch.float32)
            self.register_buffer(name, rearrange(column, "c -> c 1 1"), persistent=False)

    def forward(self, stored: Tensor) -> Tensor:
        value = stored.float()
        missing = ~torch.isfinite(value)
        for mark in self.marks:
            missing = missing | (value == mark)
        if not self.plain:
            value = value * self.scale + self.offset
        if self.log:
            value = value.sign() * torch.log1p(value.abs())
        value = torch.where(missing, torch.nan, value)
        if self.whole:
            return standardise(value, self.mean, self.std)[0]
        value = (value - self.mean) / self.std
        return torch.where(value.isnan(), 0.0, value)


class Components(nn.Module):
    """Principal components of standardised images: (b, c, h, w) -> (b, k, h, w); the images themselves where all bands stay."""

    axes: Tensor | None
    offsets: Tensor | None

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        axes, offsets = image.preprocessing.axes, image.preprocessing.offsets
        kept = [None if array is None else torch.as_tensor(array, dtype=torch.float32) for array in (axes, offsets)]
        self.register_buffer("axes", kept[0], persistent=False)
        self.register_buffer("offsets", kept[1], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if self.axes is None or self.offsets is None:
            return image
        pixels = rearrange(image, "b c h w -> b h w c") @ self.axes - self.offsets
        return rearrange(pixels, "b h w k -> b k h w")


def scales(source: ImageSource, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Value of a stored 1 and of a stored 0 of every channel, as the sensor or the description says."""
    sensor = source.description
    if sensor is not None:
        return [band.scale for band in sensor.bands], [band.offset for band in sensor.bands]
    scale = 1.0 if source.scale is None else source.scale
    return [scale] * channels, [source.offset or 0.0] * channels


def marks(source: ImageSource) -> tuple[float, ...]:
    """Stored values that are missing pixels."""
    sensor = source.description
    told = (source.nodata, None if sensor is None else sensor.nodata)
    return tuple(dict.fromkeys(value for value in told if value is not None))
