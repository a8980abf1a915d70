"""What cls and the frequency tokens are asked for: band means and the power of rings."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from alliance.summary import FLOOR, RINGS, SPAN, summarise_image, summary_error
from alliance.tokens import group_table
from tests.helpers.models import FOUR_BANDS, natural_image, noise_for, tiny_model

CUTS = (1 / 16, 1 / 8)
GROUPS = group_table(FOUR_BANDS.group_indices, torch.device("cpu"))


def test_a_constant_has_its_mean_and_no_power() -> None:
    summary = summarise_image(torch.full((1, 2, 16, 24), 1.5), CUTS)
    expected = torch.tensor([1.5, *[math.log(FLOOR) / SPAN] * RINGS]).expand(1, 2, -1)
    torch.testing.assert_close(summary, expected, atol=1e-5, rtol=0)


def test_rings_hold_the_mean_power_of_their_coefficients() -> None:
    image = natural_image(2, 3, 24, 40)
    power = dctn(image.double().numpy(), axes=(-2, -1), norm="ortho") ** 2
    radius = np.hypot(np.arange(24)[:, None] / 48, np.arange(40)[None, :] / 80)
    edges = [0, 1 / 32, 1 / 16, math.sqrt(1 / 128), 1 / 8, 1 / 4, 1]
    for ring, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = (radius > low) & (radius <= high)
        expected = np.log(power[..., inside].mean(-1) + FLOOR) / SPAN
        np.testing.assert_allclose(summarise_image(image, CUTS)[..., 1 + ring], expected, atol=1e-4)


def test_cls_answers_for_everything_and_each_token_for_its_band() -> None:
    summary = torch.randn(2, 4, 1 + RINGS)
    said = summary[:, GROUPS.channels][:, None].expand(-1, 4, -1, -1, -1).clone()
    assert summary_error(said, summary, GROUPS) == 0
    said[:, 0, ..., 3] += 2  # one of seven numbers that cls tells
    assert summary_error(said, summary, GROUPS).item() == pytest.approx(4 / 7)
    said[:, 2, ..., 3] += 2  # one of two numbers of the middle one of three tokens
    assert summary_error(said, summary, GROUPS).item() == pytest.approx(4 / 7 + 4 / 2 / 3)
    said[:, 1:3, ..., 0] += 2  # the mean is not theirs to tell
    assert summary_error(said, summary, GROUPS).item() == pytest.approx(4 / 7 + 4 / 2 / 3)


def test_bands_that_a_group_has_not_do_not_count() -> None:
    summary = torch.zeros(1, 4, 1 + RINGS)
    said = torch.where(GROUPS.real, 0.0, 5.0)[None, None, :, :, None].expand(1, 1, -1, -1, 1 + RINGS)
    assert summary_error(said, summary, GROUPS) == 0


@pytest.mark.parametrize("tokens", ["frequency", "plain", "none"])
def test_the_weight_adds_the_error_to_the_loss_and_nothing_else(tokens: str) -> None:
    image, totals = natural_image(2, 4, 16, 16), []
    for weight in (0.0, 0.5, 1.0):
        model = tiny_model({"loss": {"summary": weight}, "encoder": {"tokens": tokens}})
        totals.append(model(image, FOUR_BANDS, noise_for(image, 2)).total)
    first, second = totals[1] - totals[0], totals[2] - totals[1]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert (first > 0.01) == (tokens != "none")  # without a cls token there is nothing to ask


def test_cls_learns_what_it_is_asked_for() -> None:
    model = tiny_model({"loss": {"summary": 1.0}})
    levels = torch.tensor([-1.0, 0.0, 1.0, 2.0])[:, None, None, None]
    image = natural_image(4, 4, 16, 16) * 0.3 + levels
    noise, optimiser = noise_for(image, 2), torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors: list[Tensor] = []
    for _ in range(40):
        prediction = model.predict(image, FOUR_BANDS, noise, GROUPS)
        assert model.summary is not None
        said = model.summary(prediction.special, prediction.code, FOUR_BANDS, GROUPS)
        errors.append(summary_error(said, summarise_image(image, CUTS), GROUPS))
        optimiser.zero_grad()
        errors[-1].backward()
        optimiser.step()
    assert errors[-1] < 0.1 * errors[0]
