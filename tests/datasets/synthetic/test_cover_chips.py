"""Small images of the synthetic landscapes: each out of its scene, in the folder of the cover that most of it has."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from alliance.errors import InputError
from alliance.sensors.catalog import find_sensor
from datasets.synthetic.command import main
from datasets.synthetic.cover_chips import Cut, covered, write_cover_chips
from datasets.synthetic.landscapes import CLASSES, write_scenes
from engine.probe_images import open_probe_set


def test_images_are_parts_of_the_scenes_of_the_same_seed(tmp_path: Path) -> None:
    given = ["--scenes", "2", "--size", "128", "--seed", "3"]
    main(["cover", str(tmp_path / "chips"), "--chip", "16", "--per-class", "5", *given])
    write_scenes(tmp_path / "scenes", scenes=2, size=128, seed=3, cube=0)
    files = sorted((tmp_path / "chips").rglob("*.tif"))
    assert files
    for file in files:
        part, name, stem = file.relative_to(tmp_path / "chips").with_suffix("").parts
        scene, row, col = map(int, stem.split("_"))
        assert part == ("train", "test")[scene]
        square = np.s_[row : row + 16, col : col + 16]
        with (
            rasterio.open(file) as chip,
            rasterio.open(tmp_path / "scenes" / "optical" / f"scene_00{scene}.tif") as whole,
            rasterio.open(tmp_path / "scenes" / "labels" / f"scene_00{scene}.tif") as labels,
        ):
            assert np.array_equal(chip.read(), whole.read()[:, *square])
            assert chip.bounds == whole.window_bounds(rasterio.windows.Window(col, row, 16, 16))
            assert (labels.read(1)[square] == list(CLASSES).index(name)).mean() >= 0.5
            assert (chip.tags()["SYNTHETIC"], chip.tags()["SCENE"]) == ("yes", str(scene))
        assert len(list(file.parent.glob(f"{scene:03d}_*"))) <= 5


def test_squares_without_a_cover_of_their_own_are_left_out() -> None:
    labels = np.zeros((16, 16), np.uint8)
    labels[:8, 8:] = np.arange(64).reshape(8, 8) % 7  # a mixture
    labels[8:, :4] = 2  # half of the square: one of two covers
    assert list(covered(labels, 8, 9)) == [Cut("water", 0, 0), Cut("water", 8, 0), Cut("water", 8, 8)]
    assert list(covered(labels, 8, 1)) == [Cut("water", 0, 0)]


def test_a_probe_reads_them(tmp_path: Path) -> None:
    write_cover_chips(tmp_path / "chips", scenes=2, size=192, seed=1)
    sensor = find_sensor("synthetic-optical").with_statistics([0.1] * 10, [0.1] * 10)
    images = open_probe_set(tmp_path / "chips", sensor, 8)
    assert images.train.images.shape[1:] == images.test.images.shape[1:] == (10, 24, 24)
    assert set(images.classes) <= set(CLASSES) and not images.skipped


@pytest.mark.parametrize(
    "wrong", [{"scenes": 1}, {"chip": 7}, {"chip": 64, "size": 32}, {"per_class": 0}, {"seed": -1}]
)
def test_what_cannot_be_cut_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="give 2 scenes at least"):
        write_cover_chips(tmp_path / "chips", **wrong)
