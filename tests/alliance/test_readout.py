"""Read-outs: which tokens they average, which they keep apart."""

from typing import get_args

import pytest
import torch

from alliance.encoder import AllianceEncoder, Features
from alliance.readout import ReadOut, read_map, read_out, read_out_width
from tests.helpers.models import TINY_ENCODER, natural_image, sensor_of

KINDS = get_args(ReadOut)


@pytest.fixture
def features() -> Features:
    """One image, two band groups, two places, width 1: tokens 1, 3 of the first group and 5, 11 of the second."""
    return Features(torch.tensor([[7.0]]), torch.zeros(1, 3, 1), torch.tensor([[[[1.0], [3.0]], [[5.0], [11.0]]]]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cls", [7.0]),
        ("mean", [5.0]),  # of 1, 3, 5, 11
        ("mean_std", [5.0, 2.0]),  # groups averaged: 3 and 7
        ("groups", [2.0, 1.0, 8.0, 3.0]),  # 1 and 3; 5 and 11
    ],
)
def test_a_read_out_is_that_of_a_case_worked_by_hand(features: Features, kind: ReadOut, expected: list[float]):
    assert read_out(features, kind).squeeze(0).tolist() == pytest.approx(expected)


def test_a_map_averages_the_groups_or_keeps_them(features: Features):
    assert read_map(features, "mean").tolist() == [[[3.0], [7.0]]]
    assert read_map(features, "groups").tolist() == [[[1.0, 5.0], [3.0, 11.0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_widths_are_told_and_gradients_are_finite_where_all_tokens_are_equal(kind: ReadOut):
    sensor = sensor_of(4, groups=((0, 1), (2, 3)))
    encoder = AllianceEncoder(TINY_ENCODER, [sensor])
    found = read_out(encoder(natural_image(2, 4, 8, 8), sensor), kind)
    assert found.shape == (2, read_out_width(kind, encoder.embed_dim, 2))
    equal = torch.ones(1, 2, 3, 4, requires_grad=True)
    read_out(Features(equal.mean((1, 2)), equal[:, :, 0], equal), kind).sum().backward()
    assert equal.grad is not None and equal.grad.isfinite().all()
