"""Begin a run, or go on from its newest good checkpoint, also with other ranks, another ZeRO stage or precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alliance.errors import InputError
from alliance.files import remove_tree
from alliance.json_files import read_json
from alliance.records import as_type, require_present
from engine.checkpoints import LOOP, Layout, clear_unfinished, list_folders, read_manifest, verify
from engine.deepspeed_internals import load_checkpoint, names_beside_states
from engine.elastic import load_moments, load_weights, open_states
from engine.errors import AgreedError
from engine.log import logger
from engine.ranks import World, from_main, gather, together


def begin_or_restore(
    folder: Path,
    model: nn.Module,
    build: Callable[[], Any],
    layout: Layout,
    world: World,
    accept: Callable[[dict[str, Any]], None],
) -> tuple[Any, dict[str, Any] | None]:
    """The engine, and the loop's state if there is a checkpoint to go on from.

    Args:
        build: makes the engine of `model`; called once the model has its weights.
        accept: raises InputError if a loop's state is of another run.
    Raises:
        AgreedError: there are checkpoints, and not one of them is good, or the newest good one is of another run.
    """
    found = find_good(folder, world)
    if found is None:
        return build(), None
    path, saved = found
    together(lambda: refuse_foreign_states(path))
    state = together(lambda: _read_loop(path))
    together(lambda: accept(state))
    if saved == layout:
        engine = build()
        load_checkpoint(engine, folder, path.name)
        _restore_random(path / f"random_rank{world.rank}.pt")
    else:
        states = open_states(path, saved, world)
        load_weights(model, states)
        engine = build()
        load_moments(engine, states)
        gather(None)  # every rank has read them
        if world.is_main and states.folder != path:
            remove_tree(states.folder)
        logger.info("%s was saved by %s, now %s: equal weights and moments; later losses equal but for rounding, dropout and batch norm",
                    path.name, saved, layout)  # fmt: skip
    return engine, state


def find_good(folder: Path, world: World) -> tuple[Path, Layout] | None:
    """The newest checkpoint that verifies, with its layout; every rank checks a part of its files."""
    if world.is_main:
        clear_unfinished(folder)
    candidates = from_main([_open(path) for path in list_folders(folder)] if world.is_main else None)
    faults = []
    for path, manifest, fault in reversed(candidates):
        found = [fault] if fault else gather(verify(path, manifest["files"], part=world.rank, parts=world.size))
        fault = next((text for text in found if text), None)
        if fault is None:
            return path, manifest["layout"]
        logger.warning("checkpoint %s is passed over: %s", path.name, fault)
        faults.append(f"{path.name}: {fault}")
    if faults:
        raise AgreedError(
            f"no good checkpoint is left in {folder} ({'; '.join(faults[:3])}); restore one, or begin again in another --run.dir"
        )
    return None


def refuse_foreign_states(path: Path) -> None:
    """Raise InputError where a checkpoint's files name code that no checkpoint of ours names; nothing of them is loaded."""
    for file in sorted(path.glob("*.pt")):
        try:
            named = names_beside_states(file)
        except ValueError as error:
            raise InputError(
                f"checkpoint {path}: {error}; it is not of this program: begin in another --run.dir"
            ) from error
        if named:
            raise InputError(
                f"checkpoint {path}: {file.name} names {named[0]}, which is no part of a training state and is not run; "
                f"this folder is not of a run of this program: begin in another --run.dir"
            )


def _read_loop(path: Path) -> dict[str, Any]:
    """Where the loop was."""
    kinds = {"step": int, "steps": int, "loader": dict[str, Any], "faults": dict[str, int], "run": dict[str, Any]}
    try:
        state = as_type(dict[str, Any], read_json(path / LOOP), LOOP)
        require_present(state, tuple(kinds), LOOP)
        return state | {name: as_type(kind, state[name], f"{LOOP}: {name}") for name, kind in kinds.items()}
    except InputError as error:
        raise InputError(
            f"checkpoint {path}: {LOOP} is not the state of a run ({error}); remove this checkpoint, or use another "
            f"--run.dir"
        ) from error


def _open(path: Path) -> tuple[Path, dict[str, Any], str | None]:
    """A checkpoint's folder and manifest, or what is wrong with the manifest."""
    try:
        return path, read_manifest(path), None
    except ValueError as error:
        return path, {}, str(error)


def _restore_random(path: Path) -> None:
    """Set the random state of this rank; nothing of ours draws from it, but an option of DeepSpeed's may."""
    random = torch.load(path, weights_only=True)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
