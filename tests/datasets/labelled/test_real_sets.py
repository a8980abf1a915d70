"""Descriptions of real sets that are read where the data are at hand."""

from pathlib import Path

import numpy as np

from alliance.sensors.catalog import find_sensor
from datasets.imagery.labels import IGNORE
from datasets.labelled import find_set, make_split, open_patches
from datasets.labelled.tiles import Tiles
from engine.settings import parse_settings
from finetune.tasks.classification_config import ClassifyConfig

ROOT = Path(__file__).resolve().parents[3]
AVIRIS = ROOT / "configs/sensors/aviris-indian-pines.yaml"


def test_wavelengths_of_indian_pines_lack_the_bands_that_its_file_lacks() -> None:
    """220 bands evenly from 400 to 2500 nm; 104 to 108, 150 to 163 and 220 are not there."""
    sensor = find_sensor(str(AVIRIS))
    numbers = [int(name[1:]) for name in sensor.band_names]
    assert numbers == [n for n in range(1, 221) if not (104 <= n <= 108 or 150 <= n <= 163 or n == 220)]
    expected = np.linspace(400, 2500, 220)[np.array(numbers) - 1]
    np.testing.assert_allclose([band.wavelength or 0 for band in sensor.bands], expected, atol=0.051)


def test_indian_pines_has_one_image_and_its_labelled_pixels(shared_data: Path) -> None:
    config = parse_settings(
        ClassifyConfig, None, [f"--config={ROOT / 'configs/finetune/classify_indian_pines.yaml'}", "--run.dir=runs/any"]
    )
    whole = open_patches(find_set(config.data.set, shared_data / "indian_pines"), patch=config.model.patch)
    assert (whole.channels["spectral"], whole.channels["active"], len(whole.classes)) == (200, 0, 16)
    assert len(whole.label) == 10_249  # labelled pixels, as published
    assert dict(zip(whole.classes, np.bincount(whole.label), strict=True))["Soybean-mintill"] == 2455
    patches = whole.without(config.data.drop_classes)
    assert len(patches.classes) == 14
    for seed in config.seed_list:
        split = make_split(patches, config.data.protocol, seed)
        assert len(np.intersect1d(split.train, split.test)) == 0 and len(split.test) > 2000


def test_terramesh_tiles_have_both_sensors_and_known_classes(shared_data: Path) -> None:
    known = find_set("terramesh-sentinel", shared_data / "terramesh_tiles")
    for split, count in (("train", 2), ("test", 1)):
        tiles = Tiles(known, split)
        assert len(tiles) == count
        sample = tiles[0]
        assert sample.images["optical"].shape == (12, 224, 224) and sample.images["sar"].shape == (2, 224, 224)
        assert {*np.unique(sample.label.numpy())} <= {*range(7), IGNORE}
