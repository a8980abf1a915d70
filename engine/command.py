"""The frame around every trainer's command: settings in, all ranks started and ended together, mistakes in one line."""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from alliance.errors import InputError
from datasets.children import safe_path
from datasets.commands import KNOWN, MISTAKE, explain
from datasets.interrupts import INTERRUPTED
from engine.build import EngineConfig
from engine.errors import AgreedError
from engine.ranks import World, finish, leave, start
from engine.settings import parse_settings


class Commanded(Protocol):
    """What is needed of the settings of any command, of one run or of several."""

    @property
    def engine(self) -> EngineConfig: ...


Config = TypeVar("Config", bound=Commanded)


def run_command(
    kind: type[Config],
    description: str | None,
    body: Callable[[Config, World], Callable[[], None]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse `kind` from the command line and run `body` on every rank; what it returns is called when all have ended.

    A user's mistake is one line and exit code 2; a rank that dies is named by the others, with exit code 1; after
    Ctrl-C, at which it saves as at SIGTERM, the exit code is 130.
    """
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    first_here = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    tell = first_here  # all ranks of a node read the same command line
    if not gc.get_freeze_count():
        gc.freeze()  # what was imported stays: no collection of garbage need look through it
    try:
        config = parse_settings(kind, description, arguments)
        tell = True
        world = start(config.engine.timeout)
        with world.watch.guard(), safe_path():
            afterwards = body(config, world)
            finish(world)
        afterwards()
        if world.stop.name == "SIGINT":
            sys.exit(INTERRUPTED)
    except InputError as error:
        if rank == "0" or (tell and not isinstance(error, AgreedError)):
            print(f"error: {error}" if rank == "0" else f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, AgreedError):
            leave()
        sys.exit(2)
    except KNOWN as error:
        print(f"error on rank {rank}: {explain(error)}", file=sys.stderr, flush=True)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        if first_here:
            print("stopped before the first step", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # other ranks may never answer
