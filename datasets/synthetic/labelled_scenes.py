"""Synthetic labelled scenes in the files, keys and shapes of public data sets. NOTHING HERE IS MEASURED.

They let every setting be tried without data; scores reached on them say nothing about real imagery. A file SYNTHETIC.txt
beside them says so, and GeoTIFFs carry the tag SYNTHETIC=yes.

Both images come from one map of straight-edged parcels, so their edges coincide and their phases agree. Classes come in
threes with one smooth spectrum. By construction neither image is enough alone:

* the first of three is apart from the others in narrow absorption lines alone, that is in high spectral frequencies;
* the second and the third have the very same spectrum;
* height, or backscatter, tells the three apart, and is the same in all threes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import scipy.io
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from alliance.errors import InputError
from alliance.files import require_empty
from alliance.ranges import SEEDS, Ranged, ranged
from datasets.labelled.description import Layout
from datasets.labelled.parse import find_set
from datasets.synthetic.landscapes import CRS, PIXEL_M, cell_map, correlated_field, smooth_field

Array = NDArray[np.floating]

VERSION = "1"  # changes whenever the same seed would give other pixels
SETS: dict[str, Literal["height", "sar"]] = {  # what the active image shows
    "houston2013": "height",
    "augsburg": "sar",
    "yellow-river-estuary": "sar",
    "lcz-hk": "sar",
}
UNKNOWN_BANDS = 64  # of a data set whose band count is not public; ours
PARCEL = 14.0  # usual width of a parcel, pixels
MARGIN = 1.2  # pixels nearer than this to another parcel are mixed and have no label
HEIGHTS = (0.3, 4.0, 11.0)  # m, of three classes
BACKSCATTER_DB = ((-19.0, -26.0), (-11.0, -18.0), (-5.0, -11.5))  # mean VV and VH
COHERENCE = (0.1, 0.35, 0.6)  # of VV and VH
LOOKS = 4
DEPTH = 0.25  # of an absorption line, share of the reflectance
LINE = 0.8  # its half width at 1 / e, bands
NOISE = 0.008  # reflectance
TRAIN_SHARE = 0.4  # of the parcels of a class, official training; the others test
LABELLED_SHARE = 0.85  # of all parcels


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions(Ranged):
    """Size of a synthetic scene; defaults give 20 training and 10 validation pixels to each class."""

    height: int = ranged(64, 24, 8192)
    """Rows."""
    width: int = ranged(96, 24, 8192)
    """Columns."""
    classes: int = ranged(6, 2, 255)
    """The first ones of the data set."""
    seed: int = ranged(0, 0, SEEDS)
    """Same seed, same pixels."""
    layout: int = ranged(1, 1, 255)
    """Which of the data set's layouts, from 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        room = self.height * self.width // int(4 * PARCEL**2)
        if self.classes > room:
            raise InputError(
                f"{self.classes} classes have no room on {self.height} x {self.width} pixels; give at most {room}, or more "
                f"pixels"
            )


def write_labelled(name: str, folder: Path, **options: int) -> None:
    """Write a scene of the data set `name`, one of SETS, so that `read_scenes` and `open_patches` read it.

    Args:
        options: fields of `SyntheticOptions`.
    Raises:
        InputError: another data set, a layout that it does not have, or a folder that is not empty.
    """
    chosen = SyntheticOptions(**options)
    if name not in SETS:
        raise InputError(f"no synthetic scenes are known for {name!r}; choose {', '.join(SETS)}")
    described = find_set(name)
    if not 1 <= chosen.layout <= len(described.layouts):
        raise InputError(f"layout {chosen.layout}: {name} has layouts 1 to {len(described.layouts)}")
    if chosen.classes > len(described.classes):
        raise InputError(f"{chosen.classes} classes were asked for, {name} has {len(described.classes)}")
    require_empty(folder)
    layout = described.layouts[chosen.layout - 1]
    arrays = make_arrays(SETS[name], described.image("passive").count or UNKNOWN_BANDS, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    _write_layout(folder, layout, _as_in(layout, arrays), chosen)
    (folder / "SYNTHETIC.txt").write_text(
        f"Nothing in this folder is measured. It was drawn in the layout of {name} by Alliance\n"
        f"(datasets/synthetic/labelled_scenes.py, version {VERSION}, {chosen}).\nScores on it say nothing about {name}.\n"
    )


def make_arrays(active: Literal["height", "sar"], bands: int, options: SyntheticOptions) -> dict[str, NDArray]:
    """A scene by role: images (h, w, c) float32, maps (h, w) uint8 of labels, official training and test pixels."""
    rng = np.random.default_rng([options.seed, bands])
    size = max(options.height, options.width)
    corner = np.s_[: options.height, : options.width]
    cell, to_edge = cell_map(size, PARCEL, rng)
    parcel = np.unique(cell[corner], return_inverse=True)[1].reshape(options.height, options.width)
    area = np.bincount(parcel[to_edge[corner] >= MARGIN], minlength=parcel.max() + 1)
    land, role = deal_parcels(area, options.classes, rng)
    labelled = (to_edge[corner] >= MARGIN) & (role[parcel] > 0)
    cover = np.stack([gaussian_filter((land[parcel] == k).astype(float), 0.6) for k in range(options.classes)])
    relief = smooth_field(size, 14, rng)[corner]
    light = np.exp(0.15 * correlated_field(size, rng)[corner])
    made = {"height": draw_height, "sar": draw_sar}[active](land, parcel, relief, rng)
    labels = np.where(labelled, land[parcel] + 1, 0).astype(np.uint8)
    return {
        "passive": draw_spectra(cover, light, bands, rng),
        "active": made.astype(np.float32),
        "labels": labels,
        "train": np.where(role[parcel] == 1, labels, 0).astype(np.uint8),
        "test": np.where(role[parcel] == 2, labels, 0).astype(np.uint8),
    }


def deal_parcels(area: NDArray, classes: int, rng: Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Class and purpose (m,) of every one of m parcels: 0 nothing, 1 training, 2 test; classes get about equal areas.

    A parcel serves for one side alone; patches at its edge see its neighbours all the same.
    """
    land, role = np.zeros(len(area), dtype=np.intp), np.zeros(len(area), dtype=np.intp)
    order = rng.permutation(len(area))
    order = order[np.argsort(-(area[order] // 16), kind="stable")]  # large before small, so that shares come out even
    for k in range(classes):
        own = order[k::classes]
        land[own] = k
        known = own[: max(2, round(LABELLED_SHARE * len(own)))]
        role[known] = np.where(np.arange(len(known)) % round(1 / TRAIN_SHARE) == 0, 1, 2)
    return land, role


def class_spectra(classes: int, bands: int, rng: Generator) -> Array:
    """Reflectance (classes, bands): a smooth curve for each three classes, times two patterns of three narrow lines."""
    band = np.arange(bands)
    level, slope, bends = rng.uniform(0.2, 0.4), rng.uniform(0.05, 0.2), rng.normal(0, 0.06, (classes, 3))
    waves = bends @ np.sin(np.pi * np.outer([1, 2, 3], band / bands))
    smooth = np.clip(level + slope * band / bands + waves, 0.05, 0.9)
    places = rng.permutation(bands - 2)[:6] + 1
    lines = 1 - DEPTH * np.exp(-(((band - places[:, None]) / LINE) ** 2))
    first, others = lines[:3].prod(axis=0), lines[3:].prod(axis=0)
    return np.stack([smooth[k - k % 3] * (others if k % 3 else first) for k in range(classes)])


def draw_spectra(cover: Array, light: Array, bands: int, rng: Generator) -> NDArray[np.float32]:
    """Reflectance (h, w, bands) of class shares (classes, h, w) under light (h, w), with noise."""
    mixed = np.einsum("khw,kb->hwb", cover * light, class_spectra(len(cover), bands, rng))
    return np.clip(mixed + NOISE * rng.standard_normal(mixed.shape), 1e-4, 1).astype(np.float32)


def draw_height(land: NDArray, parcel: NDArray, relief: Array, rng: Generator) -> Array:
    """Height (h, w, 1), m: the class's level on a relief, parcels a little apart, a little rough."""
    own = np.array(HEIGHTS)[land % 3] * rng.uniform(0.8, 1.2, len(land))
    return (own[parcel] + relief + 0.15 * rng.standard_normal(parcel.shape))[..., None]


def draw_sar(land: NDArray, parcel: NDArray, relief: Array, rng: Generator) -> Array:
    """Covariance of VV and VH (h, w, 4), linear power: |VV|^2, |VH|^2, Re and Im of VV VH*, the mean of a few looks.

    Every look is a circular complex Gaussian with the class's powers and coherence, which is what speckle is.
    """
    level = (land % 3)[parcel]
    power = 10 ** (np.array(BACKSCATTER_DB)[level] / 10) * np.exp(0.2 * relief)[..., None]
    coherence = np.array(COHERENCE)[level]
    parts = rng.standard_normal((2, 2, LOOKS, *parcel.shape)) / np.sqrt(2)
    one, other = parts[0] + 1j * parts[1]
    vv = np.sqrt(power[..., 0]) * one
    vh = np.sqrt(power[..., 1]) * (coherence * one + np.sqrt(1 - coherence**2) * other)
    product = (vv * vh.conj()).mean(axis=0)
    return np.stack([(abs(vv) ** 2).mean(axis=0), (abs(vh) ** 2).mean(axis=0), product.real, product.imag], axis=-1)


def _as_in(layout: Layout, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The arrays that a layout names; beside a map of labels the official pixels are lists of rows and columns."""
    listed = {role: np.argwhere(arrays[role] > 0) for role in ("train", "test")} if layout.labels else {}
    return {role: {**arrays, **listed}[role] for role in layout.sources()}


def _write_layout(folder: Path, layout: Layout, arrays: Mapping[str, NDArray], options: SyntheticOptions) -> None:
    matlab: dict[str, dict[str, NDArray]] = {}
    for role, (file, key) in layout.sources().items():
        if Path(file).suffix == ".mat":
            matlab.setdefault(file, {})[key or Path(file).stem] = arrays[role]
        else:
            _write_tiff(folder / file, arrays[role], options.seed)
    for file, content in tqdm(matlab.items(), desc="files", unit="file", disable=None):
        scipy.io.savemat(folder / file, content, do_compression=True)


def _write_tiff(path: Path, array: NDArray, seed: int) -> None:
    image = np.moveaxis(np.atleast_3d(array), -1, 0)
    count, height, width = image.shape
    shape = {"count": count, "height": height, "width": width, "dtype": image.dtype, "compress": "deflate"}
    place = Affine(PIXEL_M, 0, 500_000, 0, -PIXEL_M, 5_000_000)
    with rasterio.open(path, "w", driver="GTiff", crs=CRS, transform=place, **shape) as file:
        file.write(image)
        file.update_tags(
            SYNTHETIC="yes",
            GENERATOR="Alliance datasets/synthetic/labelled_scenes.py",
            GENERATOR_VERSION=VERSION,
            SEED=seed,
        )
