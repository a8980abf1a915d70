"""The files of every sample of a split, or of every scene of a set."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alliance.errors import InputError
from alliance.files import regular
from datasets.imagery.rasters import SUFFIXES
from datasets.imagery.scenes import Skipped
from datasets.labelled.description import LABEL, LabelledSet, Layout


class SampleFiles(NamedTuple):
    """One sample: its name, and its files by role."""

    key: str
    paths: Mapping[str, Path]

    @property
    def label(self) -> Path:
        return self.paths[LABEL]


def find_samples(
    described: LabelledSet, split: str, *, labelled: bool = True
) -> tuple[list[SampleFiles], list[Skipped]]:
    """The samples of a split, in the order of its list, else sorted; and the names that lack a file.

    Args:
        labelled: with their label maps; False: these need not be there.
    Raises:
        InputError: no such split, folder or list, or no sample is complete.
    """
    if split not in described.splits:
        raise InputError(f"{described.name} has no split {split!r}; it has {', '.join(described.splits) or 'none'}")
    given = described.splits[split]
    lines = read_list(described.root / given) if isinstance(given, str) else given
    roles = described.roles if labelled else tuple(described.images)
    patterns = {role: pattern for role in roles if (pattern := described.patterns[role]) is not None}
    if patterns:
        root = described.root
        files = {role: list_files(root, pattern.replace("{split}", split)) for role, pattern in patterns.items()}
        found, skipped = _match(files, lines)
    else:
        found, skipped = _from_paths(lines or [], described, roles)
    if not found:
        first = f"; the first, {skipped[0].file}: {skipped[0].reason}" if skipped else ""
        raise InputError(
            f"{described.name}, split {split}: no complete pair in {described.root} among {len(skipped)}{first}; "
            f"{_elsewhere(described, split, labelled)}check the folder of its files (data.path, or --root)"
        )
    return found, skipped


def _elsewhere(described: LabelledSet, split: str, labelled: bool) -> str:
    """Which other splits have files there, in words with the mend; empty: none."""
    counts = {}
    for name in described.splits:
        if name != split:
            with suppress(InputError):
                counts[name] = len(
                    find_samples(replace(described, splits={name: described.splits[name]}), name, labelled=labelled)[0]
                )
    told = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return f"there are files of {told}: give one of these splits (data.train, data.evaluate); or " if told else ""


def find_scenes(described: LabelledSet) -> list[tuple[str, Layout]]:
    """Name and layout of every scene below the root: the first layout whose files are all there.

    Raises:
        InputError: there is none; the message names what is missing from the nearest one.
    """
    folder = described.root
    missing = [_missing(layout, folder) for layout in described.layouts]
    least = min(missing, key=len)
    if least:
        others = f", nor one of its {len(missing) - 1} other layouts" if len(missing) > 1 else ""
        raise InputError(
            f"{folder} has no {', '.join(least)}{others}; give the folder of the data set, or a YAML file as in "
            f"configs/labelled with your own file names"
        )
    layout = described.layouts[missing.index(least)]
    stars = [file for file, _ in layout.sources().values() if "*" in file]
    if not stars:
        return [(folder.resolve().name, layout)]
    before, _, after = stars[0].partition("*")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(stars[0]))
    names = (file.removeprefix(before).removesuffix(after) for file in found)
    return [(name, layout.named(name)) for name in names]


def read_list(path: Path) -> list[str]:
    """Lines of a split's list, without empty ones.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return [line.strip() for line in regular(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: this list of pairs cannot be read; put it there, or give its absolute path in `splits`"
        ) from error


def list_files(root: Path, pattern: str) -> dict[str, Path]:
    """Files by name of sample: those that fit a pattern with `{key}`, or the images in a folder and below.

    Where the pattern also has `{folder}`, one of several folders, the name is FOLDER/KEY.

    Raises:
        InputError: no such folder, or two files of one name.
    """
    head, placeholder, _ = (root / pattern).as_posix().partition("{key}")
    folder = Path(head.partition("{folder}")[0].rpartition("/")[0] if placeholder else head)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; files are looked for there: give another root, or mend `files`")
    fits = _fitting((root / pattern).as_posix()) if placeholder else None
    found: dict[str, Path] = {}
    for path in _images(folder):
        fit = fits.fullmatch(path.as_posix()) if fits else None
        if fits and not fit:
            continue
        key = "/".join(fit.groups()) if fit else _name(path, folder)
        if key in found:
            raise InputError(f"{path} and {found[key].name} have one name; keep one of them")
        found[key] = path
    return dict(sorted(found.items()))


def _fitting(pattern: str) -> "re.Pattern[str]":
    """What paths of a pattern look like, with `{folder}` and `{key}` as groups."""
    text = re.escape(pattern).replace(re.escape("{folder}"), "([^/]+)").replace(re.escape("{key}"), "(.+)")
    return re.compile(text, re.DOTALL)


def _missing(layout: Layout, folder: Path) -> list[str]:
    files = dict.fromkeys(file for file, _ in layout.sources().values())
    return [file for file in files if not (any(folder.glob(file)) if "*" in file else (folder / file).is_file())]


def _images(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("._"):  # macOS archives hold ._x beside x
                yield Path(place, name)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _match(files: dict[str, dict[str, Path]], lines: Sequence[str] | None) -> tuple[list[SampleFiles], list[Skipped]]:
    """Samples that have all files; without a list, the names of all roles together. A name in a list may hold * for many."""
    known = set().union(*files.values())
    keys = sorted(known) if lines is None else [key for line in lines for key in _named_by(line, known)]
    found, skipped = [], []
    for key in keys:
        missing = [role for role, own in files.items() if key not in own]
        if missing:
            skipped.append(Skipped(key, f"no {' and no '.join(missing)} file"))
        else:
            found.append(SampleFiles(key, {role: own[key] for role, own in files.items()}))
    return found, skipped


def _named_by(line: str, known: Iterable[str]) -> list[str]:
    """The names that a line means; itself where it means none."""
    name = _plain_name(line, known)
    several = sorted(fnmatch.filter(known, name)) if "*" in name and name not in known else []
    return several or [name]


def _plain_name(line: str, known: Iterable[str]) -> str:
    """Lists name samples with or without the suffix of a file, on Windows with back-slashes."""
    for name in (line, line.replace("\\", "/")):
        if name in known:
            return name
        if name.lower().endswith(SUFFIXES) and name[: name.rindex(".")] in known:
            return name[: name.rindex(".")]
    return line


def _from_paths(
    lines: Sequence[str], described: LabelledSet, roles: Sequence[str]
) -> tuple[list[SampleFiles], list[Skipped]]:
    """Samples of lines of paths, one per role; the paths may start with folders of another machine."""
    found, skipped, start = [], [], 0
    columns = described.columns or described.roles
    for line in lines:
        texts = line.split()
        if LABEL not in roles and len(texts) < len(columns):
            columns = columns[:-1]
        if len(texts) != len(columns):
            needed = ", ".join("SAR" if role == "sar" else role for role in columns)
            raise InputError(f"line {line[:80]!r} of a list holds {len(texts)} paths; needed are {needed}")
        paths = []
        for text in texts:
            path, start = _rerooted(text, described.root, start)
            paths.append(path)
        lost = [text for text, path in zip(texts, paths, strict=True) if path is None]
        if lost:
            skipped.append(Skipped(texts[0], f"no file {lost[0]} below the root"))
        else:
            key = PurePosixPath(texts[0].replace("\\", "/")).with_suffix("").as_posix()
            every = dict(zip(columns, paths, strict=True))
            found.append(SampleFiles(key, {role: every[role] for role in roles}))
    return found, skipped


def _rerooted(text: str, root: Path, start: int) -> tuple[Path | None, int]:
    """The file at the longest tail of a path that exists below the root, and how many parts were cut off.

    Args:
        start: parts to cut off that are tried first.
    """
    parts = PurePosixPath(text.replace("\\", "/")).parts
    for cut in (start, *range(max(len(parts) - 1, 1))):  # at least one folder stays: three files may have one name
        path = root.joinpath(*parts[cut:])
        if path.is_file():
            return path, cut
    return None, start
