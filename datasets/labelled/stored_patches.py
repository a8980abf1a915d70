"""Ready patches in one .npz file, and the one way to open a data set of either kind."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from alliance.errors import InputError
from datasets.imagery.cubes import open_arrays
from datasets.imagery.scenes import Unreadable
from datasets.labelled.description import LabelledSet
from datasets.labelled.normalise import Preprocessing, check_bands
from datasets.labelled.patches import PatchSet, check_patch, class_names, prepared, scene_patches
from datasets.labelled.scenes import read_scenes
from datasets.sampling.splits import Indices

KEYS = ("spectra", "lidar_patch", "label", "block", "row", "col", "neighbour_index")


class StoredGrid:
    """Neighbours that are listed: (places, side, side) rows of a table; smaller patches are cut from their middle."""

    def __init__(self, neighbours: NDArray) -> None:
        self.neighbours = neighbours.astype(np.int64)

    def __len__(self) -> int:
        return len(self.neighbours)

    def around(self, place: Indices, patch: int) -> Indices:
        cut = (self.neighbours.shape[1] - patch) // 2
        inside = slice(cut, cut + patch)
        return self.neighbours[place][:, inside, inside]


def open_patches(
    described: LabelledSet, *, patch: int = 7, components: int = 30, given: Mapping[str, Preprocessing] | None = None
) -> PatchSet:
    """Open a set: its scenes, or its file of ready patches; the root may be the file or the folder that holds it.

    Args:
        components, given: as of `scene_patches`.
    Raises:
        InputError: something is missing or does not fit; the message says what.
    """
    if described.patches:
        file = described.root / described.patches if described.root.is_dir() else described.root
        patches = stored_patches(file, tuple(described.classes), patch=patch, components=components, given=given)
        return replace(patches, sources=described.images)
    if not described.layouts:
        raise InputError(
            f"{described.name} describes tiles, not scenes or ready patches; add `layouts` to its description"
        )
    check_patch(patch)
    patches = scene_patches(read_scenes(described), patch=patch, components=components, given=given)
    return replace(patches, sources=described.images)


def stored_patches(
    file: Path,
    classes: tuple[str, ...] = (),
    *,
    patch: int = 7,
    components: int = 30,
    given: Mapping[str, Preprocessing] | None = None,
) -> PatchSet:
    """Labelled pixels with listed neighbours: `spectra` (m, bands), `neighbour_index` (m, side, side) into them,
    `lidar_patch` (m, channels, side, side), `label` from 1 on, `block`, and `row` and `col` inside of the block.

    Raises:
        InputError: the file or an array is missing, sizes differ, or patches are larger than the stored ones.
    """
    check_patch(patch)
    arrays = read_arrays(file, KEYS)
    _check_arrays(file, arrays, classes, patch)
    count, side = len(arrays["label"]), arrays["neighbour_index"].shape[-1]
    numbers, label = np.unique(arrays["label"].astype(np.int64), return_inverse=True)
    spectra = rearrange(arrays["spectra"], "m c -> c m 1")
    lidar = rearrange(arrays["lidar_patch"], "m c h w -> c m (h w)")
    check_bands(spectra, f"spectra in {file}")
    check_bands(lidar, f"lidar_patch in {file}")
    return PatchSet(
        **prepared([spectra], [lidar], components, given),
        grid=StoredGrid(arrays["neighbour_index"]),
        active_grid=StoredGrid(np.arange(count * side**2).reshape(count, side, side)),
        patch=patch,
        place=np.arange(count),
        label=label,
        numbers=tuple(numbers.tolist()),
        classes=class_names(classes, numbers),
        position=np.column_stack([arrays["row"], arrays["col"], arrays["block"]]).astype(np.int64),
        block=arrays["block"].astype(np.int64),
    )


def _check_arrays(file: Path, arrays: dict[str, NDArray], classes: tuple[str, ...], patch: int) -> None:
    count, side = len(arrays["label"]), arrays["neighbour_index"].shape[-1]
    channels = arrays["lidar_patch"].shape[1:2]
    shapes = dict.fromkeys(KEYS, (count,)) | {
        "spectra": (count, *arrays["spectra"].shape[1:2]),
        "neighbour_index": (count, side, side),
        "lidar_patch": (count, *channels, side, side),
    }
    for key, wanted in shapes.items():
        if arrays[key].shape != wanted:
            raise InputError(f"{file}: {key} is {arrays[key].shape}, not {wanted} as other arrays say; mend the file")
    if patch > side:
        raise InputError(f"patch {patch} is larger than the {side} x {side} pixels in {file}; use at most {side}")
    most = len(classes) or np.iinfo(np.int64).max
    for key, first, last in (("label", 1, most), ("neighbour_index", 0, count - 1)):
        outside = arrays[key][(arrays[key] < first) | (arrays[key] > last)]
        if outside.size:
            raise InputError(f"{file}: {key} holds {outside[0]}, none of {first} to {last}; mend the file")


def read_arrays(file: Path, keys: tuple[str, ...]) -> dict[str, NDArray]:
    """Arrays of an .npz file by name.

    Raises:
        InputError: the file is missing or damaged, or an array is not there.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing; give the path of an .npz file")
    try:
        with open_arrays(file) as arrays:
            for key in keys:
                if key not in arrays:
                    raise InputError(f"{file} has no array {key!r}; it has {', '.join(sorted(arrays)) or 'none'}")
            return {key: np.asarray(arrays[key]) for key in keys}
    except Unreadable as error:
        raise InputError(f"{file} {error}") from error
