"""Patches in the layout of BigEarthNet: a folder each, a file for every band, and a file of JSON that tells what it is."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from alliance.errors import InputError
from alliance.json_files import read_json
from alliance.records import as_type, require_present
from datasets.chips.chip import Chip
from datasets.chips.files import ImageFiles, list_images
from datasets.imagery.images import ImageSource
from datasets.imagery.scenes import Skipped

METADATA = "*_labels_metadata.json"
PARTNER = "corresponding_s2_patch"  # in the metadata of a Sentinel-1 patch: the one that it belongs to


def find_patches(root: Path, source: ImageSource) -> tuple[list[tuple[ImageFiles, Path]], list[Skipped]]:
    """Images of several bands below a folder, with the metadata of each; and what is none, with the reason.

    Raises:
        InputError: no such folder.
    """
    images, skipped = list_images(root, source)
    found = []
    for image in images:
        if len(image.files) == 1:
            skipped.append(Skipped(image.name, f"has no other band of sensor {source.sensor} beside it"))
            continue
        metadata = sorted(image.files[0].parent.glob(METADATA))
        if len(metadata) != 1:
            skipped.append(Skipped(image.name, f"{len(metadata)} files {METADATA} beside it, one is needed"))
            continue
        found.append((image, metadata[0]))
    return found, skipped


def read_metadata(path: Path, key: str, kind: Any) -> tuple[str, ...]:
    """What the metadata of a patch say under a key, each once.

    Raises:
        InputError: they cannot be read, or do not say it.
    """
    try:
        record = as_type(dict[str, Any], read_json(path), "it")
        require_present(record, (key,), "it")
        value = as_type(kind, record[key], key)
        return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))
    except InputError as error:
        raise InputError(f"{path} does not hold the {key} of a patch ({error}); fetch it again") from error


def with_partners(
    chips: Sequence[Chip], folders: Sequence[Path], source: ImageSource
) -> tuple[list[Chip], list[Skipped]]:
    """Chips with the second images below folders, each beside the one that its metadata name; others, with the reason.

    Raises:
        InputError: no such folder, metadata that name no partner, or two images that belong to one chip.
    """
    belong: dict[str, tuple[Path, ...]] = {}
    skipped: list[Skipped] = []
    for folder in folders:
        others, lost = find_patches(folder, source)
        skipped += lost
        for image, file in others:
            name = read_metadata(file, PARTNER, str)[0]
            if belong.setdefault(name, image.files) != image.files:
                raise InputError(f"{file} and another one belong to {name}; take one of both away")
    paired = [chip._replace(beside=belong.get(PurePosixPath(chip.name).name, ())) for chip in chips]
    reason = f"no image below {' or '.join(map(str, folders))} belongs to it"
    skipped += [Skipped(chip.name, reason) for chip in paired if not chip.beside]
    return [chip for chip in paired if chip.beside], skipped
