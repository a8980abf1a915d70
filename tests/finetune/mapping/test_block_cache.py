"""What GDAL keeps of a scene in memory: a row of windows, whatever the height."""

from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.env import get_gdal_config
from torch import Tensor

from datasets.imagery.feature_maps import row_of_blocks
from datasets.imagery.images import ImageSource
from datasets.imagery.maps import Grid
from finetune.mapping.images import ImageFile, opened_images
from finetune.mapping.networks import SegmentationNetwork
from finetune.mapping.pieces import cache_size
from finetune.mapping.scene import SceneOptions, predict_scene
from finetune.model_files import Inputs, image_input, nameless
from finetune.pad.model import PadOutput
from tests.helpers.rasters import write_tiff

MIB = 2**20
INPUTS = Inputs(
    classes=nameless(2), images={"optical": image_input(ImageSource(bands=(1, 2, 3), mean=(100,) * 3, std=(50,) * 3))}
)


def test_a_tall_scene_needs_no_more_than_a_low_one(tmp_path: Path) -> None:
    """Of 20,000 pixels in a row: 512 rows of a window and 1,024 of blocks beyond, 6 bytes each, and two rows of what is written."""
    write_tiff(tmp_path / "image.tif", np.ones((3, 64, 96), dtype=np.uint16))
    with opened_images({"optical": ImageFile(tmp_path / "image.tif")}, INPUTS.images, force=True) as scene:
        low, tall, narrow = (
            scene._replace(grid=Grid(*shape)) for shape in ((2_000, 20_000), (40_000, 20_000), (9_000, 300))
        )
    assert cache_size(low, 512, 1000) == cache_size(tall, 512, 1000) == (512 + 1024) * 20_000 * 6 + 2000
    assert (cache_size(narrow, 512, 1000), cache_size(tall, 512, 2**30)) == (32 * MIB, 256 * MIB)


def test_gdal_is_told_while_a_scene_is_mapped(tmp_path: Path) -> None:
    write_tiff(tmp_path / "image.tif", np.random.default_rng(0).integers(1, 255, (3, 64, 96)).astype(np.uint8))
    seen = []

    def network(rgb: Tensor) -> PadOutput:
        seen.append(get_gdal_config("GDAL_CACHEMAX"))
        return PadOutput(rgb[:, :2], rgb[:, :2], torch.zeros(()))

    with rasterio.Env(GDAL_CACHEMAX=100 * MIB):
        predict_scene(SegmentationNetwork(network, INPUTS), {"optical": ImageFile(tmp_path / "image.tif")},
                      tmp_path / "map.tif", SceneOptions(progress=False, force=True))  # fmt: skip
    assert seen and set(seen) == {32 * MIB}


def test_a_row_of_tiles_of_features_is_counted_as_it_is_written() -> None:
    """96 features: tiles of 64, as 128 x 128 x 96 numbers of 4 bytes are more than 4 MiB."""
    assert row_of_blocks(Grid(10, 1250), 96) == 64 * 1250 * 96 * 4
