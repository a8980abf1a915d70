"""The files of every pair of a split."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alliance.errors import InputError
from datasets.imagery.rasters import SUFFIXES
from datasets.imagery.scenes import Skipped
from datasets.labelled.pair_set import ROLES, PairSet


class PairFiles(NamedTuple):
    """One pair: its name and its three files."""

    key: str
    optical: Path
    sar: Path
    label: Path


def find_pairs(pairs: PairSet, split: str) -> tuple[list[PairFiles], list[Skipped]]:
    """The pairs of a split, in the order of its list, else sorted; and the names that lack a file.

    Raises:
        InputError: no such split, folder or list, or no pair is complete.
    """
    if split not in pairs.splits:
        raise InputError(f"{pairs.name} has no split {split!r}; it has {', '.join(pairs.splits)}")
    given = pairs.splits[split]
    lines = read_list(pairs.root / given) if isinstance(given, str) else given
    patterns = {role: pattern for role, pattern in pairs.patterns.items() if pattern is not None}
    if patterns:
        files = {role: list_files(pairs.root, pattern.replace("{split}", split)) for role, pattern in patterns.items()}
        found, skipped = _match(files, lines)
    else:
        found, skipped = _from_paths(lines or [], pairs.root)
    if not found:
        first = f"; the first, {skipped[0].file}: {skipped[0].reason}" if skipped else ""
        raise InputError(
            f"{pairs.name}, split {split}: no complete pair in {pairs.root} among {len(skipped)}{first}; check the root"
        )
    return found, skipped


def read_list(path: Path) -> list[str]:
    """Lines of a split's list, without empty ones.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this list of pairs cannot be read; put it there, or correct `splits`") from error


def list_files(root: Path, pattern: str) -> dict[str, Path]:
    """Files by name of pair: those that fit a pattern with `{key}`, or the images in a folder and below.

    Raises:
        InputError: no such folder, or two files of one name.
    """
    head, placeholder, tail = (root / pattern).as_posix().partition("{key}")
    folder = Path(head.rpartition("/")[0] if placeholder else head)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; files are looked for there: give another root, or mend `files`")
    found: dict[str, Path] = {}
    for path in _images(folder):
        text = path.as_posix()
        if placeholder and not (text.startswith(head) and text.endswith(tail) and len(text) > len(head) + len(tail)):
            continue
        key = text[len(head) : len(text) - len(tail)] if placeholder else _name(path, folder)
        if key in found:
            raise InputError(f"{path} and {found[key].name} have one name; keep one of them")
        found[key] = path
    return dict(sorted(found.items()))


def _images(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("._"):  # macOS archives hold ._x beside x
                yield Path(place, name)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _match(files: dict[str, dict[str, Path]], lines: Sequence[str] | None) -> tuple[list[PairFiles], list[Skipped]]:
    """Pairs that have all files; without a list, the names of all roles together."""
    known = set().union(*files.values())
    keys = sorted(known) if lines is None else [_without_suffix(line, known) for line in lines]
    found, skipped = [], []
    for key in keys:
        missing = [role for role in ROLES if key not in files[role]]
        if missing:
            skipped.append(Skipped(key, f"no {' and no '.join(missing)} file"))
        else:
            found.append(PairFiles(key, *(files[role][key] for role in ROLES)))
    return found, skipped


def _without_suffix(line: str, known: Iterable[str]) -> str:
    """Lists name pairs with or without the suffix of a file."""
    cut = line.lower().endswith(SUFFIXES) and line not in known
    return line[: line.rindex(".")] if cut else line


def _from_paths(lines: Sequence[str], root: Path) -> tuple[list[PairFiles], list[Skipped]]:
    """Pairs of lines `optical sar label`; the paths may start with folders of another machine."""
    found, skipped, start = [], [], 0
    for line in lines:
        texts = line.split()
        if len(texts) != len(ROLES):
            raise InputError(f"line {line[:80]!r} of a list holds {len(texts)} paths; needed are optical, SAR, label")
        paths = []
        for text in texts:
            path, start = _rerooted(text, root, start)
            paths.append(path)
        lost = [text for text, path in zip(texts, paths, strict=True) if path is None]
        if lost:
            skipped.append(Skipped(texts[0], f"no file {lost[0]} below the root"))
        else:
            found.append(PairFiles(PurePosixPath(texts[0]).with_suffix("").as_posix(), *paths))
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
