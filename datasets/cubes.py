"""Cubes: arrays in HDF5, netCDF-4, MATLAB and NumPy files, read as scenes of many bands."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from einops import rearrange

from datasets.catalog import to_nanometres
from datasets.scenes import Read, Scene, Unreadable, check_dtype, find_date, readable

SUFFIXES = (".h5", ".hdf5", ".nc", ".mat", ".npy", ".npz")
NODATA_ATTRIBUTES = ("_FillValue", "missing_value", "Data_Ignore_Value")
MATLAB_NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True, kw_only=True)
class CubeOptions:
    """How arrays are to be understood where the file does not tell."""

    key: str | None = None  # name of the array; None: the only 3-D one
    axes: str | None = None  # order of the stored axes, such as "hwc"; None: recognised by the band count
    bands: int | None = None  # the sensor's band count, if known


@dataclass(frozen=True, kw_only=True)
class CubeScene(Scene):
    """One array of a file."""

    key: str
    axes: str  # one letter of "chw" per stored axis

    @contextmanager
    def open(self, bands: Sequence[int]) -> Iterator[Read]:
        with open_arrays(self.files[0]) as arrays:
            array = arrays[self.key]

            def read(row: int, col: int, height: int, width: int) -> np.ndarray:
                spans = {"c": slice(None), "h": slice(row, row + height), "w": slice(col, col + width)}
                with readable(self.files[0]):
                    window = np.asarray(array[tuple(spans[axis] for axis in self.axes)])
                target = "c h w" if "c" in self.axes else "1 h w"
                return rearrange(window, f"{' '.join(self.axes)} -> {target}")[list(bands)]

            yield read


def describe_cube(path: Path, root: Path, options: CubeOptions) -> CubeScene:
    """Find the image in a file of arrays.

    Raises:
        Unreadable: no array fits, or several do and no key is given.
    """
    with open_arrays(path) as arrays, readable(path):
        key = options.key.strip("/") if options.key else _only_cube(arrays)
        if key not in arrays:
            raise Unreadable(f"has no array {key!r}; it has {_listing(arrays)}")
        array = arrays[key]
        dtype = check_dtype(array.dtype)
        if array.ndim > 3 or _has_time(array):
            raise Unreadable(f"{key} {array.shape} is a time series; save one date as a 3-D array")
        if array.ndim < 2:
            raise Unreadable(f"{key} {array.shape} is no image")
        flipped = _is_matlab_hdf5(path)  # MATLAB writes (h, w, c) so that others read (c, w, h)
        shape = array.shape[::-1] if flipped else array.shape
        wavelengths = _wavelengths(arrays, shape)
        axes = _axes(shape, options, wavelengths)
        size = dict(zip(axes, shape, strict=True))
        bands = size.get("c", 1)
        return CubeScene(
            root=root,
            files=(path,),
            name=path.relative_to(root).with_suffix("").as_posix(),
            shape=(bands, size["h"], size["w"]),
            dtype=dtype,
            wavelengths=wavelengths if wavelengths and len(wavelengths) == bands else None,
            nodata=_nodata(array),
            date=find_date(path),
            key=key,
            axes=axes[::-1] if flipped else axes,
        )


@contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """The numeric arrays of a file by name. HDF5 and .npy stay on disk until they are sliced; nothing is unpickled."""
    suffix = path.suffix.lower()
    with readable(path):
        if suffix == ".npy":
            arrays: Any = {"array": np.load(path, mmap_mode="r", allow_pickle=False)}
        elif suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        elif suffix == ".mat" and not h5py.is_hdf5(path):
            numeric = [name for name, _, kind in scipy.io.whosmat(path) if kind in MATLAB_NUMBERS]
            arrays = scipy.io.loadmat(path, variable_names=numeric) if numeric else {}
            arrays = {name: arrays[name] for name in numeric}
        else:
            arrays = h5py.File(path)
    if not isinstance(arrays, h5py.File):
        yield arrays
        return
    with arrays as file:
        with readable(path):
            found = _datasets(file)
        yield found


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
            found[name] = node

    file.visititems(visit)
    return found


def _only_cube(arrays: Mapping[str, Any]) -> str:
    """Name of the one 3-D array, unless a larger array of another shape may be the image."""
    cubes = [key for key, array in arrays.items() if array.ndim == 3]
    if not cubes and any(array.ndim > 3 for array in arrays.values()):
        raise Unreadable(f"holds a time series; save one date as a 3-D array. It has {_listing(arrays)}")
    if not cubes:
        raise Unreadable(f"has no 3-D array (bands, rows, columns); it has {_listing(arrays)}")
    if len(cubes) > 1:
        raise Unreadable(f"has {len(cubes)} 3-D arrays; choose one with --key: {_listing(arrays)}")
    largest = max(arrays, key=lambda key: arrays[key].size)
    if largest != cubes[0]:
        raise Unreadable(
            f"its largest array {largest} is not 3-D; reshape it, or choose with --key: {_listing(arrays)}"
        )
    return cubes[0]


def _listing(arrays: Mapping[str, Any]) -> str:
    shown = [f"{key} {tuple(array.shape)}" for key, array in arrays.items() if array.ndim > 1 or len(arrays) == 1]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") if shown else "no arrays of numbers"


def _is_matlab_hdf5(path: Path) -> bool:
    return path.suffix.lower() == ".mat" and bool(h5py.is_hdf5(path))


def _has_time(array: Any) -> bool:
    """Whether a netCDF dimension is time."""
    names = [name for dim in getattr(array, "dims", ()) for name in (dim.label, *dim.keys())]
    return any(name.lower() in ("t", "time", "timestamp") for name in names)


def _wavelengths(arrays: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """Wavelengths (nm) stored beside the cube, if they are as many as one of its axes is long."""
    for name, array in arrays.items():
        if "wavelength" in name.lower() and array.size in shape and array.size == max(array.shape):
            return tuple(to_nanometres(np.ravel(array[()]).tolist()))
    return None


def _axes(shape: tuple[int, ...], options: CubeOptions, wavelengths: Sequence[float] | None) -> str:
    """One letter of "chw" per axis. The band axis has the known band count, else it is the odd or the smallest one."""
    if len(shape) == 2:
        return "hw"
    if options.axes:
        if sorted(options.axes) != sorted("chw"):
            raise Unreadable(f"--axes {options.axes} is no order of the letters h, w and c")
        return options.axes
    count = options.bands if options.bands in shape else len(wavelengths or ())
    if count in shape:
        place = max(index for index, size in enumerate(shape) if size == count)
    elif len(set(shape)) == 2:
        place = next(index for index, size in enumerate(shape) if shape.count(size) == 1)
    else:
        place = 0 if shape[0] == min(shape) < shape[2] else 2
    return ("chw", "hcw", "hwc")[place]


def _nodata(array: Any) -> float | None:
    attributes = getattr(array, "attrs", {})
    values = [np.ravel(attributes[name]) for name in NODATA_ATTRIBUTES if name in attributes]
    return float(values[0][0]) if values else None
