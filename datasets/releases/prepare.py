"""Prepare a released data set: find its scenes, cut them, split them, measure them, and write down what was done."""

import glob
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tqdm import tqdm

from alliance.errors import InputError
from alliance.files import clear_temporaries, final_name, regular, replace_file
from alliance.ranges import SEEDS, Ranged, ranged
from datasets.contents import digest_files
from datasets.descriptors import LOCK, only_writer
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE, LabelSource
from datasets.imagery.scenes import Skipped, Unreadable, summarise
from datasets.labelled.description import LabelledSet
from datasets.labelled.find import SampleFiles, find_samples, list_files, read_list
from datasets.labelled.parse import write_set
from datasets.labelled.survey import Survey, survey, with_statistics
from datasets.labelled.tiles import Tiles
from datasets.releases.cut import Grid, cut_scene, inspect_scene
from datasets.releases.facts import RELEASED_OPTICAL, RELEASED_SAR, Release
from datasets.sampling.order import shuffled

Split = Literal["published", "tiles"]
Constants = Literal["measured", "released"]
NAME, MANIFEST = "pairs.yaml", "manifest.json"
ROLES = ("optical", "sar", "label")
DEPTH = 3  # levels below the root on which the folders are looked for


@dataclass(frozen=True, kw_only=True)
class Options(Ranged):
    """How a data set is prepared."""

    grid: Grid
    """Where tiles lie."""
    split: Split = "published"
    """The published one, or tiles drawn at random."""
    seed: int = ranged(0, 0, SEEDS)
    """Of a random split."""
    lists: Path | None = None
    """Folder of published lists; None: found below the root."""
    constants: Constants = "measured"
    """Mean, deviation and band order: of the training tiles, or of PAD's public code."""
    overwrite: bool = False
    """Remove the tiles of an earlier run."""


@dataclass
class _Work:
    """What has been learnt so far."""

    warnings: list[str]
    skipped: list[Skipped]
    sizes: Counter[str]
    tiles: dict[str, list[str]]  # keys of each scene's tiles


def prepare(release: Release, root: Path, out: Path, options: Options) -> dict[str, Any]:
    """Cut a release into tiles below `out`; write split lists, description and manifest, and return the manifest.

    Raises:
        InputError: the folders or lists are not found, `out` holds something else, or no tile could be made.
    """
    home = find_home(root, release)
    folders = {role: next(home / name for name in release.folders[role] if (home / name).is_dir()) for role in ROLES}
    record = {"dataset": release.name, "source": str(home.resolve()), "tile": options.grid.tile}
    record |= {"edges": options.grid.edges}
    work = _Work([], [], Counter(), {})
    scenes, counts = _find_scenes(release, home, folders, work)
    published = _published(release, root, options, {files.key for files in scenes}, work)
    contents = {files.key: digest_files(files.paths, limit=0) for files in scenes}
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder to write")
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        prepare_folder(out, record, contents, overwrite=options.overwrite)
        _cut(release, scenes, set().union(*published.values()) if published else None, out, options.grid, work)
        splits = _split_tiles(release, published, options, work)
        pairs, surveyed = _describe(release, out, splits, options, work)
        write_set(pairs, out / NAME)
        manifest = record | {"contents": contents, "complete": True}
        manifest |= {"split": options.split, "seed": options.seed, "files": counts}
        manifest |= _report(pairs, splits, surveyed, work)
        _write_manifest(out, manifest)
    return manifest


def find_home(root: Path, release: Release) -> Path:
    """The folder at or below `root` that holds the three folders of a release.

    Raises:
        InputError: there is none, or several on one level.
    """
    wanted = ", ".join("|".join(names) for names in release.folders.values())
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the one that holds {wanted}")
    for folders in _levels(root):
        homes = [folder for folder in folders if _is_home(folder, release)]
        if len(homes) > 1:
            raise InputError(
                f"{root} holds {release.name} several times: {', '.join(map(str, homes))}; name one of them"
            )
        if homes:
            return homes[0]
    raise InputError(
        f"{root}: no folder there, down to {DEPTH} levels, holds {wanted}; unpack the archives side by side"
    )


def prepare_folder(out: Path, record: dict[str, Any], contents: dict[str, str], *, overwrite: bool) -> None:
    """See that the folder is empty or holds an earlier run with the same tiles, or remove those; and what a kill left.

    Args:
        contents: checksum of every scene; one whose tiles may be there must have the same as then.
    Raises:
        InputError: it holds anything else.
    """
    earlier = _earlier(out, record)
    others = [path.name for path in out.iterdir() if path.name == MANIFEST or final_name(path) not in (MANIFEST, LOCK)]
    if earlier is None and others:
        raise InputError(f"{out} holds other files ({others[0]}); name another folder")
    differing = [key for key, value in record.items() if earlier is not None and earlier[key] != value]
    if earlier is not None and differing and not overwrite:
        key = differing[0]
        raise InputError(
            f"{out} holds tiles with {key} {earlier[key]}, not {record[key]}; name another folder or pass --overwrite"
        )
    then = (earlier or {}).get("contents", {})
    changed = [key for key, digest in contents.items() if then.get(key, digest) != digest and _tiles_of(key, out)]
    if changed and not overwrite:
        raise InputError(
            f"{out} holds tiles of {count(changed, 'scene')} whose files have changed since, the first is {changed[0]}; name "
            f"another folder or pass --overwrite"
        )
    if earlier is not None and overwrite:
        for role in ROLES:
            shutil.rmtree(out / role, ignore_errors=True)
    for folder in (out, *(out / role for role in ROLES)):
        clear_temporaries(folder)
    _write_manifest(out, record | {"contents": then | contents, "complete": False})


def _tiles_of(scene: str, out: Path) -> list[Path]:
    return [path for role in ROLES for path in (out / role).glob(f"{glob.escape(scene)}_r*")]


def draw_split(keys: Iterable[str], shares: dict[str, float], seed: int) -> dict[str, list[str]]:
    """Deal keys out at random, by share; depends on the keys and the seed alone."""
    keys = sorted(keys)
    order = [keys[place] for place in shuffled(len(keys), seed)]
    splits, start, reached = {}, 0, 0.0
    for name, share in shares.items():
        reached += share
        stop = round(reached * len(keys))
        splits[name] = sorted(order[start:stop])
        start = stop
    return splits


def _find_scenes(
    release: Release, home: Path, folders: dict[str, Path], work: _Work
) -> tuple[list[SampleFiles], dict[str, int]]:
    """Scenes that have all three files, and how many files there are."""
    inner = {role: _inner(folder).relative_to(home).as_posix() for role, folder in folders.items()}
    source = LabelledSet(
        name=release.name,
        root=home,
        images={
            "optical": ImageSource(files=inner["optical"], bands=(1, 2, 3)),
            "sar": ImageSource(files=inner["sar"], bands=(1,)),
        },
        label=LabelSource(files=inner["label"], values=release.values),
        classes=release.classes,
        splits={"all": None},
    )
    scenes, lonely = find_samples(source, "all")
    work.skipped += lonely
    counts = {role: len(list_files(home, folder)) for role, folder in inner.items()}
    if lonely:
        work.warnings.append(f"{count(lonely, 'scene')} without all three files: {'; '.join(summarise(lonely))}")
    if len(scenes) < release.scenes:
        hint = f"; {release.hint}" if release.hint else ""
        work.warnings.append(f"{len(scenes)} of {release.scenes} scenes are complete{hint}")
    names = {name for role in ROLES for name in release.folders[role]} | {"prediction", "predict"}
    other = [path for level in _levels(home) for path in level if path.name in names and not _within(path, folders)]
    if other:
        listed = ", ".join(path.relative_to(home).as_posix() for path in sorted(other))
        used = ", ".join(folder.name for folder in folders.values())
        work.warnings.append(f"{listed}: not used; their files may differ from those in {used}, which are the data set")
    return scenes, counts


def _published(
    release: Release, root: Path, options: Options, found: set[str], work: _Work
) -> dict[str, list[str]] | None:
    """Scenes of each published split that were found; None where tiles are drawn instead."""
    if options.split == "tiles":
        return None
    named = {split: list(scenes) for split, scenes in (release.split or {}).items()}
    for split, name in (release.lists or {}).items():
        lines = read_list(_find_list(options.lists or root, name))
        named[split] = [PurePosixPath(line.split()[0].replace("\\", "/")).stem for line in lines]
    names = [name for scenes in named.values() for name in scenes]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{repeated[0]} and {len(repeated) - 1} more stand in the published lists more than once")
    absent = sorted(set(names) - found)
    if absent:
        work.warnings.append(f"of the published split, {count(absent, 'scene')} not found, the first is {absent[0]}")
    unknown = sorted(found - set(names))
    work.skipped += [Skipped(name, "not in the published split; cut only with --split tiles") for name in unknown]
    if unknown:
        work.warnings.append(f"{count(unknown, 'scene')} outside the published split, the first is {unknown[0]}")
    return {split: [name for name in scenes if name in found] for split, scenes in named.items()}


def _find_list(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise InputError(
            f"{folder} holds no list {name}; take it from the authors' repository and pass --lists DIR, or --split tiles"
        )
    return found[0]


def _cut(
    release: Release, scenes: list[SampleFiles], wanted: set[str] | None, out: Path, grid: Grid, work: _Work
) -> None:
    """Cut the scenes; those that cannot be used are skipped."""
    scenes = [files for files in scenes if wanted is None or files.key in wanted]
    notes: dict[str, list[str]] = {}
    for files in tqdm(scenes, desc="cutting", unit="scene", disable=None):
        try:
            seen = inspect_scene(files, release.values)
            size = (seen.height, seen.width)
            keys = cut_scene(files, size, out, grid, release.values, list(release.classes.values()))
        except Unreadable as error:
            work.skipped.append(Skipped(files.key, str(error)))
            continue
        if not keys:
            work.skipped.append(Skipped(files.key, f"{size[0]} x {size[1]} pixels, smaller than a tile of {grid.tile}"))
            continue
        work.tiles[files.key] = keys
        work.sizes[f"{size[0]} x {size[1]}"] += 1
        for note in seen.notes:
            notes.setdefault(note, []).append(files.key)
    bad = [skip for skip in work.skipped if skip.file in {files.key for files in scenes}]
    work.warnings += [f"skipped {line}" for line in summarise(bad)]
    work.warnings += [f"{count(keys, 'scene')}: {note}; the first is {keys[0]}" for note, keys in notes.items()]
    doubted = sorted(set(release.doubted) & work.tiles.keys())
    if doubted:
        work.warnings.append(
            f"users doubt the labels of {count(doubted, 'scene')} (land as water): {', '.join(doubted)}"
        )
    if not work.tiles:
        raise InputError(f"no tile could be made: {'; '.join(summarise(work.skipped)[:3])}")


def _split_tiles(
    release: Release, published: dict[str, list[str]] | None, options: Options, work: _Work
) -> dict[str, list[str]]:
    """Tiles of each split, without empty splits."""
    if published is None:
        drawn = draw_split((key for keys in work.tiles.values() for key in keys), dict(release.shares), options.seed)
        work.warnings.append("tiles were drawn at random: training and test hold neighbours, so scores are optimistic")
        splits = drawn
    else:
        splits = {
            split: [key for scene in scenes for key in work.tiles.get(scene, [])] for split, scenes in published.items()
        }
    empty = [split for split, keys in splits.items() if not keys]
    work.warnings += [f"split {split} is empty" for split in empty]
    return {split: keys for split, keys in splits.items() if keys}


def _describe(
    release: Release, out: Path, splits: dict[str, list[str]], options: Options, work: _Work
) -> tuple[LabelledSet, dict[str, Survey]]:
    """Write the lists and read every tile back as training will."""
    for split, keys in splits.items():
        replace_file(out / f"{split}.txt", "".join(f"{key}\n" for key in keys).encode())
    pairs = LabelledSet(
        name=release.name,
        root=Path(),
        images={
            "optical": ImageSource(files="optical/{key}.tif", bands=(1, 2, 3), dtype="uint8"),
            "sar": ImageSource(files="sar/{key}.tif", bands=(1,), dtype="uint8"),
        },
        label=LabelSource(files="label/{key}.tif"),
        classes=release.classes,
        splits={split: f"{split}.txt" for split in splits},
    )
    surveyed = {split: survey(Tiles(replace(pairs, root=out), split)) for split in splits}
    work.skipped += [skip for each in surveyed.values() for skip in each.skipped]
    if options.constants == "released":
        optical, sar = pairs.images["optical"], pairs.images["sar"]
        released = {"optical": replace(optical, **RELEASED_OPTICAL), "sar": replace(sar, **RELEASED_SAR)}
        return pairs.with_images(**released), surveyed
    return with_statistics(pairs, [surveyed["train"]] if "train" in surveyed else surveyed.values()), surveyed


def _report(
    pairs: LabelledSet, splits: dict[str, list[str]], surveyed: dict[str, Survey], work: _Work
) -> dict[str, Any]:
    """What was made, for the manifest."""
    scene_of = {key: scene for scene, keys in work.tiles.items() for key in keys}
    report: dict[str, Any] = {"sizes": dict(work.sizes), "ignore": IGNORE, "splits": {}}
    report["classes"] = {
        name: {"index": index, "colour": rgb} for index, (name, rgb) in enumerate(pairs.classes.items())
    }
    for split, each in surveyed.items():
        report["splits"][split] = {
            "scenes": len({scene_of[key] for key in splits[split]}),
            "tiles": each.tiles,
            "all_ignored_tiles": len(each.all_ignored),
            "pixels": dict(zip(pairs.classes, each.pixels.tolist(), strict=True)) | {"ignored": each.ignored},
            "statistics": {role: moments.to_dict() for role, moments in each.images.items()},
        }
    skipped = [skip._asdict() for skip in sorted(set(work.skipped))]
    return report | {"warnings": work.warnings, "skipped": skipped}


def count(things: Collection[object], name: str) -> str:
    """How many, in words: `1 scene`, `2 scenes`."""
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _levels(root: Path) -> Iterator[list[Path]]:
    """Folders at the root and below it, level by level."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield level
        level = sorted(Path(entry) for folder in level for entry in os.scandir(folder) if entry.is_dir())


def _is_home(folder: Path, release: Release) -> bool:
    return all(any((folder / name).is_dir() for name in names) for names in release.folders.values())


def _within(path: Path, folders: dict[str, Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders.values())


def _earlier(out: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier run, if there is one."""
    try:
        manifest = json.loads(regular(out / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.keys() >= record.keys() else None


def _inner(folder: Path) -> Path:
    """Archives are often unpacked into a folder of their own name: the first folder that holds more than one folder."""
    children = list(folder.iterdir())
    return _inner(children[0]) if len(children) == 1 and children[0].is_dir() else folder


def _write_manifest(out: Path, record: dict[str, Any]) -> None:
    replace_file(out / MANIFEST, (json.dumps(record, indent=2) + "\n").encode())
