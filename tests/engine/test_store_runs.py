"""Runs that read from object storage are those that read the same shards from disk, whatever the store does meanwhile."""

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.object_store import SECRET, ObjectStore, running_store
from tests.helpers.runs import Ranks, arguments_of, metrics

STEPS = ("--run.steps", "6", "--run.save_every", "3", "--run.keep", "9")
PLACE = ("step", "sensor", "lr", "epoch", "sample_digest")
LOSSES = ("loss", "loss_low", "loss_mid", "loss_high", "grad_norm")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with running_store() as server:
        yield server


@pytest.fixture(scope="module")
def here(optical_shards: Path, sar_shards: Path) -> list[Path]:
    return [optical_shards, sar_shards]


@pytest.fixture(scope="module")
def there(store: ObjectStore, here: list[Path]) -> list[str]:
    return [store.upload(folder, f"shards/{folder.name}") for folder in here]


def start(folder: Path, sources: Sequence[Path | str], ranks: int, store: ObjectStore, *more: str) -> Ranks:
    return Ranks(arguments_of(folder, sources, *STEPS, *more), ranks, environ=store.environment)


def finish(started: Ranks) -> str:
    ended = started.wait()
    assert {code for code, _ in ended} == {0}, ended[0][1] + ended[-1][1]
    return ended[0][1]


@pytest.fixture(scope="module")
def straight(here: list[Path], store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(start(folder, here, 2, store))
    return folder


def values(folder: Path, names: tuple[str, ...]) -> list[list[object]]:
    return [[record[name] for name in names] for record in metrics(folder)]


def interrupted(folder: Path, target: Path) -> Path:
    """A copy of a finished run as it was after step 3."""
    shutil.copytree(folder, target)
    (target / "checkpoints" / "step_00000006" / "MANIFEST.json").unlink()
    shutil.rmtree(target / "encoder")
    return target


@pytest.mark.parametrize("away", [2.0, pytest.param(20.0, marks=pytest.mark.long)])  # seconds
def test_losses_are_bit_for_bit_those_from_disk_though_requests_fail_and_the_server_goes_away(
    away: float, straight: Path, store: ObjectStore, there: list[str], tmp_path: Path
) -> None:
    store.trouble = lambda number, name: "503" if number % 33 == 7 else ""  # 3 in 100
    folder = tmp_path / "run"
    running = start(folder, there, 2, store, "--data.workers", "0")  # nothing is read before the server goes away
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 2:
        time.sleep(0.05)
    store.stop()
    back = threading.Timer(away, store.start)
    back.start()
    finish(running)
    back.join()
    store.trouble = lambda number, name: ""
    assert values(folder, PLACE + LOSSES) == values(straight, PLACE + LOSSES)
    assert metrics(folder)[-1]["store_retries"] >= 1
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in written and b"sample_digest" in written


def test_a_run_from_disk_goes_on_from_the_store_with_other_ranks(
    straight: Path, store: ObjectStore, there: list[str], tmp_path: Path
) -> None:
    folder = interrupted(straight, tmp_path / "run")
    assert "going on from step 3" in finish(start(folder, there, 1, store, "--run.resume", "auto"))
    assert values(folder, PLACE) == values(straight, PLACE)
    for found, expected in zip(values(folder, LOSSES), values(straight, LOSSES), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_two_ranks_then_one_then_four(straight: Path, store: ObjectStore, there: list[str], tmp_path: Path) -> None:
    folder, steps = tmp_path / "run", ("--run.save_every", "2")
    for ranks, until in ((2, "2"), (1, "4"), (4, "6")):
        # a run of fewer steps would have another schedule: it is stopped by taking what came later away
        finish(start(folder, there, ranks, store, *steps, "--run.resume", "auto"))
        if until != "6":
            for path in (folder / "checkpoints").glob("step_*"):
                if int(path.name.removeprefix("step_")) > int(until):
                    shutil.rmtree(path)
            (folder / "checkpoints" / "latest").write_text(f"step_{int(until):08d}")
            shutil.rmtree(folder / "encoder")
    assert values(folder, PLACE) == values(straight, PLACE)
    for found, expected in zip(values(folder, LOSSES), values(straight, LOSSES), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_credentials_that_expire_stop_all_ranks_with_a_message(
    store: ObjectStore, there: list[str], tmp_path: Path
) -> None:
    store.trouble = lambda number, name: "403" if name.endswith(".tar") and len(asked) < number else ""
    asked = list(store.asked)
    ended = start(tmp_path / "run", there, 2, store).wait()
    store.trouble = lambda number, name: ""
    assert all(code != 0 for code, _ in ended)
    said = ended[0][1] + ended[1][1]
    assert "is refused to us: the credentials in the environment" in said and "Traceback" not in said
    assert SECRET not in said
