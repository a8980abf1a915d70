"""Exports on the Hugging Face hub, and folders laid out as its cache is."""

import re
from collections.abc import Sequence
from pathlib import Path

from alliance.errors import InputError

ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")


def is_hub_id(path: str | Path) -> bool:
    """Whether a text, not a path, is of the form owner/name or owner/name@revision and means nothing on this disk."""
    return isinstance(path, str) and ID.fullmatch(path) is not None and not Path(path.split("/")[0]).exists()


def fetch(name: str, files: Sequence[str]) -> Path:
    """The folder of these files of a repository of the hub, from the cache or else from the network.

    Raises:
        InputError: there is no such repository, it cannot be reached, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"{name} is no file or folder; to look for it on the hub: pip install huggingface_hub"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is no file or folder here, and cannot be had from the hub ({reason:.200})") from error


def snapshot_of(folder: Path) -> Path | None:
    """The snapshot in a folder that has the layout of the hub's cache (refs/main, snapshots/REVISION); None: it has not."""
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    return folder / "snapshots" / revision if re.fullmatch(r"[\w-]+", revision) else None
