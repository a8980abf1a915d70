"""The images of a PAD network by their names outside of it, and how they are described beside its weights."""

from pathlib import Path
from typing import Any

from datasets.labelled.pair_set import ImageSource, PairSet
from finetune.model_files import ImageInput, Inputs, read_inputs, standardised_by
from finetune.pad.checkpoint import read_config
from finetune.pad.model import PadConfig

MODALITIES = {"optical": "rgb", "sar": "sar"}  # name of an image -> in the network


def image_input(source: ImageSource) -> ImageInput:
    """What a network that is trained on these images reads of them."""
    preprocessing = standardised_by(source.mean, source.std)
    return ImageInput(preprocessing=preprocessing, bands=source.bands, dtype=source.dtype, nodata=source.nodata)


def describe(pairs: PairSet) -> dict[str, Any]:
    """Classes and images of a network that is trained on these pairs, for `save_pad`."""
    images = {role: image_input(getattr(pairs, role)) for role in MODALITIES}
    return Inputs(classes=pairs.classes, images=images).to_record()


def used_channels(config: PadConfig) -> dict[str, int]:
    """Channels of each image that a network takes, by name."""
    return {name: config.in_channels[own] for name, own in MODALITIES.items() if own in config.in_channels}


def read_pad_inputs(folder: Path) -> Inputs:
    """What the network in a folder needs to know of new images.

    Raises:
        InputError: as `read_inputs`.
    """
    config = read_config(folder)
    return read_inputs(folder, used_channels(config), config.classes)
