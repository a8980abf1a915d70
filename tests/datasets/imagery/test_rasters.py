"""Opening rasters: what holds in every thread."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.imagery.rasters import open_quietly, opened
from datasets.synthetic.pair_trees import write_plain

ROUNDS = 60


def test_threads_that_open_files_without_a_place_warn_of_nothing_and_leave_the_filters_alone(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)

    def read_and_write(thread: int) -> bool:
        path = tmp_path / f"{thread}.tif"
        for _ in range(ROUNDS):
            write_plain(path, pixels)
            with opened(path) as first, open_quietly(path) as second:
                if not np.array_equal(first.read(), pixels) or not np.array_equal(second.read(), pixels):
                    return False
        return True

    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:  # every warning is an error in these tests
        assert all(pool.map(read_and_write, range(4)))
    assert warnings.filters == before
