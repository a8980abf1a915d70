"""Scenes in stores as if they were files of this machine: rasters are stand-ins that are read by ranges, the rest is fetched.

Headers, notes and metadata beside rasters are fetched, as we read them ourselves; so are files of arrays, whose libraries read
files of this machine alone, and rasters that a text beside them places, which GDAL does not read through Python.
"""

import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from alliance.errors import InputError
from alliance.passwords import hide_passwords
from datasets.imagery.cubes import SUFFIXES
from datasets.imagery.products import SENTINEL2, is_metadata, product_facts
from datasets.imagery.rasters import DRIVERS
from datasets.storage.places import is_store
from datasets.storage.standins import TEXT, Far, StandIns, StoreFailure, refuse_failure, use
from datasets.storage.store import Entry, NoRanges, Store

READ_WHOLE = (".hdr", ".vrt", ".aux.xml")
LITTLE = 1 << 20  # bytes; of what is larger, parts are fetched one after the other
PART = 1 << 24
AT_ONCE = 256  # little files
PLACING = re.compile(  # ends of names of texts that say where the raster of the same stem lies
    r"\.(?:wld|(?:tf|tif|tiff|jg|jpg|jpeg|pg|png|j2|jp2|ig|img)w|tab|rpb|rpc|imd|pvl|eph|pass)$|_(?:rpc|metadata)\.txt$"
)
NAMED_BY_FILE = (".aux.xml", ".msk", ".ovr", ".hdr", ".HDR")  # that a web server is asked for, as it lists nothing
NAMED_BY_STEM = (".hdr", ".HDR", ".ige", ".wld", ".tab", ".rpb", ".RPB", "_rpc.txt", "_RPC.TXT")
PRODUCT_METADATA = ("MTD_MSIL1C.xml", "MTD_MSIL2A.xml")  # in a Sentinel-2 product's folder


class _Wanted(NamedTuple):
    """A file in a store, and whether it is fetched."""

    far: Far
    whole: bool


@dataclass
class Mirror:
    """Places of stores and the paths that stand for them."""

    root: Path = Path()
    paths: dict[str, Path] = field(default_factory=dict)  # of the places that were given
    shown: dict[str, str] = field(default_factory=dict)  # by folders of this machine, the stores that they stand for
    wanted: dict[Path, _Wanted] = field(default_factory=dict)

    def path(self, place: str) -> Path:
        """What stands for a place; a path of this machine is its own."""
        return self.paths[place] if is_store(place) else Path(place)

    def told(self, text: str) -> str:
        """A text with places instead of what stands for them."""
        for folder, place in self.shown.items():
            text = text.replace(folder, place)
        return text

    def add(self, place: str) -> None:
        """Look up what is at a place.

        Raises:
            InputError: nothing; or its store cannot be reached, or refuses us.
        """
        plain = place.rstrip("/")
        self.paths[place] = self._local(plain)
        folder, _, name = plain.rpartition("/")
        if folder.endswith("/") or not self._add_file(folder, name):  # of s3://bucket only s3:/ is left
            self._add_folder(plain)
        for above in _products_above(plain):
            store = Store(above)
            entries = store.entries(deep=False) if store.lists else _there(store, PRODUCT_METADATA)
            self._want(above, [entry for entry in entries if is_metadata(Path(entry.name))])

    def _add_file(self, folder: str, name: str) -> bool:
        """Look up a file and what lies beside it; whether there is such a file."""
        store = Store(folder)
        (found,) = store.look_up([name])
        if found is None:
            return False
        if store.lists:  # a virtual raster may read what lies below
            entries = store.entries(deep=name.lower().endswith(".vrt"))
        else:
            entries = _there(store, _names_beside(name))
        self._want(folder, [found, *entries], array=name)
        return True

    def _add_folder(self, place: str) -> None:
        store = Store(place)
        if not store.lists:
            raise InputError(
                f"{store.place}: no such file, and a web server does not tell what a folder holds; give its files one by one"
            )
        entries = store.entries()
        if not entries:
            raise InputError(f"{store.place}: no such file or folder in the store; correct the place")
        self._want(place, entries)

    def _want(self, place: str, entries: Iterable[Entry], array: str | None = None) -> None:
        """Take files of a place.

        Args:
            array: the one file of arrays among them that is fetched; None: all are.
        """
        folder = self._local(place)
        for entry in entries:
            path = folder.joinpath(*_parts(place, entry.name))
            arrays = path.suffix.lower() in SUFFIXES and array in (None, entry.name)
            whole = arrays or path.name.lower().endswith(READ_WHOLE) or is_metadata(path)
            known = self.wanted.get(path)
            self.wanted[path] = _Wanted(Far(place, entry), whole or (known is not None and known.whole))

    def _local(self, place: str) -> Path:
        """The path that stands for a place, with the names of all folders above it, as these may tell a product."""
        scheme, _, rest = place.partition("://")
        if set(rest) & set("?#"):
            raise InputError(
                f"{hide_passwords(place)}: give a plain address, without ? and #; docs/cloud.md tells credentials"
            )
        host, *parts = rest.split("/")
        server = host.rpartition("@")[2] if scheme.startswith("http") else host
        top = self.root / scheme / re.sub(r"[^\w.-]", "_", server)
        self.shown[str(top)] = hide_passwords(f"{scheme}://{host}")
        return top.joinpath(*_parts(f"{scheme}://{host}", "/".join(parts)))

    def make(self) -> StandIns:
        """Fetch what is fetched, and put stand-ins in the place of the rest.

        Raises:
            InputError: there is no room for it, or a store cannot be reached, or refuses us.
        """
        self._fetch_placed()
        self._check()
        standins = StandIns(self.root)
        little: dict[str, list[Path]] = defaultdict(list)
        for path, (far, whole) in self.wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not whole:
                path.write_bytes(TEXT)
                standins.files[str(path)] = far
            elif far.entry.size <= LITTLE:
                little[far.place].append(path)
            else:
                _fetch(standins.store(far.place), far.entry, path)
        for place, paths in little.items():
            for start in range(0, len(paths), AT_ONCE):
                self._fetch_little(standins.store(place), paths[start : start + AT_ONCE])
        for path, (far, _) in self.wanted.items():
            os.utime(path, ns=(far.entry.time, far.entry.time))
        return standins

    def _fetch_placed(self) -> None:
        """Have rasters fetched that a text beside them places, with all that has their name."""
        placed = set[tuple[Path, str]]()
        for path in self.wanted:
            if found := PLACING.search(path.name.lower()):
                placed.add((path.parent, path.name[: found.start()].lower()))
        for path, (far, _) in self.wanted.items():
            names = [path.name[: dot.start()].lower() for dot in re.finditer(r"\.", path.name)]
            if PLACING.search(path.name.lower()) or any((path.parent, name) in placed for name in names):
                self.wanted[path] = _Wanted(far, whole=True)

    def _check(self) -> None:
        """See that all that is wanted can be on this machine; empty files that mark folders cannot, and need not."""
        folders = {folder for path in self.wanted for folder in path.parents}
        for path in folders.intersection(self.wanted):
            if self.wanted.pop(path).far.entry.size:
                raise InputError(f"{path} is both a file and a folder; rename one of them")
        size = sum(far.entry.size for far, whole in self.wanted.values() if whole)
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise InputError(
                f"{size / 1e9:,.1f} GB of arrays and headers must be fetched, {free / 1e9:,.1f} GB are free in "
                f"{self.root.parent}; have TMPDIR name a larger disk, or fetch them yourself (aws s3 cp --recursive)"
            )

    def _fetch_little(self, store: Store, paths: Sequence[Path]) -> None:
        entries = [self.wanted[path].far.entry for path in paths]
        contents = _asked(store, [(entry, 0, entry.size) for entry in entries])
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)


@contextmanager
def mirrored(places: Iterable[str]) -> Iterator[Mirror]:
    """Paths for places, those of stores included, until the block ends; a store that fails meanwhile is a user's affair.

    Raises:
        InputError: there is nothing at a place; or its store cannot be reached, refuses us, or fails, also later on; or what
            the block raises, with places instead of what stands for them.
    """
    stored = [place for place in places if is_store(place)]
    if not stored:
        yield Mirror()
        return
    with tempfile.TemporaryDirectory(prefix="alliance_") as scratch:
        mirror = Mirror(Path(scratch).resolve())
        try:
            for place in dict.fromkeys(stored):
                mirror.add(place)
            use(mirror.make())
            yield mirror
            refuse_failure()
        except (InputError, StoreFailure) as error:
            raise InputError(mirror.told(str(error))) from error
        finally:
            use(None)


def _parts(place: str, name: str) -> list[str]:
    """The parts of a file's name in a store, each of which can be one on this machine.

    Raises:
        InputError: one cannot.
    """
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in parts):
        raise InputError(f"{hide_passwords(place)}/{name}: no file can have such a name; rename it in the store")
    return parts


def _products_above(place: str) -> list[str]:
    """The folders of Sentinel-2 products that a place lies in."""
    scheme, _, rest = place.partition("://")
    parts = rest.split("/")
    return [f"{scheme}://{'/'.join(parts[:end])}" for end in range(1, len(parts)) if SENTINEL2.search(parts[end - 1])]


def _names_beside(name: str) -> list[str]:
    """What may lie beside a file and count for it."""
    path = Path(name)
    suffix, product = path.suffix.lower(), product_facts(path).get("product")
    world = (f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w") if suffix in DRIVERS else ()
    names = [name + ending for ending in NAMED_BY_FILE] + [path.stem + ending for ending in (*NAMED_BY_STEM, *world)]
    return [*dict.fromkeys(names), *([f"{product}_MTL.txt"] if product else [])]


def _there(store: Store, names: Sequence[str]) -> list[Entry]:
    return [entry for entry in store.look_up(names, optional=True) if entry is not None]


def _asked(store: Store, asked: Sequence[tuple[Entry, int, int]]) -> list[bytes]:
    try:
        return store.pieces(asked)
    except NoRanges as error:
        raise InputError(
            f"{store.place}: its server gives no byte ranges; fetch the files (curl -O), and give their paths"
        ) from error


def _fetch(store: Store, entry: Entry, path: Path) -> None:
    """Fetch a file of any size."""
    with (
        path.open("wb") as file,
        tqdm(desc="fetching", total=entry.size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for start in range(0, entry.size, PART):
            (content,) = _asked(store, [(entry, start, min(start + PART, entry.size))])
            file.write(content)
            bar.update(len(content))
