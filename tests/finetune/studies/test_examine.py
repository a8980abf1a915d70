"""finetune/examine.py on a synthetic set: its tables and figures, and mistakes in one line."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE, LabelSource
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import write_set
from datasets.labelled.tiles import Tiles
from datasets.synthetic.pair_trees import write_plain
from datasets.synthetic.pairs import make_pair
from finetune.model_files import Inputs, image_input
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.fusion import FusionConfig
from finetune.pad.inputs import as_seen_by, describe
from finetune.pad.model import Pad, PadConfig
from finetune.scores import OVERALL
from finetune.studies.command import main
from finetune.tasks.evaluate import predict
from tests.helpers.models import randomise
from tests.helpers.pad_networks import write_tiles

CLASSES = 3
ATTO = PadConfig(size="atto", classes=CLASSES, sar_channels=1)
CONFIGS = {
    "both": ATTO,
    "rgb": replace(ATTO, input="rgb"),
    "sar": replace(ATTO, input="sar"),
    "early": replace(ATTO, early_fusion=True, fusion=FusionConfig(stages=(1,))),
    "five": replace(ATTO, classes=5),
    "three channels": replace(ATTO, sar_channels=3),
}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    """Two pairs of 32 x 48 pixels and their description, pairs.yaml."""
    root = tmp_path_factory.mktemp("pairs")
    tiles = write_tiles(root, [make_pair(32, 48, CLASSES, np.random.default_rng(seed)) for seed in range(2)], CLASSES)
    write_set(tiles.described, root / "pairs.yaml")
    return tiles


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiles: Tiles) -> Path:
    """Run folders with untrained networks."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = Pad(config)
        randomise(model, std=0.05)
        save_pad(config, model.state_dict(), folder / name / "model", **describe(tiles.described))
    return folder


def examine(run: Path, tiles: Tiles, out: Path, *arguments: str) -> list[dict[str, str]]:
    """Rows of robustness.csv."""
    description = str(tiles.described.root / "pairs.yaml")
    main(["--checkpoint", str(run), "--set", description, "--out", str(out), "--device", "cpu", *arguments])
    return rows_of(out / "robustness.csv")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables_and_figures_are_written(
    tiles: Tiles, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per condition; that of clean images as scikit-learn counts them."""
    rows = examine(runs / "both", tiles, tmp_path / "out", "--stage", "1", "--clouds", "0.5", "0.25")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"robustness.csv", "robustness.png", "features.csv", "features.png"}
    assert [row["condition"] for row in rows] == ["clean", "no rgb", "no sar", "clouds 25%", "clouds 50%"]
    network = load_pad(runs / "both" / "model")
    truth, found = (
        np.concatenate(parts)
        for parts in zip(
            *((pair.label.numpy().ravel(), predict(network, pair, tiles.described).numpy().ravel())
              for pair in (tiles[0], tiles[1])), strict=True,
        )
    )  # fmt: skip
    assert IGNORE not in truth
    present = sorted({*truth, *found})
    assert float(rows[0]["oa"]) == pytest.approx(100 * accuracy_score(truth, found), rel=1e-3)
    expected = 100 * jaccard_score(truth, found, labels=present, average="macro")
    assert float(rows[0]["miou"]) == pytest.approx(expected, rel=1e-3)
    for row in rows:
        assert list(row) == ["condition", *OVERALL, *(f"iou_class {index}" for index in range(CLASSES))]
        assert all(0 <= float(value) <= 100 for name, value in row.items() if name in ("oa", "miou", "mf1"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said[:5]] == [row["condition"] for row in rows]
    assert said[-1] == f"tables and figures are in {tmp_path / 'out'}" and len(said) == 5 + 3 + 1


def test_features_are_compared_before_and_after_fusion(tiles: Tiles, runs: Path, tmp_path: Path) -> None:
    """Stage 2 has stride 8: 4 x 6 cells in each of two images."""
    examine(runs / "both", tiles, tmp_path, "--stage", "2", "--clouds", "0.5")
    rows = rows_of(tmp_path / "features.csv")
    assert [row["map"] for row in rows[::2]] == ["rgb", "sar", "fused"]
    assert {row["stage"] for row in rows} == {"2"} and {row["points"] for row in rows} == {"48"}
    assert all(-1 <= float(row["silhouette"]) <= 1 for row in rows)


def test_a_network_of_one_image_has_no_fusion_to_compare(tiles: Tiles, runs: Path, tmp_path: Path) -> None:
    rows = examine(runs / "sar" / "model", tiles, tmp_path, "--clouds", "0.5")
    assert not list(tmp_path.glob("features.*"))
    clean, no_rgb, clouds = rows
    assert (clean["condition"], no_rgb["condition"], clouds["condition"]) == ("clean", "no rgb", "clouds 50%")
    assert list(clean.values())[1:] == list(no_rgb.values())[1:] == list(clouds.values())[1:]


def test_after_early_fusion_stage_1_is_compared(tiles: Tiles, runs: Path, tmp_path: Path) -> None:
    examine(runs / "early", tiles, tmp_path, "--clouds", "0.5", "--stage", "4")
    assert {row["stage"] for row in rows_of(tmp_path / "features.csv")} == {"1"}


def test_another_description_of_the_same_pairs_gives_the_same_scores(tiles: Tiles, runs: Path, tmp_path: Path) -> None:
    """Classes in another order, other statistics and bands: classes go by name, images as the network was trained."""
    described = tiles.described
    names = list(described.classes)[::-1]
    values = {stored: 255 if own == 255 else len(names) - 1 - own for stored, own in described.label.table(3).items()}
    images = {role: replace(source, mean=(1.0,) * len(source.bands), std=(9.0,) * len(source.bands)) for role, source in
              described.images.items()}  # fmt: skip
    images["optical"] = replace(images["optical"], bands=images["optical"].bands[::-1])
    other = replace(described, images=images, classes={name: described.classes[name] for name in names},
                    label=replace(described.label, values=values))  # fmt: skip
    write_set(other, described.root / "other.yaml")
    main(["--checkpoint", str(runs / "both"), "--set", str(described.root / "other.yaml"), "--out", str(tmp_path / "other"),
          "--device", "cpu", "--stage", "1"])  # fmt: skip
    own = examine(runs / "both", tiles, tmp_path / "own", "--stage", "1")
    found = rows_of(tmp_path / "other" / "robustness.csv")
    assert found == own


def test_classes_that_the_network_does_not_know_are_refused_and_can_be_left_out(
    tiles: Tiles, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mend that is advised works: scores are those of the other classes' pixels, as scikit-learn counts them."""
    classes = dict(zip(["class 0", "class 1", "salt lake"], tiles.described.classes.values(), strict=True))
    own = tmp_path / "lake.yaml"
    write_set(replace(tiles.described, classes=classes), own)
    given = ["--checkpoint", str(runs / "both"), "--set", str(own), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit, match="2"):
        main(given)
    told = capsys.readouterr().err
    assert "the network knows class 0, class 1, class 2, synthetic names salt lake" in told
    assert "--drop-classes 'salt lake'" in told
    main([*given, "--stage", "1", "--clouds", "0.5", "--drop-classes", "salt lake"])
    network = load_pad(runs / "both" / "model")
    truth = np.concatenate([pair.label.numpy().ravel() for pair in (tiles[0], tiles[1])])
    found = np.concatenate([predict(network, pair, tiles.described).numpy().ravel() for pair in (tiles[0], tiles[1])])
    known = truth < 2
    clean = rows_of(tmp_path / "out" / "robustness.csv")[0]
    assert 0 < known.sum() < len(known)
    assert float(clean["oa"]) == pytest.approx(100 * accuracy_score(truth[known], found[known]), rel=1e-3)


@pytest.mark.parametrize("same", [False, True], ids=["another colour", "the colour of what is left out"])
def test_maps_of_colours_keep_their_meaning_for_a_network_of_other_classes(same: bool, tmp_path: Path) -> None:
    """The network calls blue `sea`, the set `lake`: once that is left out, blue has no label."""
    land, town, blue = (10, 200, 10), (200, 10, 10), (0, 0, 255)
    painted = np.array([land, town, blue], np.uint8)[np.array([[0, 1, 2], [2, 1, 0]])]
    write_plain(tmp_path / "label" / "a.tif", np.moveaxis(painted, -1, 0))
    for role, bands in (("optical", 3), ("sar", 1)):
        write_plain(tmp_path / role / "a.tif", np.ones((bands, 2, 3), np.uint8))
    images = {"optical": ImageSource(files="optical", bands=(1, 2, 3), dtype="uint8", mean=(1,) * 3, std=(1,) * 3),
              "sar": ImageSource(files="sar", bands=(1,), dtype="uint8", mean=(1,), std=(1,))}  # fmt: skip
    described = LabelledSet(name="own", root=tmp_path, images=images, label=LabelSource(files="label"),
                            classes={"land": land, "town": town, "lake": blue}, splits={"test": None})  # fmt: skip
    known = {"sea": blue if same else (0, 0, 9), "town": (1, 1, 1), "land": (2, 2, 2)}
    inputs = Inputs(classes=known, images={role: image_input(source) for role, source in images.items()})
    seen = as_seen_by(described.without(["lake"]), inputs)
    assert list(seen.classes) == ["sea", "town", "land"]
    assert Tiles(seen, "test").label(0).tolist() == [[2, 1, IGNORE], [IGNORE, 1, 2]]


def test_clouds_may_be_white_and_the_seed_moves_them(tiles: Tiles, runs: Path, tmp_path: Path) -> None:
    """Clean images and those without SAR stay; what is under the clouds differs."""
    options = ({}, {"--cloud-value": "255"}, {"--seed": "3"})
    masked, white, moved = (
        examine(runs / "rgb", tiles, tmp_path, "--clouds", "0.5", *(text for pair in more.items() for text in pair))
        for more in options
    )
    assert [row["condition"] for row in masked] == ["clean", "no sar", "clouds 50%"]
    assert masked[:2] == white[:2] == moved[:2]
    assert masked[2] != white[2] and masked[2] != moved[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--checkpoint": "runs/five"}, "error: runs/five/model/config.json: the network tells 5 classes apart, 'classes' "
         "names 3"),
        ({"--checkpoint": "runs/gone"}, "error: runs/gone holds no trained network (model.safetensors, config.json), as there is no such folder; give a"),
        ({"--checkpoint": "runs/three channels"}, "error: runs/three channels/model/config.json: the network takes 3 "
         "sar bands"),
        ({"--set": "gone.yaml"}, "error: gone.yaml: there is no such file"),
        ({"--split": "train"}, "error: synthetic has no split 'train'; it has test"),
        ({"--path": "runs"}, "error: runs/optical is not a folder; files are looked for there"),
        ({"--clouds": "1.5"}, "error: argument --clouds: '1.5' is not allowed; give a number above 0 to 1"),
        ({"--out": "pairs.yaml"}, "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(
    tiles: Tiles, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str,
) -> None:  # fmt: skip
    (tmp_path / "runs").symlink_to(runs)
    write_set(tiles.described, tmp_path / "pairs.yaml")
    monkeypatch.chdir(tmp_path)
    given = {"--checkpoint": "runs/both", "--set": "pairs.yaml", "--out": "out", "--device": "cpu"} | change
    with pytest.raises(SystemExit, match="2"):
        main([part for option in given.items() for part in option])
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
