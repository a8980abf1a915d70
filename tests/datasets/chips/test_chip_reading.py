"""Chips as numbers: bands on one grid, windows, missing pixels, statistics, resizing, augmentation, mixing."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.stats
import torch
from PIL import Image as Picture
from torch import Tensor

from alliance.errors import InputError
from datasets.chips.augment import VIEW, ChipAugmentConfig, draw_augmentations, mixture, view_of
from datasets.chips.chip import Chip, ChipSet
from datasets.chips.labels import find_chips
from datasets.chips.reading import Chips, batch_of, fitted, fitting_size, resized, with_statistics
from datasets.chips.samples import ChipSamples
from datasets.imagery.images import ImageSource
from datasets.imagery.scenes import Box
from datasets.sampling.faults import Fault
from datasets.sampling.loader import Place
from tests.helpers.rasters import write_tiff

PLAIN = ChipAugmentConfig(crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, turn=False)
SOURCE = ImageSource(bands=(1, 2), mean=(10.0, 20.0), std=(2.0, 4.0), nodata=0)


def made(folder: Path, count: int = 6, size: int = 8, seed: int = 0) -> Chips:
    """Chips of two bands, of classes a and b in turn."""
    generator = np.random.default_rng(seed)
    chips = []
    for number in range(count):
        path = folder / f"{number}.tif"
        write_tiff(path, generator.integers(1, 40, (2, size, size), dtype=np.uint8))
        chips.append(Chip(path.name, (path,), ("ab"[number % 2],)))
    return Chips("train", chips, ("a", "b"), SOURCE)


def pixels(chips: Chips, number: int) -> np.ndarray:
    with rasterio.open(chips.chips[number].files[0]) as file:
        return file.read()


def test_coarse_bands_are_repeated_on_the_finest_grid(shared_data: Path) -> None:
    image = ImageSource(sensor="sentinel2-l2a", statistics="dataset")
    described = ChipSet(path=str(shared_data / "bigearthnet" / "S2"), labels="bigearthnet", image=image)
    found = find_chips(described, several=True)
    chip = found.chips[0]
    numbers = Chips("all", found.chips, found.classes, found.source).read(0).numbers
    assert numbers.shape == (12, 120, 120)
    for band, name in enumerate(("B01", "B02", "B03", "B04", "B05")):
        (file,) = [file for file in chip.files if file.stem.endswith(f"_{name}")]
        with rasterio.open(file) as source:
            stored = source.read(1)
        times = 120 // len(stored)
        expected = stored.repeat(times, axis=0).repeat(times, axis=1) * 1e-4
        assert np.allclose(
            numbers[band], np.where(stored.repeat(times, 0).repeat(times, 1) == 0, np.nan, expected), equal_nan=True
        )


def test_a_window_is_the_crop_of_the_image(tmp_path: Path) -> None:
    chips = made(tmp_path)
    chips.chips[0] = chips.chips[0]._replace(parts=Box(2, 3, 4, 5))
    assert np.array_equal(chips.read(0).numbers, pixels(chips, 0)[:, 2:6, 3:8])


def test_a_pixel_that_misses_one_band_is_the_mean_in_all(tmp_path: Path) -> None:
    chips = made(tmp_path)
    stored = pixels(chips, 0)
    stored[0, 1, 1] = 0
    write_tiff(chips.chips[0].files[0], stored)
    found = chips.standardised(0)
    assert isinstance(found, Tensor)
    expected = (stored - np.array([10, 20])[:, None, None]) / np.array([2, 4])[:, None, None]
    expected[:, 1, 1] = 0
    assert np.allclose(found, expected)


def test_damaged_and_empty_images_have_no_weight_and_a_reason(tmp_path: Path) -> None:
    chips = made(tmp_path)
    chips.chips[1].files[0].write_bytes(b"no image")
    write_tiff(chips.chips[2].files[0], np.zeros((2, 8, 8), dtype=np.uint8))
    batch = batch_of(chips, [0, 1, 2, 3], 8)
    assert batch.weight.tolist() == [1, 0, 0, 1]
    assert [(fault.cause, fault.key) for fault in batch.faults] == [("pair", "1.tif"), ("empty", "2.tif")]
    assert str(chips.chips[1].files[0]) in batch.faults[0].reason
    assert not batch.image[1:3].any() and batch.target.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert isinstance(chips.standardised(1), Fault)


def test_statistics_are_those_of_all_pixels_that_are_there(tmp_path: Path) -> None:
    chips = made(tmp_path)
    chips.chips[1].files[0].write_bytes(b"no image")
    unknown = ImageSource(bands=(1, 2), nodata=0, statistics="dataset")
    chips.source = unknown
    found = with_statistics(unknown, chips)
    every = np.concatenate([pixels(chips, number).reshape(2, -1) for number in (0, 2, 3, 4, 5)], axis=1)
    assert np.allclose(found.mean, every.mean(axis=1)) and np.allclose(found.std, every.std(axis=1))
    for chip in chips.chips:
        chip.files[0].write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 6 images of train can be read"):
        with_statistics(unknown, chips)
    with pytest.raises(InputError, match="mean and std of the bands are not given"):
        with_statistics(dataclasses.replace(unknown, statistics="given"), chips)


@pytest.mark.parametrize("size", [5, 12, 17])
def test_resizing_is_that_of_another_library(size: int) -> None:
    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    picture = Picture.fromarray(image[0].numpy()).resize((size, size), Picture.Resampling.BILINEAR)
    assert np.allclose(resized(image, size, size)[0], np.asarray(picture), atol=1e-5)


def test_an_image_is_resized_whole_or_its_middle_is_cut_out() -> None:
    image = torch.arange(35.0).reshape(1, 5, 7)
    assert torch.equal(fitted(image, 4, 4, "resize"), resized(image, 4, 4))
    assert torch.equal(fitted(image, 3, 4, "crop"), image[:, 1:4, 1:5])
    assert torch.equal(fitted(image, 8, 4, "crop"), resized(image, 8, 4))  # it has no middle of that size
    sizes = [fitting_size(h, w, 8, fit) for h, w, fit in ((30, 21, "resize"), (30, 21, "crop"), (6, 5, "crop"))]
    assert sizes == [32, 16, 8]


# Augmentation


def test_nothing_asked_for_nothing_done() -> None:
    image = torch.rand(2, 8, 8)
    assert torch.equal(view_of(image, [0.3] * VIEW, 8, PLAIN), image)


def test_flips_and_turns_are_the_eight_symmetries() -> None:
    image, config = torch.rand(1, 6, 6), dataclasses.replace(PLAIN, flip=0.5, turn=True)
    found = {
        view_of(image, [0, 0, 0, 0, flip, turn, 1, 0, 0, 0, 0], 6, config).numpy().tobytes()
        for flip in (0.2, 0.7) for turn in (0.1, 0.3, 0.6, 0.9)
    }  # fmt: skip
    expected = {
        np.ascontiguousarray(np.rot90(side, turns, (1, 2))).tobytes()
        for side in (image.numpy(), image.numpy()[..., ::-1]) for turns in range(4)
    }  # fmt: skip
    assert found == expected and len(expected) == 8


def test_a_crop_has_the_share_and_the_ratio_that_are_asked_for() -> None:
    """A quarter of 16 x 16 pixels at ratio 1 is 8 x 8; at (0.5, 0.25) of the room it begins in row 4, column 2."""
    image = torch.arange(256.0).reshape(1, 16, 16)
    config = dataclasses.replace(PLAIN, crop=(0.25, 0.25))
    found = view_of(image, [0, 0, 0.5, 0.25, 1, 0, 1, 0, 0, 0, 0], 8, config)
    assert torch.equal(found, image[:, 4:12, 2:10])
    wide = dataclasses.replace(PLAIN, crop=(0.25, 0.25), ratio=(4.0, 4.0))
    tall = view_of(image, [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], 4, wide)
    assert tall.min() == 1.5 + 0.5 * 0 or float(tall.max()) < 64  # rows 0 to 3 alone


def test_erased_pixels_are_means_and_as_many_as_drawn() -> None:
    image, config = torch.full((2, 100, 100), 3.0), dataclasses.replace(PLAIN, erase=0.5)
    found = view_of(image, [0, 0, 0, 0, 1, 0, 0.4, 0.5, 0.5, 0.5, 0.5], 100, config)
    share = float((found[0] == 0).float().mean())
    assert share == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01) and set(found.unique().tolist()) == {0.0, 3.0}
    assert torch.equal(view_of(image, [0, 0, 0, 0, 1, 0, 0.6, 0.5, 0.5, 0.5, 0.5], 100, config), image)


def test_shares_of_mixtures_are_of_the_beta_distribution() -> None:
    config = dataclasses.replace(PLAIN, mixup=0.8)
    for quantile in (0.05, 0.3, 0.5, 0.9):
        share = mixture([0, 0, quantile, 0, 0], 8, config).share
        assert share == pytest.approx(scipy.stats.beta.ppf(quantile, 0.8, 0.8), rel=1e-9)
    assert mixture([0, 0.4, 0.5, 0.5, 0.5], 8, dataclasses.replace(config, cutmix=1.0)).box is None
    assert mixture([0, 0.6, 0.5, 0.5, 0.5], 8, dataclasses.replace(config, cutmix=1.0)).box is not None


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 1.0)])
def test_a_rectangle_of_another_image_counts_by_its_pixels(place: tuple[float, float]) -> None:
    config = dataclasses.replace(PLAIN, cutmix=1.0)
    mixed = mixture([0, 0, 0.75, *place], 16, config)
    found = mixed.of(torch.zeros(1, 16, 16), torch.ones(1, 16, 16))
    assert 1 - float(found.mean()) == pytest.approx(mixed.share)
    if place == (0.5, 0.5):  # a quarter of the area: 8 x 8 in the middle
        assert found[0, 4:12, 4:12].all() and float(found.sum()) == 64


def test_batches_are_the_same_for_any_layout_of_ranks(tmp_path: Path) -> None:
    chips = made(tmp_path)
    samples = ChipSamples(chips, ChipAugmentConfig(mixup=0.8, cutmix=1.0, erase=0.25), 8, 3)
    whole = samples(Place(5, np.arange(4), np.array([3, 1, 4, 0])))
    parts = [samples(Place(5, np.array([at]), np.array([number]))) for at, number in enumerate([3, 1, 4, 0])]
    assert torch.equal(whole.image, torch.cat([part.image for part in parts]))
    assert torch.equal(whole.target, torch.cat([part.target for part in parts]))
    assert torch.allclose(whole.target.sum(dim=1), torch.ones(4))
    other = samples(Place(6, np.arange(4), np.array([3, 1, 4, 0])))
    assert not torch.equal(whole.image, other.image)


def test_a_broken_partner_is_not_mixed_in(tmp_path: Path) -> None:
    chips = made(tmp_path, count=2)
    chips.chips[1].files[0].write_bytes(b"no image")
    samples = ChipSamples(chips, dataclasses.replace(PLAIN, mixup=1.0), 8, 0)
    batch = samples(Place(0, np.arange(8), np.zeros(8, dtype=np.int64)))
    assert not batch.faults and torch.equal(batch.image[0], chips.standardised(0)) and (batch.target[:, 0] == 1).all()


def test_draws_are_uniform() -> None:
    draws = draw_augmentations(0, 0, np.arange(500))
    numbers = np.concatenate([np.concatenate(draw) for draw in draws])
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 0.01 and len(numbers) == 500 * (2 * VIEW + 5)


@pytest.mark.parametrize("wrong", [{"crop": (0.9, 0.3)}, {"ratio": (2.0, 1.0)}, {"crop": (0.5,)}])
def test_pairs_that_fall_are_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="give the smallest and the largest value"):
        ChipAugmentConfig(**wrong)  # pyright: ignore[reportArgumentType]
    assert math.isfinite(ChipAugmentConfig().ratio[1])
