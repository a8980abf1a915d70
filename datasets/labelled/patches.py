"""Patches around pixels, gathered from tables of pixels when they are asked for."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.labelled.normalise import Preprocessing
from datasets.labelled.scenes import LabelledScene
from datasets.sampling.splits import Indices


class Inputs(NamedTuple):
    """What a network sees of n pixels: float32, standardised; an image that is not there has no channels."""

    spectral: Tensor  # (n, bands, patch, patch), all bands of the passive image
    passive: Tensor  # (n, components, patch, patch), its principal components, or all bands if they are few
    active: Tensor  # (n, channels, patch, patch)


class Footprint(NamedTuple):
    """Which scene it is, and where it lies, as far as its files say."""

    name: str
    crs: str | None
    transform: tuple[float, ...] | None  # a b c d e f: x = a col + b row + c, y = d col + e row + f


class Grid(Protocol):
    """Which rows of a table lie around a place."""

    def __len__(self) -> int: ...  # places

    def around(self, place: Indices, patch: int) -> Indices: ...  # (n,) -> (n, patch, patch)


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelTables:
    """Images as tables of pixels, and which of their rows lie around a place. Nothing is copied but what is asked for."""

    spectral: Tensor  # (places, bands)
    passive: Tensor  # (places, components)
    active: Tensor  # (rows of active_grid, channels)
    grid: Grid
    active_grid: Grid
    patch: int  # side, odd

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the inputs."""
        return {role: getattr(self, role).shape[1] for role in Inputs._fields}

    def around(self, place: NDArray) -> Inputs:
        """Patches around any places (n,)."""
        _check_range(place, len(self.grid), "places")
        rows, active_rows = (torch.from_numpy(grid.around(place, self.patch)) for grid in (self.grid, self.active_grid))
        gathered = (self.spectral[rows], self.passive[rows], self.active[active_rows])
        return Inputs(*(rearrange(one, "n h w c -> n c h w").contiguous() for one in gathered))


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchSet(PixelTables):
    """Labelled pixels of one or several scenes.

    A place counts all pixels, row by row, scene after scene; `place` says where the m labelled ones are.
    """

    place: Indices  # (m,)
    label: Indices  # (m,), 0 .. k - 1, the k classes that occur
    numbers: tuple[int, ...]  # their k numbers in the files
    classes: tuple[str, ...]  # and names
    position: Indices  # (m, 2) row and column, (m, 3) with the number of the image if there are several
    block: Indices | None = None  # (m,) places that a split must not tear apart
    train: Indices | None = None  # official training pixels, as indices of labelled ones
    test: Indices | None = None
    footprints: tuple[Footprint, ...] = ()  # of whole scenes, in their order; empty for ready patches
    missing: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # places without a value in some band
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)  # that made the tables: passive, active
    sources: Mapping[str, ImageSource] = field(default_factory=dict)  # what the images are, as far as it is described
    dropped: Mapping[str, int] = field(default_factory=dict)  # class -> labelled pixels left out, as a value is missing
    excluded: "Excluded | None" = None  # pixels of classes that are not wanted; None: all classes are

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def digest(self) -> str:
        """One checksum of the images and of the labelled pixels."""
        found = hashlib.sha256()
        for table in (self.spectral, self.active):  # components follow from the bands
            found.update(table.contiguous().numpy().data)
        for numbers in (self.place, self.label, np.array(self.numbers)):
            found.update(np.ascontiguousarray(numbers).data)
        return found.hexdigest()[:32]

    def without(self, classes: Sequence[str | int]) -> "PatchSet":
        """The same images, where the pixels of some classes have no label.

        Args:
            classes: by name, or by their number in the files.
        Raises:
            InputError: there is no such class, or classes were left out before.
        """
        if self.excluded is not None:
            raise InputError(f"{', '.join(self.excluded.classes)} are left out already; name all classes at once")
        out = sorted({self._class(each) for each in classes})
        if not out:
            return self
        kept = ~np.isin(self.label, out)
        index = np.where(kept, np.cumsum(kept) - 1, -1)  # of every labelled pixel among those that stay
        official = {role: found if found is None else index[found][index[found] >= 0]
                    for role, found in (("train", self.train), ("test", self.test))}  # fmt: skip
        left = [number for number in range(len(self.classes)) if number not in out]
        return replace(
            self,
            place=self.place[kept],
            label=np.searchsorted(left, self.label[kept]),
            numbers=tuple(self.numbers[number] for number in left),
            classes=tuple(self.classes[number] for number in left),
            position=self.position[kept],
            block=None if self.block is None else self.block[kept],
            excluded=Excluded(
                {self.classes[number]: int((self.label == number).sum()) for number in out}, index, self.position[~kept]
            ),
            **official,
        )

    def _class(self, chosen: str | int) -> int:
        if str(chosen) in self.classes:
            return self.classes.index(str(chosen))
        if str(chosen).isdigit() and int(chosen) in self.numbers:
            return self.numbers.index(int(chosen))
        close = difflib.get_close_matches(str(chosen), self.classes, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{chosen!r} is no class with labelled pixels{hint}; there are {', '.join(self.classes)}")

    def batch(self, pixels: NDArray) -> tuple[Inputs, Tensor]:
        """Patches around labelled pixels (n,), and their labels (n,) int64."""
        _check_range(pixels, len(self), "labelled pixels")
        return self.around(self.place[pixels]), torch.from_numpy(self.label[pixels])


class Excluded(NamedTuple):
    """Labelled pixels that are left out with their classes."""

    classes: Mapping[str, int]  # name -> pixels
    kept: Indices  # index of every labelled pixel among those that stay, -1 where it is left out
    position: Indices  # of those that are, as in `PatchSet`


class SceneGrid:
    """Places of whole scenes; patches are mirrored at the edge, which is not repeated."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = np.array(shapes)  # (images, 2)
        self.first = np.append(0, self.shapes.prod(axis=1).cumsum())  # place of every image's first pixel

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, place: Indices) -> tuple[Indices, Indices, Indices]:
        """Image, row and column of places (n,)."""
        image = np.searchsorted(self.first, place, side="right") - 1
        row, col = np.divmod(place - self.first[image], self.shapes[image, 1])
        return image, row, col

    def around(self, place: Indices, patch: int) -> Indices:
        image, row, col = self.locate(place)
        reach = np.arange(patch) - patch // 2
        height, width = self.shapes[image].T[:, :, None]
        rows = _mirrored(row[:, None] + reach, height)
        cols = _mirrored(col[:, None] + reach, width)
        return (self.first[image, None] + rows * width)[:, :, None] + cols[:, None, :]


def scene_patches(
    scenes: Sequence[LabelledScene],
    *,
    patch: int = 7,
    components: int = 30,
    given: Mapping[str, Preprocessing] | None = None,
) -> PatchSet:
    """Patches of scenes with the same bands; statistics and principal components are those of all their pixels.

    Args:
        components: of the passive image at most; fewer bands than that are taken as they are.
        given: means and deviations, of passive and active, in place of those of the pixels.
    Raises:
        InputError: no scenes, other bands in one of them, or patches without a centre.
    """
    check_patch(patch)
    _check_bands(scenes)
    grid = SceneGrid([(scene.labels.shape[0], scene.labels.shape[1]) for scene in scenes])
    labels = _joined([scene.labels for scene in scenes])
    place = np.flatnonzero(labels)
    image, row, col = grid.locate(place)
    numbers, label = np.unique(labels[place], return_inverse=True)
    official = {}
    for role in ("train", "test"):
        masks = [mask for scene in scenes if (mask := getattr(scene, role)) is not None]
        official[role] = np.flatnonzero(_joined(masks)[place]) if len(masks) == len(scenes) else None
    return PatchSet(
        **prepared(
            [scene.passive for scene in scenes],
            [scene.active for scene in scenes],
            components,
            given,
        ),
        grid=grid,
        active_grid=grid,
        patch=patch,
        place=place,
        label=label,
        numbers=tuple(numbers.tolist()),
        classes=class_names(scenes[0].classes, numbers),
        position=np.column_stack([row, col, image] if len(scenes) > 1 else [row, col]),
        block=_blocks(scenes, place, image),
        footprints=tuple(Footprint(scene.name, scene.crs, scene.transform) for scene in scenes),
        missing=np.flatnonzero(_joined([_missing(scene) for scene in scenes])),
        dropped=_dropped(scenes),
        **official,
    )


def prepared(
    passive: Sequence[NDArray],
    active: Sequence[NDArray],
    components: int,
    given: Mapping[str, Preprocessing] | None = None,
) -> dict[str, Any]:
    """Tables of images (c, h, w), by their names in `PixelTables`, and the `preprocessing` that is fitted to them.

    Args:
        components: of the passive images at most.
        given: means and deviations, of passive and active, in place of those of the images.
    Raises:
        InputError: these are of another number of bands.
    """
    first, second = (
        _fitted(role, images, (given or {}).get(role)) for role, images in (("passive", passive), ("active", active))
    )
    spectral = first.table(passive)
    first = first.with_components(spectral, components)
    tables = {"spectral": spectral, "passive": first.components(spectral), "active": second.table(active)}
    return {name: torch.from_numpy(table) for name, table in tables.items()} | {
        "preprocessing": {"passive": first, "active": second}
    }


def _fitted(role: str, images: Sequence[NDArray], given: Preprocessing | None) -> Preprocessing:
    if given is None:
        return Preprocessing.of(images)
    if len(given.mean) != len(images[0]):
        raise InputError(f"{role} has {len(images[0])} bands, its sensor {len(given.mean)}; name the bands it has")
    return given


def _dropped(scenes: Sequence[LabelledScene]) -> dict[str, int]:
    """Labelled pixels of each class that are left out, as a value is missing there."""
    total: Counter[int] = Counter()
    for scene in scenes:
        total.update(scene.dropped)
    numbers = sorted(total)
    names = class_names(scenes[0].classes, np.array(numbers, dtype=int))
    return {name: total[number] for name, number in zip(names, numbers, strict=True)}


def class_names(names: Sequence[str], numbers: NDArray) -> tuple[str, ...]:
    """Names of the classes (k,) by their numbers, from 1 on; without names "class 1", "class 2", ..."""
    return tuple(str(names[number - 1]) if names else f"class {number}" for number in numbers.tolist())


def check_patch(patch: int) -> None:
    """Refuse patches without a centre pixel."""
    if patch < 1 or patch % 2 == 0:
        raise InputError(f"patch {patch} has no centre pixel; use an odd side, such as {max(patch, 0) + 1}")


def _check_bands(scenes: Sequence[LabelledScene]) -> None:
    if not scenes:
        raise InputError("0 scenes were given; give at least one")
    first = scenes[0]
    for scene in scenes[1:]:
        for role in ("passive", "active"):
            found, wanted = len(getattr(scene, role)), len(getattr(first, role))
            if found != wanted:
                raise InputError(
                    f"{role} of scene {scene.name} has {found} bands, of scene {first.name} {wanted}; give one sensor's"
                )


def _check_range(pixels: NDArray, count: int, what: str) -> None:
    outside = pixels[(pixels < 0) | (pixels >= count)]
    if len(outside):
        raise InputError(f"pixel {outside[0]} is none of the {count} {what}; count from 0")


def _mirrored(index: Indices, size: Indices) -> Indices:
    """Indices folded back into 0 .. size - 1, as numpy.pad does in mode "reflect"."""
    last = size - 1
    index = np.abs(index) % np.maximum(2 * last, 1)
    return np.minimum(index, 2 * last - index)


def _missing(scene: LabelledScene) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(scene.passive).any(axis=0)) | np.asarray(np.isnan(scene.active).any(axis=0))


def _joined(maps: Sequence[NDArray]) -> NDArray:
    return np.concatenate([one.ravel() for one in maps]) if maps else np.zeros(0)


def _blocks(scenes: Sequence[LabelledScene], place: Indices, image: Indices) -> Indices | None:
    """Number of the block of every labelled pixel; blocks of different scenes differ."""
    maps = [scene.blocks for scene in scenes if scene.blocks is not None]
    if len(maps) < len(scenes):
        return None
    pairs = np.column_stack([image, _joined(maps)[place]])
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
