"""Augmentation, corruption and synthetic pairs: repeatable, in register, and with the odds that they promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from datasets.labelled.augment import (
    AugmentConfig,
    Draw,
    augment,
    draw_augmentations,
    is_mixed,
    place_crop,
    resize,
)
from datasets.labelled.corrupt import cloud_mask, cover, without
from datasets.labelled.tiles import Sample
from datasets.synthetic.pairs import best_alone, levels, make_pair

MIDDLE = Draw(0.5, np.zeros((11, 2)), 0.9, 0.9)  # no flip, first crop in the corner


def ramp(height: int = 6, width: int = 8) -> Sample:
    """Images that hold each pixel's row and column, and label 10 row + column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = {"optical": torch.stack([rows, columns]).float(), "sar": (100 * rows + columns)[None].float()}
    return Sample(images, 10 * rows + columns)


def fixed(factor: float, crop: int, **changes: float) -> AugmentConfig:
    return AugmentConfig(resize=(factor, factor), crop=crop, **changes)


def test_draws_depend_on_seed_step_and_position_alone():
    whole = draw_augmentations(3, 7, np.arange(8))
    for place, part in zip((6, 1), draw_augmentations(3, 7, np.array([6, 1])), strict=True):
        assert part.resize == whole[place].resize
        assert np.array_equal(part.crops, whole[place].crops)
        assert part[2:] == whole[place][2:]
    for other in (draw_augmentations(4, 7, np.arange(8)), draw_augmentations(3, 8, np.arange(8))):
        assert not {draw.resize for draw in whole} & {draw.resize for draw in other}


def test_draws_are_uniform():
    draws = [draw for step in range(40) for draw in draw_augmentations(0, step, np.arange(100))]
    for numbers in (
        [draw.resize for draw in draws],
        [draw.left_right for draw in draws],
        [d.crops[4, 1] for d in draws],
    ):
        counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
        assert np.abs(counts - 400).max() < 80  # four deviations of a fair draw


def test_without_resize_and_flip_it_is_a_crop():
    pair = ramp()
    cut = augment(pair, MIDDLE._replace(crops=np.full((11, 2), 0.5)), fixed(1, 4, cat_max_ratio=1))
    assert cut.label.tolist() == pair.label[1:5, 2:6].tolist()  # of 3 and 5 places, the middle ones
    assert cut.images["optical"].equal(pair.images["optical"][:, 1:5, 2:6])
    assert cut.images["sar"].equal(pair.images["sar"][:, 1:5, 2:6])


def test_flips_keep_images_and_labels_in_register():
    for left_right, up_down in itertools.product((0.1, 0.9), repeat=2):
        draw = MIDDLE._replace(left_right=left_right, up_down=up_down)
        row, column = augment(ramp(), draw, fixed(1, 6, cat_max_ratio=1)).images["optical"]
        label = augment(ramp(), draw, fixed(1, 6, cat_max_ratio=1)).label
        assert (10 * row + column).equal(label.float())
        assert (row[0, 0] > 0, column[0, 0] > 0) == (up_down < 0.5, left_right < 0.5)


def test_resizing_is_bilinear_for_images_and_nearest_for_labels():
    images = {"optical": torch.tensor([[[0.0, 4.0]]]), "sar": torch.tensor([[[8.0, 0.0]]])}
    pair = Sample(images, torch.tensor([[1, 2]]))
    twice = resize(pair, 2)
    assert twice.images["optical"].tolist() == [[[0, 1, 3, 4]] * 2]  # pixel centres at -0.25, 0.25, 0.75, 1.25
    assert twice.images["sar"].tolist() == [[[8, 6, 2, 0]] * 2]
    assert twice.label.tolist() == [[1, 1, 2, 2]] * 2
    assert resize(ramp(512, 512), 0.7).label.shape == (358, 358)  # 358.4, rounded down


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.31, 2.0])
def test_labels_are_resized_as_torch_resizes_to_the_nearest(factor: float):
    pair = ramp(40, 30)
    small = resize(pair, factor)
    expected = functional.interpolate(pair.label[None, None].float(), small.label.shape, mode="nearest")[0, 0]
    assert small.label.equal(expected.long())


def test_what_pads_a_small_image_is_missing_and_ignored():
    pair = augment(ramp(), MIDDLE, fixed(0.5, 5))
    assert pair.label.shape == (5, 5)
    assert torch.isnan(pair.images["optical"][0]).equal(pair.label == 255)
    assert (pair.label == 255).tolist() == [[False] * 4 + [True]] * 3 + [[True] * 5] * 2


def test_crops_are_drawn_again_until_no_class_fills_them():
    label = torch.zeros(4, 100, dtype=torch.int64)
    label[:, 52:] = 1  # of the crops of 4 columns, only those that start in 50 ... 51 are mixed enough
    places = np.array([(0, 0.1), (0, 0.9), (0, 0.525), (0, 0.2)] + [(0, 0.3)] * 7)
    config = AugmentConfig(crop=4)
    assert place_crop(label, places, config) == (0, int(0.525 * 97))
    assert place_crop(label, np.full((11, 2), 0.3), config) == (int(0.3 * 1), int(0.3 * 97))  # the last, come what may
    assert place_crop(label, places, AugmentConfig(crop=4, cat_max_ratio=1)) == (0, int(0.1 * 97))


@pytest.mark.parametrize(
    ("label", "mixed"),
    [
        ([0, 0, 0, 1], False),
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 1, 255], False),
        ([255, 255], False),
        ([3, 3, 255], False),
    ],
)
def test_the_limit_counts_labelled_pixels_and_is_itself_too_much(label: list[int], mixed: bool):
    assert is_mixed(torch.tensor([label]), 0.75) == mixed


def test_config_refuses_what_makes_no_sense():
    for wrong in ({"resize": (2, 1)}, {"crop": 0}, {"cat_max_ratio": 0}, {"flip": 1.5}):
        with pytest.raises(InputError):
            AugmentConfig(**wrong)


def test_clouds_cover_the_share_asked_for_and_grow_into_each_other():
    masks = [cloud_mask((40, 60), share, seed=1, index=5) for share in (0, 0.2, 0.5, 1)]
    assert [int(mask.sum()) for mask in masks] == [0, 480, 1200, 2400]
    assert (masks[1] <= masks[2]).all()
    assert masks[2].equal(cloud_mask((40, 60), 0.5, seed=1, index=5))
    assert not masks[2].equal(cloud_mask((40, 60), 0.5, seed=1, index=6))
    borders = (masks[2][:, 1:] != masks[2][:, :-1]).float().mean()
    assert borders < 0.15  # patches; of scattered pixels half would differ from their neighbour
    with pytest.raises(InputError, match="clouds over a share of 1.5"):
        cloud_mask((4, 4), 1.5, seed=0, index=0)


def test_corruption_touches_its_modality_alone():
    pair = ramp()
    mask = cloud_mask((6, 8), 0.25, seed=0, index=0)
    cloudy = cover(pair, "optical", mask, 255)
    assert (cloudy.images["optical"] == 255).all(dim=0).equal(mask)
    assert cloudy.images["optical"][:, ~mask].equal(pair.images["optical"][:, ~mask])
    assert torch.isnan(cover(pair, "optical", mask).images["optical"]).all(dim=0).equal(mask)
    for changed, kept in ((without(pair, "optical"), "sar"), (without(pair, "sar"), "optical"), (cloudy, "sar")):
        assert changed.images[kept].equal(pair.images[kept])
        assert changed.label.equal(pair.label)
    assert torch.isnan(without(pair, "optical").images["optical"]).all()
    assert torch.isnan(without(pair, "sar").images["sar"]).all()


def nearest_level(image: Tensor, means: np.ndarray) -> Tensor:
    """Number of the nearest mean (n, c) of every pixel of (c, h, w)."""
    return torch.cdist(image.flatten(1).T, torch.tensor(means).float()).argmin(dim=1).reshape(image.shape[1:])


def test_no_single_modality_tells_synthetic_classes_apart_but_both_do():
    pair = make_pair(96, 128, 7, np.random.default_rng(0))
    combinations = set(zip(*(each.tolist() for each in levels(np.arange(9))), strict=True))
    assert len(combinations) == 9
    assert 0.3 < best_alone(pair.label, "optical") < 0.65
    assert 0.3 < best_alone(pair.label, "sar") < 0.65
    colour, backscatter = (torch.from_numpy(each) for each in levels(pair.label))
    optical = torch.from_numpy(pair.optical).float()
    sums = functional.avg_pool2d(torch.from_numpy(pair.sar).float(), 3, stride=1, padding=1)
    means = [[optical[:, colour == level].mean(dim=1).tolist() for level in range(3)],
             [[sums[0, backscatter == level].mean().item()] for level in range(3)]]  # fmt: skip
    found = [nearest_level(image, np.array(mean)) for image, mean in zip((optical, sums), means, strict=True)]
    right = (found[0] == colour) & (found[1] == backscatter)
    assert right.float().mean() > 0.85


def test_pixels_of_two_classes_of_one_colour_are_alike():
    pair = make_pair(128, 128, 7, np.random.default_rng(1))
    of_class = [pair.optical[:, pair.label == index] for index in (0, 3)]  # both of colour 0
    gap = of_class[0].mean(axis=1) - of_class[1].mean(axis=1)
    spread = np.sqrt(sum(pixels.var(axis=1) / pixels.shape[1] for pixels in of_class))
    assert np.abs(gap / spread).max() < 4


def test_best_alone_of_a_hand_worked_map():
    label = np.array([[0, 0, 3, 1]])  # 0 and 3 share colour 0, 1 has colour 1; backscatters are 0, 1 and 1
    assert best_alone(label, "optical") == 3 / 4
    assert best_alone(label, "sar") == 3 / 4
    with pytest.raises(InputError, match="10 classes cannot be made"):
        make_pair(8, 8, 10, np.random.default_rng(0))


def test_synthetic_pairs_repeat():
    first, again = (make_pair(20, 30, 5, np.random.default_rng(2)) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert first.optical.shape == (4, 20, 30)
    assert first.sar.shape == (1, 20, 30)
    assert not math.isclose(first.label.mean(), make_pair(20, 30, 5, np.random.default_rng(3)).label.mean())
