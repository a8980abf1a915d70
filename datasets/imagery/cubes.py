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

from alliance.sensors.catalog import to_nanometres
from datasets.imagery.scenes import Read, Scene, Unreadable, Window, check_dtype, equals, find_date, readable

SUFFIXES = (".h5", ".hdf5", ".nc", ".mat", ".npy", ".npz")
NODATA_ATTRIBUTES = ("_FillValue", "missing_value", "Data_Ignore_Value")
MATLAB_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
MATLAB_NUMBERS = ("double", "single", "logical", *MATLAB_INTEGERS)


@dataclass(frozen=True, kw_only=True)
class CubeOptions:
    """How arrays are to be understood where the file does not tell."""

    key: str | None = None  # name of the array; None: the only 3-D one
    axes: str | None = None  # order of the stored axes, such as "hwc"; None: recognised by the band count
    bands: int | None = None  # the sensor's band count, if known
    grid: tuple[int, ...] | None = None  # rows and columns, if known
    any_rank: bool = False  # a 2-D array is an image too; of several without a key, the one that is named like the file


@dataclass(frozen=True, kw_only=True)
class CubeScene(Scene):
    """One array of a file."""

    key: str
    axes: str  # one letter of "chw" per stored axis

    @contextmanager
    def open(self, bands: Sequence[int]) -> Iterator[Read]:
        with open_arrays(self.files[0]) as arrays:
            array = arrays[self.key]

            nodata = [self.nodata[band] for band in bands] if self.nodata else [None]

            def read(row: int, col: int, height: int, width: int) -> Window:
                spans = {"c": slice(None), "h": slice(row, row + height), "w": slice(col, col + width)}
                with readable(self.files[0]):
                    window = np.asarray(array[tuple(spans[axis] for axis in self.axes)])
                stored = _bands_first(window, self.axes)[list(bands)]
                return Window(stored, equals(stored, nodata))

            yield read


def describe_cube(path: Path, root: Path, options: CubeOptions) -> CubeScene:
    """Find the image in a file of arrays.

    Raises:
        Unreadable: no array fits, or several do and no key is given.
    """
    with open_arrays(path) as arrays, readable(path):
        key = (options.key or "").strip("/") or (_own_array(arrays, path) if options.any_rank else _only_cube(arrays))
        if key not in arrays:
            raise Unreadable(f"has no array {key!r}; it has {_listing(arrays)}")
        axes, wavelengths = _stored_axes(path, arrays, key, options)
        array = arrays[key]
        size = dict(zip(axes, array.shape, strict=True))
        bands = size.get("c", 1)
        return CubeScene(
            root=root,
            files=(path,),
            name=path.relative_to(root).with_suffix("").as_posix(),
            shape=(bands, size["h"], size["w"]),
            dtype=check_dtype(array.dtype),
            wavelengths=wavelengths if wavelengths and len(wavelengths) == bands else None,
            nodata=() if (nodata := _nodata(array)) is None else (nodata,) * bands,
            date=find_date(path),
            key=key,
            axes=axes,
        )


def _own_array(arrays: Mapping[str, Any], path: Path) -> str:
    """Name of the only array, or of the one that is named like its file."""
    own = [key for key in arrays if not key.startswith("#")]  # in "#refs#" MATLAB keeps the inside of cells
    if len(own) != 1 and path.stem not in arrays:
        raise Unreadable(f"has several arrays; name one as FILE:KEY; it has {_listing(arrays)}")
    return own[0] if len(own) == 1 else path.stem


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
            names = [name for name, _, kind in scipy.io.whosmat(path) if kind in (*MATLAB_NUMBERS, "struct")]
            loaded = scipy.io.loadmat(path, variable_names=names) if names else {}
            arrays = dict(item for name in names for item in _numbers(name, loaded[name]))
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


def _numbers(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The numeric arrays inside of a MATLAB value, called as HDF5 calls them: struct/field, and cell/0 of several."""
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.names or value.dtype == object:
        for index, item in enumerate(value.flat):
            place = name if value.dtype.names and value.size == 1 else f"{name}/{index}"
            inside = [(f"{place}/{field}", item[field]) for field in value.dtype.names or ()] or [(place, item)]
            for field, part in inside:
                yield from _numbers(field, part)
    elif value.dtype.kind in "biufc":
        yield name, value


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


def _stored_axes(
    path: Path, arrays: Mapping[str, Any], key: str, options: CubeOptions
) -> tuple[str, tuple[float, ...] | None]:
    """One letter of "chw" per axis of an array, in the file's order; and the wavelengths beside it."""
    array = arrays[key]
    check_dtype(array.dtype)
    if array.ndim > 3 or _has_time(array):
        raise Unreadable(f"{key} {array.shape} is a time series; save one date as a 3-D array")
    if array.ndim < 2:
        raise Unreadable(f"{key} {array.shape} is no image")
    flipped = _is_matlab_hdf5(path)  # MATLAB writes (h, w, c) so that others read (c, w, h)
    shape = array.shape[::-1] if flipped else array.shape
    wavelengths = _wavelengths(arrays, shape)
    axes = _axes(shape, options, wavelengths)
    return axes[::-1] if flipped else axes, wavelengths


def _bands_first(array: np.ndarray, axes: str) -> np.ndarray:
    return rearrange(array, f"{' '.join(axes)} -> {'c h w' if 'c' in axes else '1 h w'}")


def _axes(shape: tuple[int, ...], options: CubeOptions, wavelengths: Sequence[float] | None) -> str:
    """One letter of "chw" per axis. The band axis has the known band count, else it is the odd or the smallest one."""
    if len(shape) == 2:
        return "hw"
    if options.axes:
        if sorted(options.axes) != sorted("chw"):
            raise Unreadable(f"--axes {options.axes} is no order of the letters h, w and c")
        return options.axes
    fitting = [axes for axes in ("hwc", "chw", "hcw") if _grid(axes, shape) == options.grid]
    if len(fitting) == 1:
        return fitting[0]
    count = options.bands if options.bands in shape else len(wavelengths or ())
    if count in shape:
        place = max(index for index, size in enumerate(shape) if size == count)
    elif len(set(shape)) == 2:
        place = next(index for index, size in enumerate(shape) if shape.count(size) == 1)
    else:
        place = 0 if shape[0] == min(shape) < shape[2] else 2
    return ("chw", "hcw", "hwc")[place]


def _grid(axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[axes.index("h")], shape[axes.index("w")]


def _nodata(array: Any) -> float | None:
    attributes = getattr(array, "attrs", {})
    values = [np.ravel(attributes[name]) for name in NODATA_ATTRIBUTES if name in attributes]
    return float(values[0][0]) if values else None
