"""Which bands of a scene are used: bad ones, empty ones and those that the user drops are left out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from alliance.errors import InputError
from alliance.sensors.catalog import BESIDE
from alliance.sensors.sensor import plain_name
from datasets.imagery.scenes import Scene, Unreadable

SIDE = 512  # pixels: windows in which a value is looked for
NOTHING = "none"  # for --drop: keep also what is bad or empty


def dropped_bands(text: str | None, scene: Scene) -> set[int]:
    """Places of the bands that `--drop` names: numbers from 1, ranges of them, or names.

    Raises:
        InputError: the scene has no such band.
    """
    dropped: set[int] = set()
    for word in (text or "").replace(",", " ").split():
        named = [place for place, name in enumerate(scene.band_names or ()) if name.lower() == word.lower()]
        span = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if named:
            dropped.update(named)
        elif span and 1 <= int(span[1]) <= int(span[2] or span[1]) <= scene.shape[0]:
            dropped.update(range(int(span[1]) - 1, int(span[2] or span[1])))
        elif word != NOTHING:
            raise InputError(f"has no band {word} to drop; give numbers from 1 to {scene.shape[0]}, ranges, or names")
    return dropped


def bad_bands(scene: Scene) -> set[int]:
    """Places of the bands that the scene's maker calls bad."""
    return {place for place, good in enumerate(scene.good) if not good}


def empty_bands(scene: Scene, among: Sequence[int], nodata: float | None = None) -> set[int]:
    """Those of some bands without any value: nodata, masked or NaN everywhere. Reads until each has shown one.

    Args:
        nodata: a stored value that is missing whatever the file says.
    Raises:
        Unreadable: a window cannot be read.
    """
    if not scene.marks_missing and nodata is None and np.dtype(scene.dtype).kind != "f":
        return set()
    empty = list(among)
    for window in _windows(scene.shape):
        if not empty:
            break
        with scene.open(empty) as read:
            stored, missing = read(*window)
        absent: np.ndarray = np.isnan(stored)
        if nodata is not None:
            absent |= stored == nodata
        if missing is not None:
            absent |= missing
        empty = [band for band, gone in zip(empty, np.all(absent, axis=(1, 2)).tolist(), strict=True) if gone]
    return set(empty)


def _windows(shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of windows that cover an image, the middle first."""
    _, height, width = shape
    yield height // 2, width // 2, min(SIDE // 8, height - height // 2), min(SIDE // 8, width - width // 2)
    for row in range(0, height, SIDE):
        for col in range(0, width, SIDE):
            yield row, col, min(SIDE, height - row), min(SIDE, width - col)


def choices(scene: Scene, wanted: int, drop: str | None) -> Iterator[tuple[int, ...]]:
    """Ways to choose a scene's bands for a sensor of so many: all but the dropped ones, the good ones, those with values.

    Raises:
        InputError: a band to drop is not there.
    """
    kept = [place for place in range(scene.shape[0]) if place not in dropped_bands(drop, scene)]
    yield tuple(kept)
    if scene.band_names is not None or len(kept) <= wanted or drop == NOTHING:
        return
    good = [place for place in kept if place not in bad_bands(scene)]
    if len(good) == wanted:
        yield tuple(good)
    try:
        filled = [place for place in kept if place not in empty_bands(scene, kept)]
    except Unreadable:
        return
    if len(filled) == wanted:
        yield tuple(filled)


def unasked_bands(scene: Scene, used: Sequence[int], drop: str | None) -> list[str]:
    """Names of a scene's measurements that are not used although nobody dropped them; quality, masks, angles are none."""
    left = set(range(len(scene.band_names or ()))) - set(used) - dropped_bands(drop, scene)
    names = [(scene.band_names or ())[place] for place in sorted(left)]
    return [name for name in names if not BESIDE.search(plain_name(name))]


def common_choice(scenes: Sequence[Scene], drop: str | None, nodata: float | None) -> tuple[tuple[int, ...], list[str]]:
    """Bands of cubes of one kind that are used, and in words which are not and why.

    Raises:
        InputError: a band to drop is not there, or none is left.
    """
    first = scenes[0]
    dropped = dropped_bands(drop, first)
    bad: set[int] = set()
    empty: set[int] = set()
    if drop != NOTHING:
        bad = set().union(*map(bad_bands, scenes)) - dropped
        empty = set(range(first.shape[0])) - dropped - bad
        for scene in scenes:
            with suppress(Unreadable):  # cutting names the damaged file
                empty = empty_bands(scene, sorted(empty), nodata) if empty else empty
    kept = tuple(place for place in range(first.shape[0]) if place not in dropped | bad | empty)
    if not kept:
        raise InputError(
            f"{first.sources[0]}: no band is left: {len(bad)} bad, {len(empty)} empty, {len(dropped)} dropped; "
            f"--drop {NOTHING} keeps all"
        )
    keeps = f"; --drop {NOTHING} keeps them"
    reasons = (
        (dropped, "dropped as asked", ""),
        (bad, "called bad in the file", keeps),
        (empty, "without any value", keeps),
    )
    notes = [
        f"left out {len(places)} of {first.shape[0]} bands, {why}: {_spans(places)}{mend}"
        for places, why, mend in reasons
        if places
    ]
    return kept, notes


def _spans(places: set[int]) -> str:
    """Numbers from 1, such as "3-5, 9"."""
    spans: list[list[int]] = []
    for place in sorted(places):
        if spans and place == spans[-1][1] + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return ", ".join(f"{start + 1}" if start == stop else f"{start + 1}-{stop + 1}" for start, stop in spans)
