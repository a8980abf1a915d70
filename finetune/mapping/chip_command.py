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
from datasets.chips.reading import Chips, fitted
from datasets.imagery.scenes import Scene, Skipped, summarise
from finetune.chips.checkpoint import Labeller, load_chips, probabilities
from finetune.chips.model import IMAGE
from finetune.chips.tables import Line, write_footprints, write_labels
from finetune.mapping.images import refuse_strange

OF_MAPS = ("image", "optical", "sar", "probabilities")  # options that do not go with whole images
LOOKED_AT, PIXELS = 16, 1024  # images, and pixels of each, whose numbers are looked at
BATCH = 32


def add_chip_options(parser: argparse.ArgumentParser) -> None:
    """The options for networks that label whole images."""
    add = parser.add_argument_group("labels of whole images").add_argument
    add("--images", action="append", default=[], metavar="PATH", help="folder of images, also in folders below, or "
        "one image; a row each in the table --out: file, label (several with ; between them), p_CLASS")  # fmt: skip
    add("--footprints", metavar="FILE", help="also a .geojson with the footprint of each image that says where it "
        "lies, its labels and probabilities")  # fmt: skip


def refuse_chip_options(options: argparse.Namespace) -> None:
    """Refuse these options for networks that map scenes.

    Raises:
        InputError: one is given.
    """
    if options.images or options.footprints:
        name = "images" if options.images else "footprints"
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
    if labeller.beside is not None:
        raise InputError(
            f"the network in {folder} takes two images of every patch, --images are one; train one on data.image alone, or have new "
            f"patches scored as data.test of finetune/{labeller.task}.py"
        )
    chips, skipped = _open(options.images, labeller)
    if not options.force:
        _refuse_strange(chips, labeller)

    def say(name: str, error: InputError) -> None:
        skipped.append(Skipped(name, str(error)))

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
                numbers, header = chips.read(number)
                if numbers.isnan().any(dim=0).all():
                    raise InputError("no pixel has a value in every band; take it out")
            except InputError as error:
                on_broken(chips.keys[number], error)
                continue
            images.append(fitted(chips.source.standardise(numbers), size, size, labeller.network.config.fit))
            told.append((chips.keys[number], header))
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


def _open(paths: list[Path], labeller: Labeller) -> tuple[Chips, list[Skipped]]:
    chips, skipped = [], []
    for path in paths:
        images, left_out = list_images(path, labeller.image.source)
        above = path if len(paths) > 1 and path.is_dir() else Path()
        chips += [Chip((above / image.name).as_posix(), image.files) for image in images]
        skipped += left_out
    if not chips:
        raise InputError(
            f"{', '.join(map(str, paths))}: no images" + "".join(f"; {line}" for line in summarise(skipped)[:1])
        )
    return Chips("images", chips, labeller.classes, labeller.image.described), skipped


def _refuse_strange(chips: Chips, labeller: Labeller) -> None:
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
        refuse_strange(torch.cat(seen, dim=1)[..., None].double(), labeller.image, IMAGE, first)
