"""Training micro-batches of labelled patches: mirrored by seed, step and position alone, all images of a pixel alike."""

import numpy as np
import pytest
import torch

from datasets.labelled import PatchSet, scene_patches
from datasets.labelled.patch_samples import PatchBatch, PatchSamples, mirrored
from datasets.sampling.loader import Place
from tests.helpers.labelled_files import made_scene

PIXELS = 40  # training pixels
SEED = 5


@pytest.fixture(scope="module")
def patches() -> PatchSet:
    """Both images are the same one, of random values and labelled inside: each patch tells how it was mirrored."""
    rng = np.random.default_rng(0)
    image, labels = rng.normal(size=(2, 12, 14)).astype(np.float32), np.zeros((12, 14), dtype=int)
    labels[2:-2, 2:-2] = rng.integers(1, 4, (8, 10))
    return scene_patches([made_scene(labels, passive=image, active=image)], patch=5)


@pytest.fixture(scope="module")
def samples(patches: PatchSet) -> PatchSamples:
    return PatchSamples(patches, np.arange(PIXELS), SEED)


def place(step: int, positions: np.ndarray, numbers: np.ndarray) -> Place:
    return Place(step, positions, numbers)


def ways(batch: PatchBatch, patches: PatchSet, pixels: np.ndarray) -> list[int]:
    """How each patch was mirrored: 0 not, 1 left to right, 2 upside down, 3 both."""
    plain = patches.batch(pixels)[0].spectral
    found = []
    for one, other in zip(batch.inputs.spectral, plain, strict=True):
        turned = [other.flip(axes) for axes in ([], [-1], [-2], [-2, -1])]
        (way,) = [number for number, each in enumerate(turned) if one.equal(each)]
        found.append(way)
    return found


def test_mirroring_by_hand() -> None:
    image = torch.tensor([[1, 2], [3, 4]])[None, None].expand(4, 1, 2, 2)
    expected = [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]], [[4, 3], [2, 1]]]
    assert mirrored(image, torch.arange(4, dtype=torch.uint8))[:, 0].tolist() == expected


def test_all_images_of_a_pixel_are_mirrored_alike(samples: PatchSamples, patches: PatchSet) -> None:
    numbers = np.arange(PIXELS)
    batch = samples(place(0, numbers, numbers))
    assert batch.inputs.spectral.equal(batch.inputs.passive) and batch.inputs.spectral.equal(batch.inputs.active)
    assert set(ways(batch, patches, numbers)) == {0, 1, 2, 3}
    assert np.array_equal(batch.label, patches.label[:PIXELS])
    assert list(batch.keys) == [str(number) for number in range(PIXELS)] and not batch.faults


def test_step_and_position_say_how_whatever_the_pixel_and_the_rank(samples: PatchSamples, patches: PatchSet) -> None:
    positions, numbers = np.arange(24), np.arange(24)
    whole = ways(samples(place(9, positions, numbers)), patches, numbers)
    assert ways(samples(place(9, positions, numbers[::-1])), patches, numbers[::-1]) == whole
    for first in (16, 0, 8):  # parts of other ranks or passes, in any order
        part = np.arange(first, first + 8)
        assert ways(samples(place(9, part, part)), patches, part) == whole[first : first + 8]


def test_another_step_or_seed_mirrors_anew(samples: PatchSamples, patches: PatchSet) -> None:
    """Forty draws of four ways agree by chance once in 4 ** 40."""
    numbers = np.arange(PIXELS)
    other = PatchSamples(patches, numbers, SEED + 1)
    drawn = [make(place(step, numbers, numbers)) for make, step in ((samples, 0), (samples, 1), (other, 0))]
    first, *others = (ways(batch, patches, numbers) for batch in drawn)
    assert first not in others


def test_the_four_ways_are_equally_likely(samples: PatchSamples, patches: PatchSet) -> None:
    """Of 2,000 draws 500 each, with a deviation of 19.4: within five of them."""
    positions = np.arange(2000)
    numbers = positions % PIXELS
    counts = np.bincount(ways(samples(place(2, positions, numbers)), patches, numbers), minlength=4)
    assert np.abs(counts - 500).max() < 97


def test_numbers_count_the_training_pixels(patches: PatchSet) -> None:
    """A split's training pixels are any labelled ones; the stream numbers them from 0."""
    train = np.array([7, 3, 30])
    batch = PatchSamples(patches, train, SEED)(place(0, np.arange(2), np.array([2, 0])))
    assert list(batch.keys) == ["30", "7"]
    assert np.array_equal(batch.label, patches.label[[30, 7]])
