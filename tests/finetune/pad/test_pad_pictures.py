"""Pictures of a segmentation: colours of classes, right and wrong pixels, and samples that lack something."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.labelled.tiles import Sample
from finetune.pictures import CORRECT, WRONG, colour_channels, correctness, draw_segmentation, stretch_limits, stretched
from tests.helpers.models import natural_image

CLASSES = {"dry": (200, 120, 40), "wet": (20, 60, 220)}


@pytest.fixture
def pair() -> Sample:
    """Three samples of 40 x 40 pixels, above dry, below wet; the left quarter has no label, the corner no pixels."""
    label = torch.zeros(3, 40, 40, dtype=torch.int64)
    label[:, 20:], label[:, :, :10] = 1, 255
    optical, sar = natural_image(3, 3, 40, 40), natural_image(3, 1, 40, 40, seed=1)
    optical[:, :, :5, :5] = torch.nan
    return Sample({"optical": optical, "sar": sar}, label)


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def shares(path: Path, pair: Sample, predicted: Tensor) -> dict[tuple[int, int, int], float]:
    """How much of a panel's area, summed over all panels, has exactly this colour."""
    draw_segmentation(path, pair, predicted, CLASSES, title="synthetic", rows=1)
    pixels = drawn(path)
    panel = (pixels.shape[1] / 5 * 0.92) ** 2  # five panels, with gaps
    return {colour: (pixels == colour).all(axis=-1).sum() / panel for colour in (*CLASSES.values(), CORRECT, WRONG)}


def test_panels_show_the_classes_and_what_is_wrong(tmp_path: Path, pair: Sample) -> None:
    right = shares(tmp_path / "new" / "right.png", pair, pair.label.clamp(max=1))
    dry, wet = CLASSES.values()
    assert right[dry] == pytest.approx(3 / 8 + 3 / 8, abs=0.1)  # truth and prediction, unlabelled quarter as wet
    assert right[wet] == pytest.approx(3 / 8 + 5 / 8, abs=0.1)
    assert right[CORRECT] == pytest.approx(3 / 4, abs=0.1) and right[WRONG] < 0.05
    wrong = shares(tmp_path / "wrong.png", pair, 1 - pair.label.clamp(max=1))
    assert wrong[WRONG] == pytest.approx(3 / 4, abs=0.1) and wrong[CORRECT] < 0.05


def test_samples_without_labels_or_pixels_can_be_drawn(tmp_path: Path, pair: Sample) -> None:
    images = {"optical": torch.full_like(pair.images["optical"], torch.nan), "sar": pair.images["sar"] * 0}
    empty = Sample(images, torch.full_like(pair.label, 255))
    draw_segmentation(tmp_path / "empty.png", empty, torch.zeros_like(pair.label), CLASSES, title="empty")
    draw_segmentation(tmp_path / "one.png", empty, torch.zeros_like(pair.label), CLASSES, title="empty", rows=1)
    assert len(drawn(tmp_path / "one.png")) < len(drawn(tmp_path / "empty.png")) / 2


def test_an_even_image_keeps_its_colour_beside_others() -> None:
    """A dark forest, nearly of one colour, beside all brightnesses from 0 to 1: 2 % and 98 % are their 0.02 and 0.98."""
    forest = torch.tensor([0.14, 0.26, 0.26])[:, None, None].expand(3, 2, 2)
    ramp = torch.linspace(0, 1, 10_001).reshape(1, 1, -1)
    limits = stretch_limits([ramp, torch.full((1, 1, 9), torch.nan)])
    assert limits == pytest.approx((0.02, 0.98), abs=1e-6)
    np.testing.assert_allclose(stretched(forest, limits)[0, 0], (0.125, 0.25, 0.25), atol=1e-6)
    beside = stretch_limits([forest, ramp])  # 12 values more, which move nothing by much
    np.testing.assert_allclose(stretched(forest, beside)[0, 0], (0.125, 0.25, 0.25), atol=2e-3)


def test_bands_1_2_3_of_the_file_are_shown_as_red_green_blue() -> None:
    assert colour_channels(ImageSource(bands=(3, 2, 1))) == [2, 1, 0]
    assert colour_channels(ImageSource(bands=(4, 1, 2, 3))) == [1, 2, 3]
    assert colour_channels(ImageSource(bands=(8, 4, 3))) == [0, 1, 2]
    assert colour_channels(ImageSource(bands=(1,))) == [0, 0, 0]


def test_predictions_of_another_size_are_refused(tmp_path: Path, pair: Sample) -> None:
    with pytest.raises(InputError, match=r"predictions are \(3, 40, 39\), labels \(3, 40, 40\)"):
        draw_segmentation(tmp_path / "a.png", pair, pair.label[..., 1:], CLASSES, title="synthetic")


def test_the_share_above_a_row_is_that_of_the_right_pixels() -> None:
    """Of four pixels, three have a label and two of those are right."""
    truth, guess = torch.tensor([[0, 1, 1, 255]]), torch.tensor([[0, 1, 0, 0]])
    assert correctness(truth, guess) == "wrong pixels; 66.7 % correct"
    assert correctness(torch.full((1, 4), 255), guess) == "wrong pixels; no labels"
