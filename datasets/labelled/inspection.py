"""What a set of labelled images holds, before anything is trained on it: its images, classes and splits."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.imagery.images import describe
from datasets.imagery.labels import IGNORE
from datasets.imagery.scenes import Scene, Skipped, summarise
from datasets.labelled.checks import check_masks
from datasets.labelled.description import LABEL, LabelledSet
from datasets.labelled.find import find_scenes
from datasets.labelled.scenes import LabelledScene, read_scenes
from datasets.labelled.stored_patches import KEYS, read_arrays
from datasets.labelled.tiles import Tiles


def set_images(described: LabelledSet) -> dict[str, Scene]:
    """The header of one image of every role; of ready patches there is none.

    Raises:
        InputError: files are missing or cannot be read.
    """
    if described.patches:
        return {}
    if described.layouts:
        layout = find_scenes(described)[0][1]
        places = layout.sources()
        found = {role: (described.root / places[role][0], places[role][1]) for role in layout.images}
    else:
        first = next(tiles for tiles in splits_there(described).values() if isinstance(tiles, Tiles)).files[0].paths
        found = {role: (path, None) for role, path in first.items() if role != LABEL}
    return {
        role: describe(path, key, bands=described.image(role).count, axes=described.image(role).axes)
        for role, (path, key) in found.items()
    }


def describe_set(described: LabelledSet) -> list[str]:
    """Samples, and pixels of every class, of each split.

    Raises:
        InputError: files are missing or contradict the description.
    """
    if described.patches:
        return _patches(described)
    if described.layouts:
        return [line for scene in read_scenes(described) for line in _scene(scene)]
    lines, indices, found = list[str](), set[int](), splits_there(described)
    for split, tiles in found.items():
        if isinstance(tiles, InputError):
            lines.append(f"split {split}: not there: {tiles}")
            continue
        counts, told = _split(described, tiles)
        indices.update(np.flatnonzero(counts).tolist())
        lines += told
    try:
        check_masks(described, [tiles for tiles in found.values() if isinstance(tiles, Tiles)], indices)
    except InputError as error:
        lines.append(f"to be settled: {error}")
    return lines


def splits_there(described: LabelledSet) -> dict[str, Tiles | InputError]:
    """The tiles of every split, or why there are none.

    Raises:
        InputError: no split is there.
    """
    found: dict[str, Tiles | InputError] = {}
    for split in described.splits:
        try:
            found[split] = Tiles(described, split)
        except InputError as error:
            found[split] = error
    errors = [each for each in found.values() if isinstance(each, InputError)]
    if len(errors) == len(found):
        raise errors[0]
    return found


def _split(described: LabelledSet, tiles: Tiles) -> tuple[NDArray[np.int64], list[str]]:
    """Pixels of every class index, and what there is to say."""
    counts, skipped = np.zeros(IGNORE + 1, dtype=np.int64), list(tiles.skipped)
    for index, key in enumerate(tiles.keys):
        try:
            counts += np.bincount(tiles.label(index).ravel(), minlength=len(counts))
        except InputError as error:
            skipped.append(Skipped(key, str(error)))
    lines = [f"split {tiles.split}: {len(tiles)} samples, {len(skipped)} left out"]
    lines += [f"  left out  {line}" for line in summarise(skipped)]
    lines += _classes(dict(zip(described.classes, counts.tolist(), strict=False)))
    return counts, [*lines, f"  {'(no label)':<24}{counts[IGNORE]:>13} pixels"]


def _scene(scene: LabelledScene) -> Iterator[str]:
    height, width = scene.labels.shape
    yield f"scene {scene.name}: {height} x {width} px, {len(scene.passive)} and {len(scene.active)} bands"
    if lost := sum(scene.dropped.values()):
        yield f"  {lost} labelled pixels lie where a value is missing, and are left out"
    masks = {"train": scene.train, "test": scene.test}
    parts = {"labels": scene.labels} | {
        role: np.where(mask, scene.labels, 0) for role, mask in masks.items() if mask is not None
    }
    for role, labels in parts.items():
        yield f"  {role}: {(labels > 0).sum()} labelled pixels"
        yield from _classes(_counted(labels, scene.classes))


def _patches(described: LabelledSet) -> list[str]:
    file = described.root / described.patches if described.root.is_dir() else described.root
    arrays = read_arrays(file, KEYS)
    lines = [f"{file}: {len(arrays['label'])} labelled pixels in {len(np.unique(arrays['block']))} blocks"]
    for name in ("spectra", "lidar_patch"):
        values = arrays[name]
        missing = ~np.isfinite(values)
        known = values[~missing]
        ends = f"{known.min():.6g} to {known.max():.6g}, median {np.median(known):.6g}" if known.size else "no value"
        lines.append(f"  {name:<12}{values.shape} {values.dtype}, {ends}, {missing.mean():.1%} missing")
    return [*lines, *_classes(_counted(arrays["label"], tuple(described.classes)))]


def _counted(labels: NDArray, classes: tuple[str, ...]) -> dict[str, int]:
    """Pixels by class, of numbers from 1 on."""
    numbers, counts = np.unique(labels[labels > 0].astype(np.int64), return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    names = {number: classes[number - 1] if number <= len(classes) else f"class {number}" for number in found}
    return dict.fromkeys(classes, 0) | {names[number]: count for number, count in found.items()}


def _classes(counts: Mapping[str, int]) -> Iterator[str]:
    total = max(sum(counts.values()), 1)
    for name, count in counts.items():
        yield f"  {name[:23]:<24}{count:>13} pixels, {count / total:.2%}"
