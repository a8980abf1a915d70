"""A scene that is placed by points or polynomials is not mapped to nowhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from finetune.mapping.images import ImageFile, opened_images
from finetune.model_files import image_input
from tests.helpers.rasters import write_tiff

POINTS = [GroundControlPoint(row, col, 11 + col / 1e4, 45 - row / 1e4) for row in (0, 8) for col in (0, 8)]
LINE = [0.0, 0, 1, *[0] * 17]  # a polynomial of 20 terms
ONE = [1.0, *[0] * 19]
SCALES = {"height": (0, 500), "lat": (45, 0.1), "long": (11, 0.1), "line": (4, 4), "samp": (4, 4)}
COEFFICIENTS: dict[str, Any] = {
    **{f"{axis}_off": offset for axis, (offset, _) in SCALES.items()},
    **{f"{axis}_scale": scale for axis, (_, scale) in SCALES.items()},
    "line_num_coeff": LINE,
    "line_den_coeff": ONE,
    "samp_num_coeff": [0.0, 1, *[0] * 18],
    "samp_den_coeff": ONE,
}


@pytest.mark.parametrize(
    ("place", "mend"),
    [
        ({"gcps": POINTS, "crs": "EPSG:4326"}, "gdalwarp -tps"),
        ({"rpcs": RPC(**COEFFICIENTS), "crs": None}, "gdalwarp -rpc"),
    ],
    ids=["points", "polynomials"],
)
def test_what_lies_on_no_grid_is_refused_with_the_mend(tmp_path: Path, place: dict[str, Any], mend: str) -> None:
    write_tiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8), **{"transform": None, **place})
    source = {"rgb": image_input(ImageSource(bands=(1,), mean=(0,), std=(1,)))}
    with pytest.raises(InputError, match=mend), opened_images({"rgb": ImageFile(tmp_path / "a.tif")}, source):
        pass


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_says_no_place_is_mapped_without_one(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8), transform=None, crs=None)
    source = {"rgb": image_input(ImageSource(bands=(1,), mean=(0,), std=(1,)))}
    with opened_images({"rgb": ImageFile(tmp_path / "a.tif")}, source) as scene:
        assert scene.grid.transform is None
