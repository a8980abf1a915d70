"""Seeds trained in processes of their own end with a command that is killed, and the next one goes on where they were."""

import time
from pathlib import Path

import pytest

from datasets.synthetic.chips import write_chips
from tests.helpers import warm
from tests.helpers.processes import all_end, descendants
from tests.helpers.runs import PLAIN, ROOT, TIMEOUT, environment

PATIENCE = 15  # seconds; a machine with much to do wakes processes late
SMALL = [
    *("--model.encoder.model", "alliance_nano_patch8", "--optim.batch", "4", "--data.workers", "1", "--data.size", "16"),
    *("--run.log_every", "1", "--run.save_every", "1", *PLAIN, "--resamples", "20", "--seeds", "0,1"),
    *("--evaluate_every", "100000", "--run.resume", "auto"),
]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_seeds_end_with_a_killed_sweep_and_the_next_one_goes_on(tmp_path: Path) -> None:
    write_chips(tmp_path / "data", chips=20, size=16, classes=2)
    folder = tmp_path / "run"
    command = [str(ROOT / "finetune/scene.py"), "--run.dir", str(folder), "--data.path", str(tmp_path / "data"), *SMALL]
    started = warm.start([*command, "--jobs", "2", "--run.steps", "100000"], environment())
    try:
        until = time.monotonic() + 120
        while not all(list((folder / f"seed_{seed}").glob("checkpoints/step_*/MANIFEST.json")) for seed in (0, 1)):
            assert started.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        everything = list(descendants(started.pid))
        assert len(everything) >= 2
    finally:
        started.kill()
    started.wait(10)
    assert all_end(everything, PATIENCE)
    done = [int(path.name[5:13]) for path in folder.glob("seed_*/checkpoints/step_*")]
    ended = warm.run([*command, "--jobs", "1", "--run.steps", str(max(done) + 1)], environment(), TIMEOUT)
    assert ended.returncode == 0, ended.stdout
    assert (folder / "scores.json").is_file()
    assert ended.stdout.count("going on from step") == 2
    left = [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial", ".universal"))]
    assert left == []
