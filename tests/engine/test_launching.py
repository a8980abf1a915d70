"""How ranks find each other: Slurm's variables, an expected number of ranks, and refusals of what cannot work."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import ROOT, arguments_of, environment, free_port, pretrain


def test_srun_starts_a_group_from_its_own_variables() -> None:
    """No RANK is set; `tests/helpers/drop_on_ranks.py` trains on both ranks and compares."""
    common = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "SLURM_STEP_NUM_TASKS": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.drop_on_ranks", "0"], cwd=ROOT, text=True,
            env=common | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in "01"
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs


def test_srun_without_an_address_is_refused(sar_shards: Path, tmp_path: Path) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    command = [sys.executable, *arguments_of(tmp_path / "run", [sar_shards])]
    done = subprocess.run(command, cwd=ROOT, env=environment() | slurm, text=True, capture_output=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "error: srun starts several ranks, but MASTER_ADDR is not set; start with launch/slurm.sh"
    )


def test_another_number_of_ranks_than_expected_is_refused(sar_shards: Path, tmp_path: Path) -> None:
    done = pretrain(tmp_path / "run", [sar_shards], "--run.steps", "1", "--engine.ranks", "2")
    assert done.returncode == 2
    assert "error: 1 ranks were started, engine.ranks is 2; correct the hostfile" in done.stdout


def test_the_recipes_are_sound_shell() -> None:
    for name in ("slurm.sh", "nodes.sh"):
        script = ROOT / "launch" / name
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
