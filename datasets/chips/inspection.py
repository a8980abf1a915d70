"""What a set of images with labels holds, before anything is trained on it."""

from collections import Counter
from pathlib import Path

from alliance.errors import InputError
from datasets.chips.chip import Chip, ChipSet
from datasets.chips.files import ImageFiles, describe_image
from datasets.chips.labels import find_chips
from datasets.imagery.images import ImageSource
from datasets.imagery.scenes import Scene, summarise


def folders_of_classes(path: Path) -> ChipSet | None:
    """The set whose classes are the folders that images lie in; None: a folder does not hold two of them at least."""
    if not path.is_dir():
        return None
    described = ChipSet(path=str(path), image=ImageSource())
    try:
        found = find_chips(described, several=False)
    except InputError:
        return None
    counts = Counter(label for chip in found.chips for label in chip.labels)
    return described if len(counts) > 1 and min(counts.values()) > 1 else None


def describe_chips(described: ChipSet) -> tuple[Scene, list[str]]:
    """The header of the first image that can be read; images, and those of every class, of each split.

    Raises:
        InputError: the set cannot be found or understood, or no image can be read.
    """
    found = find_chips(described, several=True)
    lines = [f"{described.path or described.set}: images with labels, told by {described.labels}"]
    if described.labels == "folders":
        lines.append("  if its folders are no classes, give one of them, or the whole with --sensor NAME")
    lines += [f"  {note}" for note in found.notes]
    lines += [f"  left out  {line}" for line in summarise(found.skipped)]
    splits = list(dict.fromkeys(chip.split or "" for chip in found.chips))
    for split in splits:
        own = [chip for chip in found.chips if (chip.split or "") == split]
        counts = Counter(label for chip in own for label in chip.labels)
        several = sum(len(chip.labels) > 1 for chip in own)
        told = f", {several} with several labels" if several else ""
        lines.append(f"{f'split {split}' if split else 'no split is given'}: {len(own)} images{told}")
        lines += [
            f"  {name[:23]:<24}{counts[name]:>13} images, {counts[name] / len(own):.2%}" for name in found.classes
        ]
    return _first(found.chips, found.source), lines


def _first(chips: list[Chip], source: ImageSource) -> Scene:
    refused: list[InputError] = []
    for chip in chips[:100]:
        try:
            return describe_image(ImageFiles(chip.name, chip.files), source)
        except InputError as error:
            refused.append(error)
    raise refused[0]
