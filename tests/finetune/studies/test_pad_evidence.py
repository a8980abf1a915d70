"""What is measured on a trained PAD network: confusions, robustness, and how far its features separate the classes."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, davies_bouldin_score, silhouette_score

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled.tiles import Tiles
from datasets.synthetic.pairs import make_pair
from finetune.pad.model import Pad, PadConfig
from finetune.studies.feature_separation import cell_features, embed, feature_figure, sample_cells, separation
from finetune.studies.report import draw_clouds, write_rows
from finetune.studies.robustness import CLEAN, NO_RGB, NO_SAR, RobustnessConfig, conditions, robustness, score_rows
from finetune.tasks.evaluate import evaluate, network_images
from tests.helpers.pad_networks import OPTICAL, SAR, Threshold, averaging_pad, flat_pair, write_tiles

BRIGHT, DARK = 180, 20  # two deviations above and below the stated mean


def halves(sar: int) -> Any:
    """40 x 50 pixels: the left half bright and of class 1, the right dark and of class 0, a row without labels."""
    optical, label = np.full((40, 50), DARK), np.zeros((40, 50))
    optical[:, :25], label[:, :25] = BRIGHT, 1
    label[0] = IGNORE
    return flat_pair(optical, np.full((40, 50), sar), label)


@pytest.fixture
def two_tiles(tmp_path: Path) -> Tiles:
    """SAR is at its mean in the first image, so that it says nothing; in the second it is three deviations above."""
    return write_tiles(tmp_path, [halves(60), halves(150)], 2)


# Evaluation


def test_confusions_are_those_of_a_hand_worked_case(two_tiles: Tiles):
    """First image: all right. Second: SAR lifts the dark half (-2 + 3) above zero, so all is called class 1."""
    counts = evaluate(Threshold(), two_tiles)
    half = 39 * 25
    assert counts.tolist() == [[[half, 0], [0, half]], [[0, half], [0, half]]]
    assert counts.dtype == torch.int64


def test_confusions_follow_the_list_of_images_that_is_given(two_tiles: Tiles):
    every = evaluate(Threshold(), two_tiles)
    assert torch.equal(evaluate(Threshold(), two_tiles, [1, 0, 0]), every[[1, 0, 0]])
    assert torch.equal(evaluate(Threshold(), two_tiles, range(1, 2, 2)), every[1:])
    assert evaluate(Threshold(), two_tiles, []).shape == (0, 2, 2)


def test_whole_images_of_any_size_are_scored_as_scikit_learn_does(tmp_path: Path):
    tiles = write_tiles(tmp_path, [make_pair(45, 70, 3, np.random.default_rng(seed)) for seed in range(2)], 3)
    torch.manual_seed(0)
    model = Pad(PadConfig(size="atto", classes=3, sar_channels=1, drop_path=0.0)).train()
    counts = evaluate(model, tiles)
    assert model.training and all(module.training for module in model.modules())
    model.eval()
    for index, confusion in enumerate(counts):
        with torch.no_grad():
            predicted = model(**network_images(tiles[index], tiles.described, model.config)).logits.argmax(1)
        truth = tiles[index].label.flatten()
        assert np.array_equal(confusion, confusion_matrix(truth, predicted.flatten(), labels=[0, 1, 2]))


def test_a_part_that_was_frozen_in_evaluation_mode_stays_so(two_tiles: Tiles):
    model = Threshold().train()
    model.classify.eval()
    evaluate(model, two_tiles, [0])
    assert model.training and not model.classify.training


@pytest.mark.parametrize(("wanted", "names"), [("both", {"rgb", "sar"}), ("rgb", {"rgb"}), ("sar", {"sar"})])
def test_a_network_gets_the_modalities_that_it_uses(two_tiles: Tiles, wanted: Any, names: set[str]):
    images = network_images(two_tiles[1], two_tiles.described, PadConfig(input=wanted))
    expected = {
        "rgb": (two_tiles[1].images["optical"] - OPTICAL[0]) / OPTICAL[1],
        "sar": (two_tiles[1].images["sar"] - SAR[0]) / SAR[1],
    }
    assert images.keys() == names
    assert all(torch.allclose(images[name][0], expected[name]) for name in names)


# Robustness


def shown(tiles: Tiles, name: str, config: RobustnessConfig) -> dict[str, torch.Tensor]:
    """What the network gets of the first pair under a condition."""
    corrupt = {each.name: each.corrupt for each in conditions(config)}[name]
    return network_images(corrupt(tiles[0], 0), tiles.described, PadConfig())


def test_a_missing_modality_is_all_zeros_and_the_other_one_as_it_was(two_tiles: Tiles):
    clean = network_images(two_tiles[0], two_tiles.described, PadConfig())
    for name, gone, kept in ((NO_RGB, "rgb", "sar"), (NO_SAR, "sar", "rgb")):
        images = shown(two_tiles, name, RobustnessConfig())
        assert not images[gone].any() and torch.equal(images[kept], clean[kept])


@pytest.mark.parametrize(("value", "seen"), [(None, 0.0), (255.0, (255 - OPTICAL[0]) / OPTICAL[1])])
def test_clouds_cover_their_share_of_the_optical_image_alone(two_tiles: Tiles, value: float | None, seen: float):
    config = RobustnessConfig(clouds=(0.25,), cloud_value=value)
    clean = network_images(two_tiles[0], two_tiles.described, PadConfig())
    images = shown(two_tiles, "clouds 25%", config)
    changed = images["rgb"] != clean["rgb"]
    assert changed.sum() == 3 * 500 and torch.all(images["rgb"][changed] == seen)
    assert torch.equal(images["sar"], clean["sar"])


def test_scores_under_each_condition_are_those_of_a_hand_worked_case(two_tiles: Tiles):
    """Without RGB, SAR alone decides: 0 is no class 1 in the first image, 3 is everywhere in the second."""
    scores = robustness(Threshold(), two_tiles, config=RobustnessConfig(clouds=(0.5, 1.0)))
    assert list(scores) == [CLEAN, NO_RGB, NO_SAR, "clouds 50%", "clouds 100%"]
    assert scores[CLEAN].oa == pytest.approx(0.75)
    assert scores[NO_SAR].oa == 1.0
    assert scores[NO_RGB].oa == scores["clouds 100%"].oa == pytest.approx(0.5)
    assert scores[NO_RGB].oa < scores["clouds 50%"].oa < scores[CLEAN].oa


def test_a_network_of_one_modality_is_spoilt_by_what_it_sees_alone(tmp_path: Path):
    tiles = write_tiles(tmp_path, [make_pair(32, 32, 3, np.random.default_rng(0))], 3)
    for name, kept, lost in (("rgb", NO_SAR, NO_RGB), ("sar", NO_RGB, NO_SAR)):
        torch.manual_seed(0)
        model = Pad(PadConfig(size="atto", classes=3, input=name, sar_channels=1))
        scores = robustness(model, tiles, config=RobustnessConfig(clouds=(0.5,)))
        assert scores[kept] is scores[CLEAN] and lost not in scores
        assert (scores["clouds 50%"] is scores[CLEAN]) == (name == "sar")


def test_the_table_holds_percentages_and_the_figure_is_drawn(two_tiles: Tiles, tmp_path: Path):
    config = RobustnessConfig(clouds=(0.5,))
    scores = robustness(Threshold(), two_tiles, config=config)
    write_rows(tmp_path / "out" / "robustness.csv", score_rows(scores, list(two_tiles.described.classes)))
    with (tmp_path / "out" / "robustness.csv").open() as file:
        rows = {row["condition"]: row for row in csv.DictReader(file)}
    assert float(rows[CLEAN]["oa"]) == 75 and float(rows[NO_SAR]["iou_class 1"]) == 100
    assert rows.keys() == scores.keys()
    draw_clouds(tmp_path / "out" / "clouds.png", {"threshold": scores}, config)
    assert (tmp_path / "out" / "clouds.png").stat().st_size > 0


def test_shares_of_clouds_outside_0_to_1_are_refused():
    with pytest.raises(InputError, match=r"RobustnessConfig.clouds is 1.5; give a number above 0 to 1"):
        RobustnessConfig(clouds=(0.5, 1.5))


# Features


def test_separation_is_that_of_a_hand_worked_case():
    """Classes at 0, 1 and at 10, 11. Silhouettes (10.5 - 1) / 10.5 and (9.5 - 1) / 9.5; spreads of .5, 10 apart."""
    points, labels = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    scores = separation(points, labels)
    assert scores.silhouette == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    assert scores.davies_bouldin == pytest.approx(0.1)


def test_far_apart_classes_stay_so_in_the_embedding():
    """Two clusters of 60 dimensions, as wide as 1 and 100 apart: nearest silhouettes 1 - sqrt(120) / 100."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 40)
    features = rng.standard_normal((80, 60)).astype(np.float32)
    features[40:, 0] += 100
    result = embed(features, labels, seed=0)
    assert result.points.shape == (80, 2)
    assert result.features.silhouette == pytest.approx(1 - math.sqrt(120) / 100, abs=0.02)
    assert result.drawn.silhouette == pytest.approx(silhouette_score(result.points, labels))
    assert result.drawn.davies_bouldin == pytest.approx(davies_bouldin_score(result.points, labels))
    assert np.array_equal(result.points, embed(features, labels, seed=0).points)


@pytest.fixture
def patchwork(tmp_path: Path) -> Tiles:
    pairs = [make_pair(134, 150, 6, np.random.default_rng(seed)) for seed in range(3)]
    for pair in pairs:
        pair.label[:40] = IGNORE
    return write_tiles(tmp_path / "tiles", pairs, 6)


def test_drawn_cells_are_labelled_different_and_balanced(patchwork: Tiles):
    cells = sample_cells(patchwork, stage=2, per_class=15, images=2, seed=0)
    assert set(np.bincount(cells.label)) == {15}
    assert len(set(zip(*cells[:3], strict=True))) == 90
    assert len(np.unique(cells.image)) == 2 and np.all(np.diff(cells.image) >= 0)
    labels = [patchwork[image].label[8 * row + 4, 8 * column + 4] for image, row, column, _ in zip(*cells, strict=True)]
    assert np.array_equal(labels, cells.label)
    again, other = (sample_cells(patchwork, stage=2, per_class=15, images=2, seed=seed) for seed in (0, 1))
    assert np.array_equal(cells, again) and not np.array_equal(cells, other)


def test_a_class_with_few_places_gives_all_of_them(patchwork: Tiles):
    """At stride 32 a map of 134 x 150 pixels has 4 x 4 cells; the first row's middle lies in the unlabelled part."""
    cells = sample_cells(patchwork, stage=4, per_class=100, images=3, seed=0)
    assert len(cells.label) == 3 * 3 * 4


def test_features_are_those_of_the_maps_at_the_cells(patchwork: Tiles):
    cells = sample_cells(patchwork, stage=3, per_class=5, images=3, seed=0)
    features = cell_features(averaging_pad(6), patchwork, cells, 3)
    rows = zip(*cells[:3], *features.values(), strict=True)
    for image, row, column, rgb, sar, fused in rows:
        place = (slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        optical = (patchwork[image].images["optical"][place].mean(dim=(1, 2)).numpy() - OPTICAL[0]) / OPTICAL[1]
        radar = (patchwork[image].images["sar"][place].mean(dim=(1, 2)).numpy() - SAR[0]) / SAR[1]
        assert rgb == pytest.approx([*optical, 0], abs=1e-4)
        assert sar == pytest.approx([0, 0, 0, *radar], abs=1e-4)
        assert fused == pytest.approx([*optical, *radar], abs=1e-4)


def test_both_modalities_separate_what_one_alone_cannot(patchwork: Tiles, tmp_path: Path):
    """Two classes share each colour and each backscatter: by construction, only their sum knows all six."""
    path = tmp_path / "figures" / "features.png"
    found = feature_figure(averaging_pad(6), patchwork, path, stage=1, per_class=40)
    assert found["fused"].features.silhouette > 0.1 + max(found[name].features.silhouette for name in ("rgb", "sar"))
    assert found["fused"].features.davies_bouldin < min(found[name].features.davies_bouldin for name in ("rgb", "sar"))
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["map"], row["space"]) for row in rows[::2]] == [(name, "features") for name in ("rgb", "sar", "fused")]
    assert float(rows[4]["silhouette"]) == pytest.approx(found["fused"].features.silhouette, rel=1e-3)
    assert path.stat().st_size > 0


def test_features_that_cannot_be_compared_are_refused(patchwork: Tiles, tmp_path: Path):
    alone = Pad(PadConfig(size="atto", classes=6, input="rgb"))
    with pytest.raises(InputError, match="input is 'rgb', stage 4"):
        feature_figure(alone, patchwork, tmp_path / "figure.png")
    with pytest.raises(InputError, match="stage 5"):
        feature_figure(averaging_pad(6), patchwork, tmp_path / "figure.png", stage=5)
    one_class = write_tiles(tmp_path / "one", [flat_pair(*np.zeros((3, 40, 40)))], 2)
    with pytest.raises(InputError, match="places of 1 classes were drawn"):
        feature_figure(averaging_pad(2), one_class, tmp_path / "figure.png")
