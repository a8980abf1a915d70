"""The data of a task that labels whole images: chips of every split, of those to learn from perhaps a few."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alliance.checkpoint import load_encoder
from alliance.errors import InputError
from alliance.model import model_config
from datasets.chips.chip import Chip, Found, split_name
from datasets.chips.files import ImageFiles, describe_image
from datasets.chips.labels import find_chips
from datasets.chips.reading import Chips, fitting_size, with_statistics
from datasets.chips.splits import choose_few, draw_splits, given_splits, refuse_shared, shared_chips
from datasets.contents import digest_files
from datasets.imagery.images import ImageSource
from engine.log import logger
from engine.loop import digest
from engine.runs import write_whole
from finetune.chips.model import BESIDE, IMAGE
from finetune.tasks.chips_config import ChipDataConfig, ChipTaskConfig

LOOKED_AT = 3  # images of every split that are read before the first step


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The chips of a run by split: first those to learn from, then those that are scored."""

    found: Found
    chips: Mapping[str, Chips]
    drawn: bool  # whether the splits were drawn, not given

    @property
    def train(self) -> Chips:
        """Those to learn from."""
        return next(iter(self.chips.values()))

    @property
    def scored(self) -> list[str]:
        """Names of the splits that are scored: the one that decides, and perhaps one more."""
        return list(self.chips)[1:]


def open_parts(
    data: ChipDataConfig,
    *,
    several: bool,
    seed: int,
    settle: Callable[[Mapping[str, ImageSource]], Mapping[str, ImageSource]] | None = None,
) -> Parts:
    """Find the chips of a run and read a few of each split.

    Args:
        several: whether an image may have several labels, or none.
        seed: of the run, for the choice of few.
        settle: gives the images, by the network's names, means and deviations; those without are measured if they say so.
    Raises:
        InputError: they cannot be found, understood or read, a split is missing, or test images also serve for training.
    """
    found = find_chips(data, several=several)
    parts = given_splits(found.chips)
    lost = len(found.chips) - sum(map(len, parts.values()))
    if parts and lost:
        logger.warning("%d of %d images are of no split and left out", lost, len(found.chips))
    drawn = not parts
    parts = parts or draw_splits(found.chips, data.split, data.split_seed)
    names = _names(data, parts)
    if data.overlap == "refuse" and not drawn:
        refuse_shared(parts, names[0], names[1:])
    elif data.overlap == "count":
        for name in names[1:]:
            shared = len(shared_chips(parts[names[0]], parts[name]))
            logger.info("%d of %d images of %s also stand in %s", shared, len(parts[name]), name, names[0])
    few = choose_few(parts[names[0]], seed, per_class=data.per_class, share=data.share)
    images = {IMAGE: found.source} | ({BESIDE: data.beside} if data.beside else {})
    sources = measured(dict(settle(images) if settle else images), names[0], few, found.classes)
    chosen = {name: few if name == names[0] else parts[name] for name in names}
    chips = {name: Chips(name, own, found.classes, *sources) for name, own in chosen.items()}
    for each in chips.values():
        _look_at(each)
    return Parts(found=found, chips=chips, drawn=drawn)


def measured(
    images: Mapping[str, ImageSource], part: str, chips: Sequence[Chip], classes: Sequence[str]
) -> list[ImageSource]:
    """The images with the means and deviations of these chips, where they have none."""
    ready = Chips(part, chips, classes, *images.values())
    return [
        with_statistics(source, each)
        for source, each in zip(images.values(), (ready, ready.second), strict=False)
        if each is not None
    ]


def contents_of(parts: Parts, data: ChipDataConfig) -> dict[str, str]:
    """One checksum of the files of every split; none where their bytes are not to be looked at."""
    if data.overlap == "ignore":
        return {}
    return {name: chip_contents(part.chips) for name, part in parts.chips.items()}


def chip_contents(chips: Sequence[Chip]) -> str:
    """One checksum of the files of chips."""
    files = {f"{chip.name}/{at}": file for chip in chips for at, file in enumerate((*chip.files, *chip.beside))}
    return digest_files(files)


def chip_labels(chips: Sequence[Chip]) -> str:
    """One checksum of the names of chips and of their labels."""
    return digest([f"{chip.name}: {';'.join(chip.labels)}" for chip in chips])


def usual_size(chips: Chips, config: ChipTaskConfig) -> int:
    """The multiple of the encoder's patch that fits the first image that can be read, see `fitting_size`."""
    encoder = config.model.encoder
    patch = (
        load_encoder(config.checkpoint).patch_size if config.checkpoint else model_config(encoder.model).encoder.patch
    )
    return fitting_size(*_sides(chips), patch, config.model.fit)


def write_splits(path: Path, chips: Mapping[str, Chips]) -> None:
    """Write a table of all images that a run uses: file, split, label; `data.labels table` reads it again."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "split", "label"))
    for name, part in chips.items():
        writer.writerows((chip.name, name, ";".join(chip.labels)) for chip in part.chips)
    write_whole(path, text.getvalue())


def _names(data: ChipDataConfig, parts: Mapping[str, list[Chip]]) -> list[str]:
    """Names of the splits to learn from, to choose on, and perhaps to score once more.

    Raises:
        InputError: one is not there, or nothing is left to score.
    """
    wanted = [split_name(name) for name in (data.train, data.evaluate, data.test) if name]
    missing = next((name for name in wanted if name not in parts), None)
    if missing:
        held = ", ".join(f"{name} ({len(own)})" for name, own in parts.items())
        raise InputError(
            f"there are no images of split {missing}, but of {held}; mend data.train, .evaluate, .test or .split"
        )
    train = split_name(data.train)
    others = [name for name in ("validation", "test") if name in parts and name != train]
    evaluate = split_name(data.evaluate) if data.evaluate else (others or [""])[0]
    if not evaluate:
        raise InputError(
            f"all images are of split {', '.join(parts)}; give others to score: a folder or a row of split test, or a share of "
            f"data.split"
        )
    test = split_name(data.test) if data.test else "test" if "test" in others else ""
    names = [train, evaluate, *([test] if test and test != evaluate else [])]
    if len(set(names)) < len(names):
        raise InputError(
            f"data.train is {train}, scored are {' and '.join(names[1:])}; score images that are not learnt from"
        )
    return names


def _look_at(chips: Chips) -> None:
    """Read a few images: mistakes of the description show at the start; single damaged files do not stop a run.

    Raises:
        InputError: none of them can be read.
    """
    chosen = sorted({number * (len(chips) - 1) // (LOOKED_AT - 1) for number in range(LOOKED_AT)})
    refused = []
    for number in chosen:
        try:
            chips.images(number)
        except InputError as error:
            refused.append(error)
    if len(refused) == len(chosen):
        raise refused[0]


def _sides(chips: Chips) -> tuple[int, int]:
    refused: list[InputError] = []
    for chip in chips.chips[:100]:
        if chip.parts:
            return chip.parts.height, chip.parts.width
        try:
            _, height, width = describe_image(ImageFiles(chip.name, chip.files), chips.source).shape
            return height, width
        except InputError as error:
            refused.append(error)
    raise refused[0]
