"""Scale and offset that a file says are held to the same ranges as those of sensors and descriptions."""

import math
from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.imagery.images import ImageSource, read_image
from datasets.imagery.rasters import open_quietly


@pytest.mark.parametrize(
    ("scale", "offset"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, math.inf), (1e300, 0.0)]
)
def test_a_scale_that_none_is_is_refused_with_the_mend(scale: float, offset: float, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with open_quietly(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8") as target:
        target.write(np.ones((1, 4, 4), np.uint8))
        target.scales, target.offsets = (scale,), (offset,)
    with pytest.raises(InputError, match=r"a\.tif says the (scale|offset) .*mend the file's tags"):
        read_image(path, ImageSource())
    with open_quietly(path, "r+") as target:  # as told
        target.scales, target.offsets = (0.5,), (2.0,)
    assert (read_image(path, ImageSource()).numbers == 2.5).all()
