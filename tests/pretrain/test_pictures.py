"""Pictures: which bands they show, what is pasted, and the figures beside them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alliance.losses import LossConfig
from alliance.model import Reconstruction
from alliance.sensors.catalog import find_sensor
from alliance.sensors.display import display_bands
from pretrain.pictures import band_psnr, draw_reconstruction, pasted
from tests.helpers.models import natural_image, sensor_of


@pytest.fixture
def reconstruction() -> Reconstruction:
    """Four bands of 32 x 32 pixels; the left half was hidden, and all stages say zero."""
    targets = torch.stack([natural_image(2, 4, 32, 32)] * 3)
    masked = torch.zeros(2, 4, 32, 32, dtype=torch.bool)
    masked[..., :16] = True
    return Reconstruction(targets, torch.zeros_like(targets), masked, torch.ones(2, 1, 32, 32, dtype=torch.bool))


def test_true_colour_is_shown_where_there_is_any():
    names = find_sensor("sentinel2-l1c").band_names
    assert [names[index] for index in display_bands(find_sensor("sentinel2-l1c"))] == ["B04", "B03", "B02"]
    assert display_bands(find_sensor("rgb-uint8")) == [0, 1, 2]
    assert display_bands(find_sensor("sentinel1-grd-db")) == [0, 0, 0]


def test_a_cube_without_wavelengths_shows_bands_apart():
    assert len(set(display_bands(sensor_of(40, bands=tuple(type(b)(name=b.name) for b in sensor_of(40).bands))))) == 3


def test_true_pixels_stand_where_the_encoder_could_see(reconstruction: Reconstruction):
    image = pasted(reconstruction)[-1]
    assert torch.equal(image[..., 16:], reconstruction.targets[-1][..., 16:])
    assert not image[..., :16].any()


def test_psnr_is_that_of_its_definition(reconstruction: Reconstruction):
    truth = reconstruction.targets[-1]
    error = torch.where(reconstruction.masked, truth, 0.0).square().mean()
    expected = 10 * math.log10(float((truth.max() - truth.min()) ** 2 / error))
    found = band_psnr(reconstruction, 8, LossConfig())
    assert found["psnr"] == pytest.approx(expected, abs=1e-3)
    assert set(found) == {"psnr", "psnr_low", "psnr_mid", "psnr_high"}


def test_a_picture_is_written_and_not_blank(tmp_path: Path, reconstruction: Reconstruction):
    path = tmp_path / "new" / "picture.png"
    draw_reconstruction(path, reconstruction, sensor_of(4), title="synthetic")
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[1] > 3 * 300  # seven columns
    assert pixels.std() > 20
