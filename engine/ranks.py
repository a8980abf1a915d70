"""Processes of a run: start them under any launcher or none, agree on numbers, end cleanly."""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from alliance.errors import InputError

Result = TypeVar("Result")
TIMEOUT = timedelta(minutes=10)


class AgreedError(InputError):
    """A user's mistake that every rank raises; one of them says it."""


class World(NamedTuple):
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start() -> World:
    """Join the process group of the launcher (deepspeed, torchrun, srun with RANK set), or be the only process."""
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    accelerator = get_accelerator()
    assert accelerator is not None, "DeepSpeed always finds one, the CPU at least"
    on_cpu = accelerator.device_name() == "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if on_cpu:  # used by inference only, and costs a C++ build
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        accelerator.set_device(local_rank)
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), timeout=TIMEOUT, verbose=False)
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    return World(dist.get_rank(), dist.get_world_size(), device)


def finish() -> None:
    """Wait for all ranks, then leave the group: without it a rank sometimes aborts after a successful run."""
    dist.barrier()
    dist.destroy_process_group()


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; a user's mistake seen by any of them is raised by all of them, so that none waits."""
    result, complaint = None, None
    try:
        result = action()
    except InputError as error:
        complaint = str(error)
    complaints = [text for text in gather(complaint) if text]
    if complaints:
        raise AgreedError(complaints[0])
    return cast(Result, result)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Average of a small float tensor over ranks."""
    if dist.get_world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def everywhere(flag: bool, device: torch.device) -> bool:
    """True when the flag is true on every rank."""
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())


def from_main(value: Any) -> Any:
    """The main rank's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> Sequence[Any]:
    """Every rank's value, on every rank."""
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
