"""One file, one set of missing pixels: in shards, tiles, labelled scenes and prediction."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from numpy.typing import NDArray

from alliance.sensors import Sensor
from datasets.imagery.images import ImageSource
from datasets.labelled import Tiles, find_set, read_scenes
from datasets.shards.command import main as make_shards
from finetune.mapping.images import ImageFile, opened_images
from finetune.model_files import image_input
from tests.helpers.labelled_files import own_set
from tests.helpers.rasters import write_tiff

SIDE = 16
NODATA = -9999
Mask = NDArray[np.bool_]
SENSOR = """name: own
unit: reflectance
scale: 1.0e-4
bands:
  - {name: one, wavelength: 500}
  - {name: two, wavelength: 600}
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """int16 that declares -9999: a block without the second band, a row without both, and a value of -9998."""
    pixels = np.random.default_rng(0).integers(500, 4000, (2, SIDE, SIDE), dtype=np.int16)
    pixels[1, 2:5, 2:5] = NODATA
    pixels[:, 9] = NODATA
    pixels[0, 0, 0] = NODATA + 1
    write_tiff(tmp_path / "optical" / "a.tif", pixels, nodata=NODATA)
    write_tiff(tmp_path / "labels" / "a.tif", np.indices((SIDE, SIDE)).sum(axis=0, keepdims=True).astype(np.uint8) % 2)
    return tmp_path / "optical" / "a.tif"


def expected(image: Path) -> Mask:
    """What rasterio's masked arrays call missing, (2, h, w)."""
    with rasterio.open(image) as file:
        return np.ma.getmaskarray(file.read(masked=True))


def in_shards(image: Path) -> Mask:
    folder = image.parents[1]
    (folder / "own.yaml").write_text(SENSOR)
    options = ["--sensor", str(folder / "own.yaml"), "--out", str(folder / "shards"), "--tile", str(SIDE)]
    make_shards([str(image.parent), *options, "--max-missing", "1", "--workers", "1", "--force"])
    sensor = Sensor.from_dict(json.loads((folder / "shards" / "index.json").read_text())["sensors"][0])
    with tarfile.open(folder / "shards" / "shard-000000.tar") as tar:
        (member,) = [each for each in tar if each.name.endswith(".npy")]
        content = tar.extractfile(member)
        assert content is not None
        stored = np.load(BytesIO(content.read()))
    return np.asarray(sensor.to_physical(torch.from_numpy(stored)).isnan())


def in_tiles(image: Path) -> Mask:
    record = {"optical": {"files": "optical", "bands": [1, 2], "dtype": "int16"}, "label": {"files": "labels"}}
    record |= {"classes": {"x": [1, 2, 3], "y": [4, 5, 6]}, "splits": {"all": None}}
    (image.parents[1] / "set.yaml").write_text(yaml.safe_dump(record))
    tiles = Tiles(find_set(image.parents[1] / "set.yaml"), "all")
    return np.asarray(tiles[0].images["optical"].isnan())


def in_scenes(image: Path) -> Mask:
    layout = {"passive": "optical/a.tif", "labels": "labels/a.tif"}
    (scene,) = read_scenes(own_set(image.parents[1], layouts=[layout], label={"first": 0}, classes=["x", "y"]))
    assert (scene.labels == 0).tolist() == expected(image).any(axis=0).tolist()
    return np.isnan(scene.passive)


def in_prediction(image: Path) -> Mask:
    source = ImageSource(bands=(1, 2), dtype="int16", mean=(2000, 2000), std=(500, 500))
    with opened_images({"rgb": ImageFile(image)}, {"rgb": image_input(source)}) as scene:
        numbers = scene.read(0, 0, SIDE, SIDE)["rgb"]
    standardised = replace(source).standardise(torch.from_numpy(numbers))
    whole = np.isnan(numbers).any(axis=0)
    assert (np.asarray(standardised) == 0).all(axis=0).tolist() == whole.tolist()  # a network sees none of its bands
    return np.isnan(numbers)


@pytest.mark.parametrize("read", [in_shards, in_tiles, in_scenes, in_prediction])
def test_the_same_pixels_are_missing(read: Callable[[Path], Mask], image: Path) -> None:
    assert np.array_equal(read(image), expected(image))
    assert expected(image).sum() == 9 + 2 * SIDE
