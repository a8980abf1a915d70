"""What a run tells beside metrics.jsonl: TensorBoard's files and wandb's, read back by their own programs."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alliance.errors import InputError
from engine.log import Metrics, TensorboardMirror, WandbMirror, mirrored, require_tensorboard
from engine.runs import RunConfig, RunFolder
from tests.helpers.runs import pretrain, records

PIXELS = np.zeros((2, 3, 3), "u1")
PIXELS[1, 2] = (200, 10, 30)
RECORDS: list[dict[str, Any]] = [
    {"step": 3, "sensor": "s2", "loss": 0.5, "grad_norm": None},
    {"event": "picture", "step": 3, "sensor": "s2", "path": "a.png"},
    {"event": "probe", "step": 3, "data": "eurosat", "kind": "knn", "accuracy": 61.0},
    {"event": "scores", "step": 3, "part": "test", "oa": 75.0, "iou": {"water": 50.0, "land": None}, "confusion": [[1]]},
    {"event": "checkpoint", "step": 3, "path": "step_00000004"},
]  # fmt: skip
NUMBERS = {"loss": 0.5, "probe/eurosat/knn/accuracy": 61.0, "scores/test/oa": 75.0, "scores/test/iou/water": 50.0}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.pictures.mkdir(parents=True)
    Image.fromarray(PIXELS).save(made.pictures / "a.png")
    return made


def shown(folder: Path) -> Any:
    """What TensorBoard reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its reader, which is not ours
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder), {"images": 0}, purge_orphaned_data=True)
        return found.Reload()


def scalars(found: Any) -> dict[str, list[tuple[int, float]]]:
    return {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_scores_are_shown_in_all_and_by_class() -> None:
    told = mirrored(RECORDS[3])
    assert told == {"scores/test/oa": 75.0, "scores/test/iou/water": 50.0}
    assert mirrored({"event": "scores", "step": 1, "oa": 2.0, "good": True}) == {"scores/oa": 2.0}


def test_tensorboard_reads_numbers_pictures_and_settings(folder: RunFolder) -> None:
    mirror = TensorboardMirror(folder, {"data": {"sources": ["https://me:secret@host/shards"]}}, 0)
    for record in RECORDS:
        mirror(record)
    mirror.close()
    found = shown(folder.tensorboard)
    assert scalars(found) == {name: [(3, value)] for name, value in NUMBERS.items()}
    (image,) = found.Images("picture/s2")
    (folder.path / "back.png").write_bytes(image.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open(folder.path / "back.png").convert("RGB")), PIXELS)
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "sources" in text and "secret" not in text


def test_tensorboard_forgets_the_steps_that_are_taken_again(folder: RunFolder) -> None:
    for start, losses in ((0, (4.0, 3.0, 2.5)), (2, (2.0, 1.0))):
        mirror = TensorboardMirror(folder, {}, start)
        metrics = Metrics(folder.metrics, resume_step=start, mirrors=[mirror])
        for number, loss in enumerate(losses):
            metrics.write(step=start + number, loss=loss)
        metrics.close()
    assert scalars(shown(folder.tensorboard))["loss"] == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("when", ["start", "later"])
def test_trouble_of_tensorboard_is_a_warning(folder: RunFolder, when: str, caplog: pytest.LogCaptureFixture) -> None:
    if when == "start":
        folder.tensorboard.write_text("in the way")
    mirror = TensorboardMirror(folder, {}, 0)
    (folder.pictures / "a.png").unlink()
    for record in RECORDS:
        mirror(record)
    mirror.close()
    assert mirror.writer is None


def test_tensorboard_that_is_not_there_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed
    require_tensorboard(RunConfig(dir="any"))
    with pytest.raises(InputError, match=r"run.tensorboard needs the package tensorboard .*pip install tensorboard"):
        require_tensorboard(RunConfig(dir="any", tensorboard=True))


def test_wandb_gets_scores_and_pictures(folder: RunFolder) -> None:
    mirror = WandbMirror(RunConfig(dir=str(folder.path), wandb="offline"), folder, {})
    for record in [*RECORDS, {"step": 4, "loss": 0.5}]:  # wandb keeps a step until the next one comes
        mirror(record)
    assert {name: mirror.session.summary[name] for name in NUMBERS} == NUMBERS
    mirror.close()
    (media,) = (folder.path / "wandb").glob("offline-run-*/files/media/images/picture/*.png")
    assert np.array_equal(np.asarray(Image.open(media).convert("RGB")), PIXELS)


def test_a_run_shows_all_of_it_once_and_keeps_what_stays(sar_shards: Path, tmp_path: Path) -> None:
    """Stopped after 5 steps, it goes on with other settings of what stays; its page shows every picture."""
    run = tmp_path / "run"
    told = ("--run.tensorboard", "true", "--run.page", "true", "--run.picture_every", "4", "--run.keep", "1")
    first = ("--run.steps", "5", "--run.save_every", "1", "--run.keep_every", "2")
    done = pretrain(run, [sar_shards], *told, *first)
    assert done.returncode == 0 and kept(run) == [2, 4, 5], done.stdout
    page = (run / "report.html").read_text()
    assert re.findall(r"<figcaption>step (\d+)<", page) == ["4", "5"]
    other = ("--run.steps", "7", "--run.keep_every", "3", "--run.resume", "auto")  # saves those that stay, and the last
    done = pretrain(run, [sar_shards], *told, *other)
    assert done.returncode == 0 and kept(run) == [2, 4, 6, 7], done.stdout
    assert "going on from step 5" in done.stdout
    page = (run / "report.html").read_text()
    assert re.findall(r"<figcaption>step (\d+)<", page) == ["4", "5", "7"]
    losses = {each["step"]: each["loss"] for each in records(run) if "event" not in each}
    found = shown(run / "tensorboard")
    assert scalars(found)["loss"] == [(step, pytest.approx(losses[step])) for step in range(7)]
    assert [each.step for each in found.Images("picture/synthetic-sar")] == [3, 4, 6]


def kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))
