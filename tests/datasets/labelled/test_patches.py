"""Tables of pixels and the patches around them, worked by hand and against NumPy and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from alliance.errors import InputError
from datasets.labelled import (
    LabelledScene,
    PatchSet,
    SplitConfig,
    find_set,
    make_split,
    open_patches,
    scene_patches,
    stored_patches,
    write_split,
)
from datasets.labelled.normalise import Preprocessing, band_statistics
from datasets.labelled.patches import SceneGrid
from finetune.s2fin import S2Fin
from tests.helpers.labelled_files import made_scene, own_set


def stored(path: Path, **changed: np.ndarray) -> Path:
    """A file of three pixels with 3 x 3 patches: two bands, one channel; pixels 0 and 1 are neighbours in block 4."""
    arrays = {
        "spectra": np.array([[0.0, 3.0], [1.0, 3.0], [2.0, 9.0]], dtype=np.float32),
        "lidar_patch": np.arange(27, dtype=np.float32).reshape(3, 1, 3, 3),
        "label": np.array([2, 2, 5]),
        "block": np.array([4, 4, 7]),
        "row": np.array([0, 0, 0]),
        "col": np.array([0, 1, 0]),
        "neighbour_index": np.array([[0, 0, 1], [0, 1, 1], [2, 2, 2]])[:, None, :].repeat(3, axis=1),
    }
    np.savez(path / "pixels.npz", **arrays | changed)
    return path / "pixels.npz"


# Tables


def principal_components(table: np.ndarray, count: int) -> np.ndarray:
    plain = Preprocessing(mean=np.zeros(table.shape[1]), std=np.ones(table.shape[1]))
    return plain.with_components(table, count).components(table)


def test_statistics_by_hand():
    """1 3 2 6: mean 3, variance (4 + 0 + 1 + 9) / 4; missing values do not count."""
    first = np.array([[[1, 3, np.nan]], [[7, 7, 7]]], dtype=np.float32)
    second = np.array([[[2], [6]], [[7], [7]]], dtype=np.float32)
    mean, std = band_statistics([first, second])
    np.testing.assert_allclose(mean, [3, 7])
    np.testing.assert_allclose(std, [np.sqrt(3.5), 1])  # a constant band keeps its scale
    table = Preprocessing.of([first, second]).table([first, second])
    assert table.dtype == np.float32 and table.shape == (5, 2)
    np.testing.assert_allclose(table[:, 0], np.array([-2, 0, 0, -1, 3]) / np.sqrt(3.5), atol=1e-6)
    assert (table[:, 1] == 0).all()


def test_the_first_component_by_hand():
    """Correlation (6 - 2) / 8 = 1/2: axis (1, 1) / sqrt(2) of variance 3/2, so (1, 1) becomes 2 / sqrt(3)."""
    table = np.array([[1, 1], [-1, -1]] * 3 + [[1, -1], [-1, 1]], dtype=np.float32)
    component = principal_components(table, 1)
    np.testing.assert_allclose(component[:, 0], [2 / 3**0.5, -2 / 3**0.5] * 3 + [0, 0], atol=1e-6)
    assert principal_components(table, 2) is table


def test_components_equal_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    table = (generator.normal(size=(500, 12)) @ generator.normal(size=(12, 12)) + 3).astype(np.float32)
    found = principal_components(table, 5)
    wanted = PCA(5, whiten=True).fit_transform(table) * np.sqrt(500 / 499)  # theirs divides by m - 1
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-4)
    np.testing.assert_allclose(found.T @ found / 500, np.eye(5), atol=1e-4)


def test_components_that_are_only_rounding_are_left_out():
    table = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    assert principal_components(np.tile(table, 3), 4).shape == (100, 2)


def test_preprocessing_survives_json_to_the_last_bit() -> None:
    image = np.random.default_rng(1).normal(40, 7, (6, 8, 9)).astype(np.float32)
    fitted = Preprocessing.of([image])
    fitted = fitted.with_components(fitted.table([image]), 3)
    again = Preprocessing.from_record(json.loads(json.dumps(fitted.to_record())))
    for name in ("mean", "std", "axes", "offsets"):
        assert (getattr(again, name) == getattr(fitted, name)).all()
    assert (again.components(again.table([image])) == fitted.components(fitted.table([image]))).all()


@pytest.mark.parametrize("record", [{"mean": [1.0]}, {"mean": [1.0], "std": [0.0]}, {"mean": [1.0], "std": [1.0, 2.0]},
                                    {"mean": [1.0], "std": [1.0], "axes": [[1.0], [2.0]], "offsets": [0.0]}])  # fmt: skip
def test_damaged_preprocessing_is_refused(record: dict) -> None:
    with pytest.raises(InputError, match="mean|std|axes"):
        Preprocessing.from_record(record)


# Places


def test_a_corner_is_mirrored_by_hand():
    """Rows 1 0 1 and columns 1 0 1 around the corner of 3 x 4 places that are numbered row by row."""
    grid = SceneGrid([(3, 4)])
    assert grid.around(np.array([0]), 3)[0].tolist() == [[5, 4, 5], [1, 0, 1], [5, 4, 5]]
    assert grid.around(np.array([11]), 3)[0].tolist() == [[6, 7, 6], [10, 11, 10], [6, 7, 6]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3), st.sampled_from([1, 3, 5, 7, 9])
)
def test_patches_are_windows_of_the_padded_scene(shapes, patch):
    grid, half, first = SceneGrid(shapes), patch // 2, 0
    found = grid.around(np.arange(len(grid)), patch)
    for height, width in shapes:
        scene = first + np.arange(height * width).reshape(height, width)
        padded = np.pad(scene, half, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch))
        np.testing.assert_array_equal(found[scene.ravel()], windows.reshape(-1, patch, patch))
        first += height * width


# Sets of patches


def test_a_batch_by_hand():
    """One band 0 .. 5 on 2 x 3 pixels: mean 2.5, variance 35 / 12."""
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    labels = np.array([[0, 9, 0], [4, 0, 4]])
    patches = scene_patches([made_scene(labels, passive=values, active=10 * values)], patch=3)
    inputs, label = patches.batch(np.array([2, 0]))
    assert label.tolist() == [0, 1] and label.dtype == torch.int64
    assert patches.numbers == (4, 9) and patches.classes == ("class 4", "class 9")
    assert patches.position.tolist() == [[0, 1], [1, 0], [1, 2]]
    bottom_right, top = [[1, 2, 1], [4, 5, 4], [1, 2, 1]], [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    wanted = (torch.tensor([[bottom_right], [top]]) - 2.5) / (35 / 12) ** 0.5
    for image in inputs:  # ten times the values are the same when standardised
        assert image.dtype == torch.float32 and image.is_contiguous()
        torch.testing.assert_close(image, wanted, atol=1e-6, rtol=0)


def test_a_missing_value_is_the_mean_in_the_patches_of_others():
    passive = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    passive[1, 1, 1] = np.nan
    inputs, _ = scene_patches([made_scene(np.ones((3, 4), dtype=int), passive=passive)], patch=3).batch(np.array([0]))
    assert inputs.spectral[0, 1, 2, 2] == 0 and inputs.spectral.isfinite().all()


def test_scenes_share_statistics_and_keep_their_patches_apart():
    one, other = np.zeros((2, 3), dtype=int), np.zeros((4, 4), dtype=int)
    one[0, 2], other[0, 0] = 1, 2
    scenes = [made_scene(one, name="one"), made_scene(other, name="other")]
    patches = scene_patches(scenes, patch=3)
    assert patches.position.tolist() == [[0, 2, 0], [0, 0, 1]] and patches.place.tolist() == [2, 6]
    together = np.concatenate([scene.passive.reshape(3, -1) for scene in scenes], axis=1)
    band = (together - together.mean(axis=1, keepdims=True)) / together.std(axis=1, keepdims=True)
    inputs, _ = patches.batch(np.array([1]))
    corner = np.pad(band[:, 6:].reshape(3, 4, 4), ((0, 0), (1, 1), (1, 1)), mode="reflect")[:, :3, :3]
    np.testing.assert_allclose(inputs.spectral[0], corner, atol=1e-5)


def test_many_bands_have_components_and_few_do_not():
    labels = np.ones((6, 7), dtype=int)
    patches = scene_patches([made_scene(labels, bands=40, channels=4)], patch=5)
    assert patches.channels == {"spectral": 40, "passive": 30, "active": 4}
    few = scene_patches([made_scene(labels, bands=10)], patch=5)
    assert few.channels["passive"] == 10 and few.passive.data_ptr() == few.spectral.data_ptr()


def test_an_image_that_is_not_there_has_no_channels():
    labels = np.ones((4, 4), dtype=int)
    inputs, _ = scene_patches([made_scene(labels, passive=np.zeros((0, 4, 4)))], patch=3).batch(np.arange(5))
    assert [tuple(image.shape) for image in inputs] == [(5, 0, 3, 3), (5, 0, 3, 3), (5, 1, 3, 3)]


def test_the_network_takes_a_batch():
    labels = np.arange(48).reshape(6, 8) % 5
    patches = scene_patches([made_scene(labels, bands=36, channels=2)], patch=7, components=12)
    sizes = patches.channels
    network = S2Fin(
        bands=sizes["spectral"],
        components=sizes["passive"],
        channels=sizes["active"],
        classes=len(patches.classes),
    )
    inputs, label = patches.batch(np.arange(6))
    assert network(*inputs).logits.shape == (6, 4) and label.max() < 4


@pytest.mark.parametrize(
    ("scenes", "patch", "message"),
    [
        (["a"], 8, "patch 8 has no centre pixel; use an odd side, such as 9"),
        (["a"], 0, "patch 0 has no centre pixel; use an odd side, such as 1"),
        ([], 7, "0 scenes were given"),
        (["a", "b"], 7, "passive of scene b has 4 bands, of scene a 3; give one sensor's"),
    ],
)
def test_wrong_scenes_are_refused(scenes, patch, message):
    made: list[LabelledScene] = [
        made_scene(np.ones((3, 3), dtype=int), bands=3 + index, name=name) for index, name in enumerate(scenes)
    ]
    with pytest.raises(InputError, match=message):
        scene_patches(made, patch=patch)


@pytest.mark.parametrize("pixel", [-1, 9])
def test_pixels_outside_are_refused(pixel):
    patches = scene_patches([made_scene(np.ones((3, 3), dtype=int))], patch=3)
    with pytest.raises(InputError, match=f"pixel {pixel} is none of the 9 labelled pixels; count from 0"):
        patches.batch(np.array([0, pixel]))
    with pytest.raises(InputError, match=f"pixel {pixel} is none of the 9 places"):
        patches.around(np.array([pixel]))


# Ready patches


PIXELS = [198, 190, 192, 188, 186, 182, 196, 191, 193, 191, 181, 192, 184, 181, 187]  # of each class of Houston


def patch_of(patches: PatchSet, pixel: int) -> list[torch.Tensor]:
    inputs, _ = patches.batch(np.array([pixel]))
    return [image[0] for image in inputs]


def test_ready_patches_by_hand(tmp_path):
    """Band 0 1 2 has variance 2/3; LiDAR 0 .. 26 has mean 13 and variance (27 ** 2 - 1) / 12."""
    patches = stored_patches(stored(tmp_path), patch=3)
    assert len(patches) == 3 and patches.numbers == (2, 5) and patches.label.tolist() == [0, 0, 1]
    assert patches.block is not None and patches.block.tolist() == [4, 4, 7]
    assert patches.position.tolist() == [[0, 0, 4], [0, 1, 4], [0, 0, 7]]
    spectral, _, active = patch_of(patches, 1)
    np.testing.assert_allclose(spectral[0], np.tile([-1, 0, 0], (3, 1)) / (2 / 3) ** 0.5, atol=1e-6)
    np.testing.assert_allclose(active[0], (np.arange(9, 18).reshape(3, 3) - 13) / (728 / 12) ** 0.5, atol=1e-6)


def test_smaller_patches_are_the_middle_of_stored_ones(tmp_path):
    file = stored(tmp_path)
    for small, large in zip(
        patch_of(stored_patches(file, patch=1), 1), patch_of(stored_patches(file, patch=3), 1), strict=True
    ):
        assert torch.equal(small, large[:, 1:2, 1:2])


@pytest.mark.parametrize(
    ("changed", "patch", "message"),
    [
        ({}, 5, "patch 5 is larger than the 3 x 3 pixels in .*; use at most 3"),
        ({}, 2, "patch 2 has no centre pixel; use an odd side, such as 3"),
        ({"label": np.array([0, 1, 1])}, 3, "label holds 0, none of 1 to 6; mend the file"),
        ({"label": np.array([7, 1, 1])}, 3, "label holds 7, none of 1 to 6; mend the file"),
        ({"row": np.zeros(2)}, 3, r"row is \(2,\), not \(3,\) as other arrays say"),
        ({"neighbour_index": np.full((3, 3, 3), 3)}, 3, "neighbour_index holds 3, none of 0 to 2; mend the file"),
        ({"lidar_patch": np.ones((3, 1, 5, 5))}, 3, r"lidar_patch is \(3, 1, 5, 5\), not \(3, 1, 3, 3\)"),
        ({"spectra": np.full((3, 2), np.nan)}, 3, "band 1 of spectra in .* has no valid value; leave it out"),
    ],
)
def test_wrong_files_of_patches_are_refused_in_one_line(changed, patch, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        stored_patches(stored(tmp_path, **changed), tuple("abcdef"), patch=patch)
    assert "\n" not in str(caught.value)


def test_missing_patches_are_named(tmp_path):
    described = own_set(tmp_path, patches="pixels.npz")
    with pytest.raises(InputError, match="pixels.npz is missing; give the path of an .npz file"):
        open_patches(described)
    np.savez(tmp_path / "pixels.npz", label=np.ones(3), spectra=np.ones(3))
    with pytest.raises(InputError, match="has no array 'lidar_patch'; it has label, spectra"):
        open_patches(described)


def test_real_patches_of_houston(shared_data):
    """The middle of a patch is the pixel itself; LiDAR patches of neighbours show the same ground."""
    patches = open_patches(find_set("houston2013-patches", shared_data / "houston2013_patches"))
    assert len(patches) == 2832 and patches.channels == {"spectral": 144, "passive": 30, "active": 21}
    assert np.bincount(patches.label).tolist() == PIXELS
    inputs, label = patches.batch(np.arange(0, 2832, 7))
    assert torch.equal(inputs.spectral[:, :, 3, 3], patches.spectral[::7])
    assert inputs.active.isfinite().all() and len(label) == 405
    place = {tuple(key): pixel for pixel, key in enumerate(patches.position.tolist())}
    row, col, block = next(key for key in place if (key[0], key[1] + 1, key[2]) in place)
    left, right = (patch_of(patches, place[row, col + step, block])[2] for step in (0, 1))
    assert torch.equal(left[:, :, 1:], right[:, :, :-1])


# Classes that are left out


def test_pixels_of_a_class_that_is_left_out_have_no_label() -> None:
    generator = np.random.default_rng(0)
    labels = np.resize([1, 2, 3, 0], (8, 8))
    official = generator.random((8, 8)) < 0.5
    scene = LabelledScene(
        name="a", passive=generator.random((4, 8, 8), dtype=np.float32), active=np.zeros((0, 8, 8), np.float32),
        labels=labels, train=official & (labels > 0), test=~official & (labels > 0), classes=("grass", "roof", "water"),
    )  # fmt: skip
    whole = scene_patches([scene], patch=3)
    for chosen in ("roof", "2", 2):
        left = whole.without([chosen])
        assert (left.classes, left.numbers, len(left)) == (("grass", "water"), (1, 3), int((labels % 2 == 1).sum()))
        assert left.excluded is not None and left.excluded.classes == {"roof": 16}
        np.testing.assert_array_equal(labels[tuple(left.position.T)], np.array(left.numbers)[left.label])
        assert left.train is not None and left.test is not None
        assert len(left.train) == (official & np.isin(labels, (1, 3))).sum()
        assert (
            official[tuple(left.position[left.train].T)].all() and not official[tuple(left.position[left.test].T)].any()
        )
    with pytest.raises(
        InputError, match="'rof' is no class with labelled pixels; did you mean 'roof'\\?; there are grass"
    ):
        whole.without(["rof"])


@pytest.mark.parametrize("placed", [True, False])
def test_a_split_of_all_classes_serves_for_some(tmp_path: Path, placed: bool) -> None:
    """A file with places, and one of indices alone, which count all labelled pixels."""
    labels = np.resize([1, 2, 3], (6, 6))
    scene = LabelledScene(
        name="a", passive=np.random.default_rng(0).random((4, 6, 6), dtype=np.float32),
        active=np.zeros((0, 6, 6), np.float32), labels=labels, train=None, test=None, classes=("grass", "roof", "water"),
    )  # fmt: skip
    whole = scene_patches([scene], patch=3)
    split = make_split(whole, SplitConfig(kind="random", per_class=3), seed=0)
    file = tmp_path / "split.npz"
    if placed:
        write_split(file, split, whole)
    else:
        np.savez(file, **split._asdict())
    left = whole.without(["water"])
    found = make_split(left, SplitConfig(), seed=0, file=str(file))
    for part, all_of_it in zip(found, split, strict=True):
        wanted = [tuple(whole.position[index]) for index in all_of_it if whole.label[index] < 2]
        assert [tuple(left.position[index]) for index in part] == wanted
