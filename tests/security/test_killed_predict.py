"""`finetune/predict.py` killed while it writes: what was there stays, and the same command then makes it and tidies up."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from alliance.checkpoint import save_encoder
from finetune.pad.checkpoint import save_pad
from finetune.pad.model import Pad
from tests.finetune.mapping.test_embeddings import encoder_of, write_image
from tests.finetune.mapping.test_scene_maps import ATTO, INPUTS, write_pair
from tests.helpers import warm
from tests.helpers.runs import ROOT, TIMEOUT, environment

SLOW = ("--device", "cpu", "--window", "32", "--batch", "1", "--overlap", "8")


def of_a_map(folder: Path) -> tuple[str, ...]:
    """Of two images, with probabilities."""
    save_pad(ATTO, Pad(ATTO).state_dict(), folder / "network", **INPUTS.to_record())
    files = write_pair(folder, 96, 160)
    return ("--optical", str(files["optical"]), "--sar", str(files["sar"]), "--probabilities", "likely.tif")


def of_embeddings(folder: Path) -> tuple[str, ...]:
    save_encoder(encoder_of(), folder / "network")
    write_image(folder / "image.tif", 160, 256, transform=rasterio.Affine(10, 0, 0, 0, -10, 0), crs="EPSG:32633")
    return ("--embeddings", "--image", f"four={folder / 'image.tif'}", "--picture", "seen.png")


def begun(out: Path) -> bool:
    return any(out.glob(".*.tmp"))


@pytest.mark.parametrize("of", [of_a_map, of_embeddings])
def test_a_killed_command_leaves_what_was_there_and_the_next_one_tidies_up(
    of: Callable[[Path], tuple[str, ...]], tmp_path: Path
) -> None:
    given = of(tmp_path)
    places = {name: Path(name) for name in ("map.tif", *(each for each in given if each.endswith((".png", "ly.tif"))))}
    (out := tmp_path / "out").mkdir()
    (whole := tmp_path / "whole").mkdir()

    def command(folder: Path) -> list[str]:
        written = [str(folder / each) if each in places else each for each in given]
        own = ["--checkpoint", str(tmp_path / "network"), "--out", str(folder / "map.tif"), *SLOW]
        return [str(ROOT / "finetune/predict.py"), *own, *written]

    ended = warm.run(command(whole), environment(), TIMEOUT)
    assert ended.returncode == 0, ended.stdout
    (out / "map.tif").write_bytes(b"yesterday's")
    started = warm.start(command(out), environment())
    until = time.monotonic() + TIMEOUT
    while not begun(out):
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    started.kill()
    assert started.wait(10) == -9  # it had not ended by itself
    assert (out / "map.tif").read_bytes() == b"yesterday's"
    assert begun(out)
    again = warm.run(command(out), environment(), TIMEOUT)
    assert again.returncode == 0, again.stdout
    assert {each.name for each in out.iterdir()} == {each.name for each in whole.iterdir()}
    for name in places:
        if name.endswith(".tif"):
            with rasterio.open(out / name) as one, rasterio.open(whole / name) as other:
                assert np.array_equal(one.read(), other.read())
