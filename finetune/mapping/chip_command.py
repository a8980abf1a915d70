"""The part of `finetune/predict.py` that labels whole images."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from alliance.errors import InputError
from datasets.chips.chip import Chip
from datasets.chips.files import list_images
from datasets.chips.patches import with_partners
from datasets.chips.reading import EMPTY, Chips, fitted
from datasets.imagery.scenes import Scene, Skipped, summarise
from finetune.chips.checkpoint import Labeller, load_chips, probabilities
from finetune.chips.model import BESIDE, IMAGE
from finetune.chips.tables import Line, write_footprints, write_labels
from finetune.mapping.images import refuse_strange
from finetune.model_files import ImageInput

OF_MAPS = ("image", "optical", "sar", "probabilities")  # options that do not go with whole images
OF_CHIPS = ("images", "beside", "footprints")  # options that do not go with maps
LOOKED_AT, PIXELS = 16, 1024  # images, and pixels of each, whose numbers are looked at
BATCH = 32


def add_chip_options(parser: argparse.ArgumentParser) -> None:
    """The options for networks that label whole images."""
    add = parser.add_argument_group("labels of whole images").add_argument
    add("--images", action="append", default=[], metavar="PATH", help="folder of images, also in folders below, or "
        "one image; a row each in the table --out: file, label (several with ; between them), p_CLASS")  # fmt: skip
    add("--beside", action="append", default=[], metavar="PATH", help="folder of second images, for a network of two "
        "(data.beside): a folder per patch, as in BigEarthNet, with a *_labels_metadata.json whose corresponding_s2_patch names "
        "the one of --images that it belongs to")  # fmt: skip
    add("--footprints", metavar="FILE", help="also a .geojson with the footprint of each image that says where it "
        "lies, its labels and probabilities")  # fmt: skip


def refuse_chip_options(options: argparse.Namespace) -> None:
    """Refuse these options for networks that map scenes.

    Raises:
        InputError: one is given.
    """
    for name in OF_CHIPS:
        if getattr(options, name):
            raise InputError(
                f"the network in {options.checkpoint} maps scenes; give --image NAME=FILE in place of --{name}"
            )


def write_chip_labels(options: argparse.Namespace, folder: Path, device: str) -> list[str]:
    """Write the table of labels, and perhaps footprints; what there is to say of it.

    Args:
        folder: of the network.
    Raises:
        InputError: a wrong option, no image that can be read, or numbers that are not like those of training.
    """
    _check_options(options)
    labeller = load_chips(folder, device=device)
    _check_beside(options, labeller)
    chips, skipped = _open(options, labeller)
    if not options.force:
        _refuse_strange(chips, labeller.image, IMAGE)
        if chips.second is not None and labeller.beside is not None:
            _refuse_strange(chips.second, labeller.beside, BESIDE)

    def say(name: str, error: InputError) -> None:
        _, named, reason = str(error).partition(f"{name}: ")  # most name the file themselves
        skipped.append(Skipped(name, reason if named else str(error)))

    found = list(label_chips(chips, labeller, batch=options.batch or BATCH, device=device, on_broken=say))
    lines = [f"left out: {line}" for line in summarise(skipped)]
    if not found:
        raise InputError(f"none of {len(chips)} images can be read: {skipped[-1].file}: {skipped[-1].reason}")
    several = labeller.task == "multilabel"
    write_labels(options.out, [line for line, _ in found], labeller.classes, several=several)
    lines.append(f"labels of {len(found)} images in {options.out}, {len(chips) - len(found)} could not be read")
    if options.footprints:
        count = write_footprints(options.footprints, found, labeller.classes, several=several)
        lines.append(
            f"footprints of {count} images in {options.footprints}, {len(found) - count} do not say where they lie"
        )
    return lines


def label_chips(
    chips: Chips,
    labeller: Labeller,
    *,
    batch: int,
    device: str = "cpu",
    on_broken: Callable[[str, InputError], None],
) -> Iterator[tuple[Line, Scene]]:
    """Probabilities of every image that can be read, and what its header says.

    Args:
        on_broken: told of the name of an image that cannot be read, and why.
    """
    size = labeller.network.size
    for start in tqdm(range(0, len(chips), batch), desc="labelling", unit="batch", disable=None):
        images: list[Tensor] = []
        told: list[tuple[str, Scene]] = []
        for number in range(start, min(start + batch, len(chips))):
            try:
                read = chips.images(number)
                image = chips.standardise(read)
                if image is None:
                    raise InputError(f"{EMPTY}; take it out")
            except InputError as error:
                on_broken(chips.keys[number], error)
                continue
            images.append(fitted(image, size, size, labeller.network.config.fit))
            told.append((chips.keys[number], read[0].header))
        if images:
            with torch.inference_mode():
                logits = labeller.network(torch.stack(images).to(device)).logits
            for (name, header), row in zip(
                told, probabilities(logits, labeller.task).cpu().double().numpy(), strict=True
            ):
                yield Line(name, row), header


def _check_options(options: argparse.Namespace) -> None:
    for name in OF_MAPS:
        if getattr(options, name):
            raise InputError(
                f"the network in {options.checkpoint} labels whole images; give --images PATH, and omit --{name}"
            )
    if not options.images:
        raise InputError(f"the network in {options.checkpoint} labels whole images; give --images PATH")
    for path, suffixes in ((options.out, (".csv",)), (options.footprints, (".geojson", ".json"))):
        if path is not None and path.suffix.lower() not in suffixes:
            raise InputError(f"{path} is written as {suffixes[0][1:].upper()}; let its name end in {suffixes[0]}")


def _check_beside(options: argparse.Namespace, labeller: Labeller) -> None:
    """Refuse second images for a network of one, and none for a network of two."""
    if labeller.beside is None and options.beside:
        raise InputError(f"the network in {options.checkpoint} takes one image of every place; omit --beside")
    if labeller.beside is not None and not options.beside:
        raise InputError(
            f"the network in {options.checkpoint} takes two images of every patch; give also --beside PATH, a folder of "
            f"{labeller.beside.source.sensor or 'second'} images whose metadata name the patches of --images"
        )


def _open(options: argparse.Namespace, labeller: Labeller) -> tuple[Chips, list[Skipped]]:
    """The images to label, each with the second one that belongs to it; and files that cannot be labelled, with the reason."""
    paths, beside = options.images, labeller.beside
    chips, skipped = [], []
    for path in paths:
        images, left_out = list_images(path, labeller.image.source)
        above = path if len(paths) > 1 and path.is_dir() else Path()
        chips += [Chip((above / image.name).as_posix(), image.files) for image in images]
        skipped += left_out
    if chips and beside is not None:
        chips, left_out = with_partners(chips, options.beside, beside.source)
        skipped += left_out
    if not chips:
        kind = "no images" if beside is None else "no image with a second one beside it"
        raise InputError(
            f"{', '.join(map(str, paths))}: {kind}" + "".join(f"; {line}" for line in summarise(skipped)[:1])
        )
    sources = (each.described for each in (labeller.image, beside) if each is not None)
    return Chips("images", chips, labeller.classes, *sources), skipped


def _refuse_strange(chips: Chips, wanted: ImageInput, name: str) -> None:
    """Refuse images of another unit than those of training, by a look at some of them together."""
    seen, first = [], None
    for number in sorted({number * len(chips) // LOOKED_AT for number in range(LOOKED_AT)}):
        try:
            numbers, header = chips.read(number)
        except InputError:  # said where it is labelled
            continue
        pixels = numbers.flatten(1)
        seen.append(pixels[:, :: max(pixels.shape[1] // PIXELS, 1)])
        first = first or header.files[0]
    if first is not None:
        refuse_strange(torch.cat(seen, dim=1)[..., None].double(), wanted, name, first)
