"""Which arrays of a file are the image: one cube, cubes of several detectors, or one map per band."""

import re
from collections import defaultdict
from collections.abc import Sequence

from datasets.imagery.cubes.arrays import Arrays, Stored
from datasets.imagery.cubes.axes import letter, squeezed
from datasets.imagery.cubes.bands import band_facts
from datasets.imagery.scenes import Unreadable

BESIDE = re.compile(  # words in the names of arrays that go along with an image
    r"err|error|mask|masks|msk|label|labels|gt|flag|flags|quality|qa\d*|qi|qc|uncert|uncertainty|unc|cloud|clouds|scl|angle|angles|zenith|"
    r"azimuth|lat|latitude|lon|longitude|elev|altitude|glt|igm|loc|obs|detector|index|status|count|sza|vza|saa|vaa"
)
CHOOSE = "choose one with --key"


def choose(arrays: Arrays, stem: str, key: str | None, *, any_rank: bool) -> list[str]:
    """Names of the arrays that make up the image.

    Args:
        stem: the file's name without suffix.
        key: name of the array, its end, or a group that holds the image.
        any_rank: any array may be the image, a map of classes too: the only one, or the one that is named like the
            file. Else several arrays may be one image: one per band, or one per detector.
    Raises:
        Unreadable: nothing fits, or several do.
    """
    if key and (found := _named(arrays, key.strip("/"))):
        return [found]
    within = _within(arrays, key.strip("/")) if key else arrays
    if any_rank and (len(within) == 1 or stem in within):
        return [stem if stem in within else next(iter(within))]
    if any_rank and within:
        raise Unreadable(f"has several arrays; name one as FILE:KEY; it has {listing(within)}")
    cubes = [name for name in within if _rank(within[name]) == 3]
    if len(cubes) > 1:
        cubes = _without_beside(cubes)
    if len(cubes) == 1:
        return [_largest(within, cubes[0])]
    if len(cubes) > 1 and _are_detectors(within, cubes):
        return cubes
    if len(cubes) > 1:
        raise Unreadable(f"has {len(cubes)} 3-D arrays; {CHOOSE}: {listing(within)}")
    return _maps(within)


def listing(arrays: Arrays) -> str:
    """The arrays in words."""
    shown = [f"{name} {array.seen}" for name, array in arrays.items() if array.ndim > 1 or len(arrays) == 1]
    words = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") if shown else "no arrays of numbers"
    return "; ".join([words, *list(arrays.refused.values())[:3]])


def _named(arrays: Arrays, key: str) -> str | None:
    """The array of this name, or the only one whose name ends like this."""
    if key in arrays:
        return key
    if key in arrays.refused:
        raise Unreadable(f"{arrays.refused[key]}; save the array itself in the file")
    ending = [name for name in arrays if name.endswith(f"/{key}")]
    return ending[0] if len(ending) == 1 else None


def _within(arrays: Arrays, group: str) -> Arrays:
    found = {name: array for name, array in arrays.items() if name.startswith(f"{group}/")}
    if not found:
        raise Unreadable(f"has no array {group!r}; it has {listing(arrays)}")
    return Arrays(found=found, texts=arrays.texts, attributes=arrays.attributes, refused=arrays.refused)


def _rank(array: Stored) -> int:
    """Axes that an image of it would have; 0 for a time series, or what is no image."""
    if array.ndim < 2:
        return 0
    try:
        keep = squeezed(array.shape, array.dims)
    except Unreadable:
        return 0
    return len(keep) if min((array.shape[place] for place in keep), default=0) > 0 else 0


def _without_beside(names: Sequence[str]) -> list[str]:
    """Without the arrays that go along with an image, unless all do."""
    own = [name for name in names if not any(BESIDE.fullmatch(word) for word in _words(name))]
    return own or list(names)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.rpartition("/")[2].lower())


def _largest(arrays: Arrays, cube: str) -> str:
    """The only cube, unless a larger array of another shape may be the image."""
    largest = max(_without_beside([*arrays]), key=lambda name: arrays[name].size)
    if arrays[largest].size > arrays[cube].size and _rank(arrays[largest]) < 3:
        raise Unreadable(f"its largest array {largest} is not 3-D; reshape it, or {CHOOSE}: {listing(arrays)}")
    return cube


def _are_detectors(arrays: Arrays, cubes: Sequence[str]) -> bool:
    """Whether cubes of one group and pixel grid have wavelengths of their own: those of several detectors."""
    shapes = [arrays[name].shape for name in cubes]
    if len({name.rpartition("/")[0] for name in cubes}) > 1 or len(set(map(len, shapes))) > 1:
        return False
    if sum(len(set(lengths)) > 1 for lengths in zip(*shapes, strict=True)) > 1:
        return False
    told = [{band_facts(arrays, name, length).wavelengths for length in arrays[name].shape} - {()} for name in cubes]
    return all(len(one) == 1 for one in told) and len(set.union(*told)) == len(cubes)


def _maps(arrays: Arrays) -> list[str]:
    """The two-dimensional arrays of the largest group that share a grid: bands of one image."""
    groups: dict[tuple, list[str]] = defaultdict(list)
    maps = [name for name, array in arrays.items() if _rank(array) == 2]
    for name in _without_beside(maps) if len(maps) > 1 else maps:
        array = arrays[name]
        groups[name.rpartition("/")[0], array.shape, tuple(map(letter, array.dims)), array.dtype.str].append(name)
    sizes = sorted(map(len, groups.values()), reverse=True)
    best = max(groups.values(), key=len, default=[])
    placed = len(best) == 1 and {"h", "w"} <= {letter(name) for name in arrays[best[0]].dims}
    if len(sizes) > 1 and sizes[0] == sizes[1] and sizes[0] > 1:
        raise Unreadable(f"has maps on several grids; {CHOOSE}, or one group of them: {listing(arrays)}")
    if sizes[:1] > [1] or (placed and len(sizes) == 1):
        return sorted(best, key=_numbered)
    raise Unreadable(_no_image(arrays))


def _numbered(name: str) -> list[tuple[int, str]]:
    """Key of an order in which B2 comes before B10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _no_image(arrays: Arrays) -> str:
    series = []
    for name, array in arrays.items():
        try:
            squeezed(array.shape, array.dims)
        except Unreadable as error:
            series.append(f"{name} {array.seen} {error}")
    if series:
        return series[0]
    return f"has no 3-D array (bands, rows, columns); it has {listing(arrays)}"
