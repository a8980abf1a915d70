"""The frame around every trainer's command: settings in, all ranks started and ended together, mistakes in one line."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from alliance.errors import InputError
from engine.errors import AgreedError
from engine.ranks import World, finish, leave, start
from engine.settings import parse_settings

Settings = TypeVar("Settings")


def run_command(
    kind: type[Settings],
    description: str | None,
    body: Callable[[Settings, World], Callable[[], None]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse `kind` from the command line and run `body` on every rank; what it returns is called when all have ended.

    A user's mistake is one line and exit code 2; a rank that dies is named by the others, with exit code 1.
    """
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    first_here = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    tell = first_here  # all ranks of a node read the same command line
    try:
        config = parse_settings(kind, description, arguments)
        tell = True
        world = start()
        with world.watch.guard():
            afterwards = body(config, world)
            finish(world)
        afterwards()
    except InputError as error:
        if rank == 0 or (tell and not isinstance(error, AgreedError)):
            print(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, AgreedError):
            leave()
        sys.exit(2)
