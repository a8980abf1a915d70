"""What a PAD network was trained on, kept beside its weights: how its images are normalised, what its classes are."""

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alliance.checkpoint import CONFIG
from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import Colour, as_colour
from datasets.labelled.description import LabelledSet
from finetune.pad.checkpoint import read_config

MODALITIES = {"rgb": "optical", "sar": "sar"}  # name in the network -> in a description of pairs


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Classes in the order of their indices, and the image source of each modality, whose files are not named."""

    classes: Mapping[str, Colour]
    sources: Mapping[str, ImageSource]  # "rgb", "sar"

    def notes(self) -> dict[str, Any]:
        """Entries of `config.json` that `read_inputs` understands: pass them to `save_pad`."""
        fields = ("bands", "mean", "std", "dtype", "nodata")
        return {
            "classes": {name: list(colour) for name, colour in self.classes.items()},
            "normalisation": {
                modality: {name: getattr(source, name) for name in fields} for modality, source in self.sources.items()
            },
        }


def describe(pairs: LabelledSet) -> dict[str, Any]:
    """Notes on a network that is trained on these pairs, for `save_pad`."""
    sources = {modality: pairs.images[role] for modality, role in MODALITIES.items() if role in pairs.images}
    return Inputs(classes=pairs.classes, sources=sources).notes()


def nameless(count: int) -> dict[str, Colour]:
    """Names and colours for classes of which only the number is known."""
    hues = [colorsys.hsv_to_rgb(index / count, 0.8, 0.9) for index in range(count)]
    return {f"class {index}": as_colour("", [round(255 * part) for part in hue]) for index, hue in enumerate(hues)}


def read_inputs(folder: Path) -> Inputs:
    """What the network in a folder needs to know of new images, for the modalities that it uses.

    Raises:
        InputError: no network there, no normalisation, or notes that do not fit the network.
    """
    config, path = read_config(folder), folder / CONFIG
    record = json.loads(path.read_text())
    try:
        classes = {name: as_colour(name, rgb) for name, rgb in (record.get("classes") or {}).items()}
        stored = record.get("normalisation") or {}
        sources = {name: ImageSource(**stored[name]) for name in config.in_channels if name in stored}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: classes or normalisation are damaged ({error}); write the network again") from error
    for name, channels in config.in_channels.items():
        source = sources.get(name)
        if source is None or not (source.mean and source.std):
            raise InputError(
                f"{path} says no mean and std of the {name} image under 'normalisation'; save the network with the "
                f"description of its pairs, or convert the release again"
            )
        if len(source.bands) != channels:
            raise InputError(
                f"{path}: the network takes {channels} {name} bands, 'normalisation' has {len(source.bands)}"
            )
    if classes and len(classes) != config.classes:
        raise InputError(f"{path}: the network tells {config.classes} classes apart, 'classes' names {len(classes)}")
    return Inputs(classes=classes or nameless(config.classes), sources=sources)
