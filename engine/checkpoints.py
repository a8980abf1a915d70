"""Training checkpoints: whole or not there. DeepSpeed's files, our manifest, the newest few kept."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alliance.errors import InputError
from engine.log import logger
from engine.ranks import AgreedError, World, from_main
from engine.runs import write_whole

MANIFEST = "MANIFEST.json"
PREFIX = "step_"


def tag_of(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], *, keep: int, world: World) -> Path:
    """Save engine and loop state of all ranks; the folder gets its name, and `latest` points to it, only when whole.

    Args:
        state: JSON-ready, the same on every rank: what the loop needs to go on.
        keep: older checkpoints beyond this count are removed, after this one is safe.
    """
    partial, final = folder / f"{tag_of(step)}.partial", folder / tag_of(step)
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, client_state={"loop": state}, save_latest=False)
    torch.save(_random_state(), partial / f"random_rank{world.rank}.pt")
    dist.barrier()
    if world.is_main:
        _write_manifest(partial, engine, step, world)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        write_whole(folder / "latest", final.name)
        for other in _superseded(folder, final, keep):
            shutil.rmtree(other, ignore_errors=True)
    dist.barrier()
    return final


def restore(engine: Any, folder: Path, world: World) -> dict[str, Any] | None:
    """Load the newest checkpoint whose manifest verifies into the engine; returns the loop state, None if there is none.

    Raises:
        AgreedError: it was saved by another number of ranks or another ZeRO stage.
    """
    chosen, complaint = from_main(_choose(folder, engine, world) if world.is_main else None)
    if complaint:
        raise AgreedError(complaint)
    if chosen is None:
        return None
    path, client = engine.load_checkpoint(str(folder), tag=chosen)
    if path is None:
        raise InputError(f"checkpoint {folder / chosen} cannot be loaded; remove it to use the one before")
    _restore_random(folder / chosen / f"random_rank{world.rank}.pt")
    return client["loop"]


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / MANIFEST).is_file() and not path.suffix)


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing: sizes and SHA-256 of all its files."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read ({error})"
    for name, record in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != record["bytes"]:
            return f"{name} is missing or cut short"
        if _sha256(file) != record["sha256"]:
            return f"{name} is damaged"
    return None


def _choose(folder: Path, engine: Any, world: World) -> tuple[str | None, str | None]:
    """Newest good checkpoint, or why it does not fit this run."""
    for path in reversed(list_checkpoints(folder)):
        fault = verify(path)
        if fault:
            logger.warning("checkpoint %s is passed over: %s", path.name, fault)
            continue
        manifest = json.loads((path / MANIFEST).read_text())
        stage = engine.zero_optimization_stage()
        if (stage or manifest["zero"]) and (manifest["world_size"], manifest["zero"]) != (world.size, stage):
            return None, (
                f"checkpoint {path.name} was saved by {manifest['world_size']} ranks at ZeRO stage {manifest['zero']}, "
                f"this run has {world.size} at stage {stage}; start it the same way"
            )
        return path.name, None
    return None, None


def _superseded(folder: Path, newest: Path, keep: int) -> list[Path]:
    """Checkpoints to remove: all but the last `keep` up to the newest, and later ones that a resumed run left behind."""
    found = list_checkpoints(folder)
    current = [path for path in found if path.name <= newest.name]
    return [*current[:-keep], *(path for path in found if path.name > newest.name)]


def _restore_random(path: Path) -> None:
    """Set the random state of this rank; a rank that the saving run did not have keeps its own (nothing draws from it)."""
    if not path.exists():
        return
    random = torch.load(path, weights_only=True)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def _write_manifest(folder: Path, engine: Any, step: int, world: World) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    record = {
        "step": step,
        "world_size": world.size,
        "zero": engine.zero_optimization_stage(),
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
        },
    }
    write_whole(folder / MANIFEST, json.dumps(record, indent=1))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def full_weights(engine: Any, prefix: str) -> dict[str, torch.Tensor] | None:
    """Weights under a prefix of the model's names, gathered from all ranks in full precision.

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
    return weights if dist.get_rank() == 0 else None
