"""Synthetic images with labels: as they are described, and the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from alliance.errors import InputError
from datasets.chips.tables import read_rows
from datasets.synthetic.chips import LEAST, OWN, make_cover, write_chips
from datasets.synthetic.command import main


def test_images_lie_in_the_folder_of_the_class_that_covers_most(tmp_path: Path) -> None:
    main(["chips", str(tmp_path / "a"), "--chips", "8", "--size", "32", "--classes", "4"])
    rows = read_rows(tmp_path / "a" / "labels.csv", {}, (), 0.5)
    assert len(rows) == 8 and len({row.file.partition("/")[0] for row in rows}) == 4
    for number, row in enumerate(rows):
        assert row.file.partition("/")[0] in row.labels
        with rasterio.open(tmp_path / "a" / row.file) as file:
            assert (file.count, file.width, file.dtypes[0], file.tags()["SYNTHETIC"]) == (3, 32, "uint8", "yes")
        cover = make_cover(32, 4, number % 4, np.random.default_rng([0, number]))
        share = np.bincount(cover.ravel(), minlength=4) / cover.size
        assert share.argmax() == number % 4 and share[number % 4] >= OWN
        assert len(row.labels) == (share >= LEAST).sum()
    write_chips(tmp_path / "b", chips=8, size=32, classes=4)
    for path in (tmp_path / "a").rglob("*.tif"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 9}, {"chips": 2}, {"size": 8}, {"seed": -1}])
def test_what_cannot_be_made_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="cannot be made; give 2 to 6 classes"):
        write_chips(tmp_path / "a", **wrong)
