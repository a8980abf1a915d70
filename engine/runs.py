"""The run folder: who may write into it, and what stands where."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from alliance.errors import InputError
from alliance.files import clear_temporaries, replace_file
from alliance.passwords import hide_in
from alliance.ranges import MANY, SEEDS, Ranged, ranged
from datasets.descriptors import LOCK, open_lock


@dataclass(frozen=True, kw_only=True)
class FolderConfig(Ranged):
    """Where runs live, and how often they report."""

    dir: str
    """Folder of the run; made if need be. A folder that holds a run already is refused unless `resume` is auto."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the newest good checkpoint, or start if there is none; never: refuse a used folder."""
    log_every: int = ranged(10, 1, MANY)
    """Steps between two lines of the log."""
    save_every: int = ranged(500, 1, MANY)
    """Steps between two checkpoints; the last step is always saved."""
    keep: int = ranged(2, 1, MANY)
    """Number of checkpoints that stay, the newest ones."""
    keep_every: int = ranged(0, 0, MANY)
    """Steps between two checkpoints that stay for good, beside the newest ones; 0: none."""
    unsaved: Literal["go_on", "stop"] = "go_on"
    """What to do when a checkpoint cannot be written, such as on a full disk: go on and say so, or stop."""
    wandb: Literal["off", "offline", "online", False] = "off"
    """Weights & Biases beside the log: off, offline (files in the run folder) or online; YAML reads a bare off as
    false.
    """
    wandb_project: str = "alliance"
    """Project of Weights & Biases."""
    page: bool = True
    """Write `report.html`, a page that shows the run, at every picture and at the end."""
    dry_run: bool = False
    """Build everything, take two steps, say what the whole run would take of time, memory and disk, and leave nothing
    behind.
    """
    tensorboard: bool = False
    """TensorBoard's files beside the log, in `tensorboard/` of the run folder; needs the package tensorboard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "wandb", self.wandb or "off")


@dataclass(frozen=True, kw_only=True)
class RunConfig(FolderConfig):
    """One run: where it lives, how long it is, and how often it reports."""

    steps: int = ranged(10_000, 1, MANY)
    """Optimiser steps from beginning to end."""
    seed: int = ranged(0, 0, SEEDS)
    """Number from which weights, masks, sample order and augmentation are drawn."""
    picture_every: int | None = ranged(500, 0, MANY)
    """Steps between two pictures; 0: only at the end; null: none at all."""


MARK = b"a run folder of alliance-rs\n"
LEFT_BY_A_FAILED_START = re.compile(r"\.lock|train\.log|slurm-.*\.(out|err)")


class RunFolder:
    """Paths of a run. Only the main rank claims the folder; it holds a lock as long as it lives."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.encoder = self.path / "encoder"
        self.tensorboard = self.path / "tensorboard"
        self.page = self.path / "report.html"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "train.log"
        self._lock: int | None = None

    def claim(self, resume: str) -> None:
        """Make the folder ours.

        Raises:
            InputError: it holds an earlier run and `resume` is never, it holds anything else, or another process trains
                in it.
        """
        try:
            self.refuse_used(resume)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(self.path / LOCK)
            if self._lock is not None:
                os.pwrite(self._lock, MARK, 0)
                for folder in (self.path, self.pictures):
                    clear_temporaries(folder)
        except OSError as error:
            self.release()
            raise InputError(
                f"run folder {self.path} cannot be written ({error.strerror}); choose another --run.dir"
            ) from error
        if self._lock is None:
            raise InputError(
                f"another process trains in run folder {self.path}; wait for it, or choose another --run.dir"
            )

    def is_ours(self) -> bool:
        """Whether a run of this program has claimed it, or left a checkpoint in it."""
        lock = self.path / LOCK
        marked = lock.is_file() and not lock.is_symlink() and lock.read_bytes()[: len(MARK)] == MARK
        return marked or any(self.checkpoints.glob("step_[0-9]*[0-9]/MANIFEST.json"))

    def refuse_used(self, resume: str) -> None:
        """Raise InputError where the folder is none, holds a run that shall not go on, what is no run, or no files in place
        of logs; nothing is written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--run.dir {self.path} is a file; choose a folder")
        for path in (self.path / LOCK, self.log, self.metrics):
            if path.is_symlink():
                raise InputError(f"{path} is a link, which is not followed; remove it, or choose another --run.dir")
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is no regular file; remove it, or choose another --run.dir")
        entries = sorted(self.path.iterdir()) if self.path.is_dir() else []
        used = [entry for entry in entries if not LEFT_BY_A_FAILED_START.fullmatch(entry.name)]
        # Empty metrics are of a run that was killed at its start.
        foreign = [entry for entry in used if entry != self.metrics or entry.stat().st_size]
        if foreign and not self.is_ours():
            raise InputError(
                f"{self.path} holds {foreign[0].name}, but no run to go on with; choose an empty or new folder as --run.dir"
            )
        if used and resume == "never":
            raise InputError(
                f"run folder {self.path} already holds a run; go on with --run.resume auto, or choose another --run.dir"
            )

    def nearest(self) -> Path:
        """The folder itself, or the nearest one above it that exists."""
        return next(each for each in (self.path, *self.path.absolute().parents) if each.is_dir())

    def release(self) -> None:
        """Let go of the lock; the end of the process does it as well."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_config(self, record: dict[str, Any]) -> None:
        """Keep the resolved settings, without passwords, beside what they made."""
        write_whole(self.path / "config.yaml", yaml.safe_dump(hide_in(record), sort_keys=False))


def write_whole(path: Path, text: str) -> None:
    """Write a small text file so that it is there whole or not at all."""
    replace_file(path, text.encode())


def due(done: int, every: int | None, *, last: bool = False) -> bool:
    """Whether it is time, after `done` steps, for what comes every so many and after the last one; 0: then alone; None: never."""
    return every is not None and (last or (every > 0 and done % every == 0))
