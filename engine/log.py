"""What a run tells: lines on the screen and in train.log, one JSON object per event in metrics.jsonl; wandb, TensorBoard."""

import errno
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from PIL import Image

from alliance.errors import InputError
from alliance.files import replace_file
from alliance.passwords import hide_in, hide_passwords
from datasets.commands import explain
from datasets.descriptors import append_to
from engine.runs import FolderConfig, RunConfig, RunFolder

logger = logging.getLogger("alliance")

WANDB_TIMEOUT = 15  # seconds to reach the server before going offline
REPORTS = {"picture", "probe", "scores"}  # events of a job's report


def setup_logging(folder: RunFolder | None, *, level: int | None = None) -> None:
    """Log to the screen and to train.log; without a folder, and a level, only what concerns this rank itself."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(level or (logging.INFO if folder else logging.ERROR))
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if folder:
        handlers.append(LogFile(folder.log))
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)


class _Formatter(logging.Formatter):
    """Time and text, without the passwords that places of shards may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


class LogFile(logging.FileHandler):
    """train.log; on a full disk its lines are lost, the run is not."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(append_to(self.baseFilename), encoding="utf-8", errors="replace", write_through=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: the same line stands on the screen."""


class Mirror(Protocol):
    """Shows the records of metrics.jsonl elsewhere. It never stops a run: trouble switches it off with a warning."""

    def __call__(self, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Metrics:
    """Appends to metrics.jsonl; on resume, lines at or after the resumed step are dropped."""

    def __init__(
        self, path: Path, *, resume_step: int = 0, report_again: bool = False, mirrors: Sequence[Mirror] = ()
    ) -> None:
        """Open the file.

        Args:
            report_again: whether the last step's report is made anew; what the earlier one wrote is dropped too.
        """
        self.mirrors = mirrors
        if path.exists():
            lines, damaged = _parse(path)
            if damaged:
                logger.warning("%d lines of metrics.jsonl cannot be read and are left out", damaged)
            reported = resume_step - report_again
            kept = [
                line for line, record in lines
                if _step_of(record) < (reported if record.get("event") in REPORTS else resume_step)
            ]  # fmt: skip
            replace_file(path, b"".join(line + b"\n" for line in kept))
        self.file = append_to(path)
        self.lost = 0  # lines, since the disk is full

    def write(self, **record: Any) -> None:
        """One object. Numbers that are not finite become null, so that every reader can parse the line."""
        record = {key: hide_in(_plain(value)) for key, value in record.items()}
        self._append(json.dumps(record).encode() + b"\n")
        for mirror in self.mirrors:
            mirror(record)

    def _append(self, line: bytes) -> None:
        """Write a whole line or nothing; a run does not end because its log cannot grow."""
        end = self.file.seek(0, os.SEEK_END)
        try:
            written = self.file.write(line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.lost:
                logger.warning("metrics.jsonl goes on; %d lines are missing in it", self.lost)
                self.lost = 0
        except OSError as error:
            self.file.truncate(end)
            self.lost += 1
            if self.lost == 1:
                logger.warning("metrics.jsonl cannot be written (%s); the run goes on without", error.strerror)

    def close(self) -> None:
        """Close the file and its mirrors."""
        self.file.close()
        for mirror in self.mirrors:
            mirror.close()


@contextmanager
def report_disk_errors(what: str, *, must: bool = False) -> Iterator[None]:
    """A file that cannot be written is a warning; one that must be there, an error.

    Raises:
        InputError: it failed, and `must` is true.
    """
    try:
        yield
    except OSError as error:
        text = f"{what} cannot be written ({explain(error)})"
        if must:
            raise InputError(f"{text}; make room, then go on with --run.resume auto") from error
        logger.warning("%s; the run goes on without", text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All objects of a metrics.jsonl; lines that cannot be read, such as one that a kill cut, are left out."""
    return [record for _, record in _parse(path)[0]]


def open_mirrors(run: RunConfig, folder: RunFolder, config: dict[str, Any], start: int) -> list[Mirror]:
    """The mirrors that the settings ask for.

    Args:
        config: the settings tree, to be shown.
        start: the first step to come; what an earlier run showed from it on is hidden.
    """
    mirrors: list[Mirror] = [WandbMirror(run, folder, config)] if run.wandb != "off" else []
    return [*mirrors, TensorboardMirror(folder, config, start)] if run.tensorboard else mirrors


def require_tensorboard(run: FolderConfig) -> None:
    """Raise InputError where TensorBoard is asked for and cannot be had."""
    if run.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"run.tensorboard needs the package tensorboard ({error}): pip install tensorboard, or leave the setting out"
            ) from error


class WandbMirror:
    """Sends records to wandb."""

    def __init__(self, run: RunConfig, folder: RunFolder, config: dict[str, Any]) -> None:
        self.session: Any = None
        self.pictures = folder.pictures
        secret = any(hide_passwords(each) != each for each in sys.argv)  # wandb keeps the command line
        for mode in ("online", "offline") if run.wandb == "online" else ("offline",):
            try:
                import wandb

                self.session = wandb.init(
                    project=run.wandb_project, dir=str(folder.path), mode=mode, name=folder.path.name,
                    config=hide_in(config), settings=wandb.Settings(init_timeout=WANDB_TIMEOUT, x_disable_meta=secret),
                )  # fmt: skip
                return
            except Exception as error:  # a mirror must not stop a run, whatever it throws
                logger.warning(
                    "wandb %s does not start (%s)", mode, str(error).splitlines()[0] if str(error) else error
                )

    def __call__(self, record: dict[str, Any]) -> None:
        shown = mirrored(record)
        if self.session is None or not shown:
            return
        try:
            if record.get("event") == "picture":
                import wandb

                shown = {name: wandb.Image(str(self.pictures / path)) for name, path in shown.items()}
            self.session.log(shown, step=record["step"])
        except Exception as error:
            logger.warning("wandb stops logging (%s); metrics.jsonl goes on", error)
            self.session = None

    def close(self) -> None:
        """End the session; trouble there is a warning."""
        if self.session is not None:
            try:
                self.session.finish()
            except Exception as error:
                logger.warning("wandb does not finish (%s)", error)


class TensorboardMirror:
    """Writes records into files of TensorBoard, `tensorboard/` of the run folder."""

    def __init__(self, folder: RunFolder, config: dict[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.pictures, self.writer = folder.pictures, None
        try:
            self.writer = SummaryWriter(str(folder.tensorboard), purge_step=start or None)
            lines = yaml.safe_dump(hide_in(config), sort_keys=False).splitlines()
            self.writer.add_text("settings", "\n".join(f"    {line}" for line in lines), start)  # as code
        except OSError as error:
            self._stop(error)

    def __call__(self, record: dict[str, Any]) -> None:
        if self.writer is None:
            return
        try:
            for name, value in mirrored(record).items():
                if record.get("event") == "picture":
                    with Image.open(self.pictures / value, formats=["PNG"]) as image:
                        pixels = np.asarray(image.convert("RGB"))
                    self.writer.add_image(name, pixels, record["step"], dataformats="HWC")
                elif _is_number(value):
                    self.writer.add_scalar(name, value, record["step"])
            if "event" in record:  # steps come often, and are written every two minutes
                self.writer.flush()
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        """Write what is left; trouble there is a warning."""
        try:
            if self.writer is not None:
                self.writer.close()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        logger.warning("TensorBoard's files cannot be written (%s); the run goes on without", explain(error))
        self.writer = None


def mirrored(record: dict[str, Any]) -> dict[str, Any]:
    """What mirrors show of a record: of a step all, of a probe and of scores the numbers, of a picture its file; of other
    events nothing.
    """
    event, values = record.get("event"), {key: value for key, value in record.items() if key not in ("event", "step")}
    group = "/".join(str(record[key]) for key in ("sensor", "data", "kind") if key in record)
    if event is None:
        return values
    if event == "picture":
        return {f"picture/{group}".rstrip("/"): record["path"]}
    if event == "probe":
        return {f"probe/{group}/{key}": value for key, value in values.items() if _is_number(value)}
    if event == "scores":
        group = f"scores/{record['part']}" if "part" in record else "scores"
        by_class = {f"{name}/{key}": value for name, inner in values.items() if isinstance(inner, dict)
                    for key, value in inner.items()}  # fmt: skip
        return {f"{group}/{key}": value for key, value in (values | by_class).items() if _is_number(value)}
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory of this process so far: on the device, or resident in the machine's memory; GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def duration(seconds: float) -> str:
    """75 -> '1m15s', 7500 -> '2h05m'."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _parse(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """The lines of a metrics.jsonl with their objects, and how many hold none."""
    lines, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut by a kill, or damaged
            record = None
        if isinstance(record, dict):
            lines.append((line, record))
        else:
            damaged += bool(line)
    return lines, damaged


def _step_of(record: dict[str, Any]) -> float:
    step = record.get("step", 0)
    return step if isinstance(step, int | float) else math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
