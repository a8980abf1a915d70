"""Training checkpoints: whole or not there. DeepSpeed's files, our manifest; the newest few stay, and those that are marked."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from alliance.errors import InputError
from alliance.files import naming, remove_tree, sync
from alliance.json_files import read_json
from alliance.records import as_type, from_record, require_present
from datasets.memory import give_back
from engine.deepspeed_internals import save_checkpoint
from engine.log import report_disk_errors
from engine.ranks import World, gather
from engine.runs import write_whole

MANIFEST = "MANIFEST.json"
LOOP = "loop.json"
STAYS = "STAYS"  # an empty file; a checkpoint that holds it is never superseded, whatever later settings say
PREFIX = "step_"
OURS = re.compile(rf"{PREFIX}[0-9]{{8}}")  # any other name is a copy of the user's, which is neither read nor removed
LEFT_BY_A_KILL = re.compile(rf"{OURS.pattern}\.(partial|universal|universal\.log|log)")


class Layout(NamedTuple):
    """How the states are spread: a checkpoint fits a run of the same layout as it is."""

    ranks: int
    zero: int
    precision: str

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' * (self.ranks > 1)} at ZeRO stage {self.zero} in {self.precision}"


class NotSaved(Exception):
    """A checkpoint could not be written, on all ranks; the earlier ones are as they were."""


def tag_of(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"{PREFIX}{step:08d}"


def save(
    engine: Any, folder: Path, state: dict[str, Any], layout: Layout, *, keep: int, stays: bool = False, world: World
) -> Path:
    """Save engine and loop state of all ranks; the folder gets its name, and `latest` points to it, only when whole.

    Args:
        state: JSON-ready, the same on every rank: what the loop needs to go on; `state["step"]` steps are done.
        keep: older checkpoints beyond this count are removed, after this one is safe; but not those that stay.
        stays: whether this one does.
    Raises:
        NotSaved: no space, or another error of the disk; nothing of it stays, earlier checkpoints do.
    """
    partial, final = (folder / f"{tag_of(state['step'])}{suffix}" for suffix in (".partial", ""))
    if world.is_main:
        remove_tree(partial)
    dist.barrier()
    written, error = _write_states(engine, partial, state, world)
    records = _settled(written, partial, world, error)
    if world.is_main:
        manifest = {"step": state["step"], "layout": layout._asdict(), "files": records}
        try:
            if stays:
                write_whole(partial / STAYS, "")
            write_whole(partial / MANIFEST, json.dumps(manifest, indent=1))
            remove_tree(final)  # a damaged one that was passed over
            os.replace(partial, final)
        except OSError as failure:
            error = failure
    _agree(error, partial, world)
    if world.is_main:
        with report_disk_errors("the name of the newest checkpoint"):  # for people; restoring looks at the manifests
            write_whole(folder / "latest", final.name)
            sync(folder)
        for other in _superseded(folder, final, keep):
            remove_tree(other)
    give_back()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return [path for path in list_folders(folder) if (path / MANIFEST).is_file()]


def list_folders(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, oldest first; one without a manifest was whole once, and is damaged."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if OURS.fullmatch(path.name) and path.is_dir())


def clear_unfinished(folder: Path) -> None:
    """Remove what a kill left of our own writing and converting."""
    for path in folder.glob(f"{PREFIX}*"):
        if LEFT_BY_A_KILL.fullmatch(path.name):
            remove_tree(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint consists of.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        manifest = as_type(dict[str, Any], read_json(path / MANIFEST), "it")
        require_present(manifest, ("layout", "files"), "it")
        layout = from_record(Layout, manifest["layout"], "layout")
        files = as_type(dict[str, dict[str, Any]], manifest["files"], "files")
        for name, record in files.items():
            require_present(record, ("bytes", "sha256"), name)
            as_type(int, record["bytes"], f"{name}: bytes")
            as_type(str, record["sha256"], f"{name}: sha256")
            if Path(name).name != name or name in ("", ".."):
                raise InputError(f"{name} is no file of a checkpoint")
    except InputError as error:
        raise ValueError(f"its manifest cannot be read ({error})") from error
    if layout.ranks < 1 or layout.zero not in (0, 1, 2, 3):
        raise ValueError(f"its manifest cannot be read (a layout of {tuple(layout)})")
    return manifest | {"layout": layout, "files": files}


def verify(path: Path, files: dict[str, Any], *, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if nothing: sizes and SHA-256 of its files, or of a part of them."""
    for name in sorted(files)[part::parts]:
        file, record = path / name, files[name]
        try:
            if not file.is_file() or file.stat().st_size != record["bytes"]:
                return f"{name} is missing or cut short"
            if _sha256(file) != record["sha256"]:
                return f"{name} is damaged"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _write_states(
    engine: Any, partial: Path, state: dict[str, Any], world: World
) -> tuple[list[Path], Exception | None]:
    """The files of this rank; an error is returned, for a rank that stopped here would leave the others waiting."""
    written, error = save_checkpoint(engine, partial.parent, partial.name, {"updated": _updated_names(engine)})
    random, own = partial / f"random_rank{world.rank}.pt", [partial / LOOP] * world.is_main
    try:
        with naming(random):
            torch.save(_random_state(), random)
        for path in own:
            write_whole(path, json.dumps(state))
    except (OSError, RuntimeError) as failure:
        error = failure
    return [*written, random, *own], error


def _updated_names(engine: Any) -> list[str]:
    """Parameter names in the order in which torch numbers the optimiser's states; ZeRO's files hold names themselves."""
    if engine.zero_optimization_stage():
        return []
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    return [names[parameter] for group in engine.optimizer.param_groups for parameter in group["params"]]


def _settled(written: list[Path], partial: Path, world: World, error: Exception | None) -> dict[str, Any]:
    """Bring all files to the disk, each rank those that it wrote; returns sizes and checksums of all.

    Raises:
        NotSaved: a rank met an error.
    """
    _agree(error, partial, world)
    records: dict[str, Any] = {}
    error = None
    try:
        for path in written:
            sync(path)
            name = str(path.relative_to(partial))
            records[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        sync(partial)
    except OSError as failure:
        error = failure
    _agree(error, partial, world)
    return {name: record for part in gather(records) for name, record in part.items()}


def _agree(error: Exception | None, partial: Path, world: World) -> None:
    """Go on together, or raise together and leave nothing behind."""
    met = [(rank, text) for rank, text in enumerate(gather(None if error is None else _said(error))) if text]
    if met:
        if world.is_main:
            remove_tree(partial)
        free = shutil.disk_usage(partial.parent).free / 2**30
        raise NotSaved(f"rank {met[0][0]}: {met[0][1]}; {free:.1f} GB are free in {partial.parent}")


def _said(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines() or [""]
    return (error.strerror if isinstance(error, OSError) else None) or lines[0][:120]


def _superseded(folder: Path, newest: Path, keep: int) -> list[Path]:
    """Checkpoints to remove: all up to the newest but the last `keep` and those that stay; later ones that a resumed run
    left, and damaged ones.
    """
    current = [path for path in list_checkpoints(folder) if path.name <= newest.name]
    kept = [*current[-keep:], *(path for path in current if (path / STAYS).exists())]
    return [path for path in list_folders(folder) if path not in kept]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def full_weights(engine: Any, prefix: str) -> dict[str, torch.Tensor] | None:
    """Weights and buffers under a prefix of the model's names, gathered from all ranks in full precision.

    Every rank must call it; the main rank gets the weights, the others None.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        if not name.startswith(prefix):
            continue
        value = safe_get_full_fp32_param(parameter) if engine.zero_optimization() else None
        if value is None:
            with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
                value = parameter.detach().clone()
        if dist.get_rank() == 0:
            weights[name.removeprefix(prefix)] = value.float().cpu()
    kept = engine.module.state_dict().keys()
    weights |= {
        name.removeprefix(prefix): value.detach().cpu()
        for name, value in engine.module.named_buffers()
        if name.startswith(prefix) and name in kept
    }
    return weights if dist.get_rank() == 0 else None
