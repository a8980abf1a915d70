"""Scoring a network that labels pixels: one image after the other, as PAD's paper tests (no resizing, no padding, batch 1)."""

from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import Sample, Tiles, blank_sample
from engine.probing import evaluating
from finetune.pixel_network import SMALLEST, HasRoles, PixelNetwork
from finetune.scores import image_confusions

Corruption = Callable[[Sample, int], Sample]  # a sample and its number in the split -> what the network is shown of it


def evaluate(
    model: PixelNetwork,
    tiles: Tiles,
    indices: Iterable[int] | None = None,
    *,
    device: str | torch.device = "cpu",
    corrupt: Corruption | None = None,
    on_broken: Callable[[InputError], None] | None = None,
) -> Tensor:
    """Confusion matrices of images, for `segmentation_scores`.

    There is one forward pass per index, so ranks that share a model's weights take lists of equal length, padded by any
    index, and drop the rows of the padding.

    Args:
        model: the network; evaluated in evaluation mode and left in the modes it was in.
        indices: which images of the split; None: all.
        corrupt: changes what the network sees; the labels that count are those of the file.
        on_broken: told of an image that cannot be read, which then has no labels; None: it is an error.
    Returns:
        (n, classes, classes) int64 on the CPU, in the order of `indices`, rows truth, columns prediction.
    Raises:
        InputError: a file cannot be read, its channels or labels do not fit the network, or statistics are missing.
    """
    classes = model.classes
    counts = [torch.zeros(0, classes, classes, dtype=torch.int64)]
    for index in range(len(tiles)) if indices is None else indices:
        sample = _read(tiles, index, on_broken)
        shown = corrupt(sample, index) if corrupt else sample
        predicted = predict(model, shown, tiles.described, device=device)
        counts.append(image_confusions(rearrange(sample.label, "h w -> 1 h w"), predicted, classes))
    return torch.cat(counts)


def _read(tiles: Tiles, index: int, on_broken: Callable[[InputError], None] | None) -> Sample:
    try:
        return tiles[index]
    except InputError as error:
        if on_broken is None:
            raise
        on_broken(error)
        return blank_sample(tiles.described, SMALLEST)


def predict(
    model: PixelNetwork, sample: Sample, described: LabelledSet, *, device: str | torch.device = "cpu"
) -> Tensor:
    """Class indices (1, h, w) int64 of one image, on the CPU; the model keeps its modes.

    An image that is too small for the network is filled up with means.
    """
    dtype = next(model.parameters()).dtype
    images = network_images(sample, described, model)
    h, w = sample.label.shape[-2:]
    margins = (0, max(SMALLEST - w, 0), 0, max(SMALLEST - h, 0))
    with evaluating(model):
        output = model(**{name: functional.pad(image, margins).to(device, dtype) for name, image in images.items()})
        return output.logits[..., :h, :w].argmax(dim=1).cpu()


def network_images(sample: Sample, described: LabelledSet, network: HasRoles) -> dict[str, Tensor]:
    """Standardised images (1, c, h, w) float32 that the network takes, by its names, missing pixels 0.

    Raises:
        InputError: mean and std of a modality are not known, or are for another number of channels.
    """
    return {
        name: rearrange(described.image(role).standardise(sample.images[role]), "c h w -> 1 c h w")
        for name, role in network.roles.items()
    }
