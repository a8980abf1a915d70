"""Synthetic labelled scenes: read as the data sets whose layout they have, honest about themselves, built as promised."""

import numpy as np
import pytest
import rasterio

from alliance.errors import InputError
from datasets.labelled import SplitConfig, find_set, make_split, open_patches, read_scenes, split_report
from datasets.labelled.find import find_scenes
from datasets.synthetic.command import main
from datasets.synthetic.labelled_scenes import (
    SETS,
    SyntheticOptions,
    class_spectra,
    deal_parcels,
    draw_sar,
    make_arrays,
    write_labelled,
)
from finetune.sweep.classical import score

LAYOUTS = [(name, number) for name in SETS for number in range(1, len(find_set(name).layouts) + 1)]
BANDS = {"houston2013": (144, 1), "augsburg": (180, 4), "yellow-river-estuary": (64, 4), "lcz-hk": (10, 4)}


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
def test_every_layout_is_read_and_split(name, number, tmp_path):
    write_labelled(name, tmp_path / "set", layout=number)
    described = find_set(name, tmp_path / "set")
    assert find_scenes(described) == [("set", described.layouts[number - 1])]
    (scene,) = read_scenes(described)
    assert (scene.passive.shape, scene.active.shape) == tuple((count, 64, 96) for count in BANDS[name])
    patches = open_patches(described)
    assert patches.classes == tuple(described.classes)[:6]
    report = split_report(patches, make_split(patches, SplitConfig(kind="auto", cap=True, side=16), 0))
    for part, least in (("train", 20), ("validation", 10), ("test", 50)):
        assert min(report[part].values()) >= least
    assert 0 < report["leakage"] < 0.8


def test_it_says_that_nothing_is_measured(tmp_path):
    write_labelled("houston2013", tmp_path, layout=3, height=40, width=40, classes=2)
    assert "Nothing in this folder is measured" in (tmp_path / "SYNTHETIC.txt").read_text()
    for path in tmp_path.glob("*.tif"):
        with rasterio.open(path) as file:
            assert file.tags()["SYNTHETIC"] == "yes" and file.crs is not None
    assert len(list(tmp_path.glob("*.tif"))) == 2


def test_a_seed_gives_one_scene():
    one, same, other = (make_arrays("sar", 10, SyntheticOptions(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[role], same[role]) for role in one)
    assert not np.array_equal(one["labels"], other["labels"])


def test_official_pixels_are_labelled_and_serve_once():
    arrays = make_arrays("height", 10, SyntheticOptions())
    train, test, labels = (arrays[role] for role in ("train", "test", "labels"))
    assert not ((train > 0) & (test > 0)).any()
    assert np.array_equal(train + test, labels)
    assert sorted(np.unique(labels)) == list(range(7))
    assert arrays["passive"].dtype == arrays["active"].dtype == np.float32


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_every_class_gets_parcels_for_training_and_test(classes):
    land, role = deal_parcels(np.full(4 * classes, 100), classes, np.random.default_rng(0))
    for k in range(classes):
        assert {1, 2} <= set(role[land == k])


@pytest.mark.parametrize("bands", [10, 64, 180])
def test_the_second_and_the_third_of_three_classes_look_alike(bands):
    spectra = class_spectra(6, bands, np.random.default_rng(0))
    assert spectra.shape == (6, bands) and (spectra > 0).all() and (spectra < 1).all()
    assert [len(np.unique(three, axis=0)) for three in (spectra[:3], spectra[3:], spectra)] == [2, 2, 4]
    assert np.array_equal(spectra[1], spectra[2])


def test_three_classes_are_apart_in_high_frequencies_and_threes_in_low_ones():
    """Share of the power of a difference beyond a tenth of Nyquist."""
    spectra = class_spectra(6, 144, np.random.default_rng(0))
    inside, between = (np.abs(np.fft.rfft(spectra[1] - spectra[k])) ** 2 for k in (0, 4))
    assert inside[8:].sum() > 0.7 * inside.sum()
    assert between[8:].sum() < 0.1 * between.sum()


def test_sar_is_a_covariance_with_the_coherence_of_its_class():
    """|VV VH*|^2 <= |VV|^2 |VH|^2 in every pixel; over many pixels the coherence comes out."""
    side = 300
    parcel = np.zeros((side, side), dtype=int)
    vv, vh, real, imaginary = np.moveaxis(
        draw_sar(np.array([2]), parcel, np.zeros((side, side)), np.random.default_rng(0)), -1, 0
    )
    assert (real**2 + imaginary**2 <= vv * vh * (1 + 1e-9)).all()
    assert vv.mean() == pytest.approx(10**-0.5, rel=0.02) and vh.mean() == pytest.approx(10**-1.15, rel=0.02)
    assert np.hypot(real.mean(), imaginary.mean()) / np.sqrt(vv.mean() * vh.mean()) == pytest.approx(0.6, abs=0.02)
    assert vv.std() / vv.mean() == pytest.approx(1 / np.sqrt(4), rel=0.03)  # of 4 looks


def test_both_images_together_tell_more_than_either(tmp_path):
    """By construction the passive image tells two thirds at best, the active one a third of classes in two threes."""
    write_labelled("lcz-hk", tmp_path)
    patches = open_patches(find_set("lcz-hk", tmp_path))
    split = make_split(patches, SplitConfig(), 0)
    both, passive, active = (
        score(patches, split, "svm", parts, seed=0).oa
        for parts in (("passive", "active"), ("passive",), ("active",))
    )  # fmt: skip
    assert both > 0.85 and passive < 0.75 and active < 0.6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("berlin", {}, "no synthetic scenes are known for 'berlin'"),
        ("augsburg", {"layout": 3}, "layout 3: augsburg has layouts 1 to 2"),
        ("augsburg", {"classes": 8, "width": 200}, "8 classes were asked for, augsburg has 7"),
        ("augsburg", {"height": 10}, "SyntheticOptions.height is 10; give a whole number from 24"),
        ("augsburg", {"classes": 1}, "SyntheticOptions.classes is 1; give a whole number from 2"),
        ("augsburg", {"height": 24, "width": 24}, "6 classes have no room on 24 x 24 pixels; give at most 0, or more"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_labelled(name, tmp_path, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["scenes", "--scenes", "1", "--size", "48", "--cube", "0"],
        ["lcz-hk", "--height", "40", "--width", "40", "--classes", "2"],
        ["whu-opt-sar", "--height", "40", "--width", "40"],
        ["ddhr-sk", "--pairs", "2"],
    ],
)
def test_the_command_writes_once(arguments, tmp_path, capsys):
    arguments = [*arguments, str(tmp_path / "set")]
    main(arguments)
    assert "nothing is measured" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "is not empty, and nothing in it is overwritten; give a new folder" in capsys.readouterr().err
