"""The images of a PAD network by their names outside of it, and how they are described beside its weights."""

from pathlib import Path
from typing import Any

from datasets.labelled.description import LabelledSet
from finetune.model_files import Inputs, image_input, read_inputs
from finetune.pad.checkpoint import read_config
from finetune.pad.model import PadConfig

MODALITIES = {"rgb": "optical", "sar": "sar"}  # name in the network -> of the image in a description


def describe(pairs: LabelledSet) -> dict[str, Any]:
    """Classes and images of a network that is trained on these pairs, for `save_pad`."""
    images = {role: image_input(pairs.images[role]) for role in MODALITIES.values() if role in pairs.images}
    return Inputs(classes=pairs.classes, images=images).to_record()


def used_channels(config: PadConfig) -> dict[str, int]:
    """Channels of each image that a network takes, by name."""
    return {role: config.in_channels[name] for name, role in MODALITIES.items() if name in config.in_channels}


def read_pad_inputs(folder: Path) -> Inputs:
    """What the network in a folder needs to know of new images.

    Raises:
        InputError: as `read_inputs`.
    """
    config = read_config(folder)
    return read_inputs(folder, used_channels(config), config.classes)
