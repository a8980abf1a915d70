"""Start real pretraining runs, with and without the DeepSpeed launcher, and read what they wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 240

# Small enough for a few seconds per run: 32-pixel crops, a two-block encoder and a three-block decoder.
SMALL = [
    *("--config", str(ROOT / "configs/pretrain/nano.yaml"), "--data.crop", "32", "--optim.batch", "8"),
    *("--model.encoder.embed_dim", "48", "--model.encoder.depth", "2", "--model.decoder.embed_dim", "48"),
    *("--model.decoder.depth", "3", "--run.log_every", "1", "--run.save_every", "100", "--run.picture_every", "0"),
]


def environment(threads: int = 1) -> dict[str, str]:
    """This process's environment, without what another launcher may have left in it."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"OMP_NUM_THREADS": str(threads), "PATH": path, "WANDB_SILENT": "true"}


def pretrain(
    folder: Path, sources: Sequence[Path], *arguments: str, ranks: int = 0, port: int = 29600
) -> subprocess.CompletedProcess[str]:
    """Run launch/pretrain.py into `folder`; `ranks` 0 is without launcher."""
    launcher = [sys.executable]
    if ranks:
        launcher = [
            str(Path(sys.executable).with_name("deepspeed")),
            "--num_gpus",
            str(ranks),
            "--master_port",
            str(port),
        ]
    data = json.dumps([{"shards": str(source)} for source in sources])
    command = [*launcher, str(ROOT / "launch/pretrain.py"), *SMALL, "--run.dir", str(folder), "--data.sources", data]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment(), text=True, timeout=TIMEOUT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Logged steps of a run."""
    return [record for record in records(folder) if "event" not in record]


def records(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")
