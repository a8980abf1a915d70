"""Start real pretraining runs, with and without the DeepSpeed launcher, and read what they wrote."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.log import read_metrics
from tests.helpers import warm

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 240

PLAIN = ("--run.picture_every", "null", "--run.page", "false")  # what is drawn takes longer than the steps of a test
PICTURE = ("--run.picture_every", "0")  # after the last step

# Small enough for a few seconds per run: 32-pixel crops, a two-block encoder and a three-block decoder.
SMALL = [
    *("--config", str(ROOT / "configs/pretrain/nano.yaml"), "--data.crop", "32", "--optim.batch", "8"),
    *("--model.encoder.embed_dim", "48", "--model.encoder.depth", "2", "--model.decoder.embed_dim", "48"),
    *("--model.decoder.depth", "3", "--run.log_every", "1", "--run.save_every", "100", *PLAIN),
]


def environment(threads: int = 1) -> dict[str, str]:
    """This process's environment, without what another launcher may have left in it."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"OMP_NUM_THREADS": str(threads), "PATH": path, "WANDB_SILENT": "true"}


def arguments_of(folder: Path, sources: Sequence[Path | str], *arguments: str) -> list[str]:
    """Command line of launch/pretrain.py."""
    data = json.dumps([{"shards": str(source)} for source in sources])
    return [str(ROOT / "launch/pretrain.py"), *SMALL, "--run.dir", str(folder), "--data.sources", data, *arguments]


def pretrain(
    folder: Path, sources: Sequence[Path | str], *arguments: str, ranks: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run launch/pretrain.py into `folder`, with DeepSpeed's launcher; `ranks` 0: without."""
    command = arguments_of(folder, sources, *arguments)
    if not ranks:
        return warm.run(command, environment(), TIMEOUT)
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    launcher = [deepspeed, "--num_gpus", str(ranks), "--master_port", free_port()]
    return subprocess.run(
        [*launcher, *command], cwd=ROOT, env=environment(), text=True, timeout=TIMEOUT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


class Ranks:
    """A run of several ranks as plain processes, without a launcher that ends them when one dies."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        environ: Mapping[str, str] = MappingProxyType({}),
        own: Sequence[Sequence[str]] = (),
        **options: Any,
    ) -> None:
        """
        Args:
            own: further arguments of each rank.
            options: limits and ignored signals, see `warm.start`.
        """
        self.processes, self.port = [], free_port()
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port}
            arguments = [*command, *(own[rank] if own else ())]
            self.processes.append(warm.start(arguments, environment() | dict(environ) | place, **options))

    def wait(self, timeout: float = TIMEOUT) -> list[tuple[int, str]]:
        """Exit code and output of every rank; those that do not end in time are killed."""
        until, ended = time.monotonic() + timeout, []
        try:
            for process in self.processes:
                output, _ = process.communicate(timeout=max(until - time.monotonic(), 1))
                ended.append((process.returncode, output))
        finally:
            for process in self.processes:
                process.kill()
        return ended


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Logged steps of a run."""
    return [record for record in records(folder) if "event" not in record]


def records(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")
