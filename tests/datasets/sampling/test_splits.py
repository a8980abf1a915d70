"""Splits with few labels per class, the leakage between their patches, and the scores that are computed on them."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, recall_score
from sklearn.metrics import confusion_matrix as reference_confusion

from alliance.errors import InputError
from datasets.sampling.splits import Draw, Split, block_split, grid_blocks, leakage, overlapping, random_split
from finetune.scores import classification_scores, confusion_matrix

seeds = st.integers(0, 2**32 - 1)


def counts(label: np.ndarray, part: np.ndarray) -> list[int]:
    """Pixels of classes 1, 2, ... in a part of a split."""
    return np.bincount(label[part], minlength=label.max() + 1)[1:].tolist()


def labels(*sizes: int) -> np.ndarray:
    """So many pixels of class 1, 2, ..."""
    return np.repeat(np.arange(1, len(sizes) + 1), sizes)


def same(one: Split, other: Split) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def scene(side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Labels and positions of all pixels of a square scene: three classes in wavy stripes."""
    position = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    label = (position[:, 1] + 2 * np.sin(position[:, 0]).round().astype(int)) // 4 % 3 + 1
    return label, position


# Random pixels


@given(st.lists(st.integers(9, 30), min_size=1, max_size=5), seeds)
def test_a_random_split_deals_every_pixel_once(sizes, seed):
    label = np.random.default_rng(seed).permutation(labels(*sizes))
    split = random_split(label, Draw(per_class=5, validation=3, seed=seed))
    assert counts(label, split.train) == [5] * len(sizes)
    assert counts(label, split.validation) == [3] * len(sizes)
    assert sorted(np.concatenate(split)) == list(range(len(label)))
    assert all((np.diff(part) > 0).all() for part in split if len(part))


def test_a_seed_gives_one_split():
    label, position = scene()
    block = grid_blocks(position, 6)
    for split in (lambda seed: random_split(label, Draw(per_class=5, seed=seed)),) + (
        lambda seed: block_split(label, block, Draw(per_class=5, seed=seed)),
    ):
        assert same(split(3), split(3)) and not same(split(3), split(4))


def test_every_pixel_is_equally_likely_to_train():
    """Each of 10 pixels is drawn with chance 0.3: 300 of 1000 times, deviation 14.5."""
    label = labels(10)
    drawn = np.bincount(np.concatenate([random_split(label, Draw(per_class=3, seed=s)).train for s in range(1000)]))
    assert abs(drawn - 300).max() < 5 * 14.5


def test_a_small_class_is_refused_or_capped_to_all_but_one():
    label = labels(30, 7, 2)
    with pytest.raises(
        InputError,
        match="class 2 has 7 pixels of the 21 that the split needs .*; ask for 6 with .*per_class, or take what it has with .*cap true, or leave the class out with data.drop_classes",
    ):
        random_split(label, Draw(per_class=20))
    split = random_split(label, Draw(per_class=20, cap=True))
    assert counts(label, split.train) == [20, 6, 1] and counts(label, split.test) == [10, 1, 1]
    assert counts(label, random_split(label, Draw(per_class=5, validation=3, cap=True)).validation) == [3, 1, 0]
    with pytest.raises(
        InputError,
        match=r"class 2 has 1 pixels of the 6 that the split needs .*; leave the class out with data.drop_classes '\[\"2\"\]'",
    ):
        random_split(labels(9, 1), Draw(per_class=5, cap=True))


# Blocks


@given(st.lists(st.lists(st.integers(8, 20), min_size=2, max_size=8), min_size=1, max_size=5), seeds)
def test_blocks_of_one_class_serve_training_or_test(sizes, seed):
    label = labels(*map(sum, sizes))
    block = np.repeat(np.arange(sum(map(len, sizes))), [size for blocks in sizes for size in blocks])
    split = block_split(label, block, Draw(per_class=5, validation=3, seed=seed))
    assert counts(label, split.train) == [5] * len(sizes)
    assert counts(label, split.validation) == [3] * len(sizes)
    assert min(counts(label, split.test)) > 0
    trained = set(block[split.train]) | set(block[split.validation])
    assert not trained & set(block[split.test])
    test_blocks = set(block[split.test])
    assert set(split.test) == {i for i in range(len(label)) if block[i] in test_blocks}
    for c, blocks in enumerate(sizes, start=1):  # 8 pixels fill any block's need: half of the blocks are enough
        assert len(test_blocks & set(block[label == c])) == len(blocks) - max(len(blocks) // 2, 1)


@pytest.mark.parametrize(("size", "tested"), [(30, 150), (3, 9)])
def test_half_of_the_blocks_train_and_more_where_they_are_small(size, tested):
    """20 of 10 x 30 pixels: 5 blocks stay for test; of 10 x 3 pixels: 7 blocks are needed, 3 stay."""
    split = block_split(labels(10 * size), np.repeat(np.arange(10), size), Draw(per_class=20))
    assert len(split.test) == tested


def test_the_largest_blocks_train_where_random_ones_would_not_do():
    label, block = labels(192), np.repeat([7, 3], [191, 1])
    for seed in range(8):
        split = block_split(label, block, Draw(per_class=20, seed=seed))
        assert len(split.train) == 20 and split.test.tolist() == [191]


@given(seeds)
def test_blocks_that_hold_several_classes_serve_one_side_alone(seed):
    label, position = scene()
    block = grid_blocks(position, 6)
    split = block_split(label, block, Draw(per_class=10, seed=seed))
    assert not set(block[split.train]) & set(block[split.test])
    assert counts(label, split.train) == [10] * 3 and min(counts(label, split.test)) > 0


def test_blocks_that_do_not_suffice_are_refused():
    with pytest.raises(InputError, match="class 2 lies in 1 blocks, none left for training; use smaller blocks"):
        block_split(labels(20, 20), np.repeat([0, 1, 2], [10, 10, 20]), Draw(per_class=5))
    small = labels(6), np.repeat([0, 1], 3)
    with pytest.raises(InputError, match="class 1, in its blocks for training, has 3 pixels of the 5"):
        block_split(*small, Draw(per_class=5))
    assert counts(small[0], block_split(*small, Draw(per_class=5, cap=True)).train) == [3]
    with pytest.raises(InputError, match="5 blocks were given for 6 labels"):
        block_split(labels(6), np.arange(5), Draw(per_class=1))


def test_tiles_by_hand():
    position = np.array([[0, 0], [0, 3], [0, 4], [3, 0], [4, 3], [2, 1]])
    assert grid_blocks(position, 4).tolist() == [0, 0, 1, 0, 2, 0]


# Leakage


def test_patches_overlap_by_hand():
    train, row = np.array([[10, 10]]), np.array([[10, 4], [10, 3], [16, 16], [17, 10], [10, 10]])
    assert overlapping(train, row, 7).tolist() == [True, False, True, False, True]
    split = Split(np.array([0]), np.array([], dtype=int), np.array([1, 2, 3, 4]))
    assert leakage(split, np.concatenate([train, row]), 7) == 0.5


@given(arrays(np.int64, (12, 3), elements=st.integers(0, 20)), st.sampled_from([1, 3, 5, 7]), st.integers(0, 12))
def test_overlap_is_a_common_pixel(position, patch, cut):
    position[:, 2] %= 2
    reach = range(-(patch // 2), patch // 2 + 1)
    seen = [{(r + i, c + j, image) for i in reach for j in reach} for r, c, image in position.tolist()]
    train, test = position[:cut], position[cut:]
    trained = set().union(*seen[:cut])
    assert overlapping(train, test, patch).tolist() == [bool(pixels & trained) for pixels in seen[cut:]]


def test_random_pixels_leak_and_distant_blocks_do_not():
    label, position = scene(48)
    assert leakage(random_split(label, Draw(per_class=20)), position, 7) > 0.9
    images = np.column_stack([position, grid_blocks(position, 12)])
    split = block_split(label, images[:, 2], Draw(per_class=20))
    assert 0 < leakage(split, position, 7) < 0.6  # neighbouring tiles touch
    assert leakage(split, images, 7) == 0  # the same tiles as images of their own


# Wrong inputs


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0, 1, 2]), "labels start at 0; give those of the labelled pixels alone, classes from 1 on"),
        (np.array([], dtype=int), "0 labels were given"),
        (np.array([1.0, 2.0]), r"labels are float64 of shape \(2,\)"),
        (np.ones((2, 2), dtype=int), r"labels are int64 of shape \(2, 2\)"),
    ],
)
def test_wrong_labels_are_refused(label, message):
    for split in (random_split, lambda label, draw: block_split(label, label, draw)):
        with pytest.raises(InputError, match=message):
            split(label, Draw(per_class=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Draw(per_class=0), "per_class must be at least 1, got 0"),
        (lambda: Draw(per_class=5, validation=-1), "validation must be at least 0, got -1"),
        (lambda: grid_blocks(np.zeros((1, 2)), 0), "blocks of side 0"),
        (lambda: overlapping(np.zeros((1, 2)), np.zeros((1, 2)), 8), "patch 8 has no centre pixel; use .* such as 9"),
        (lambda: overlapping(np.zeros((1, 2)), np.zeros((1, 3)), 7), r"test positions are of shape \(1, 3\)"),
        (lambda: leakage(Split(*[np.array([], dtype=int)] * 3), np.zeros((1, 2)), 7), "0 test pixels"),
    ],
)
def test_other_wrong_inputs_are_refused(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# Scores


def scores(truth, predicted, classes: int):
    return classification_scores(confusion_matrix(torch.as_tensor(truth), torch.as_tensor(predicted), classes))


@given(seeds, st.integers(2, 9))
def test_scores_equal_those_of_scikit_learn(seed, classes):
    generator = np.random.default_rng(seed)
    truth = np.append(np.arange(classes), generator.integers(0, classes, 60))
    predicted = np.where(generator.random(len(truth)) < 0.6, truth, generator.integers(0, classes, len(truth)))
    found = scores(truth, predicted, classes)
    np.testing.assert_array_equal(found.confusion.numpy(), reference_confusion(truth, predicted))
    assert found.oa == pytest.approx(accuracy_score(truth, predicted))
    assert found.aa == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found.kappa == pytest.approx(cohen_kappa_score(truth, predicted))
    np.testing.assert_allclose(found.per_class.numpy(), recall_score(truth, predicted, average=None))


def test_scores_by_hand():
    """Class 0: 3 of 4, class 1: 1 of 2; chance (4 * 4 + 2 * 2) / 36 = 5/9; kappa (2/3 - 5/9) / (4/9) = 1/4."""
    found = scores([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], 2)
    assert found.confusion.tolist() == [[3, 1], [1, 1]]
    assert (found.oa, found.aa, found.kappa) == pytest.approx((2 / 3, 0.625, 0.25))
    assert found.per_class.tolist() == [0.75, 0.5]


def test_a_class_without_test_pixels_counts_in_no_mean():
    found = scores([0, 0, 2], [0, 1, 2], 3)
    assert math.isnan(found.per_class[1]) and found.aa == 0.75


def test_one_class_alone_has_no_kappa():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores([1, 1], [1, 1], 2)
    assert found.oa == found.aa == 1 and math.isnan(found.kappa)


def test_confusions_of_parts_add_up():
    truth, predicted = torch.arange(20) % 4, torch.arange(20) % 3
    parts = [confusion_matrix(truth[part], predicted[part], 4) for part in (slice(7), slice(7, None))]
    assert torch.equal(sum(parts), confusion_matrix(truth, predicted, 4))


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([0, 3], [0, 1], "label 3 is none of the classes 0 to 2"),
        ([0, -1], [0, 1], "label -1 is none of the classes 0 to 2"),
        ([0, 1], [0, 5], "prediction 5 is none of the classes 0 to 2"),
        ([0, 1], [0], "1 predictions were given for 2 labels"),
    ],
)
def test_classes_outside_are_refused(truth, predicted, message):
    with pytest.raises(InputError, match=message):
        scores(truth, predicted, 3)
