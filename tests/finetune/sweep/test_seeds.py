"""Scores over seeds: hand-worked means, sample deviations as numpy's, one table and one file."""

import json
import math

import numpy as np
import pytest
import torch

from alliance.errors import InputError
from datasets.labelled import PatchSet, SplitConfig, make_split, scene_patches, split_report
from finetune.scores import Scores, classification_scores, write_scores
from finetune.sweep.classical import reference_scores
from finetune.sweep.seeds import (
    Results,
    SeedScores,
    Spread,
    class_table,
    collect,
    score_table,
    summarise,
    to_json,
)
from finetune.tasks.classification_seeds import reference_records, seed_scores
from tests.helpers.labelled_files import made_scene

# Two seeds of a task with three classes; class 2 has no test pixel at seed 1.
FIRST = [[8, 2, 0], [1, 4, 0], [0, 0, 5]]  # OA 17 / 20, classes 0.8 0.8 1.0
SECOND = [[9, 1, 0], [4, 6, 0], [0, 0, 0]]  # OA 15 / 20, classes 0.9 0.6, none


def record(seed: int, confusion: list[list[int]], *, leakage: float = 0.0, seconds: float = 1.0) -> SeedScores:
    return seed_scores(seed, classification_scores(torch.tensor(confusion)), leakage, seconds)


def results(*records: SeedScores) -> Results:
    counts = {part: {"grass": 2, "soil": 3, "water": 4} for part in ("train", "validation", "test")}
    splits = {one.seed: {**counts, "leakage": one.scores["leakage"]} for one in records}
    models = {"s2fin": summarise(records, 312_000), "svm: passive": summarise(records)}
    return Results(("grass", "soil", "water"), splits, models)


TWO = results(record(0, FIRST, leakage=0.25, seconds=3.0), record(1, SECOND, leakage=0.35, seconds=5.0))


def test_means_and_deviations_by_hand():
    one = TWO.models["s2fin"]
    oa = one.scores["oa"]
    assert oa.mean == pytest.approx(80) and oa.std == pytest.approx(10 / math.sqrt(2))  # 85 and 75
    assert one.scores["aa"].seeds == pytest.approx({0: 100 * 2.6 / 3, 1: 75.0})
    # chance of seed 0: (10 * 9 + 5 * 6 + 5 * 5) / 400 = 0.3625; of seed 1: (10 * 13 + 10 * 7) / 400 = 0.5
    assert one.scores["kappa"].seeds == pytest.approx({0: 100 * (0.85 - 0.3625) / 0.6375, 1: 50.0})
    assert one.scores["leakage"].mean == pytest.approx(30) and one.parameters == 312_000
    assert one.seconds == {0: 3.0, 1: 5.0}


def test_confusions_are_summed():
    assert torch.equal(TWO.models["s2fin"].confusion, torch.tensor(FIRST) + torch.tensor(SECOND))


def test_a_class_counts_in_the_seeds_that_test_it():
    grass, soil, water = TWO.models["s2fin"].per_class
    assert (grass.mean, soil.mean, water.mean) == pytest.approx((85, 70, 100))
    assert soil.std == pytest.approx(20 / math.sqrt(2)) and math.isnan(water.std) and math.isnan(water.seeds[1])


def test_spread_is_numpy_s_sample_deviation():
    shares = np.random.default_rng(0).random(10)
    spread = Spread.of(dict(enumerate(shares)))
    assert spread.mean == pytest.approx(100 * shares.mean()) and spread.std == pytest.approx(100 * shares.std(ddof=1))
    assert str(spread) == f"{100 * shares.mean():.1f} ± {100 * shares.std(ddof=1):.1f}"


def test_one_seed_has_no_deviation():
    assert str(Spread.of({3: 0.8})) == "80.0 ± -"
    assert "1 seed" in score_table(results(record(3, FIRST)))


def test_the_table_has_a_line_per_model_with_its_leakage():
    header, *lines = score_table(TWO).splitlines()
    assert " ".join(header.split()) == "percent, 2 seeds OA AA kappa x 100 leaking test pixels parameters"
    assert [line.split()[0] for line in lines] == ["s2fin", "svm:"]
    for line in lines:
        assert "80.0 ± 7.1" in line and "30.0 ± 7.1" in line
    assert lines[0].endswith("312,000") and lines[1].endswith("-")
    assert len({len(line) for line in (header, *lines)}) == 1


def test_the_table_of_classes_has_a_line_per_class():
    header, *lines = class_table(TWO, ["s2fin", "svm: passive"]).splitlines()
    assert header.split()[:3] == ["class", "train", "test"]
    assert lines[1].split() == ["soil", "3", "3", "70.0", "±", "14.1", "70.0", "±", "14.1"]
    assert lines[2].split() == ["water", "4", "4", "100.0", "±", "-", "100.0", "±", "-"]
    assert class_table(TWO).splitlines()[0].split() == ["class", "train", "test", "s2fin"]


def test_the_file_holds_percent_by_seed_and_null_where_nothing_is_defined(tmp_path):
    write_scores(tmp_path / "scores.json", to_json(TWO))
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found == to_json(TWO)
    assert set(found["oa"]) == {"mean", "std", "seeds"} and found["oa"]["seeds"] == {"0": 85.0, "1": 75.0}
    assert {"oa", "aa", "kappa", "leakage", "per_class", "confusion", "parameters", "seconds", "splits"} <= set(found)
    assert found["model"] == "s2fin" and found["classes"] == ["grass", "soil", "water"]
    assert found["per_class"]["mean"] == pytest.approx([85, 70, 100])
    assert found["per_class"]["seeds"]["1"] == [90.0, 60.0, None] and found["per_class"]["std"][2] is None
    assert found["splits"]["0"]["train"] == {"grass": 2, "soil": 3, "water": 4}
    assert found["splits"]["1"]["leakage"] == pytest.approx(35)
    assert found["references"]["svm: passive"]["oa"] == found["oa"]
    assert found["references"]["svm: passive"]["parameters"] is None


@pytest.mark.parametrize(
    "records",
    [[], [record(0, FIRST), record(0, SECOND)], [record(0, FIRST), record(1, [[1, 0], [0, 1]])]],
    ids=["none", "a seed twice", "other classes"],
)
def test_records_that_do_not_belong_together_are_refused(records):
    with pytest.raises(InputError, match="give each seed once, one task"):
        summarise(records)


@pytest.fixture(scope="module")
def patches() -> PatchSet:
    labels = np.random.default_rng(0).integers(1, 4, (16, 20))
    passive = labels + 0.1 * np.random.default_rng(1).normal(size=(4, 16, 20))
    return scene_patches([made_scene(labels, passive=passive.astype(np.float32))], patch=3)


def test_references_are_trained_and_tested_on_the_same_split(patches, monkeypatch):
    monkeypatch.setattr("finetune.sweep.classical.REFERENCES", (("svm", ("passive",)), ("svm", ("active",))))
    splits = {seed: make_split(patches, SplitConfig(kind="random", per_class=5), seed) for seed in (4, 7)}
    records = reference_records(patches, splits)
    assert list(records) == ["svm: passive", "svm: active"]
    for seed, split in splits.items():
        alone = reference_scores(patches, split, seed=seed)["svm: passive"]
        (found,) = (one for one in records["svm: passive"] if one.seed == seed)
        assert torch.equal(found.confusion, alone.confusion)
        assert found.confusion.sum() == len(split.test) and found.scores["leakage"] > 0.5
    reports = {seed: split_report(patches, split) for seed, split in splits.items()}
    perfect = [seed_scores(seed, _perfect(patches, split.test), 1.0, 2.0) for seed, split in splits.items()]
    collected = collect(patches.classes, reports, {"s2fin": summarise(perfect, 1000)}, records)
    assert list(collected.models) == ["s2fin", "svm: passive", "svm: active"]
    assert collected.models["s2fin"].scores["oa"].mean == 100
    assert collected.models["svm: passive"].scores["oa"].mean > 95
    assert collected.models["svm: active"].scores["oa"].mean < 60
    assert collected.splits[4]["train"] == dict.fromkeys(patches.classes, 5)
    assert not reference_records(patches, splits, ("forest",))
    with pytest.raises(InputError, match=r"scores of seeds \[4\], splits are of \[4, 7\]"):
        collect(patches.classes, reports, {"s2fin": summarise(perfect[:1])}, {})


def _perfect(patches: PatchSet, test: np.ndarray) -> Scores:
    return classification_scores(torch.from_numpy(np.diag(np.bincount(patches.label[test]))))
