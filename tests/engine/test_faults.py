"""Faults put into real runs: what a run does about each, what it says, and that nothing saved before is lost."""

import json
import math
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from alliance.errors import InputError
from datasets.sampling.faults import Fault
from datasets.shards import LoaderConfig, ShardLoader, ShardSource, SourceConfig
from datasets.shards.index import Sidecar
from engine.errors import AgreedError
from engine.faults import FaultLog
from engine.log import WandbMirror, read_metrics
from engine.runs import RunConfig, RunFolder
from tests.helpers.runs import ROOT, Ranks, arguments_of, environment, metrics, records
from tests.helpers.shards import write_tiny_shards

SAVING = ("--run.steps", "4", "--run.save_every", "2", "--run.resume", "auto")
SMALL_FILES = {resource.RLIMIT_FSIZE: (2**20, 2**20)}  # a checkpoint needs some 7 MB


def train(folder: Path, sources: list[Path], *arguments: str, ranks: int = 1, **limits) -> tuple[int, str]:
    """Exit code and output of the main rank."""
    return Ranks(arguments_of(folder, sources, *arguments), ranks, **limits).wait()[0]


def change_sample(folder: Path, place: int, value: np.ndarray) -> str:
    """Overwrite sample `place` of the first shard in its tar; returns its key."""
    source = ShardSource(folder)
    (name,) = source.sensors
    path = folder / source.index.shards[0].name
    sidecar = Sidecar.load(path.with_suffix(".npz"))
    with open(path, "r+b") as tar:
        tar.seek(int(sidecar.places[name].offset[place]))
        tar.write(value.tobytes())
    return sidecar.keys[place].decode()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, sar_shards: Path) -> Path:
    """A finished run of one rank with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    code, output = train(folder, [sar_shards], *SAVING)
    assert code == 0, output
    return folder


@pytest.fixture
def damaged(sar_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sar_shards, tmp_path / "damaged"))


def test_changed_bytes_are_left_out_counted_and_named(damaged: Path, tmp_path: Path) -> None:
    key = change_sample(damaged, 0, np.zeros(8, "u1"))
    code, output = train(tmp_path / "run", [damaged], "--run.steps", "4", ranks=2)
    assert code == 0, output
    (event,) = [record for record in records(tmp_path / "run") if record.get("event") == "skipped"][:1]
    assert event["causes"] == {"checksum": 1}  # 8 samples are an epoch, and the batch
    assert key in event["samples"][0]
    assert f"1 samples left out (1 checksum), such as shard-000000.tar: {key}: its bytes are not those" in output
    last = [record for record in records(tmp_path / "run") if record.get("event") == "skipped"][-1]
    assert last["total"] == {"checksum": 4}  # once in each of four epochs, on whichever rank
    assert len(metrics(tmp_path / "run")) == 4


def test_too_many_broken_samples_stop_the_run_with_a_summary(damaged: Path, tmp_path: Path) -> None:
    for place in range(4):
        change_sample(damaged, place, np.zeros(8, "u1"))
    code, output = train(tmp_path / "run", [damaged], "--run.steps", "9", "--data.max_broken", "0.01", ranks=2)
    assert code == 2, output
    assert "12 of 24 samples are broken (12 checksum), more than the share data.max_broken 0.01 allows" in output
    assert "Traceback" not in output


def test_a_shard_that_is_missing_at_the_start_is_named_or_refused(
    optical_shards: Path, sar_shards: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(optical_shards, tmp_path / "broken"))
    next(broken.glob("*.tar")).unlink()
    code, output = train(tmp_path / "refused", [broken, sar_shards], "--run.steps", "1")
    assert code == 2
    assert "is missing; copy the shards again" in output
    code, output = train(tmp_path / "run", [broken, sar_shards], "--run.steps", "3", "--data.max_broken", "1")
    assert code == 2
    assert (
        f"have the damaged ones named: python launch/shards.py --verify {broken}" in output
    )  # nothing of that source is left


def test_faults_are_named_at_first_sight_and_then_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    written: list[dict] = []
    log = FaultLog(0.05, lambda **record: written.append(record))
    truncated, vanished = (Fault(cause, "shard-000001.tar", "k", "r") for cause in ("truncated", "shard"))
    log.add([truncated], step=3, read=40)
    log.add([truncated, truncated], step=4, read=50)  # known already: kept for the next report
    log.add([vanished], step=5, read=60)
    assert [record["causes"] for record in written] == [{"truncated": 1}, {"truncated": 2, "shard": 1}]
    assert written[-1]["total"] == {"truncated": 3, "shard": 1}
    log.add([Fault("empty", "s", "k", "r")] * 500, step=6, read=600)  # windows in the border of good scenes
    with pytest.raises(AgreedError, match=r"51 of 1000 samples are broken \(500 empty, 1 shard, 50 truncated\)"):
        log.add([truncated] * 47, step=7, read=1000)
    again = FaultLog(0.05, lambda **record: None)
    again.load_state_dict(json.loads(json.dumps(log.state_dict())))
    assert again.total == log.total


@pytest.mark.parametrize("value", [math.nan, math.inf, -9999.0])
def test_a_sample_without_values_is_replaced(tmp_path: Path, value: float) -> None:
    folder = write_tiny_shards(tmp_path / "tiny", [4], side=8, dtype="float32", nodata=-9999.0)
    change_sample(folder, 2, np.full((1, 8, 8), value, "float32"))
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=4, verify=False))
    batch = next(iter(loader))
    (fault,) = batch.faults
    assert (fault.cause, fault.key) == ("empty", "s0-2")
    assert "s0-2" not in batch.keys
    assert torch.isfinite(batch.stored).all()


def test_a_sample_with_one_value_counts(tmp_path: Path) -> None:
    folder = write_tiny_shards(tmp_path / "tiny", [1], side=32, dtype="float32")
    image = np.full((1, 32, 32), np.nan, "float32")
    image[0, 31, 30] = 1
    change_sample(folder, 0, image)
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=1, verify=False))
    assert not next(iter(loader)).faults


def troubled(folder: Path, sources: list[Path], trouble: str, *arguments: str) -> list[tuple[int, str]]:
    """A run of two ranks with trouble in one; exit codes and outputs."""
    command = ["-m", "tests.helpers.trouble_on_ranks", *arguments_of(folder, sources, *arguments)[1:]]
    return Ranks(command, 2, environ={"TROUBLE": trouble}).wait()


@pytest.mark.parametrize("zero", [pytest.param("0", marks=pytest.mark.long), "2"])
def test_a_loss_that_is_not_finite_on_one_rank_leaves_the_step_out_on_all(
    sar_shards: Path, tmp_path: Path, zero: str
) -> None:
    steps = ("--run.steps", "5", "--engine.zero", zero, "--engine.micro_batch", "2")  # two passes per step
    for code, output in (ended := troubled(tmp_path / "run", [sar_shards], "nan:1:5", *steps)):
        assert code == 0, output  # pass 5 is the second one of step 2
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 3, 4]
    (event,) = [record for record in records(tmp_path / "run") if record.get("event") == "nonfinite"]
    assert (event["step"], list(event["ranks"]), event["ranks"]["1"]["losses"]) == (2, ["1"], ["high"])
    assert len(event["ranks"]["1"]["samples"]) == 2
    assert "step 2: loss of rank 1 is not finite: losses ['high'], samples" in ended[0][1]
    straight = troubled(tmp_path / "straight", [sar_shards], "nan:1:99", *steps)
    assert [code for code, _ in straight] == [0, 0]
    before, after = ({line["step"]: line for line in metrics(tmp_path / name)} for name in ("straight", "run"))
    assert all(after[step]["loss"] == before[step]["loss"] for step in (0, 1))
    assert all(after[step]["sample_digest"] == before[step]["sample_digest"] for step in (3, 4))


def test_a_last_step_that_is_left_out_does_not_keep_a_run_from_ending(sar_shards: Path, tmp_path: Path) -> None:
    ended = troubled(tmp_path / "run", [sar_shards], "nan:0:2", "--run.steps", "3")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1]
    assert (tmp_path / "run" / "checkpoints" / "step_00000003").is_dir()
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()


def test_ranks_that_were_started_differently_are_refused(sar_shards: Path, tmp_path: Path) -> None:
    started = Ranks(
        arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "3"), 2, own=[(), ("--optim.lr", "1e-5")]
    )
    ended = started.wait(100)
    assert [code for code, _ in ended] == [2, 2], ended
    assert "was started with other settings than rank 0; give all the same" in ended[0][1]


def test_steps_without_end_that_are_not_finite_stop_the_run(sar_shards: Path, tmp_path: Path) -> None:
    ended = troubled(tmp_path / "run", [sar_shards], "nan:1:all", "--run.steps", "50", "--run.save_every", "1")
    assert [code for code, _ in ended] == [2, 2]
    assert "step 9: the last 10 steps were not finite (rank 1: losses high); lower optim.lr" in ended[0][1]
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_an_error_on_one_rank_is_named_by_the_other(sar_shards: Path, tmp_path: Path) -> None:
    (code, output), (own_code, own) = troubled(tmp_path / "run", [sar_shards], "error:1:2", "--run.steps", "500")
    assert (code, own_code) == (1, 1)
    assert (
        output.strip()
        .splitlines()[-1]
        .endswith("failed at step 2: ValueError: the cosmic ray of a test. Go on with --run.resume auto")
    )
    assert "stopped: rank 1 (host " in output
    assert "Traceback" not in output
    assert own.strip().splitlines()[-1].endswith("ValueError: the cosmic ray of a test")


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_of_a_dropped_step_leave_no_trace(zero: int) -> None:
    """`tests/helpers/drop_on_ranks.py` compares the weights with those of the same passes without the drop."""
    ended = Ranks(["-m", "tests.helpers.drop_on_ranks", str(zero)], 2).wait()
    assert [code for code, _ in ended] == [0, 0], ended[0][1] + ended[1][1]


def test_a_full_disk_keeps_the_last_good_checkpoint(straight: Path, sar_shards: Path, tmp_path: Path) -> None:
    folder, sources = tmp_path / "run", [sar_shards]
    shutil.copytree(straight, folder)
    (folder / "checkpoints" / "step_00000004" / "MANIFEST.json").unlink()  # step 2 is the newest
    good = {path: path.read_bytes() for path in (folder / "checkpoints" / "step_00000002").iterdir()}
    for ranks, arguments in ((2, ()), (1, ("--run.unsaved", "stop"))):
        code, output = train(folder, sources, *SAVING, *arguments, ranks=ranks, limits=SMALL_FILES)
        assert code == 2, output
        assert "checkpoint of step 4 is not saved (rank 0: " in output
        assert "the newest one is of step 2; make room, then go on with --run.resume auto" in output
        assert {path: path.read_bytes() for path in good} == good
        assert not list((folder / "checkpoints").glob("*.partial"))
    assert train(folder, sources, *SAVING)[0] == 0
    assert [line["loss"] for line in metrics(folder)] == [line["loss"] for line in metrics(straight)]


def test_a_run_may_go_on_without_a_checkpoint(sar_shards: Path, tmp_path: Path) -> None:
    steps = ("--run.steps", "4", "--run.save_every", "1")
    code, output = train(tmp_path / "run", [sar_shards], *steps, "--run.unsaved", "go_on", ranks=2, limits=SMALL_FILES)
    assert code == 2  # the last one must be saved
    assert len(metrics(tmp_path / "run")) == 4
    assert [record["step"] for record in records(tmp_path / "run") if record.get("event") == "unsaved"] == [0, 1, 2, 3]
    code, output = train(tmp_path / "stop", [sar_shards], *steps, "--run.unsaved", "stop", limits=SMALL_FILES)
    assert (code, len(metrics(tmp_path / "stop"))) == (2, 1)


def test_a_log_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from engine.log import Metrics
log = Metrics(Path({str(tmp_path / "metrics.jsonl")!r}))
for step in range(9):
    log.write(step=step, text="x" * 20)  # 38 bytes
log.close()
"""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), preexec_fn=limit, timeout=60)
    assert done.returncode == 0
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_a_damaged_checkpoint_is_passed_over(straight: Path, sar_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    losses = [line["loss"] for line in metrics(folder)]
    for step in (4, 2):
        path = folder / "checkpoints" / f"step_{step:08d}" / "mp_rank_00_model_states.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        code, output = train(folder, [sar_shards], *SAVING, ranks=2)
        if step == 4:
            assert code == 0, output
            assert "checkpoint step_00000004 is passed over: mp_rank_00_model_states.pt is damaged" in output
            assert [line["loss"] for line in metrics(folder)] == pytest.approx(losses, rel=1e-5)
            shutil.rmtree(folder / "checkpoints" / "step_00000004")
    assert code == 2
    assert "no good checkpoint is left" in output


def test_wandb_that_crashes_while_logging_is_switched_off(tmp_path: Path) -> None:
    mirror = WandbMirror(RunConfig(dir=str(tmp_path), wandb="offline"), RunFolder(tmp_path), {})
    assert mirror.session is not None
    mirror({"step": 0, "loss": 0.5})
    mirror.session.finish()  # from here on wandb raises
    mirror({"step": 1, "loss": 0.4})
    assert mirror.session is None
    mirror({"step": 2, "loss": 0.3})
    mirror.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.long
def test_wandb_without_a_network_goes_offline(sar_shards: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        *arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "2", "--run.wandb", "online"),
    ]
    unreachable = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | unreachable, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb online does not start" in done.stdout
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(metrics(tmp_path / "run")) == 2


def test_a_member_outside_the_folder_touches_nothing(tmp_path: Path) -> None:
    folder = write_tiny_shards(tmp_path / "deep" / "tiny", [1], extra=("../../evil", f"{tmp_path}/evil"))
    source = ShardSource(folder)
    before = sorted(tmp_path.rglob("*"))
    read = source.read("one-band", np.zeros(3, int), np.arange(3))
    assert len(set(read.keys)) == 3
    assert sorted(tmp_path.rglob("*")) == before
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["name"] = "../tiny/shard-000000.tar"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="names of files"):
        ShardSource(folder)
