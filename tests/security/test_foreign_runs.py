"""A run folder that somebody else made, or that is no run at all: nothing of it is executed, nothing in it is lost."""

import hashlib
import json
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alliance.errors import InputError
from datasets.descriptors import append_to, open_lock
from engine.checkpoints import MANIFEST, clear_unfinished, list_checkpoints
from engine.deepspeed_internals import converter_command, load_states, names_beside_states
from engine.restore import refuse_foreign_states
from engine.runs import RunFolder
from tests.helpers import warm
from tests.helpers.runs import Ranks, arguments_of, environment, metrics

STEPS = ("--run.steps", "4", "--run.save_every", "2", "--run.resume", "auto")
STATES = "mp_rank_00_model_states.pt"


class Trap:
    """Pickled, it makes a file wherever it is loaded as any pickle is."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def set_trap(path: Path, marker: Path, *, key: str = "trap") -> None:
    """Add a trap to a file of torch.save, and to the manifest beside it its new checksum."""
    content = load_states(path)
    torch.save(content | {key: Trap(marker)}, path)
    manifest = json.loads((path.parent / MANIFEST).read_text())
    manifest["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (path.parent / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sar_shards: Path) -> Callable[[int], Path]:
    """Finished runs of one rank by ZeRO stage."""
    root = tmp_path_factory.mktemp("runs")

    def make(zero: int) -> Path:
        if not (root / str(zero)).exists():
            arguments = arguments_of(root / str(zero), [sar_shards], "--engine.zero", str(zero), *STEPS)
            ((code, output),) = Ranks(arguments, 1).wait()
            assert code == 0, output
        return root / str(zero)

    return make


@pytest.mark.parametrize(("saved", "resumed"), [(0, 0), (1, 1), (1, 0)])
def test_resuming_a_run_with_a_trap_runs_nothing(
    runs, saved: int, resumed: int, sar_shards: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs(saved), tmp_path / "run"))
    file = next((folder / "checkpoints" / "step_00000004").glob("*optim_states.pt" if saved else STATES))
    set_trap(file, tmp_path / "sprung")
    arguments = arguments_of(folder, [sar_shards], "--engine.zero", str(resumed), *STEPS)
    ((code, output),) = Ranks(arguments, 1).wait()
    assert code == 2, output
    assert f"{file.name} names " in output
    assert "is not run" in output
    assert not (tmp_path / "sprung").exists()


def converted(checkpoint: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What the converter says, in a process that has made its imports."""
    command = converter_command(checkpoint, out)
    script = next(place for place, word in enumerate(command) if word.endswith(".py"))
    return warm.run(command[script:], environment(), 200)


def test_the_converter_loads_no_trap_either(runs, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(runs(1) / "checkpoints" / "step_00000004", tmp_path / "step_00000004"))
    done = converted(checkpoint, tmp_path / "good")
    assert done.returncode == 0, done.stdout
    set_trap(next(checkpoint.glob("*optim_states.pt")), tmp_path / "sprung")
    done = converted(checkpoint, tmp_path / "bad")
    assert done.returncode != 0
    assert "Weights only load failed" in done.stdout
    assert not (tmp_path / "sprung").exists()


def test_every_file_of_a_run_can_be_read_without_calling_what_it_names(runs) -> None:
    for zero in (0, 1):
        refuse_foreign_states(runs(zero) / "checkpoints" / "step_00000004")


@pytest.mark.parametrize("kind", ["trap", "plain pickle", "no zip", "empty", "a zip of something else"])
def test_a_file_that_is_no_training_state_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "random_rank0.pt"
    if kind == "trap":
        torch.save({"cpu": Trap(tmp_path / "sprung")}, path)
        assert names_beside_states(path)
        with pytest.raises(pickle.UnpicklingError):
            load_states(path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    elif kind == "a zip of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch sprung'\ntR.")
    else:
        path.write_bytes(b"text" if kind == "no zip" else b"")
    with pytest.raises(InputError, match="another --run.dir"):
        refuse_foreign_states(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        *((name, "mine") for name in ("encoder/model.safetensors", "metrics.jsonl", "notes/mine.txt", "checkpoints/a")),
        *((name, text) for name in ("config.yaml", "notes.txt") for text in ("mine", "")),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_that_is_no_run_is_refused_and_stays(entry: str, content: str, resume: str, tmp_path: Path) -> None:
    (tmp_path / entry).parent.mkdir(exist_ok=True)
    (tmp_path / entry).write_text(content)
    with pytest.raises(InputError, match="but no run to go on with; choose an empty or new folder"):
        RunFolder(tmp_path).claim(resume)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / entry]
    assert (tmp_path / entry).read_text() == content


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl"])
def test_what_a_run_killed_at_its_start_leaves_empty_is_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    folder = RunFolder(tmp_path)
    folder.claim("auto")
    folder.release()
    assert folder.is_ours()


@pytest.mark.parametrize("place", ["new", "empty"])
def test_a_new_and_an_empty_folder_begin_a_run_and_go_on_later(place: str, tmp_path: Path) -> None:
    """As launch/slurm.sh does it: `auto` each time."""
    if place == "empty":
        (tmp_path / place).mkdir()
    for _ in range(2):
        folder = RunFolder(tmp_path / place)
        folder.claim("auto")
        (folder.path / "metrics.jsonl").write_text('{"step": 0}\n')
        folder.release()


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl"])
def test_a_planted_link_is_not_followed(name: str, resume: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="is a link, which is not followed"):
        RunFolder(tmp_path / "run").claim(resume)
    for opening in (open_lock, append_to):  # planted a moment later
        with pytest.raises(OSError, match="symbolic links"):
            opening(tmp_path / "run" / name)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_only_our_own_names_are_checkpoints_and_only_they_are_removed(runs, sar_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs(0), tmp_path / "run"))
    saved = folder / "checkpoints"
    copies = [
        "step_00000002_good",
        "step_best",
        "my.universal",
        "step_00000002.universal.bak",
        "step_2",
        "best.partial",
    ]
    for name in copies:
        shutil.copytree(saved / "step_00000002", saved / name)
    shutil.copytree(folder / "encoder", folder / "encoder.old")
    (saved / "step_00000009.partial").mkdir()
    assert [path.name for path in list_checkpoints(saved)] == ["step_00000002", "step_00000004"]
    ((code, output),) = Ranks(
        arguments_of(folder, [sar_shards], *STEPS, "--run.steps", "6", "--run.keep", "1"), 1
    ).wait()
    assert code == 0, output
    assert "going on from step 4" in output
    assert {path.name for path in saved.iterdir()} == {"latest", "step_00000006", *copies}
    assert (folder / "encoder.old" / "model.safetensors").is_file()


def test_what_a_kill_left_is_cleared_by_name_alone(tmp_path: Path) -> None:
    ours = ["step_00000001.partial", "step_00000001.universal", "step_00000001.log"]
    theirs = ["a.partial", "step_1.partial", "step_00000001", "step_00000001.partial.bak", "x.universal"]
    for name in (*ours, *theirs):
        (tmp_path / name).mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "step_00000002.partial").symlink_to(tmp_path / "outside")
    clear_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "outside"}


def test_checkpoints_that_all_lost_their_manifest_are_no_reason_to_begin_anew(
    runs, sar_shards: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs(0), tmp_path / "run"))
    for manifest in folder.glob(f"checkpoints/*/{MANIFEST}"):
        manifest.unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    ((code, output),) = Ranks(arguments_of(folder, [sar_shards], *STEPS), 1).wait()
    assert code == 2, output
    assert "no good checkpoint is left" in output
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_flipped_byte_in_the_log_stops_no_run(runs, sar_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs(0), tmp_path / "run"))
    content = bytearray((folder / "metrics.jsonl").read_bytes())
    content[3] ^= 0x80  # no UTF-8 any more
    (folder / "metrics.jsonl").write_bytes(content + b"[]\n12\n{\n")
    ((code, output),) = Ranks(arguments_of(folder, [sar_shards], *STEPS, "--run.steps", "5"), 1).wait()
    assert code == 0, output
    assert "4 lines of metrics.jsonl cannot be read and are left out" in output
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
