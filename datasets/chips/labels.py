"""The chips of a set, with the labels that folders, tables, files beside them, or label maps give them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from alliance.errors import InputError
from datasets.chips.chip import SPLITS, Chip, ChipSet, Found, split_name
from datasets.chips.files import ImageFiles, list_images
from datasets.chips.patches import find_patches, read_metadata, with_partners
from datasets.chips.tables import find_table, read_rows
from datasets.imagery.labels import read_label
from datasets.imagery.scenes import Box, Skipped
from datasets.labelled.checks import check_masks
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Cut, Tiles

Labelled = tuple[list[Chip], list[Skipped]]


def find_chips(described: ChipSet, *, several: bool) -> Found:
    """All chips of a set.

    Args:
        several: whether a chip may have several labels, or none.
    Raises:
        InputError: a folder or file is not there or cannot be understood, there are no chips, or their labels are not
            what the set or the task says.
    """
    find = {"folders": _from_folders, "table": _from_table, "bigearthnet": _from_patches, "masks": _from_masks}
    chips, skipped = find[described.labels](described)
    known = find_set(described.set, described.path or None) if described.set else None
    if not chips:
        first = f"; the first file, {skipped[0].file}: {skipped[0].reason}" if skipped else ""
        raise InputError(f"{_place(described)}: no image with a label{first}; check data.path and data.labels")
    chips = [chip._replace(labels=_merged(chip.labels, described.merge)) for chip in chips]
    chips, notes = _without_label(chips, described, several=several)
    own = (
        _merged(list(known.classes), described.merge)
        if known
        else sorted({name for chip in chips for name in chip.labels})
    )
    classes = described.classes or tuple(own)
    _check_labels(chips, classes, described, several=several)
    if described.lists:
        chips, told = _listed(chips, described)
        notes += told
    source = known.image(described.role or next(iter(known.images))) if known else described.image
    return Found(chips, classes, source, skipped, notes)


def _from_folders(described: ChipSet) -> Labelled:
    """Images by the folder that they lie in; the folder above, where there are several, is the split."""
    root = Path(described.path)
    images, skipped = list_images(root, described.image)
    parts = {image.name: PurePosixPath(image.name).parts for image in images}
    loose = [name for name, each in parts.items() if len(each) < 2]
    skipped += [Skipped(name, "lies in no folder of a class") for name in loose]
    above = {name: each[:-2] for name, each in parts.items() if len(each) > 1}
    common = len(_common(above.values()))
    odd = [name for name, each in above.items() if len(each) > common + 1]
    odd += [name for name, each in above.items() if len(each) == common + 1 and each[-1].lower() not in SPLITS]
    mixed = {len(each) for each in above.values()}
    if odd or len(mixed) > 1:
        name = (odd or list(above))[0]
        raise InputError(
            f"{root}: {name} does not lie in CLASS/FILE, nor in train|val|test/CLASS/FILE, as others do; give the folder that "
            f"holds the classes as data.path, or a table with data.labels table"
        )
    chips = []
    for image in images:
        if image.name in above:
            split = SPLITS[above[image.name][-1].lower()] if len(above[image.name]) > common else None
            chips.append(Chip(image.name, image.files, (parts[image.name][-2],), split))
    return chips, skipped


def _common(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Folders that all paths begin with, but for the split."""
    first, *others = list(paths) or [()]
    length = 0
    while length < len(first) and all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[: length - 1] if length and first[length - 1].lower() in SPLITS else first[:length]


def _from_table(described: ChipSet) -> Labelled:
    root = Path(described.path)
    table = find_table(root, described.table)
    rows = read_rows(table, described.columns, described.classes, described.cover)
    images, skipped = list_images(root, described.image)
    places = _by_names(images)
    taken: dict[str, Chip] = {}
    for row in rows:
        image = _named(places, row.file)
        if image is None:
            skipped.append(Skipped(row.file, f"no image of this name below {root}, or several"))
            continue
        chip = Chip(image.name, image.files, row.labels, split_name(row.split) if row.split else None)
        if taken.setdefault(image.name, chip) != chip:
            raise InputError(
                f"{table}: {image.name} stands there twice, with different labels or splits; keep one line"
            )
    return list(taken.values()), skipped


def _from_patches(described: ChipSet) -> Labelled:
    patches, skipped = find_patches(Path(described.path), described.image)
    chips = [Chip(image.name, image.files, read_metadata(file, "labels", list[str])) for image, file in patches]
    if described.beside is None:
        return chips, skipped
    paired, lost = with_partners(chips, [Path(described.beside_path)], described.beside)
    return paired, skipped + lost


def _from_masks(described: ChipSet) -> Labelled:
    """Windows of images with a label map: the classes that cover enough of each."""
    known = find_set(described.set, described.path or None)
    names, cut = list(known.classes), Cut(described.window) if described.window else None
    chips, skipped, read, indices = [], [], list[Tiles](), set[int]()
    for split in known.splits:
        tiles = Tiles(known, split, cut=cut)
        read.append(tiles)
        skipped += tiles.skipped
        windows: dict[str, list[int]] = defaultdict(list)
        for number, files in enumerate(tiles.files):
            windows[files.key].append(number)
        role = described.role or next(iter(known.images))
        for key, numbers in windows.items():
            files = tiles.files[numbers[0]]
            try:
                label = read_label(files.label, known.label, known.classes, colours=known.coloured).indices
            except InputError as error:
                skipped.append(Skipped(key, str(error)))
                continue
            indices.update(np.unique(label).tolist())
            for number in numbers:
                box = tiles.boxes[number]
                inside = label[_span(box)] if box else label
                share = np.bincount(inside.ravel(), minlength=len(names))[: len(names)] / inside.size
                labels = tuple(name for name, part in zip(names, share, strict=True) if part >= described.cover)
                chips.append(Chip(tiles.keys[number], (files.paths[role],), labels, split_name(split), box))
    check_masks(known, read, indices)
    return chips, skipped


def _span(box: Box) -> tuple[slice, slice]:
    return slice(box.row, box.row + box.height), slice(box.col, box.col + box.width)


def _place(described: ChipSet) -> str:
    return described.path or described.set


def _merged(labels: Sequence[str], merge: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for label in labels if (name := merge.get(label, label))))


def _without_label(chips: list[Chip], described: ChipSet, *, several: bool) -> tuple[list[Chip], list[str]]:
    """Leave out chips without a label, where such a one says nothing."""
    bare = [chip for chip in chips if not chip.labels]
    if not bare or (several and described.unlabelled == "keep"):
        return chips, [
            f"{len(bare)} of {len(chips)} images have no label, which counts as none of the classes"
        ] if bare else []
    left = [chip for chip in chips if chip.labels]
    if not left:
        raise InputError(
            f"{_place(described)}: none of {len(chips)} images has a label; check data.merge and data.cover"
        )
    return left, [f"{len(bare)} of {len(chips)} images have no label and are left out, such as {bare[0].name}"]


def _check_labels(chips: Sequence[Chip], classes: Sequence[str], described: ChipSet, *, several: bool) -> None:
    """Refuse labels that are no class, or too many of them."""
    place = _place(described)
    unknown = Counter(name for chip in chips for name in chip.labels if name not in classes)
    if unknown:
        name, count = unknown.most_common(1)[0]
        raise InputError(
            f"{place}: {count} images are labelled {name!r}, which is none of data.classes ({', '.join(classes)}); add it there, "
            f"or leave it out with data.merge '{{{name}: \"\"}}'"
        )
    many = next((chip for chip in chips if len(chip.labels) > 1), None)
    if many and not several:
        raise InputError(
            f"{place}: {many.name} has the labels {', '.join(many.labels)}; a scene has one: train several with "
            f"finetune/multilabel.py, or join classes with data.merge"
        )
    if len(classes) < (1 if several else 2):
        raise InputError(f"{place}: there is the class {classes[0]!r} alone; give images of others too")


def _listed(chips: Sequence[Chip], described: ChipSet) -> tuple[list[Chip], list[str]]:
    """Chips with the split of the list that names them."""
    root, places = Path(described.path), _by_names([ImageFiles(chip.name, chip.files) for chip in chips])
    of: dict[str, str] = {}
    lost: list[str] = []
    for split, file in described.lists.items():
        try:
            lines = (root / file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{root / file}: this list of a split cannot be read ({error}); mend data.lists"
            ) from error
        for line in filter(None, map(str.strip, lines)):
            image = next((found for word in line.split(",") if (found := _named(places, word.strip()))), None)
            if image is None:
                lost.append(line)
            elif of.setdefault(image.name, split_name(split)) != split_name(split):
                raise InputError(
                    f"{image.name} stands in the lists of {of[image.name]} and of {split}; take it out of one"
                )
    kept = [chip._replace(split=of[chip.name]) for chip in chips if chip.name in of]
    if not kept:
        raise InputError(f"no image below {root} is named in {', '.join(described.lists.values())}, such as {lost[:1]}")
    notes = [f"{len(chips) - len(kept)} images stand in no list and are left out"] if len(kept) < len(chips) else []
    return kept, notes + ([f"{len(lost)} names of lists are of no image, such as {lost[0]}"] if lost else [])


def _by_names(images: Iterable[ImageFiles]) -> dict[str, ImageFiles | None]:
    """Images by all names that a list may give them: with folders or without, with a suffix or without; None: of several."""
    places: dict[str, ImageFiles | None] = {}
    for image in images:
        path = PurePosixPath(image.name)
        suffix = path.suffix if len(image.files) == 1 else ""
        for name in {image.name, image.name.removesuffix(suffix), path.name, path.name.removesuffix(suffix)}:
            places[name] = image if places.get(name, image) == image else None
    return places


def _named(places: Mapping[str, ImageFiles | None], text: str) -> ImageFiles | None:
    """The image of a name; folders of another machine do not matter."""
    name = text.replace("\\", "/").removeprefix("./")
    for each in (name, PurePosixPath(name).name):
        if each in places:
            return places[each]
    return None
