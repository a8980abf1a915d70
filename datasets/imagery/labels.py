"""Label maps: what their stored values mean, how they are read, and the colours of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.ranges import MANY, Range, Ranged, ranged
from alliance.records import as_type, shown
from datasets.imagery.images import describe
from datasets.imagery.rasters import named
from datasets.imagery.scenes import Box, Scene

IGNORE = 255  # class index of a pixel that is left out of losses and scores
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Indices = NDArray[np.int64]  # class indices 0, 1, ..., and IGNORE
LARGEST = 2.0**53  # from which on not every whole number is a float
STORED = Range(-LARGEST, LARGEST)  # in a label map

PALETTE: tuple[Colour, ...] = (  # of classes without a colour of their own; it repeats after 20
    *((46, 139, 61), (166, 217, 106), (0, 184, 169), (20, 90, 36), (169, 113, 75)),
    *((47, 111, 214), (230, 51, 42), (245, 152, 196), (140, 140, 140), (242, 142, 28)),
    *((123, 63, 160), (247, 224, 60), (201, 180, 88), (111, 211, 255), (138, 28, 44)),
    *((210, 166, 255), (255, 208, 166), (91, 108, 255), (212, 51, 212), (217, 242, 224)),
)


@dataclass(frozen=True, kw_only=True)
class LabelSource(Ranged):
    """The label maps of a set: files of one band of whole numbers, or of the classes' colours."""

    files: str | None = None
    """A pattern with `{key}`, a folder, or FILE[:KEY] of an array; None: the lists of the splits name them."""
    values: Mapping[int, int] = ranged(dict, 0, IGNORE, keys=STORED)
    """Class index, or 255 to ignore, of every stored value; empty: classes are counted on from `first`."""
    overrule: bool = True
    """Whether `values` overrule what files say of their numbers: colours of indices, marks of missing pixels."""
    first: int | None = ranged(0, *STORED[:2])
    """Stored value of the first class, without `values`; None: told by the values themselves, from 0 or from 1."""
    unlabelled: int | None = ranged(None, *STORED[:2])
    """Stored value of a pixel without a label, beside 255."""
    band: int | None = ranged(None, 1, MANY)
    """Which band of the file holds the classes, from 1, where there are several."""
    one_hot: bool = False
    """Whether every class has a band of its own, in their order, which is not 0 where the class is. Stored value of a pixel is
    then the number of its band, from 0; a pixel of no band has no label.
    """
    ignored: tuple[Colour, ...] = ranged((), 0, 255)
    """Colours of pixels without a label, in maps of colours."""
    unknown: Literal["refuse", "ignore"] = "refuse"
    """What to do with values or colours that are no class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.one_hot and self.band is not None:
            raise InputError(f"label.band is {self.band} and label.one_hot is true; leave one of them out")
        object.__setattr__(self, "values", {int(stored): int(index) for stored, index in self.values.items()})
        object.__setattr__(self, "ignored", tuple(as_colour("to ignore", rgb) for rgb in self.ignored))

    @property
    def told(self) -> Mapping[int, int]:
        """The `values` that overrule what files say."""
        return self.values if self.overrule else {}

    def numbered(self, values: Mapping[int, int], *, ignored: Sequence[Colour] = ()) -> "LabelSource":
        """The same maps with other class indices; what files say of their numbers holds as before.

        Args:
            values: class index, or 255, of every stored value.
            ignored: more colours of pixels without a label.
        """
        return replace(self, values=values, overrule=bool(self.told), ignored=(*self.ignored, *ignored))

    def table(self, classes: int) -> dict[int, int]:
        """Class index, or 255, of every value that may be stored; not where the values themselves tell the first class."""
        if self.values:
            return dict(self.values)
        first = int(self.unlabelled == 0) if self.first is None else self.first
        own = {first + index: index for index in range(classes)}
        return {IGNORE: IGNORE} | ({} if self.unlabelled is None else {self.unlabelled: IGNORE}) | own


class Label(NamedTuple):
    """A label map that was read."""

    indices: Indices  # (h, w)
    header: Scene


def read_label(
    path: Path,
    source: LabelSource,
    classes: Mapping[str, Colour],
    key: str | None = None,
    *,
    colours: bool = True,
    box: Box | None = None,
) -> Label:
    """A label map as class indices.

    Args:
        classes: names and colours in the order of their indices.
        colours: whether the colours are those of the files; those of a palette that we chose are not.
        box: the part of it that is read; None: all.
    Raises:
        InputError: the file cannot be read, is no label map, or holds other values.
    """
    found = _stored(path, source, classes, key, colours=colours, box=box)
    return Label(_indices(path, found, source, len(classes)), found.header)


class Values(NamedTuple):
    """A label map as it is stored."""

    values: Indices  # (h, w), 255 where the file calls a pixel missing
    are_classes: bool  # of a map of colours, they are class indices


def stored_values(
    path: Path,
    source: LabelSource,
    classes: Mapping[str, Colour],
    key: str | None = None,
    *,
    colours: bool = True,
    box: Box | None = None,
) -> Values:
    """What a label map holds.

    Raises:
        InputError: the file cannot be read, or is no label map.
    """
    found = _stored(path, source, classes, key, colours=colours, box=box)
    missing = found.missing & ~np.isin(found.values, list(source.told))
    return Values(np.where(missing, IGNORE, found.values), found.mapped)


class _Stored(NamedTuple):
    values: Indices  # (h, w)
    missing: NDArray[np.bool_]
    header: Scene
    mapped: bool = False  # values are class indices already


def _stored(
    path: Path,
    source: LabelSource,
    classes: Mapping[str, Colour],
    key: str | None,
    *,
    colours: bool,
    box: Box | None,
) -> _Stored:
    """The band of a label map that holds the classes, or the classes that its colours mean."""
    header = describe(path, key)
    with named(path), header.open(range(header.shape[0])) as read:
        window = read(*(box or (0, 0, *header.shape[1:])))
    stored, missing = window.stored, window.missing
    if source.one_hot:
        return _of_bands(path, stored, missing, header)
    if stored.shape[0] > 1 and source.band is None:
        colour = _in_8_bits(stored) if colours and stored.shape[0] in (3, 4) and _distinct(classes) else None
        grey = _is_grey(stored)
        if colour is None and not grey:
            raise InputError(_which_band(path, header, stored))
        if colour is not None and (not grey or _are_colours(colour, source, classes)):
            indices = _by_colour(path, colour, header, source, classes, whole=box is None)
            return _Stored(indices, np.zeros(stored.shape[1:], bool), header, True)
    band = (source.band or 1) - 1
    if band >= len(stored):
        raise InputError(f"{path} has {len(stored)} bands, label.band is {source.band}; mend it")
    absent = ~np.isfinite(stored[band])
    absent = absent if missing is None else absent | missing[band]
    numbers = whole_numbers(path, stored[band], absent)
    if colours and not source.told and header.palette and _distinct(classes):
        painted = _painted(numbers, header, source, classes)
        if painted is not None and (painted[absent] == IGNORE).all():
            return _Stored(painted, absent, header, True)
    return _Stored(numbers, absent, header)


def whole_numbers(path: Path, stored: NDArray, missing: NDArray | None = None) -> Indices:
    """Stored numbers (h, w) of any kind as integers; what is not finite, or missing and beyond all labels, becomes 0.

    Args:
        missing: (h, w), what the file calls so.
    Raises:
        InputError: they are not whole.
    """
    finite = np.where(np.isfinite(stored), stored, 0)
    beyond = np.abs(finite) >= LARGEST
    huge = finite[beyond if missing is None else beyond & ~missing]
    if huge.size:
        raise InputError(
            f"{path} holds {huge[0]:.8g}, which marks missing pixels and is not declared; say so in the file: gdal_edit.py "
            f"-a_nodata {float(huge[0])!r} {path.name}"
        )
    finite = np.where(beyond, 0, finite)
    numbers = finite.astype(np.int64)
    if (numbers != finite).any():
        raise InputError(
            f"{path} holds the value {finite[numbers != finite][0]:g}; a label map has whole numbers: gdal_calc.py -A "
            f"{path.name} --calc='rint(A * FACTOR)' --type=Byte --outfile=OUT.tif, FACTOR such that classes are whole"
        )
    return numbers


def to_indices(stored: NDArray, values: Mapping[int, int]) -> Indices:
    """Class indices of stored integers of any shape; -1 where a value is not among `values`."""
    known, place = np.unique(stored, return_inverse=True)
    return np.array([values.get(value, -1) for value in known.tolist()], dtype=np.int64)[place].reshape(stored.shape)


def as_colour(name: str, rgb: Sequence[int]) -> Colour:
    """The colour of a class as read from a file.

    Raises:
        InputError: not three numbers from 0 to 255.
    """
    try:
        values = as_type(Colour, rgb, "it")
    except InputError as error:
        raise InputError(f"colour of class {name} is {shown(rgb)}; give red, green and blue, 0 to 255") from error
    if not all(0 <= value <= 255 for value in values):
        raise InputError(f"colour of class {name} is {list(values)}; give red, green and blue, 0 to 255")
    return values


def palette_colour(index: int) -> Colour:
    """Colour of a class that has none of its own, by its index."""
    return PALETTE[index % len(PALETTE)]


def _indices(path: Path, found: _Stored, source: LabelSource, classes: int) -> Indices:
    if found.mapped:
        return found.values
    stored, table = found.values, source.table(classes)
    marks = {int(value) for value in found.header.nodata if value is not None and float(value).is_integer()}
    claimed = sorted(value for value in marks if table.get(value, IGNORE) != IGNORE)
    if claimed and not source.told and (stored == claimed[0]).any():
        raise InputError(
            f"{path} declares {claimed[0]} as nodata, yet it is stored value of class {table[claimed[0]]}; say which in the "
            f"description: label.values with {claimed[0]}: 255 for pixels without label, or {claimed[0]}: {table[claimed[0]]}"
        )
    indices = to_indices(stored, table)
    indices[found.missing & ~np.isin(stored, list(source.told))] = IGNORE
    unknown = np.unique(stored[indices < 0])
    if unknown.size and source.unknown == "refuse":
        raise InputError(
            f"{path} holds {brief(unknown)}, which {'is' if unknown.size == 1 else 'are'} no class; known values are "
            f"{brief(np.array(sorted(table)))}: mend `label.values`, or take the folder of the labels"
        )
    indices[indices < 0] = IGNORE
    return indices


def _distinct(classes: Mapping[str, Colour]) -> bool:
    return len(set(classes.values())) == len(classes)


def _meant(source: LabelSource, classes: Mapping[str, Colour]) -> dict[Colour, int]:
    """Class index, or 255, of every colour."""
    return dict.fromkeys(source.ignored, IGNORE) | {colour: index for index, colour in enumerate(classes.values())}


def _named(stored: NDArray, source: LabelSource, classes: Mapping[str, Colour]) -> tuple[Indices, Indices]:
    """Colours (h, w) of bands (c, h, w), packed, and their class indices, -1 where they are none."""
    packed = _packed(np.moveaxis(stored[:3], 0, -1))
    known = {int(_packed(np.array(colour))): index for colour, index in _meant(source, classes).items()}
    return packed, to_indices(packed, known)


def _are_colours(stored: NDArray, source: LabelSource, classes: Mapping[str, Colour]) -> bool:
    """Whether three equal bands (c, h, w), as of a map of black and white, hold colours of classes and not their numbers."""
    strange = (_named(stored, source, classes)[1] < 0).mean()
    return not source.values and (strange == 0 or (source.unknown == "ignore" and strange < 0.5))


def _by_colour(
    path: Path, stored: NDArray, header: Scene, source: LabelSource, classes: Mapping[str, Colour], *, whole: bool
) -> Indices:
    packed, indices = _named(stored, source, classes)
    strange, count = np.unique(packed[indices < 0], return_counts=True)
    if strange.size and count.sum() > packed.size / 2 and (whole or source.unknown == "refuse"):
        raise InputError(
            f"{_which_band(path, header, stored)} By colours, {count.sum() / packed.size:.0%} of its pixels are no class"
        )
    if strange.size and source.unknown == "refuse":
        colour = [int(strange[count.argmax()]) >> shift & 255 for shift in (16, 8, 0)]
        raise _of_no_class(path, colour, count.max())
    indices[indices < 0] = IGNORE
    return indices


def _painted(numbers: Indices, header: Scene, source: LabelSource, classes: Mapping[str, Colour]) -> Indices | None:
    """Class indices of numbers (h, w) by the colours that the file gives them; None where these are not the classes' own.

    Files of one set may number the same colours differently. Numbers without a colour have no label. Where there are strange
    colours too, those of the file are the classes' if it has two of these at least and is not merely a ramp of grey.

    Raises:
        InputError: a colour is of no class.
    """
    meant = _meant(source, classes)
    values, count = np.unique(numbers, return_counts=True)
    seen = {value: meant.get(colour, -1) for value, colour in header.palette.items()}
    strange = [index for index, value in enumerate(values.tolist()) if seen.get(value, -1) < 0 and value != IGNORE]
    ramp = all(colour == (value,) * 3 for value, colour in header.palette.items())
    if strange and (ramp or len({*seen.values()} - {-1, IGNORE}) < 2):
        return None
    painted = [index for index in strange if values[index] in seen]
    if painted and source.unknown == "refuse":
        most = max(painted, key=lambda index: count[index])
        raise _of_no_class(header.files[0], header.palette[values[most]], count[most])
    indices = to_indices(numbers, seen)
    return np.where(indices < 0, IGNORE, indices)


def _of_no_class(path: Path, colour: Sequence[int], count: int) -> InputError:
    return InputError(
        f"{path} has the colour {list(colour)} in {count} pixels, which is of no class; mend `classes`, or say "
        f"in `label` that it has none, ignored: [{list(colour)}]; for all such colours, set label.unknown to ignore"
    )


def _packed(rgb: NDArray) -> Indices:
    """Colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def _is_grey(stored: NDArray) -> bool:
    return bool((stored[:3] == stored[:1]).all())


def _in_8_bits(stored: NDArray) -> NDArray[np.uint8] | None:
    """Colours (c, h, w) of 8 bits; of 16 those that they were made of: the same numbers, or 257 times them. None: no such."""
    if stored.dtype == np.uint8 or (stored.dtype == np.uint16 and (stored <= 255).all()):
        return stored.astype(np.uint8)
    return (stored // 257).astype(np.uint8) if stored.dtype == np.uint16 and (stored % 257 == 0).all() else None


def _is_one_hot(stored: NDArray) -> bool:
    """Whether no pixel is set in two bands (c, h, w), and most are in one."""
    count = (stored != 0).sum(axis=0)
    return len(stored) > 1 and bool((count <= 1).all() and count.mean() > 0.5)


def _of_bands(path: Path, stored: NDArray, missing: NDArray | None, header: Scene) -> _Stored:
    """The number of the one band (c, h, w) that is not 0.

    Raises:
        InputError: a pixel is set in several.
    """
    held = (stored != 0) & np.isfinite(stored)
    several = (held.sum(axis=0) > 1).sum()
    if several:
        raise InputError(
            f"{path} has {several} pixels that several of its {len(stored)} bands mark; with label.one_hot one band alone does: "
            f"mend them, or name the band that holds the classes, label.band"
        )
    numbers = np.where(held.any(axis=0), held.argmax(axis=0), IGNORE).astype(np.int64)
    absent = np.zeros(numbers.shape, bool) if missing is None else missing.all(axis=0)
    return _Stored(numbers, absent & (numbers == IGNORE), header)


def _which_band(path: Path, header: Scene, stored: NDArray) -> str:
    if _is_one_hot(stored):
        return (
            f"{path} has {len(stored)} bands, of which one at most is set in every pixel, as of a map with a band for every "
            f"class; say so: label.one_hot: true, with as many classes in the order of the bands."
        )
    return (
        f"{path} has {header.shape[0]} bands of {header.dtype}; a label map has one band of small integers: is this the "
        f"folder of the labels? If one band holds the classes, name it: label.band: 1."
    )


def brief(values: NDArray, limit: int = 8) -> str:
    """The first of the values (m,) as text, and how many there are."""
    return ", ".join(map(str, values[:limit].tolist())) + (f", ... ({values.size})" if values.size > limit else "")
