"""Splits of labelled scenes by protocol, and the classical references that are scored on them."""

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.labelled import (
    PatchSet,
    SplitConfig,
    find_set,
    make_split,
    open_patches,
    scene_patches,
    split_report,
    write_split,
)
from datasets.sampling.splits import Split, grid_blocks
from finetune.sweep.classical import features, reference_scores, score
from tests.helpers.labelled_files import made_scene

FEW = {"per_class": 4, "validation": 2}


def stripes(*, official: bool = False, **more) -> PatchSet:
    """24 x 24 pixels, rows in turn of classes 3, 5 and unlabelled; officially the left third trains, the rest tests."""
    labels = np.array([3, 5, 0])[np.arange(24) % 3][:, None].repeat(24, axis=1)
    if official:
        left = np.arange(24) < 8
        more |= {"train": left & (labels > 0), "test": ~left & (labels > 0)}
    return scene_patches([made_scene(labels, **more)], patch=3)


def counts(patches: PatchSet, split: Split) -> list[list[int]]:
    return [np.bincount(patches.label[part], minlength=2).tolist() for part in split]


# Kinds of splits


def test_an_official_split_gives_training_and_validation_pixels_from_its_own():
    """8 rows of each class: 64 official training pixels of each, 128 for test."""
    patches = stripes(official=True)
    split = make_split(patches, SplitConfig(**FEW), seed=1)
    assert counts(patches, split) == [[4, 4], [2, 2], [128, 128]]
    assert patches.train is not None and patches.test is not None
    assert set(split.train) | set(split.validation) <= set(patches.train)
    assert np.array_equal(split.test, patches.test)
    whole = make_split(patches, SplitConfig(per_class=None), seed=1)
    assert np.array_equal(whole.train, patches.train) and not len(whole.validation)


def test_without_an_official_split_square_blocks_are_the_default():
    patches = stripes()
    split = make_split(patches, SplitConfig(**FEW, side=6), seed=0)
    tile = grid_blocks(patches.position, 6)
    assert counts(patches, split)[:2] == [[4, 4], [2, 2]]
    assert not set(tile[split.train]) & set(tile[split.test])


def test_blocks_of_the_data_set_go_before_squares():
    plots = np.arange(24)[:, None].repeat(24, axis=1) // 6
    patches = stripes(blocks=plots)
    split = make_split(patches, SplitConfig(**FEW, kind="blocks", side=24), seed=0)
    plot = patches.position[:, 0] // 6
    assert set(plot[split.train]).isdisjoint(plot[split.test])


def test_tiles_of_different_scenes_are_different_blocks():
    labels = np.ones((4, 4), dtype=int)
    patches = scene_patches([made_scene(labels, name=name) for name in "abcd"], patch=3)
    split = make_split(patches, SplitConfig(per_class=4, side=4), seed=0)
    image = patches.position[:, 2]
    assert set(image[split.train]).isdisjoint(image[split.test])
    assert split_report(patches, split)["leakage"] == 0


def test_random_pixels_are_drawn_from_all():
    patches = stripes(official=True)
    split = make_split(patches, SplitConfig(**FEW, kind="random"), seed=0)
    assert counts(patches, split) == [[4, 4], [2, 2], [186, 186]]


def test_half_as_many_pixels_validate_unless_told_otherwise():
    patches = stripes(official=True)
    assert counts(patches, make_split(patches, SplitConfig(), seed=0))[:2] == [[20, 20], [10, 10]]


def test_a_seed_gives_one_split():
    patches = stripes(official=True)
    for kind in ("official", "random", "blocks"):
        one, same, other = (make_split(patches, SplitConfig(**FEW, kind=kind, side=6), seed) for seed in (3, 3, 4))
        assert np.array_equal(one.train, same.train) and not np.array_equal(one.train, other.train)


def test_a_report_by_hand():
    """Columns 0 and 1 train: a patch of 3 around column 1 meets the one around column 3, but not around 4 or 7."""
    patches = scene_patches([made_scene(np.array([[2, 2, 0, 2, 2, 0, 0, 6]]), classes=tuple("abcdef"))], patch=3)
    split = Split(np.array([0, 1]), np.array([], dtype=int), np.array([2, 3, 4]))
    report = split_report(patches, split)
    assert report == {
        "train": {"b": 2, "f": 0},
        "validation": {"b": 0, "f": 0},
        "test": {"b": 2, "f": 1},
        "leakage": 1 / 3,
    }


# Splits in files


def test_a_written_split_is_read_again(tmp_path):
    patches = stripes()
    split = make_split(patches, SplitConfig(**FEW, side=6), seed=5)
    write_split(tmp_path / "split.npz", split, patches)
    again = make_split(patches, SplitConfig(), seed=0, file=str(tmp_path / "split.npz"))
    assert all(np.array_equal(one, other) for one, other in zip(split, again, strict=True))


def test_validation_pixels_come_from_those_that_a_file_leaves_over(tmp_path):
    patches = stripes()  # rows of 24 pixels: indices 0 to 23 are class 3, 24 to 47 class 5, and so on
    arrays = {"seed7_train": np.array([30, 2]), "seed7_test": np.arange(48, 380, dtype=np.int16)}
    np.savez(tmp_path / "splits.npz", **arrays)
    config, file = SplitConfig(**FEW), f"{tmp_path / 'splits.npz'}:seed{{seed}}_"
    split = make_split(patches, config, seed=7, file=file)
    assert split.train.tolist() == [2, 30] and split.test.tolist() == list(range(48, 380))
    assert counts(patches, split)[1] == [2, 2]
    assert set(split.validation) <= (set(range(48)) | set(range(380, 384))) - {2, 30}
    with pytest.raises(InputError, match="has no array 'seed8_train'; it has seed7_test, seed7_train"):
        make_split(patches, config, seed=8, file=file)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.array([0, 384]), "test": np.array([1])}, "train holds index 384, there are 384 labelled pixels"),
        ({"train": np.array([0]), "test": np.array([-1])}, "test holds index -1"),
        ({"train": np.array([0, 1]), "test": np.array([1, 2])}, "a pixel stands twice in train, test"),
        ({"train": np.array([0.5]), "test": np.array([1])}, r"train is float64 of shape \(1,\)"),
        ({"train": np.array([0])}, "has no array 'test'; it has train"),
    ],
)
def test_wrong_files_are_refused_in_one_line(arrays, message, tmp_path):
    np.savez(tmp_path / "split.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        make_split(stripes(), SplitConfig(), seed=0, file=str(tmp_path / "split.npz"))
    assert "\n" not in str(caught.value)


def test_a_split_of_no_file_is_refused():
    with pytest.raises(InputError, match="nowhere.npz is missing; give the path of an .npz file"):
        make_split(stripes(), SplitConfig(), seed=0, file="nowhere.npz")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(kind="official"), "the data set has no official split; set protocol.kind to blocks"),
        (
            SplitConfig(per_class=None, side=6),
            "protocol.per_class is null, all pixels; only an official split has them",
        ),
        (
            SplitConfig(kind="random", per_class=200),
            "class 3 has 192 pixels of the 301 that the split needs .*; ask for 91",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        make_split(stripes(), config, seed=0)


def test_a_class_with_few_official_pixels_is_refused_or_capped():
    patches = stripes(official=True)
    with pytest.raises(InputError, match="class 3, in the given training pixels, has 64 pixels of the 90 .*cap true"):
        make_split(patches, SplitConfig(per_class=60), seed=0)
    capped = make_split(patches, SplitConfig(per_class=60, cap=True), seed=0)
    assert counts(patches, capped)[:2] == [[60, 60], [4, 4]]


# Classical references


def test_features_by_hand():
    """Standardised 0 .. 5 around the first pixel: rows 4 3 4, 1 0 1, 4 3 4 have mean 24 / 9."""
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    patches = scene_patches([made_scene(np.ones((2, 3), dtype=int), passive=values, active=-values)], patch=3)
    scale = (35 / 12) ** 0.5
    around = np.array([4, 3, 4, 1, 0, 1, 4, 3, 4])
    found = features(patches, np.array([0]), ("passive", "active", "passive statistics", "active statistics"))
    mean, spread = (24 / 9 - 2.5) / scale, around.std() / scale
    np.testing.assert_allclose(found[0], [-2.5 / scale, 2.5 / scale, mean, spread, -mean, spread], atol=1e-6)


def test_classes_that_differ_are_told_apart():
    """The passive image is the class plus noise; the active one is noise alone."""
    patches = stripes()
    labels = np.array([3, 5, 0])[np.arange(24) % 3][:, None].repeat(24, axis=1)
    passive = labels + np.random.default_rng(0).normal(0, 0.1, size=(2, 24, 24))
    told = scene_patches([made_scene(labels, passive=passive.astype(np.float32))], patch=3)
    split = make_split(told, SplitConfig(per_class=10, side=6), seed=0)
    assert score(told, split, "svm", ("passive",), seed=0).oa == 1
    assert score(told, split, "forest", ("passive",), seed=0).oa == 1
    assert score(patches, split, "svm", ("active",), seed=0).oa < 0.7


def test_references_use_the_images_that_are_there():
    patches = stripes(passive=np.zeros((0, 24, 24), dtype=np.float32))
    split = make_split(patches, SplitConfig(per_class=4, side=6), seed=0)
    scores = reference_scores(patches, split, seed=0)
    assert list(scores) == ["forest: active"]
    again = reference_scores(patches, split, seed=0)
    assert (scores["forest: active"].confusion == again["forest: active"].confusion).all()
    one_class = Split(split.train[patches.label[split.train] == 0], split.validation, split.test)
    with pytest.raises(InputError, match="the split has 1 classes for training"):
        score(patches, one_class, "svm", ("active",), seed=0)


# Real data


def test_plots_of_idtrees_do_not_leak_into_each_other(shared_data):
    patches = open_patches(find_set("idtrees-mlbs", shared_data / "idtrees_mlbs"))
    assert patches.block is not None and len(np.unique(patches.block)) == 45  # one of 46 has no label
    for kind in ("official", "blocks"):
        split = make_split(patches, SplitConfig(kind=kind, per_class=20, cap=True), seed=0)
        assert set(patches.block[split.train]).isdisjoint(patches.block[split.test])
    assert patches.train is not None and len(patches.train) == 6500


def test_blocks_of_houston_do_not_leak_and_beat_chance(shared_data):
    folder = shared_data / "houston2013_patches"
    patches = open_patches(find_set("houston2013-patches", folder))
    split = make_split(patches, SplitConfig(), seed=0, file=f"{folder / 'splits_by_block.npz'}:n20_seed{{seed}}_")
    report = split_report(patches, split)
    assert report["leakage"] == 0 and set(report["train"].values()) == {20} and len(split.test) == 1441
    assert split_report(patches, make_split(patches, SplitConfig(kind="random"), seed=0))["leakage"] > 0.5
    assert score(patches, split, "svm", ("passive", "active", "passive statistics"), seed=0).oa > 0.75
