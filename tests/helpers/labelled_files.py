"""Small labelled scenes, in memory and in files of every layout, for tests."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from datasets.labelled import LabelledScene, LabelledSet, Layout
from datasets.labelled.parse import parse_set
from tests.helpers.matlab import write_matlab_header
from tests.helpers.rasters import write_tiff

GRID = (10, 12)


def class_map(classes: int, seed: int = 0) -> np.ndarray:
    """A map of GRID with at least two pixels of every class, and a few unlabelled ones."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes + 1, GRID)
    labels.flat[generator.permutation(labels.size)[: 2 * classes]] = np.repeat(np.arange(1, classes + 1), 2)
    return labels


def own_set(root: Path, **record: object) -> LabelledSet:
    """The set of a description, as a YAML file would hold it."""
    return dataclasses.replace(parse_set(record, "own"), root=root)


def arrays_for(described: LabelledSet, layout: Layout) -> dict[str, np.ndarray]:
    """Synthetic arrays of a layout by role, images (h, w, c); half of the labelled pixels train, the others test."""
    generator = np.random.default_rng(1)
    counts = {
        role: described.images[role].count if role in described.images else None for role in ("passive", "active")
    }
    labels = class_map(len(described.classes) or 3)
    half = np.cumsum(labels > 0).reshape(GRID) % 2 == 0
    places = {"train": np.where(half, labels, 0), "test": np.where(half, 0, labels)}
    if layout.labels:
        places = {role: np.argwhere(one > 0) for role, one in places.items()}
    made = {
        "passive": generator.normal(size=(*GRID, counts["passive"] or 6)),
        "active": generator.normal(size=(*GRID, counts["active"] or 2)),
        "labels": np.where(labels == 0, described.label.unlabelled, labels),
        "blocks": np.arange(np.prod(GRID)).reshape(GRID) // 30,
        **places,
    }
    return {role: made[role] for role in layout.sources()}


def write_layout(folder: Path, layout: Layout, arrays: dict[str, np.ndarray], *, matlab: str = "v5") -> None:
    """Write arrays (h, w), (h, w, c) or (n, 2) into the files that a layout names."""
    files: dict[str, dict[str, np.ndarray]] = {}
    for role, (file, key) in layout.sources().items():
        path = folder / file.replace("*", "tile")
        array = arrays[role]
        if path.suffix == ".tif":
            bands = np.atleast_3d(array).transpose(2, 0, 1)
            write_tiff(path, bands.astype(np.uint8 if role in ("labels", "train", "test", "blocks") else np.float32))
        elif path.suffix == ".npy":
            np.save(path, array)
        else:
            files.setdefault(path.name, {})[key or path.stem] = array
    for name, content in files.items():
        if name.endswith(".npz"):
            np.savez(folder / name, **content)  # pyright: ignore[reportArgumentType] - arrays by their keys
        else:
            write_matlab(folder / name, content, matlab)


def write_matlab(path: Path, content: dict[str, np.ndarray], version: str) -> None:
    """Write a .mat file; a key with slashes makes structs, and a cell where it holds a number."""
    if version == "v7.3":
        with h5py.File(path, "w", userblock_size=512 if path.suffix == ".mat" else 0) as file:
            for key, array in content.items():
                file[key] = array.T  # as MATLAB stores it
        if path.suffix == ".mat":
            write_matlab_header(path)
        return
    nested: dict = {}
    for key, array in content.items():
        first, *rest = key.split("/")
        value: object = array
        for part in reversed(rest):
            value = cell(value) if part.isdigit() else {part: value}
        _merge(nested, {first: value})
    scipy.io.savemat(path, nested)


def cell(value: object) -> np.ndarray:
    """A MATLAB cell of the value and an empty array."""
    array = np.empty((1, 2), dtype=object)
    array[0, 0], array[0, 1] = value, np.zeros((0, 0))
    return array


def _merge(into: dict, other: dict) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and key in into:
            _merge(into[key], value)
        else:
            into[key] = value


def made_scene(labels: np.ndarray, *, bands: int = 3, channels: int = 1, name: str = "made", **more) -> LabelledScene:
    """A scene with random images around a map of classes."""
    generator = np.random.default_rng(labels.size)
    images = (generator.normal(size=(count, *labels.shape)).astype(np.float32) for count in (bands, channels))
    passive, active = images
    return LabelledScene(name=name, **{"passive": passive, "active": active, "labels": labels} | more)
