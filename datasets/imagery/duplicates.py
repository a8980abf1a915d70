"""Scenes whose pixels are read already: mosaics of files that are given too, previews, copies."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from datasets.imagery.scenes import Scene, Skipped, Unreadable
from datasets.imagery.vrt import vrt_files
from datasets.storage.standins import open_bytes, size_of

PICTURES = (".jpg", ".jpeg", ".png")
IMAGES = (".tif", ".tiff", ".jp2", ".img", ".vrt")
SAMPLE = 4096  # bytes at the start, in the middle and at the end, compared before files are read whole
CHUNK = 1 << 20
ROWS = 256  # compared at a time, where the bytes of two formats differ


def find_repeats(scenes: Sequence[Scene]) -> dict[int, Skipped]:
    """Which of some scenes (by place) are mosaics, previews or other formats of others, and of which."""
    found: dict[int, Skipped] = {}
    for look in (_mosaics, _previews, _formats):
        left = [index for index in range(len(scenes)) if index not in found]
        found |= {left[index]: entry for index, entry in look([scenes[index] for index in left]).items()}
    return found


class OfFiles(Protocol):
    """What is made of files, or of `parts` of them."""

    @property
    def files(self) -> tuple[Path, ...]: ...


def find_copies(groups: Sequence[Sequence[OfFiles]]) -> dict[int, int]:
    """Which of some groups of scenes or chips (by place) hold the same bytes as another one, all of them: the first stays."""
    found: dict[int, int] = {}
    sizes = [[size_of(file) for scene in group for file in scene.files] for group in groups]
    for alike in _alike(range(len(groups)), [str(size) for size in sizes]):
        for likely in _alike(alike, [_digest(groups[index], whole=False) for index in alike]):
            for first, *copies in _alike(likely, [_digest(groups[index], whole=True) for index in likely]):
                found |= dict.fromkeys(copies, first)
    return found


def _mosaics(scenes: Sequence[Scene]) -> dict[int, Skipped]:
    """Virtual rasters over files that are scenes themselves."""
    virtual = [index for index, scene in enumerate(scenes) if _is(scene, (".vrt",))]
    if not virtual:
        return {}
    real = {
        file.resolve(): source
        for index, scene in enumerate(scenes)
        if index not in virtual
        for file, source in zip(scene.files, scene.sources, strict=True)
    }
    found = {}
    for index in virtual:
        try:
            read = vrt_files(scenes[index].files[0], scenes[index].root)
        except Unreadable:  # changed since it was described; cutting says so
            continue
        if shared := [real[file] for file in read if file in real]:
            names = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
            found[index] = Skipped(
                scenes[index].sources[0], f"its pixels are those of {names}, which are read themselves"
            )
    return found


def _previews(scenes: Sequence[Scene]) -> dict[int, Skipped]:
    """Pictures beside an image of the same name and size."""
    images = {_key(scene): scene for scene in scenes if _is(scene, IMAGES)}
    return {
        index: Skipped(scene.sources[0], f"a picture of {images[_key(scene)].sources[0]}, which is read itself")
        for index, scene in enumerate(scenes)
        if _is(scene, PICTURES) and _key(scene) in images
    }


def _formats(scenes: Sequence[Scene]) -> dict[int, Skipped]:
    """Files of the same name but for the suffix, and of the same numbers: a raster stays before an array."""
    order = sorted(range(len(scenes)), key=lambda index: not _is(scenes[index], IMAGES))
    single = [index for index in order if len(scenes[index].files) == 1]
    found: dict[int, Skipped] = {}
    for first, *others in _alike(single, [(_key(scenes[index]), scenes[index].shape[0]) for index in single]):
        kept = scenes[first]
        for index in others:
            if kept.files[0] != scenes[index].files[0] and _same_pixels(kept, scenes[index]):
                found[index] = Skipped(
                    scenes[index].sources[0], f"the same pixels as {kept.sources[0]}, which is read itself"
                )
    return found


def _same_pixels(first: Scene, second: Scene) -> bool:
    """Whether two images of one size hold the same stored numbers; bands of the same names are compared."""
    count, height, width = first.shape
    ours, theirs = first.band_names or (), second.band_names or ()
    bands = [theirs.index(name) for name in ours] if ours and sorted(ours) == sorted(theirs) else list(range(count))
    try:
        with first.open(range(count)) as read, second.open(bands) as other:
            for row in range(0, height, ROWS):
                window = (row, 0, min(ROWS, height - row), width)
                if not np.array_equal(read(*window).stored, other(*window).stored):
                    return False
    except Unreadable:  # cutting says so
        return False
    return True


def _alike(members: Iterable[int], keys: Sequence[Hashable]) -> Iterator[list[int]]:
    """Members with the same key, where there are several."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for member, key in zip(members, keys, strict=True):
        by_key[key].append(member)
    return (group for group in by_key.values() if len(group) > 1)


def _digest(group: Sequence[OfFiles], *, whole: bool) -> bytes:
    """Of the files' bytes, or of some of them, and of what is taken from the files."""
    digest = hashlib.blake2b(repr([getattr(scene, "parts", None) for scene in group]).encode())
    for path in (file for scene in group for file in scene.files):
        with open_bytes(path) as file:
            if whole:
                while block := file.read(CHUNK):
                    digest.update(block)
                continue
            size = size_of(path)
            for place in (0, size // 2, max(size - SAMPLE, 0)):
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.digest()


def _is(scene: Scene, suffixes: Sequence[str]) -> bool:
    return len(scene.files) == 1 and scene.files[0].suffix.lower() in suffixes


def _key(scene: Scene) -> tuple[Path, tuple[int, ...]]:
    return scene.files[0].with_suffix(""), scene.shape[1:]
