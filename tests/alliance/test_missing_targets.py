"""Targets beside missing pixels: those of what is there."""

import pytest
import torch
from torch import Tensor

from alliance.frequency import Edge, Extension
from alliance.losses import LossConfig, stage_targets
from tests.helpers.models import ABLATIONS, FOUR_BANDS, natural_image, sensor_of, tiny_config


@pytest.mark.parametrize(("edge", "extension"), [("raised_cosine", "mirror"), ("ideal", "periodic")])
def test_a_constant_beside_missing_pixels_is_all_low(edge: Edge, extension: Extension):
    image, config = torch.full((1, 4, 48, 48), 2.0), LossConfig(edge=edge, extension=extension)
    valid = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    valid[..., 20:] = False
    targets = stage_targets(image * valid, FOUR_BANDS, 8, 3, config, valid)
    torch.testing.assert_close(targets[..., :20], image.expand(3, -1, -1, -1, -1)[..., :20], atol=1e-4, rtol=0)
    left = stage_targets(image * valid, FOUR_BANDS, 8, 3, config)[..., 16:20]
    assert (left[0] < 1.5).any()  # what missing pixels did to their neighbours


def test_missing_pixels_pull_targets_beside_them_towards_no_level():
    # low-passes are linear and constants come back whole, so the error of 1 + 0.3 x is 0.3 times that of x
    field, valid = natural_image(16, 1, 64, 64), torch.ones(16, 1, 64, 64, dtype=torch.bool)
    valid[:, :, :, 32:] = False

    def errors(image: Tensor, *given: Tensor) -> Tensor:
        near = slice(28, 32)  # the pixels that are there, within 4 of the edge
        whole, cut = (
            stage_targets(x, sensor_of(1), 8, 3, LossConfig(), *g) for x, g in ((image, ()), (image * valid, given))
        )
        return (cut - whole)[..., near].square().mean((1, 2, 3, 4)).sqrt()

    level = 1 + 0.3 * field
    torch.testing.assert_close(errors(level, valid), 0.3 * errors(field, valid), atol=1e-4, rtol=0)
    assert (errors(field, valid)[:2] < errors(field)[:2]).all()
    assert (errors(level, valid)[:2] < errors(level)[:2] / 3).all()
    assert errors(level, valid)[2] == 0


@pytest.mark.parametrize("name", ["default", "increments as targets", "ideal periodic filter"])
def test_targets_of_whole_images_do_not_depend_on_missing_pixels_of_others(name: str):
    image, valid = natural_image(2, 4, 16, 24), torch.ones(2, 1, 16, 24, dtype=torch.bool)
    config = tiny_config(ABLATIONS[name]).loss
    expected = stage_targets(image, FOUR_BANDS, 4, 3, config)
    assert torch.equal(stage_targets(image, FOUR_BANDS, 4, 3, config, valid), expected)
    valid[1, :, :, 8:] = False
    found = stage_targets(image * valid, FOUR_BANDS, 4, 3, config, valid)
    assert torch.equal(found[:, 0], expected[:, 0])
    assert found.isfinite().all()
