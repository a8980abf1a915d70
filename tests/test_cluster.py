"""Shards and maps made by the workers of a Dask cluster: the same bytes and pixels, whatever becomes of the workers."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import rasterio
import torch

from alliance.checkpoint import save_encoder
from alliance.errors import InputError
from datasets.cluster import (
    Cluster,
    connected,
    refuse_other_surroundings,
    refuse_other_versions,
    refuse_unseen,
    surroundings,
)
from datasets.contents import Stamp
from datasets.shards.command import main
from datasets.shards.elsewhere import carry_out
from datasets.shards.index import Index
from datasets.synthetic.landscapes import write_scenes
from finetune.mapping.command import main as predict_main
from finetune.mapping.images import ImageFile
from finetune.mapping.pieces import Piece, at_worker
from finetune.mapping.scene import MapRecipe, SceneOptions
from finetune.pad.checkpoint import save_pad
from finetune.pad.model import Pad
from tests.datasets.shards.test_shards import digests, refused
from tests.finetune.mapping.test_embeddings import encoder_of, write_image
from tests.finetune.mapping.test_scene_maps import ATTO, INPUTS, read, write_pair
from tests.helpers import dask
from tests.helpers.runs import ROOT, environment

TILING = ("--sensor", "synthetic-optical", "--tile", "32", "--workers", "1", "--shard-mb", "0.25")
DEVICE = ("--device", "cpu")
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with dask.scheduler() as running:
        yield running.address


@pytest.fixture(scope="module")
def cluster(scheduler: str) -> Iterator[str]:
    """Two workers, and the address of their scheduler."""
    with dask.workers(scheduler, 2), connected(scheduler) as connection:
        connection.client.wait_for_workers(2, timeout=40)
        yield scheduler


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, scenes=3, size=224, seed=0)
    return folder / "optical"


@pytest.fixture(scope="module")
def alone(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards as one machine makes them."""
    out = tmp_path_factory.mktemp("alone") / "out"
    main([str(scenes), "--out", str(out), *TILING])
    return out


class Killer(threading.Thread):
    """Kills a worker of a cluster as soon as its work has begun."""

    def __init__(self, address: str, begun: Callable[[], bool]) -> None:
        super().__init__()
        self.address, self.begun, self.killed = address, begun, 0

    def run(self) -> None:
        with connected(self.address) as connection:
            processes = connection.client.run(os.getpid)
        until = time.monotonic() + 60
        while not self.begun():
            if time.monotonic() > until:
                return
            time.sleep(0.001)
        self.killed = next(iter(processes.values()))
        os.kill(self.killed, signal.SIGKILL)


class Number(NamedTuple):
    """A unit."""

    value: int

    def __str__(self) -> str:
        return f"number {self.value}"


def square(number: Number) -> int:
    time.sleep(0.02 * (number.value % 3))  # so that they end in another order
    return number.value**2


def heed() -> None:
    """Ctrl-C is heard, also where these tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def die(number: Number) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: Number, *, folder: Path) -> None:
    (folder / str(time.monotonic_ns())).touch()
    raise OSError(5, "Input/output error", "/data/a.tif")


# Shards


def test_shards_are_the_same_bytes_when_a_worker_is_killed(
    cluster: str, scenes: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    killer = Killer(cluster, lambda: any(out.glob("*.npz")) and any(out.glob("*.tar.*.tmp")))
    killer.start()
    main([str(scenes), "--out", str(tmp_path / "out"), *TILING, "--dask", cluster])
    killer.join()
    assert killer.killed
    assert digests(tmp_path / "out") == digests(alone)
    assert len(Index.read(alone).shards) > 15
    assert "samples in" in capsys.readouterr().out


def test_a_stopped_command_says_so_and_goes_on_when_given_again(
    cluster: str, scenes: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(scenes), "--out", "out", *TILING, "--dask", cluster]  # a path of the command's own folder
    command = [sys.executable, str(ROOT / "launch" / "shards.py"), *given]
    said = ""
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=heed,
    ) as run:  # fmt: skip
        while len(list((tmp_path / "out").glob("*.npz"))) < 3:
            assert run.poll() is None
            time.sleep(0.002)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=30)
    assert run.returncode == 130, said
    assert said.strip().splitlines()[-1].startswith("stopped; the finished shards are kept")
    assert "Traceback" not in said and "distributed" not in said
    assert not (tmp_path / "out" / "index.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    monkeypatch.chdir(tmp_path)
    main(given)
    assert digests(tmp_path / "out") == digests(alone)
    assert kept == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}


# Maps


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scene of two images with a hole in both, in which some windows lie whole."""
    folder = tmp_path_factory.mktemp("pair")
    files = write_pair(folder, 200, 260)
    for path in files.values():
        with rasterio.open(path) as file:
            stored, profile = file.read(), file.profile
        stored[:, 60:150, :130] = 0
        with rasterio.open(path, "w", **profile | {"nodata": 0}) as file:
            file.write(stored)
    return files


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an untrained PAD network."""
    folder = tmp_path_factory.mktemp("run")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_pad(ATTO, Pad(ATTO).state_dict(), folder / "model", **INPUTS.to_record())
    return folder


def predict(out: Path, network: Path, pair: dict[str, Path], *more: str) -> list[bytes]:
    """The pixels of a map and of its probabilities."""
    shares = out.with_name(f"shares_{out.name}")
    images = [
        "--optical",
        str(pair["optical"]),
        "--sar",
        str(pair["sar"]),
        "--window",
        "64",
        "--overlap",
        "16",
        "--batch",
        "2",
    ]
    predict_main(
        ["--checkpoint", str(network), *images, "--out", str(out), "--probabilities", str(shares), *DEVICE, *more]
    )
    return [read(path).tobytes() for path in (out, shares)]


def test_a_map_is_the_same_in_every_pixel_when_a_worker_is_killed(
    cluster: str, network: Path, pair: dict[str, Path], tmp_path: Path
) -> None:
    here = predict(tmp_path / "here.tif", network, pair)
    killer = Killer(cluster, lambda: bool(time.sleep(0.2)) or any(tmp_path.glob(".there.tif.*.tmp/windows.tif")))
    killer.start()
    there = predict(tmp_path / "there.tif", network, pair, "--dask", cluster)
    killer.join()
    assert killer.killed
    assert there == here
    assert len(set(here[0])) > 2


def test_another_network_of_the_same_name_is_loaded_anew(cluster: str, network: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 64, 100)
    copied = shutil.copytree(network, tmp_path / "run")
    first = predict(tmp_path / "a.tif", copied, pair, "--dask", cluster)
    weights = {name: tensor.flip(0) for name, tensor in Pad(ATTO).state_dict().items()}
    save_pad(ATTO, weights, copied / "model", **INPUTS.to_record())
    second = predict(tmp_path / "b.tif", copied, pair, "--dask", cluster)
    assert first == predict(tmp_path / "c.tif", network, pair)
    assert second != first and second == predict(tmp_path / "d.tif", copied, pair)


@pytest.mark.parametrize("more", [(), ("--pca", "3", "--dtype", "int8")])
def test_embeddings_are_the_same_in_every_pixel(cluster: str, more: tuple[str, ...], tmp_path: Path) -> None:
    encoder = save_encoder(encoder_of(), tmp_path / "encoder")
    write_image(tmp_path / "image.tif", 90, 130)
    for name, place in (("here", ()), ("there", ("--dask", cluster))):
        given = ["--image", f"four={tmp_path / 'image.tif'}", "--out", str(tmp_path / f"{name}.tif"), "--window", "32"]
        predict_main(["--embeddings", "--checkpoint", str(encoder), *given, *DEVICE, *more, *place])
    assert read(tmp_path / "there.tif").tobytes() == read(tmp_path / "here.tif").tobytes()


def test_what_a_worker_lacks_for_a_map_is_named(
    cluster: str, network: Path, pair: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict(tmp_path / "map.tif", network, pair, "--dask", cluster, "--device", "cuda:77")
    told = capsys.readouterr().err
    assert (
        told.startswith("error: windows 1 to 2 of row 1, worker tcp://127.0.0.1:") and "--device cuda:77 cannot" in told
    )
    assert told.count("\n") == 1 and not list(tmp_path.glob("*.tif"))
    recipe = MapRecipe.of(network / "model", "cpu", {"sar": ImageFile(pair["sar"])}, SceneOptions())
    gone = dataclasses.replace(recipe, folder=tmp_path / "elsewhere")
    other = dataclasses.replace(recipe, contents="0" * 32)
    unseen = dataclasses.replace(recipe, stamps={tmp_path / "sar.tif": Stamp(9, 1)})
    with connected(cluster) as connection:
        for wrong, reason in (
            (gone, "elsewhere is not there"),
            (other, "another network"),
            (unseen, "sar.tif is not there"),
        ):
            with pytest.raises(InputError, match=rf"^windows 1 to 2 of row 1, worker .* on {HOST}: .*{reason}"):
                list(connection.run(partial(at_worker, recipe=wrong), [Piece(0, range(2))]))


# Units


def test_results_come_in_order_and_few_are_under_way(cluster: str) -> None:
    taken = []

    def numbers() -> Iterator[Number]:
        for value in range(40):
            taken.append(value)
            yield Number(value)

    with connected(cluster) as connection:
        for place, (number, found) in enumerate(connection.run(square, numbers(), in_order=True)):
            assert (number, found) == (Number(place), place**2)
            assert len(taken) <= place + 1 + 3 * 2
        assert len(taken) == 40
        found = dict(connection.run(square, map(Number, range(20))))
    assert found == {Number(value): value**2 for value in range(20)}


def test_a_unit_whose_workers_die_is_named_with_the_last_one(cluster: str) -> None:
    told = r"^number 7: 2 workers died .* the last one was tcp://127.0.0.1:\d+; for memory perhaps"
    with connected(cluster) as connection, pytest.raises(InputError, match=told):
        list(connection.run(die, [Number(7)]))


def test_a_failure_of_the_system_is_tried_again_and_then_told_with_its_machine(cluster: str, tmp_path: Path) -> None:
    told = rf"^number 3, 3 times: worker tcp://\S+ on {HOST}: /data/a.tif: Input/output error"
    with connected(cluster) as connection, pytest.raises(InputError, match=told):
        list(connection.run(partial(fail, folder=tmp_path), [Number(3)]))
    assert len(list(tmp_path.iterdir())) == 3


def test_files_that_a_worker_does_not_see_are_named_with_its_machine(cluster: str, alone: Path, tmp_path: Path) -> None:
    """As a worker would whose machine lacks them."""
    (tmp_path / "b.tif").write_bytes(b"12345")
    state = (tmp_path / "b.tif").stat()
    same = {tmp_path / "b.tif": Stamp(5, state.st_mtime_ns + 10**9)}
    with connected(cluster) as connection:
        list(connection.run(refuse_unseen, [same]))
        for seen, reason in (
            ({tmp_path / "a.tif": Stamp(5, 1)}, "a.tif is not there"),
            ({tmp_path / "b.tif": Stamp(6, state.st_mtime_ns)}, "b.tif is another file here: 5 bytes"),
            ({tmp_path / "b.tif": Stamp(5, 1)}, "b.tif is another file here: 5 bytes"),
        ):
            with pytest.raises(InputError, match=rf"worker tcp://\S+ on {HOST}: {tmp_path}/{reason}"):
                list(connection.run(refuse_unseen, [seen]))
        told = rf"worker tcp://\S+ on {HOST}: {tmp_path}/other is not the folder that the command writes into"
        with pytest.raises(InputError, match=told):
            list(connection.run(partial(carry_out, work=print, marker=tmp_path / "other" / "index.json.tmp"), [same]))


# Where there is no cluster


@pytest.mark.parametrize(
    "address",
    ["", "10.0.0.1:8786", "localhost", "http://a:1", "tcp://a", "tcp://a:b", "file:///etc/passwd", "tcp://u:p@a:1"],
)
def test_what_is_no_address(address: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, scenes, "--out", tmp_path / "out", f"--dask={address}")
    assert "give the address of a running scheduler, such as tcp://10.0.0.1:8786" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("listens", [False, True])
def test_a_scheduler_that_does_not_answer_is_named_in_time(listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        begun = time.monotonic()
        with (
            pytest.raises(InputError, match=f"no Dask scheduler answers at {address} within 1 s"),
            connected(address, timeout=1),
        ):
            pass
    assert time.monotonic() - begun < 5


def test_without_distributed_only_dask_is_refused(
    scenes: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = refused(capsys, scenes, "--out", tmp_path / "out", "--dask", "tcp://127.0.0.1:8786")
    assert "--dask needs the packages dask and distributed" in told and "pip install '.[cluster]'" in told
    main([str(scenes), "--out", str(tmp_path / "out"), *TILING])
    assert digests(tmp_path / "out") == digests(alone)


def test_other_versions_on_a_worker_are_told() -> None:
    expected = surroundings()
    assert expected["Python"] == ".".join(map(str, sys.version_info[:2]))
    refuse_other_surroundings(expected)
    for name in expected:
        with pytest.raises(InputError, match=f"it has {name} .*, the command 0.1; give all of them one environment"):
            refuse_other_surroundings(expected | {name: "0.1"})


@pytest.mark.parametrize(
    ("python", "distributed", "told"),
    [
        ((3, 11, 7), "2026.8.1", None),
        (
            (3, 12, 7),
            "2026.8.0",
            "tcp://10.0.0.5:1 has python 3.12, this command 3.11; give all of them one environment",
        ),
        ((3, 11, 7), "2025.8.0", "tcp://10.0.0.5:1 has distributed 2025.8, this command 2026.8; give all"),
    ],
)
def test_other_versions_of_python_and_distributed_are_told(
    python: tuple[int, ...], distributed: str, told: str | None
) -> None:
    def of(version: tuple[int, ...], library: str) -> dict[str, Any]:
        return {"packages": {"python": ".".join(map(str, (*version, "final", 0))), "distributed": library}}

    ours = of((3, 11, 9), "2026.8.0")
    versions = {"client": ours, "scheduler": ours, "workers": {"tcp://10.0.0.5:1": of(python, distributed)}}
    if told is None:
        refuse_other_versions(versions)
    else:
        with pytest.raises(InputError, match=told):
            refuse_other_versions(versions)


def test_no_workers_or_workers_outside_of_the_clone_or_no_scheduler_any_more() -> None:
    with dask.scheduler() as running, connected(running.address, patience=1) as connection:
        with pytest.raises(
            InputError, match=f"{running.address} has had no worker for 1 s; start some, such as PYTHONPATH"
        ):
            list(connection.run(square, [Number(1)]))
        with dask.workers(running.address, 1, in_the_clone=False):
            patient = Cluster(connection.client, running.address)
            with pytest.raises(
                InputError, match=rf"number 1: a worker does not find the packages .*{HOST}: No module named"
            ):
                list(patient.run(square, [Number(1)]))
        threading.Timer(0.5, running.process.kill).start()
        with pytest.raises(InputError, match=f"the scheduler at {running.address} is gone; start it"):
            list(patient.run(square, [Number(1)]))
