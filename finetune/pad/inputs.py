"""The images of a PAD network by their names outside of it, and how they are described beside its weights."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE, Colour
from datasets.labelled.description import LabelledSet
from finetune.model_files import Inputs, image_input, read_inputs
from finetune.pad.checkpoint import read_config
from finetune.pad.model import MODALITIES, PadConfig


def describe(pairs: LabelledSet) -> dict[str, Any]:
    """Classes and images of a network that is trained on these pairs, for `save_pad`."""
    images = {role: image_input(pairs.images[role]) for role in MODALITIES.values() if role in pairs.images}
    return Inputs(classes=pairs.classes, images=images).to_record()


def used_channels(config: PadConfig) -> dict[str, int]:
    """Channels of each image that a network takes, by name."""
    return {role: config.in_channels[name] for name, role in config.roles.items()}


def read_pad_inputs(folder: Path) -> Inputs:
    """What the network in a folder needs to know of new images.

    Raises:
        InputError: as `read_inputs`.
    """
    config = read_config(folder)
    return read_inputs(folder, used_channels(config), config.classes)


def as_seen_by(described: LabelledSet, inputs: Inputs) -> LabelledSet:
    """A set read as a network reads it: classes by name in its order, its own bands and statistics of the images.

    Raises:
        InputError: the set has no such image, or classes that the network does not know.
    """
    names = list(inputs.classes)
    strange = [name for name in described.classes if name not in names]
    if strange:
        mend = "call classes that are the same alike"
        if len(strange) < len(described.classes):
            mend += f", or leave out those that are not: --drop-classes {shlex.join(strange)}"
        raise InputError(f"the network knows {', '.join(names)}, {described.name} names {', '.join(strange)}; {mend}")
    index = {own: names.index(name) for own, name in enumerate(described.classes)}
    values = {stored: index.get(own, IGNORE) for stored, own in described.label.table(len(described.classes)).items()}
    images = {
        role: dataclasses.replace(image.described, files=described.image(role).files)
        for role, image in inputs.images.items()
    }
    classes = _coloured_apart(described, inputs)
    label = described.label.numbered(values)
    return dataclasses.replace(described, images={**described.images, **images}, label=label, classes=classes)


def _coloured_apart(described: LabelledSet, inputs: Inputs) -> dict[str, Colour]:
    """The network's classes in the colours of a set; one that the set lacks gets a colour that means nothing there."""
    taken = {*described.classes.values(), *described.label.ignored}
    classes = {}
    for name, (red, green, blue) in inputs.classes.items():
        colour = (red, green, blue)
        while name not in described.classes and colour in taken:
            blue += 1
            colour = (red, green, blue % 256)
        classes[name] = described.classes.get(name, colour)
        taken.add(classes[name])
    return classes
