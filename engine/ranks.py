"""Processes of a run: start them under any launcher or none, agree on numbers, end cleanly.

The ranks of one machine meet at its loopback address, a single process meets nobody: neither listens on a network.
"""

import hashlib
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from alliance.errors import InputError
from engine.deepspeed_internals import leave_out_shared_memory
from engine.errors import AgreedError
from engine.meeting import Meeting
from engine.signals import StopRequest
from engine.watch import Watch

Result = TypeVar("Result")
TIMEOUT = 600.0  # seconds that ranks wait for each other, unless set


class World(NamedTuple):
    """This process among the others, and what is asked of it."""

    rank: int
    size: int
    device: torch.device
    watch: Watch
    stop: StopRequest

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks for all."""
        return self.rank == 0


def start(timeout: float = TIMEOUT) -> World:
    """Join the process group of the launcher (deepspeed, torchrun, srun), or be the only process.

    Args:
        timeout: seconds that ranks wait for each other, here and in every exchange.
    Raises:
        InputError: a launcher's variables are missing or no numbers, the port is taken, or a rank does not come.
    """
    _fill_environment()
    rank, size, local_rank = _place()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    accelerator = get_accelerator()
    assert accelerator is not None, "DeepSpeed always finds one, the CPU at least"
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        leave_out_shared_memory()
    else:
        accelerator.set_device(local_rank)
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    backend = accelerator.communication_backend_name()
    _meet(backend, rank, size, None if on_cpu or size == 1 else device, timeout)
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=timeout), verbose=False)
    return World(rank, size, device, Watch(rank, size), StopRequest())


def _meet(backend: str, rank: int, size: int, device: torch.device | None, timeout: float) -> None:
    """Join the group at a store of our own; ranks of torchrun join at its store, where they have met already.

    Raises:
        InputError: the port is taken, or a rank does not come.
    """
    address = os.environ["MASTER_ADDR"]
    near = size == 1 or _is_loopback(address)
    if near and "lo" in (name for _, name in socket.if_nameindex()):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    if size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    if size == 1:
        store = HashStore()
    else:
        meeting = Meeting(address, read_number("MASTER_PORT"), size, timeout)
        store = meeting.join(rank) if rank else meeting.host(loopback=near)
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit, device_id=device)


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def finish(world: World) -> None:
    """Wait for all ranks, then leave the group: without it a rank sometimes aborts after a successful run."""
    dist.barrier()
    world.watch.close()
    dist.destroy_process_group()


def leave() -> None:
    """Leave the group at once: all ranks have agreed to stop."""
    if dist.is_initialized():
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


def refuse_different_ranks(values: Mapping[str, Any]) -> None:
    """Raise AgreedError where a rank was started with another value of anything than the main rank."""
    own = {name: hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in values.items()}
    everyone = gather((socket.gethostname(), own))
    for rank, (host, digests) in enumerate(everyone):
        for name in own:
            if digests[name] != everyone[0][1][name]:
                raise AgreedError(
                    f"rank {rank} (host {host}) was started with other {name} than rank 0; give all the same"
                )


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Average of a small float tensor over ranks, of the same shape."""
    if dist.get_world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def count_over_ranks(*counts: int | bool | torch.Tensor, device: torch.device) -> list[int]:
    """Sum of small whole numbers over ranks: how many ranks say yes, how many samples were lost.

    Those that the device knows are given as its tensors, of shape (): the host waits for it once, for all of them.
    """
    own = [
        count.float() if isinstance(count, torch.Tensor) else torch.full((), float(count), device=device)
        for count in counts
    ]
    total = torch.stack(own)
    dist.all_reduce(total)
    return [round(count) for count in total.tolist()]


def average_running_statistics(model: torch.nn.Module) -> None:
    """Give all ranks the mean of their batch norms' running means and variances, which each measures on its samples.

    Before a network is saved or scored; synchronised batch norms agree already.
    """
    own = torch.nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, own) and not isinstance(m, torch.nn.SyncBatchNorm)]
    for statistic in (value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None):
        statistic.copy_(mean_over_ranks(statistic))


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


def read_number(name: str, default: str = "") -> int:
    """A whole number that a launcher has put into the environment.

    Raises:
        InputError: it is no such number.
    """
    text = os.environ.get(name, default)
    if not text.isascii() or not text.isdigit():
        raise InputError(f"the environment variable {name} is {text!r}, no whole number; unset it, or use a launcher")
    return int(text)


def _place() -> tuple[int, int, int]:
    """This process's number, how many there are, and its number on this machine.

    Raises:
        InputError: a launcher's variables are no numbers, or contradict each other.
    """
    rank, size, local_rank = (read_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank >= size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE is {size}; ranks are numbered from 0 to WORLD_SIZE - 1")
    if size > 1 and not 1 <= read_number("MASTER_PORT") <= 65535:
        raise InputError(f"MASTER_PORT is {os.environ['MASTER_PORT']}; give a port from 1 to 65535")
    return rank, size, local_rank


def _fill_environment() -> None:
    """What torch.distributed asks for, where the launcher did not set it.

    Raises:
        InputError: a launcher's variables are not all there.
    """
    environment = os.environ
    if "RANK" in environment:
        missing = [
            name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
        ]
        if missing:
            raise InputError(
                f"RANK is set, {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not; start with deepspeed or "
                f"torchrun, which set all, or unset RANK for one process"
            )
        return
    if read_number("SLURM_STEP_NUM_TASKS", "1") > 1:  # set by srun alone, not in the batch script
        if "MASTER_ADDR" not in environment:
            raise InputError("srun starts several ranks, but MASTER_ADDR is not set; start with launch/slurm.sh")
        names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
        environment.update({name: environment.get(known, "") for name, known in names.items()})
        environment.setdefault("MASTER_PORT", "29500")
        if environment.get("SLURM_STEP_NUM_NODES") == "1":
            environment["MASTER_ADDR"] = "127.0.0.1"
        return
    if environment.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']!r}, RANK is not set; start with deepspeed or torchrun, which set all, or "
            f"unset WORLD_SIZE for one process"
        )
    environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def forget_launcher() -> None:
    """Let a process that was started from a rank be a run of its own."""
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for name in list(os.environ):
        if name in names or name.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_")):
            del os.environ[name]
