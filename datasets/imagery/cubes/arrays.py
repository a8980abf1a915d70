"""The arrays of HDF5, netCDF, MATLAB and NumPy files by name, with what the file says of them. Nothing is unpickled."""

import math
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy.io import netcdf_file

from datasets.imagery.claims import refuse_large, too_large
from datasets.imagery.scenes import Unreadable, readable

SUFFIXES = (".h5", ".hdf5", ".he5", ".hdf", ".nc", ".nc4", ".mat", ".npy", ".npz")
MATLAB_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
MATLAB_NUMBERS = ("double", "single", "logical", *MATLAB_INTEGERS)
HDF4 = b"\x0e\x03\x13\x01"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """An array of a file: its header at once, its values when they are sliced."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], Any]  # an array, or whatever is sliced like one
    dims: tuple[str, ...] = ()  # names of its dimensions, "" where one has none; (): nothing is said
    attributes: Mapping[str, Any] = field(default_factory=dict)
    flipped: bool = False  # MATLAB wrote it: its axes stand in the file from the last to the first
    refusal: str = ""  # why its values are not read

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.float64))

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape as the one who wrote it sees it."""
        return self.shape[::-1] if self.flipped else self.shape

    @cached_property
    def _values(self) -> Any:
        if self.refusal:
            raise Unreadable(self.refusal)
        return self.load()

    def __getitem__(self, index: Any) -> np.ndarray:
        """Raises Unreadable where memory cannot hold what is asked for."""
        asked = np.broadcast_to(np.zeros((), self.dtype), self.shape)[index]  # of the same shape, and no memory
        refuse_large(asked.nbytes)
        return np.asarray(self._values[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[()], dtype=dtype, copy=copy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays(Mapping[str, Stored]):
    """The numeric arrays of a file by name; beside them its texts and its own attributes."""

    found: dict[str, Stored]
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # lists of words, such as band names
    notes: dict[str, str] = field(default_factory=dict)  # single texts, such as a projection
    attributes: Mapping[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # what is not opened, and why

    def __getitem__(self, name: str) -> Stored:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """The numeric arrays of a file by name. HDF5, netCDF and .npy stay on disk until they are sliced.

    Raises:
        Unreadable: the file is damaged, or none of these formats.
    """
    with ExitStack() as stack:
        with readable(path):
            arrays = _opened(path, stack)
        yield arrays


def _opened(path: Path, stack: ExitStack) -> Arrays:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Arrays(found={"array": _in_memory(_mapped(path))})
    if suffix == ".npz":
        return _zipped(path, stack.enter_context(np.load(path, allow_pickle=False)))
    with path.open("rb") as stream:
        start = stream.read(6)
    if start.startswith(HDF4):
        raise Unreadable("is HDF4, which is not read; make HDF5 of it with h4toh5, or GeoTIFF with gdal_translate")
    if start.startswith((b"CDF\x01", b"CDF\x02")):
        return _classic(stack.enter_context(netcdf_file(path, mmap=True)))
    if suffix == ".mat" and not h5py.is_hdf5(path):
        return _matlab(path)
    return _hdf5(stack.enter_context(h5py.File(path)), path)


def npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and dtype of a .npy file; the stream is left at its first data byte.

    Raises:
        ValueError: it is none. Its header is Python's text of a mapping.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)
    except (SyntaxError, TypeError, tokenize.TokenError, OverflowError) as error:
        raise ValueError(f"its header cannot be read ({' '.join(str(error).split()):.80})") from error


def _mapped(path: Path) -> np.ndarray:
    """A .npy file, whose values are read from the disk when they are used."""
    with path.open("rb") as stream:
        shape, _, dtype = npy_header(stream)
        claimed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - stream.tell()
    if claimed > there and not dtype.hasobject:
        raise Unreadable(
            f"cannot be read: its header says {claimed} bytes of {' x '.join(map(str, shape))}, it has {there}"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _in_memory(array: np.ndarray) -> Stored:
    return Stored(shape=array.shape, dtype=array.dtype, load=lambda: array)


def _zipped(path: Path, archive: Any) -> Arrays:
    found, texts, refused = {}, {}, {}
    for name in archive.files:
        with zipfile.ZipFile(path) as members, members.open(f"{name}.npy") as stream:
            shape, _, dtype = npy_header(stream)
        claim = too_large(shape, dtype.itemsize, path.stat().st_size)
        if dtype.hasobject:
            refused[name] = f"{name} holds Python objects, which are never unpickled"
        elif dtype.kind in "US":
            words = _member(archive, name, shape, dtype) if len(shape) == 1 and not claim else None
            texts |= {name: tuple(map(plain, words))} if words is not None else {}
        else:
            found[name] = Stored(
                shape=shape,
                dtype=dtype,
                load=partial(_member, archive, name, shape, dtype),
                refusal=claim and f"{name} {claim}",
            )
    return Arrays(found=found, texts=texts, refused=refused)


def _member(archive: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of an .npz, which is only read whole."""
    refuse_large(float(np.prod(shape, dtype=np.float64)) * dtype.itemsize)
    return archive[name]


class _Mapped:
    """A variable of a classic netCDF file. What is sliced is copied: no view may outlive the file's memory map."""

    def __init__(self, file: netcdf_file, name: str) -> None:
        self.file, self.name = file, name

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self.file.variables[self.name].data[index])


def _classic(file: netcdf_file) -> Arrays:
    found, texts = {}, {}
    for name, variable in file.variables.items():
        attributes = {key: plain(value) for key, value in variable._attributes.items()}
        shape, dtype = variable.data.shape, variable.data.dtype
        if dtype.kind == "S":
            if len(shape) == 2:
                texts[name] = tuple(plain(b"".join(row)).strip("\0 ") for row in _Mapped(file, name)[()])
            continue
        found[name] = Stored(
            shape=shape,
            dtype=dtype,
            load=lambda name=name: _Mapped(file, name),
            dims=tuple(variable.dimensions),
            attributes=attributes,
        )
    root = {key: plain(value) for key, value in file._attributes.items()}
    return Arrays(found=found, texts=texts, attributes=root)


def _matlab(path: Path) -> Arrays:
    listed = [(name, shape) for name, shape, kind in scipy.io.whosmat(path) if kind in (*MATLAB_NUMBERS, "struct")]
    for name, shape in listed:
        if reason := too_large(shape, 1, path.stat().st_size):
            raise Unreadable(f"{name} {reason}")
    refuse_large(sum(float(np.prod(shape, dtype=np.float64)) for _, shape in listed))
    names = [name for name, _ in listed]
    loaded = scipy.io.loadmat(path, variable_names=names) if names else {}
    found = dict(item for name in names for item in _numbers(name, loaded[name]))
    return Arrays(found={name: _in_memory(array) for name, array in found.items()})


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


def _hdf5(file: h5py.File, path: Path) -> Arrays:
    with path.open("rb") as stream:
        by_matlab = file.userblock_size >= 512 and stream.read(6) == b"MATLAB"
    found: dict[str, Stored] = {}
    texts: dict[str, tuple[str, ...]] = {}
    notes: dict[str, str] = {}

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset) or node.shape is None or name.startswith("#"):
            return  # in "#refs#" MATLAB keeps the inside of cells
        string = h5py.check_string_dtype(node.dtype)
        closed = string and (_leads_out(node) or too_large(node.shape, node.dtype.itemsize, path.stat().st_size))
        if string and node.ndim == 1 and node.len() <= 10_000:
            texts[name] = tuple(map(plain, node[()])) if not closed else ()
        elif string and node.ndim == 0:
            notes[name] = str(plain(node[()])) if not closed else ""
        elif _is_number(node.dtype) and not _is_bare_dimension(node):
            found[name] = _dataset(name, node, by_matlab, path)

    file.visititems(visit)
    return Arrays(found=found, texts=texts, notes=notes, attributes=_attributes(file), refused=_external_links(file))


def _is_number(dtype: np.dtype) -> bool:
    """Complex integers are pairs (r, i); they count, so that they are refused as complex numbers are."""
    return dtype.kind in "iufc" or dtype.names in (("r", "i"), ("real", "imag"))


def _is_bare_dimension(node: h5py.Dataset) -> bool:
    """netCDF-4 keeps a dimension without coordinates as an empty array."""
    return plain(node.attrs.get("NAME", "")).startswith("This is a netCDF dimension but not a netCDF variable")


def _leads_out(node: h5py.Dataset) -> str:
    if node.external:
        return f"keeps its values in another file ({node.external[0][0]})"
    if node.is_virtual:
        return f"is a virtual array over other files ({node.virtual_sources()[0].file_name})"
    return ""


def _dataset(name: str, node: h5py.Dataset, by_matlab: bool, path: Path) -> Stored:
    attributes = _attributes(node)
    away = _leads_out(node)
    refusal = f"{name} {away}, which is not opened; copy the values into one file" if away else ""
    claim = too_large(node.shape, node.dtype.itemsize, path.stat().st_size)
    return Stored(
        shape=node.shape,
        dtype=np.dtype(np.complex64) if node.dtype.names else node.dtype,
        load=lambda: node,
        dims=_dimensions(node),
        attributes=attributes,
        flipped=by_matlab or "MATLAB_class" in attributes,
        refusal=refusal or (claim and f"{name} {claim}"),
    )


def _dimensions(node: h5py.Dataset) -> tuple[str, ...]:
    """A dimension is called as the array of its coordinates, else by its label."""
    if "DIMENSION_LIST" not in node.attrs and "DIMENSION_LABELS" not in node.attrs:
        own = node.ndim == 1 and node.attrs.get("CLASS", b"") == b"DIMENSION_SCALE"
        return (str(node.name).strip("/"),) if own else ()
    scales = [list(dim.values()) for dim in node.dims]
    return tuple(
        str(scale[0].name).strip("/") if scale else str(dim.label) for dim, scale in zip(node.dims, scales, strict=True)
    )


def _external_links(file: h5py.File) -> dict[str, str]:
    found: dict[str, str] = {}

    def visit(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            found[name] = f"{name} is a link into another file ({link.filename}), which is not opened"

    file.visititems_links(visit)
    return found


def _attributes(node: Any) -> dict[str, Any]:
    """Attributes that are numbers or text; references and structures are left out."""
    found = {}
    for name in node.attrs:
        try:
            value = node.attrs[name]
        except (OSError, TypeError, ValueError, MemoryError):  # a kind that h5py does not know, or a size that is none
            continue
        if isinstance(value, str | bytes | np.bytes_ | np.number | np.ndarray | int | float | np.bool_):
            found[str(name)] = plain(value)
    return found


def plain(value: Any) -> Any:
    """An attribute's value: text as str, a list of one as its element, numbers as they are."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return tuple(plain(item) for item in value.reshape(-1))
    return value
