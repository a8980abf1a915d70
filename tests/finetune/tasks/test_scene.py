"""finetune/scene.py and finetune/multilabel.py as a user runs them, on synthetic images."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, confusion_matrix

from alliance.errors import InputError
from datasets.synthetic.chips import write_chips
from engine.settings import parse_settings
from finetune.mapping.command import main as predict
from finetune.sweep.command import _claim
from finetune.tasks.chips_config import ChipTaskConfig, MultilabelConfig, SceneConfig
from finetune.tasks.chips_data import open_parts
from finetune.tasks.multilabel import MultilabelSeeds
from tests.helpers.rasters import counts, write_tiff
from tests.helpers.runs import PICTURE, PLAIN, ROOT, Ranks, metrics, records

CONFIGS = sorted((ROOT / "configs/finetune").glob("scene_*.yaml")) + sorted(
    (ROOT / "configs/finetune").glob("multilabel_*.yaml")
)
SMALL = [
    *(
        "--model.encoder.model",
        "alliance_nano_patch8",
        "--optim.batch",
        "8",
        "--optim.lr",
        "2e-3",
        "--data.workers",
        "1",
    ),
    *(
        "--run.log_every",
        "1",
        "--run.save_every",
        "2",
        "--run.keep",
        "9",
        "--resamples",
        "20",
        *PLAIN,
    ),
]


def run(task: str, folder: Path, data: Path, *arguments: str, ranks: int = 1) -> list[tuple[int, str]]:
    """Exit codes and outputs of a run."""
    script = str(ROOT / f"finetune/{task}.py")
    given = ["--run.dir", str(folder), "--data.path", str(data), *SMALL, *arguments]
    return Ranks([script, *given], ranks).wait()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 24 pixels, 3 classes."""
    folder = tmp_path_factory.mktemp("chips") / "chips"
    write_chips(folder, chips=60, size=24, classes=3)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "scene"
    ((code, output),) = run("scene", folder, images, "--run.steps", "12", "--evaluate_every", "4")
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "multilabel"
    own = ("--data.labels", "table", "--run.steps", "4", "--evaluate_every", "2", "--augment.mixup", "0.8", *PICTURE)
    ((code, output),) = run("multilabel", folder, images, *own)
    assert code == 0, output
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[list[Any]]:
    return [[each[name] for name in ("step", "loss", "lr", "sample_digest")] for each in metrics(folder)]


def test_scores_are_those_of_the_predictions_as_scikit_learn_counts_them(scene: Path) -> None:
    scores, said = json.loads((scene / "scores.json").read_text()), rows(scene / "predictions.csv")
    truth, found = [row["truth"] for row in said], [row["label"] for row in said]
    assert (scores["split"], scores["images"], len(said)) == ("test", 12, 12)
    assert scores["oa"] == pytest.approx(100 * accuracy_score(truth, found), abs=0.006)
    assert scores["aa"] == pytest.approx(100 * balanced_accuracy_score(truth, found), abs=0.006)
    assert scores["confusion"] == confusion_matrix(truth, found, labels=scores["classes"]).tolist()
    assert scores["oa_interval"][0] <= scores["oa"] <= scores["oa_interval"][1]
    assert scores["chosen on"]["split"] == "validation"
    evaluated = [
        each["oa"] for each in records(scene) if each.get("event") == "scores" and each["split"] == "validation"
    ]
    assert len(evaluated) == 3 and scores["chosen on"]["oa"] == max(evaluated)
    for row in said:
        chances = {name: float(row[f"p_{name}"]) for name in scores["classes"]}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5) and row["label"] == max(
            chances, key=chances.__getitem__
        )


def test_the_splits_are_written_and_serve_again(scene: Path, images: Path, tmp_path: Path) -> None:
    """Each class 0.6, 0.2, 0.2; a run on the written table has the very same images in each split."""
    said = rows(scene / "splits.csv")
    assert {name: sum(row["split"] == name for row in said) for name in ("train", "validation", "test")} == {
        "train": 36, "validation": 12, "test": 12
    }  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "labels.csv").unlink()
    shutil.copy(scene / "splits.csv", data)
    config = parse_settings(SceneConfig, "", ["--run.dir", "x", "--data.path", str(data), "--data.labels", "table"])
    parts = open_parts(config.data, several=False, seed=0)
    assert not parts.drawn and {name: sorted(part.keys) for name, part in parts.chips.items()} == {
        name: sorted(row["file"] for row in said if row["split"] == name) for name in parts.chips
    }


def test_a_trained_network_labels_a_folder_as_it_did_in_its_run(scene: Path, images: Path, tmp_path: Path) -> None:
    out, ground = tmp_path / "labels.csv", tmp_path / "labels.geojson"
    predict(["--checkpoint", str(scene), "--images", str(images), "--out", str(out), "--footprints", str(ground)])
    said = {row["file"]: row for row in rows(out)}
    assert len(said) == 60
    for row in rows(scene / "predictions.csv"):
        assert said[row["file"]]["label"] == row["label"]
        for name in ("forest", "water"):
            assert float(said[row["file"]][f"p_{name}"]) == pytest.approx(float(row[f"p_{name}"]), abs=2e-5)
    features = json.loads(ground.read_text())["features"]
    assert len(features) == 60 and {each["properties"]["file"] for each in features} == said.keys()


def test_predict_names_what_it_cannot_read_and_refuses_what_does_not_fit(
    scene: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(images / "water", data)
    broken = sorted(data.iterdir())[1]
    broken.write_bytes(b"no image")
    write_tiff(tmp_path / "other" / "a.tif", counts((3, 24, 24)), names=("B01", "B02", "B09"))
    given = ["--checkpoint", str(scene), "--out", str(tmp_path / "labels.csv")]
    predict([*given, "--images", str(data)])
    told = capsys.readouterr().out
    assert (
        f"left out: {broken.name}: {broken}" in told
        and "labels of 19 images in" in told
        and "1 could not be read" in told
    )
    for wrong, message in (
        ([], "labels whole images; give --images PATH"),
        (["--images", str(data), "--image", "a=b"], "give --images PATH, and omit --image"),
        (
            ["--images", str(data), "--out", str(tmp_path / "map.tif")],
            "map.tif is written as CSV; let its name end in .csv",
        ),
        (["--images", str(tmp_path / "other")], "none of 1 images can be read: a.tif: bands B01, B02"),
        (["--images", str(tmp_path / "nowhere")], "nowhere: no such file or folder"),
        (
            ["--images", str(data), "--batch", "0"],
            "argument --batch: '0' is not allowed; give a whole number from 1 to",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            predict([*given, *wrong])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_scores_of_several_labels(multilabel: Path) -> None:
    scores, said = json.loads((multilabel / "scores.json").read_text()), rows(multilabel / "predictions.csv")
    truth = np.array([[name in row["truth"].split(";") for name in scores["classes"]] for row in said])
    chances = np.array([[float(row[f"p_{name}"]) for name in scores["classes"]] for row in said])
    for average in ("micro", "macro"):
        assert scores[f"map_{average}"] == pytest.approx(
            100 * average_precision_score(truth, chances, average=average), abs=0.01
        )
    assert scores["positives"] == dict(zip(scores["classes"], truth.sum(axis=0).tolist(), strict=True))
    assert all(set(row["label"].split(";")) - {""} <= set(scores["classes"]) for row in said)
    assert (multilabel / "pictures" / "step_00000004.png").stat().st_size > 10_000


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_goes_on_from_a_checkpoint_with_the_same_numbers(
    scene: Path, images: Path, tmp_path: Path, ranks: int
) -> None:
    """To the last digit on one rank; two ranks add in another order."""
    folder = tmp_path / "run"
    shutil.copytree(scene, folder)
    for path in folder.glob("checkpoints/step_*"):
        if path.name > "step_00000006":
            shutil.rmtree(path)
    (folder / "scores.json").unlink()
    own = ("--run.steps", "12", "--evaluate_every", "4", "--run.resume", "auto")
    for code, output in run("scene", folder, images, *own, ranks=ranks):
        assert code == 0, output
    if ranks == 1:
        assert losses(folder) == losses(scene)
        assert (folder / "scores.json").read_text() == (scene / "scores.json").read_text()
        assert (folder / "predictions.csv").read_text() == (scene / "predictions.csv").read_text()
    else:
        for one, two in zip(losses(folder), losses(scene), strict=True):
            assert one[0] == two[0] and one[3] == two[3] and one[1] == pytest.approx(two[1], rel=1e-3)
    ((code, output),) = run("scene", folder, images, *own, "--data.split_seed", "1")
    assert code == 2 and "belongs to a run with another data" in output
    data = tmp_path / "data"
    shutil.copytree(images, data)
    for other in sorted((data / "forest").iterdir()):
        shutil.copy(sorted((data / "water").iterdir())[0], other)
    ((code, output),) = run("scene", folder, data, *own)
    assert code == 2 and "belongs to a run with another data" in output


def test_a_run_survives_damaged_images_and_counts_them(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    for path in [each for name in ("water", "forest") for each in sorted((data / name).iterdir())[2:9:3]]:
        path.write_bytes(path.read_bytes()[:100])
    ((code, output),) = run("scene", tmp_path / "run", data, "--run.steps", "8", "--evaluate_every", "8")
    assert code == 0, output
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    skipped = [each for each in records(tmp_path / "run") if each.get("event") == "skipped"]
    broken = scores.get("broken", 0) + scores["chosen on"].get("broken", 0)
    assert sum(each["causes"]["pair"] for each in skipped) > 0 and str(data) in skipped[0]["samples"][0]
    assert output.count("not scored: ") == broken and scores["images"] == 12 - scores.get("broken", 0)


def test_several_seeds_make_one_table(images: Path, tmp_path: Path) -> None:
    own = ("--data.labels", "table", "--run.steps", "2", "--evaluate_every", "2", "--seeds", "0,1", "--jobs", "1")
    own += ("--data.per_class", "4")
    ((code, output),) = run("multilabel", tmp_path / "runs", images, *own)
    assert code == 0, output
    table = json.loads((tmp_path / "runs" / "scores.json").read_text())
    each = [json.loads((tmp_path / "runs" / f"seed_{seed}" / "scores.json").read_text()) for seed in (0, 1)]
    assert table["map_micro"]["mean"] == pytest.approx(np.mean([one["map_micro"] for one in each]))
    assert [row for row in output.splitlines() if "mAP micro" in row and "percent, 2 seeds" in row]
    split = [rows(tmp_path / "runs" / f"seed_{seed}" / "splits.csv") for seed in (0, 1)]
    few = [{row["file"] for row in one if row["split"] == "train"} for one in split]
    others = [[row for row in one if row["split"] != "train"] for one in split]
    assert few[0] != few[1] and others[0] == others[1]
    config = parse_settings(
        MultilabelConfig, "", ["--run.dir", str(tmp_path / "runs"), "--data.path", str(images), *SMALL, *own]
    )
    data, config = tmp_path / "data", dataclasses.replace(config, run=dataclasses.replace(config.run, resume="auto"))
    shutil.copytree(images, data)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(data)))
    _claim(MultilabelSeeds(), moved, None)  # the same files elsewhere
    labels = (data / "labels.csv").read_text()
    (data / "labels.csv").write_text(labels.replace(";cropland", "", 1))
    with pytest.raises(InputError, match="another contents of images, labels"):
        _claim(MultilabelSeeds(), moved, None)
    (data / "labels.csv").write_text(labels)
    shutil.copy(*sorted((data / "water").iterdir())[:2])  # no seed need have learnt from it
    with pytest.raises(InputError, match="another contents of images"):
        _claim(MultilabelSeeds(), moved, None)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data.test": "holdout"},
            "there are no images of split holdout, but of train (36), validation (12), test (12)",
        ),
        ({"data.evaluate": "train"}, "data.train is train, scored are train and test"),
        ({"data.split": "[1.0, 0.0, 0.0]"}, "data.split is [1.0, 0.0, 0.0]; give the shares"),
        ({"data.split": "[0.5, 0.2, 0.2]"}, "which add up to 1"),
        ({"data.image.sensor": "sentinel2-l2a"}, "sensor sentinel2-l2a has 12"),
        ({"data.per_class": "0"}, "data.per_class is 0; give a whole number from 1"),
        ({"data.labels": "masks"}, "labels of masks need the description of a set"),
    ],
)
def test_mistakes_are_one_line(images: Path, settings: dict[str, str], message: str) -> None:
    given = [part for name, text in settings.items() for part in (f"--{name}", text)]
    with pytest.raises(InputError) as refused:
        config = parse_settings(SceneConfig, "", ["--run.dir", "x", "--data.path", str(images), *given])
        open_parts(config.data, several=False, seed=0)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_test_images_that_also_train_are_refused_or_counted(images: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(images, tmp_path / split, ignore=shutil.ignore_patterns("labels.csv", "*.txt"))
    settings = ["--run.dir", "x", "--data.path", str(tmp_path)]
    with pytest.raises(InputError, match="60 of 60 images of test also stand in train"):
        open_parts(parse_settings(SceneConfig, "", settings).data, several=False, seed=0)
    counted = parse_settings(SceneConfig, "", [*settings, "--data.overlap", "count"]).data
    assert len(open_parts(counted, several=False, seed=0).chips["test"]) == 60


# Configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_read_and_say_their_command(path: Path) -> None:
    kind: type[ChipTaskConfig] = SceneConfig if path.stem.startswith("scene") else MultilabelConfig
    config = parse_settings(kind, "", ["--config", str(path), "--run.dir", "x"])
    assert f"--config configs/finetune/{path.name}" in path.read_text()
    assert config.data.size is not None and not config.data.size % 8
    assert config.run.steps % config.evaluate_every == 0


def test_the_classes_of_bigearthnet_are_the_published_19_of_43() -> None:
    data = yaml.safe_load((ROOT / "configs/finetune/multilabel_bigearthnet.yaml").read_text())["data"]
    kept = {name for name in data["merge"].values() if name}
    plain = set(data["classes"]) - kept
    assert len(data["classes"]) == 19 and kept <= set(data["classes"])
    assert len(data["merge"]) + len(plain) == 43 and sum(not name for name in data["merge"].values()) == 11


def test_bigearthnet_and_dubai_are_found_as_configured(shared_data: Path) -> None:
    given = {
        "multilabel_bigearthnet": [
            "--data.path",
            str(shared_data / "bigearthnet/S2"),
            "--data.split",
            "[0.5, 0.0, 0.5]",
        ],
        "multilabel_dubai": [
            "--data.path",
            str(shared_data / "dubai"),
            "--data.window",
            "512",
            "--data.overlap",
            "ignore",
        ],
    }
    found = {}
    for name, own in given.items():
        arguments = ["--config", str(ROOT / f"configs/finetune/{name}.yaml"), "--run.dir", "x", *own]
        found[name] = open_parts(parse_settings(MultilabelConfig, "", arguments).data, several=True, seed=0)
    chips = found["multilabel_bigearthnet"].found.chips
    assert len(chips) == 4 and {"Arable land", "Pastures"} in [set(chip.labels) for chip in chips]
    assert {
        "Coniferous forest",
        "Mixed forest",
        "Transitional woodland, shrub",
        "Inland wetlands",
        "Inland waters",
    } in [set(chip.labels) for chip in chips]
    assert list(found["multilabel_dubai"].chips) == ["train", "validation", "test"]
    assert found["multilabel_dubai"].found.classes == ("building", "land", "road", "vegetation", "water")
