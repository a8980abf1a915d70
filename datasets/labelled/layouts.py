"""Which file holds what: descriptions of the known data sets, and of a user's own."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alliance.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "labelled"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The file of each array, as FILE or FILE:KEY, below the folder of the data set.

    A file name may hold one *: then every file that fits makes a scene, and all names with * must go together.
    """

    passive: str | None = None  # HSI or MSI
    active: str | None = None  # LiDAR or SAR
    labels: str | None = None  # map of classes; None: those of train and test together
    train: str | None = None  # official training pixels: a map, or a list of rows and columns
    test: str | None = None
    blocks: str | None = None  # map of places that a split must not tear apart

    def __post_init__(self) -> None:
        if not (self.passive or self.active):
            raise InputError("a layout names neither a passive nor an active image; give one as FILE:KEY")
        if not (self.labels or (self.train and self.test)):
            raise InputError("a layout names no labels; give labels, or train and test, as FILE:KEY")

    def sources(self) -> dict[str, tuple[str, str | None]]:
        """File and key of every array that there is, by role."""
        given = ((role, text) for role, text in dataclasses.asdict(self).items() if text)
        parted = ((role, text.partition(":")) for role, text in given)
        return {role: (file, key or None) for role, (file, _, key) in parted}

    def scenes(self, folder: Path) -> Iterator[tuple[str, "Layout"]]:
        """Name and layout of every scene below a folder."""
        sources = {role: text for role, text in dataclasses.asdict(self).items() if text}
        patterns = [file for file, _ in self.sources().values() if "*" in file]
        if not patterns:
            yield folder.name, self
            return
        before, _, after = patterns[0].partition("*")
        found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(patterns[0]))
        if not found:
            raise InputError(f"no file in {folder} is named like {patterns[0]}; give the folder of the data set")
        for name in (file.removeprefix(before).removesuffix(after) for file in found):
            yield name, Layout(**{role: text.replace("*", name) for role, text in sources.items()})


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set: what is known of it, and the layouts in which it is handed around."""

    layouts: tuple[Layout, ...] = ()
    patches: str | None = None  # file of ready patches, in place of scenes
    bands: int | None = None  # of the passive image
    channels: int | None = None  # of the active image
    classes: tuple[str, ...] = ()  # names of classes 1, 2, ...; empty: any are allowed
    unlabelled: int = 0  # marks pixels without a label, as 0 does
    log_active: bool = False  # x -> sign(x) log(1 + |x|) for SAR intensities and products of them, not for dB

    def layout(self, folder: Path) -> Layout:
        """The first layout whose files are all in a folder.

        Raises:
            InputError: there is none; the message names what is missing from the nearest one.
        """
        if not self.layouts:
            raise InputError("this data set comes as ready patches, not as scenes; open it with open_patches")
        missing = [_missing(layout, folder) for layout in self.layouts]
        least = min(missing, key=len)
        if least:
            others = f", nor one of its {len(self.layouts) - 1} other layouts" if len(self.layouts) > 1 else ""
            raise InputError(
                f"{folder} has no {', '.join(least)}{others}; give the folder of the data set, or a YAML file "
                f"as in {FOLDER.parent.name}/{FOLDER.name} with your own file names"
            )
        return self.layouts[missing.index(least)]


def _missing(layout: Layout, folder: Path) -> list[str]:
    files = dict.fromkeys(file for file, _ in layout.sources().values())
    return [file for file in files if not (any(folder.glob(file)) if "*" in file else (folder / file).is_file())]


def benchmark_names() -> list[str]:
    """Names of the data sets that are described, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_benchmark(name: str) -> Benchmark:
    """A data set by name, or one from a YAML file by path.

    Raises:
        InputError: unknown name, missing or wrong file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.is_file():
        return _read_benchmark(path)
    if path.parent != FOLDER:
        raise InputError(f"no file {name} describes a data set; give a name instead: {', '.join(benchmark_names())}")
    hint = _hint(name, benchmark_names())
    raise InputError(f"unknown data set {name!r}{hint}; known: {', '.join(benchmark_names())}, or a YAML file")


def _read_benchmark(path: Path) -> Benchmark:
    try:
        record = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_keys(path, record, Benchmark)
    layouts = record.get("layouts") or []
    layouts = layouts if isinstance(layouts, list) else [layouts]
    for layout in layouts:
        _check_keys(path, layout, Layout)
    if bool(layouts) == bool(record.get("patches")):
        raise InputError(f"{path} must have either layouts or patches; see those in {FOLDER.parent.name}/{FOLDER.name}")
    try:
        known = tuple(Layout(**layout) for layout in layouts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Benchmark(**record | {"layouts": known, "classes": tuple(record.get("classes") or ())})


def _check_keys(path: Path, record: Any, kind: type[Benchmark] | type[Layout]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(record, dict):
        raise InputError(f"{path}: {record!r} is no mapping; give keys such as {', '.join(names[:3])}")
    for key in record:
        if key not in names:
            raise InputError(f"{path}: unknown key {key!r}{_hint(str(key), names)}; known keys: {', '.join(names)}")


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
