"""What a file says of the bands of a cube: wavelengths, names, and which ones its maker calls good."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, NamedTuple

import numpy as np

from alliance.errors import InputError
from alliance.sensors.wavelengths import is_wavelength_unit, to_nanometres
from datasets.imagery.cubes.arrays import Arrays, Stored
from datasets.imagery.cubes.axes import letter
from datasets.imagery.scenes import Unreadable

WAVELENGTH = r"wavelen|wave_?number|(^|_)(wl|wvl|wave|waves|lambda|cw|lbda|centers?|centres?)(_|$)"
OTHER = (
    r"flag|good|bad|fwhm|width|mask|index|valid|bbl|err|uncert|unc(_|$)|range|resol|(^|_)(min|max|std|unit|count|num)"
)
GOOD = r"good|bbl|bad_?bands?_?(list|multiplier)|valid_?(band|wave|channel)|(use|used|usable|selected)_?(band|wave)"
BAD = r"bad_?(band|wave|channel|detector)"  # the "bad band list" of ENVI says 1 for a good band
NAMES = r"bands?(_?names?)?|channels?(_?names?)?|names?|variables?|polari[sz]ations?|long_name"
DETECTORS = frozenset(("vnir", "swir", "nir", "vis", "tir", "mwir", "lwir", "pan", "uv"))
NEIGHBOUR = 2  # rank of an array in the same group
AGREEMENT = 0.5  # nm, between two lists of the same wavelengths


@dataclass(frozen=True, kw_only=True)
class BandFacts:
    """What is known of the bands of one array, in its order; empty where the file says nothing."""

    wavelengths: tuple[float, ...] = ()  # nm; 0 of a band without one
    names: tuple[str, ...] = ()
    good: tuple[bool, ...] = ()


class _List(NamedTuple):
    """Something in a file that may tell one number per band."""

    name: str
    values: np.ndarray
    units: str
    rank: int  # the lower, the closer to the array


def band_counts(arrays: Arrays, key: str) -> frozenset[int]:
    """Lengths of the lists of wavelengths, names and flags that go with an array: one of its axes counts bands."""
    array = arrays[key]
    lists = [len(one.values) for one in _lists(arrays, key) if _is_wavelengths(one) or _flags(one) is not None]
    texts = [len(words) for name, words in arrays.texts.items() if _names_bands(name, array)]
    return frozenset(count for count in (*lists, *texts) if count > 1)


def band_facts(arrays: Arrays, key: str, count: int) -> BandFacts:
    """What the file says of the `count` bands of an array.

    Raises:
        Unreadable: what it says are wavelengths cannot be any or are not as many, or two lists contradict each other.
    """
    given = list(_lists(arrays, key))
    for one in given:
        if one.rank == 0 and len(one.values) != count and _is_wavelengths(one):
            raise Unreadable(
                f"{key}: its attribute {one.name} has {len(one.values)} numbers for {count} bands; mend it"
            )
    lists = [one for one in given if len(one.values) == count]
    near = [one for one in given if one.rank <= NEIGHBOUR and _is_wavelengths(one)]
    if near and not any(map(_is_wavelengths, lists)) and sum(array.ndim == 3 for array in arrays.values()) == 1:
        raise Unreadable(f"{near[0].name} has {len(near[0].values)} numbers, {key} has {count} bands; mend one of them")
    flags = (_flags(one) for one in lists)
    return BandFacts(
        wavelengths=_wavelengths([one for one in lists if _is_wavelengths(one)], key),
        names=_names(arrays, key, count),
        good=next((found for found in flags if found is not None and any(found)), ()),
    )


def _lists(arrays: Arrays, key: str) -> Iterator[_List]:
    """Lists of numbers, the closest to an array first: its attributes, its coordinates, its neighbours, the root's."""
    array = arrays[key]
    given = [*_of_attributes(array.attributes, 0), *_of_arrays(arrays, key), *_of_attributes(arrays.attributes, 9)]
    wanted = _detectors(key)
    for one in sorted(given, key=lambda one: one.rank):
        its = _detectors(one.name)
        if not its or not wanted or its & wanted:
            yield one


def _of_attributes(attributes: Any, rank: int) -> Iterator[_List]:
    units = {key.lower(): str(value) for key, value in attributes.items()}
    for name, value in attributes.items():
        if isinstance(value, np.number):  # of an array of one band
            value = np.array([value])
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iufb":
            stem = name.lower().removesuffix("s")
            found = next((units[word] for end in ("_units", "s_units", "_unit") if (word := stem + end) in units), "")
            yield _List(name, value, found, rank)


def _of_arrays(arrays: Arrays, key: str) -> Iterator[_List]:
    dims = arrays[key].dims
    for name, other in arrays.items():
        telling = re.search(f"{WAVELENGTH}|{GOOD}|{BAD}", _word(name)) or name in dims
        if name != key and telling and other.size == max(other.shape, default=0) and not other.refusal:
            units = next(
                (str(other.attributes[word]) for word in ("units", "unit", "Units") if word in other.attributes), ""
            )
            yield _List(name, np.ravel(other[()]), units, 1 if name in dims else 2 + _distance(name, key))


def _distance(name: str, key: str) -> int:
    """Groups to go up from an array `key` to one that also holds the other."""
    groups = [text.split("/")[:-1] for text in (name, key)]
    return min(len(groups[1]) - len(commonprefix(groups)), 6)


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.rpartition("/")[2].lower())


def _detectors(name: str) -> frozenset[str]:
    return frozenset(_word(name).split("_")) & DETECTORS


def _is_wavelengths(one: _List) -> bool:
    """By its name, or as a coordinate by its units; numbers that differ, and do not just count from 0 or 1."""
    word = _word(one.name)
    named = re.search(WAVELENGTH, word) and not re.search(OTHER, word)
    coordinate = one.rank == 1 and is_wavelength_unit(one.units) and letter(one.name) in ("c", "")
    coordinate = coordinate and (letter(one.name) == "c" or one.units != "m")  # a height has metres too
    if not (named or coordinate) or one.values.dtype.kind not in "iuf":
        return False
    values = one.values[one.values > 0]
    counted = np.arange(len(one.values))
    counting = any(np.array_equal(one.values, counted + first) for first in (0, 1)) and not one.units
    return len(np.unique(values)) == len(values) > 0 and not counting


def _wavelengths(lists: Sequence[_List], key: str) -> tuple[float, ...]:
    """Of the closest list; bands without a wavelength (0, negative or NaN: unused detectors) have 0."""
    closest = [one for one in lists if one.rank == lists[0].rank]
    converted = [(one.name, _converted(one)) for one in closest]
    for name, found in converted[1:]:
        if not np.allclose(found, converted[0][1], atol=AGREEMENT):
            raise Unreadable(f"two lists of wavelengths for {key} disagree: {converted[0][0]} and {name}; remove one")
    return converted[0][1] if converted else ()


def _converted(one: _List) -> tuple[float, ...]:
    used = one.values > 0
    try:
        found = to_nanometres(one.values[used].tolist(), one.units or _units_in_name(one.name))
    except InputError as error:
        raise Unreadable(f"{one.name}: {error}") from error
    values = np.zeros(len(one.values))
    values[used] = found
    return tuple(values.tolist())


def _units_in_name(name: str) -> str | None:
    word = _word(name)
    if "wavenumber" in word.replace("_", ""):
        return "cm-1"
    end = word.rstrip("_").rpartition("_")[2]
    return end if is_wavelength_unit(end) and end != word else None


def _flags(one: _List) -> tuple[bool, ...] | None:
    """Which bands are good; None if it is no list of flags. Flags that call all bands bad are understood as none."""
    word = _word(one.name)
    values = one.values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return None
    if not (re.search(GOOD, word) or re.search(BAD, word)) or not np.isin(values, (0, 1)).all():
        return None
    flags = values.astype(bool) if re.search(GOOD, word) else ~values.astype(bool)
    return tuple(flags.tolist())


def _names(arrays: Arrays, key: str, count: int) -> tuple[str, ...]:
    """Names of the bands: a coordinate or list of words, else an attribute of words; numbers are no names."""
    array = arrays[key]
    told = [words for name, words in arrays.texts.items() if _names_bands(name, array)]
    told += [value for name, value in array.attributes.items() if _is_names(name, value)]
    for words in told:
        numbered = all(re.fullmatch(r"(band)?[ _]?\d+(\.0)?", word, re.IGNORECASE) for word in words)
        if len(words) == count and all(words) and not numbered:
            return tuple(words)
    return ()


def _names_bands(name: str, array: Stored) -> bool:
    return name in array.dims or bool(re.fullmatch(NAMES, _word(name)))


def _is_names(name: str, value: Any) -> bool:
    return isinstance(value, tuple) and bool(re.fullmatch(NAMES, _word(name)))
