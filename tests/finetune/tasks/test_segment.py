"""finetune/segment.py as a user runs it, on synthetic scenes in the layout of WHU-OPT-SAR."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Tiles
from datasets.releases.command import main as prepare
from datasets.synthetic.pair_trees import write_whu
from engine.ranks import World
from engine.settings import parse_settings
from engine.signals import StopRequest
from engine.watch import Watch
from finetune.pad.checkpoint import load_pad
from finetune.tasks.evaluate import predict
from finetune.tasks.segmentation import Segmentation
from finetune.tasks.segmentation_config import SegmentConfig
from tests.helpers.runs import PICTURE, PLAIN, ROOT, Ranks, metrics, records

SMALL = [
    *(
        "--config",
        str(ROOT / "configs/finetune/segment_whu_opt_sar.yaml"),
        "--model.size",
        "atto",
        "--augment.crop",
        "32",
    ),
    *(
        "--run.steps",
        "4",
        "--run.save_every",
        "2",
        "--run.log_every",
        "1",
        "--run.keep",
        "9",
        *PLAIN,
    ),
    *("--evaluate_every", "2", "--optim.lr", "1e-3", "--data.workers", "1"),
]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 tiles of 32 pixels in test, some less in train, where a scene is a pixel narrower."""
    root = tmp_path_factory.mktemp("whu")
    write_whu(root / "raw", height=64, width=96)
    prepare(["whu-opt-sar", str(root / "raw"), str(root / "tiles"), "--tile", "32", "--constants", "released"])
    return root / "tiles" / "pairs.yaml"


def segment(folder: Path, pairs: Path, *arguments: str, ranks: int = 1) -> list[tuple[int, str]]:
    """Exit codes and outputs of a run."""
    script = str(ROOT / "finetune/segment.py")
    return Ranks([script, *SMALL, "--run.dir", str(folder), "--data.set", str(pairs), *arguments], ranks).wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pad"
    ((code, output),) = segment(folder, tiles, *PICTURE)
    assert code == 0, output
    return folder


def losses(folder: Path) -> list[list[object]]:
    names = ("step", "loss", "loss_seg", "loss_aux", "loss_amp", "lr", "grad_norm", "epoch", "sample_digest")
    return [[record[name] for name in names] for record in metrics(folder)]


def predictions(folder: Path, pairs: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of all labelled test pixels, by the exported network."""
    model, described = load_pad(folder / "model"), find_set(pairs)
    test = [Tiles(described, "test")[index] for index in range(len(Tiles(described, "test")))]
    truth = np.concatenate([pair.label.numpy().ravel() for pair in test])
    found = np.concatenate([predict(model, pair, described).numpy().ravel() for pair in test])
    return truth[truth != IGNORE], found[truth != IGNORE]


def test_a_run_ends_with_scores_a_network_and_a_picture(finished: Path, tiles: Path) -> None:
    """The exported network gives the scores that are written, as scikit-learn counts them."""
    chosen = re.search(
        r"chosen on test, .* without looking at those; \S+ has (.*)", (finished / "train.log").read_text()
    )
    assert chosen and {"train", "test"} <= set(chosen[1].split(", "))
    scores = json.loads((finished / "scores.json").read_text())
    truth, found = predictions(finished, tiles)
    names = list(find_set(tiles).classes)
    present = sorted({*truth, *found})
    assert scores["oa"] == pytest.approx(100 * accuracy_score(truth, found), abs=0.006)
    assert scores["miou"] == pytest.approx(
        100 * jaccard_score(truth, found, average="macro", labels=present), abs=0.006
    )
    assert scores["mf1"] == pytest.approx(100 * f1_score(truth, found, average="macro", labels=present), abs=0.006)
    for k, iou in zip(present, jaccard_score(truth, found, average=None, labels=present), strict=True):
        assert scores["iou"][names[k]] == pytest.approx(100 * iou, abs=0.006)
    assert (scores["split"], scores["pairs"], scores["classes"]) == ("test", 12, names)
    assert scores["last"]["step"] == 4 and scores["step"] in (2, 4)
    assert scores["miou"] == max(event["miou"] for event in records(finished) if event.get("event") == "scores")
    assert [file.name for file in (finished / "pictures").iterdir()] == ["step_00000004.png"]


def test_each_image_is_left_out_once_and_the_drop_is_said(finished: Path, tiles: Path) -> None:
    """A missing image is one of zeros, its standardised mean."""
    scores, described = json.loads((finished / "scores.json").read_text()), find_set(tiles)
    model, test = load_pad(finished / "model"), Tiles(described, "test")
    for role, name in (("optical", "rgb"), ("sar", "sar")):
        truth, found = [], []
        for number in range(len(test)):
            tile = test[number]
            images = {"rgb": "optical", "sar": "sar"}
            given = {own: described.image(other).standardise(tile.images[other])[None] for own, other in images.items()}
            given[name] = torch.zeros_like(given[name])
            with torch.no_grad():
                found.append(model(**given).logits.argmax(dim=1).flatten().numpy())
            truth.append(tile.label.flatten().numpy())
        known = np.concatenate(truth) != IGNORE
        expected = 100 * accuracy_score(np.concatenate(truth)[known], np.concatenate(found)[known])
        said = scores["without"][role]
        assert said["oa"] == pytest.approx(expected, abs=0.006)
        assert said["drop"]["oa"] == pytest.approx(scores["oa"] - said["oa"], abs=0.011)


def test_the_network_knows_what_its_images_are(finished: Path, tiles: Path) -> None:
    record = json.loads((finished / "model" / "config.json").read_text())
    described = find_set(tiles)
    assert record["classes"] == {name: list(colour) for name, colour in described.classes.items()}
    assert record["inputs"]["optical"]["mean"] == list(described.images["optical"].mean)


def test_an_interrupted_run_goes_on_exactly(finished: Path, tiles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoints" / "step_00000004" / "MANIFEST.json").unlink()
    expected = json.loads((finished / "scores.json").read_text())
    if expected["step"] == 4:  # the best network is not written yet; that of step 2 was, and stays
        shutil.rmtree(folder / "model")
    ((code, output),) = segment(folder, tiles, "--run.resume", "auto")
    assert code == 0, output
    assert "going on from step 2" in output
    assert losses(folder) == losses(finished)
    assert json.loads((folder / "scores.json").read_text()) == expected
    weights, others = (load_pad(run / "model").state_dict() for run in (folder, finished))
    assert all(value.equal(others[name]) for name, value in weights.items())


def test_two_ranks_score_every_tile_once(tiles: Path, tmp_path: Path) -> None:
    ended = segment(tmp_path / "run", tiles, "--run.steps", "2", ranks=2)
    assert [code for code, _ in ended] == [0, 0], ended[0][1]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    truth, found = predictions(tmp_path / "run", tiles)
    assert np.sum(scores["confusion"]) == len(truth)
    assert scores["oa"] == pytest.approx(100 * accuracy_score(truth, found), abs=0.006)


def changed(pairs: Path, target: Path, change: dict[str, object]) -> Path:
    """A description with other entries, of the same files."""
    record = yaml.safe_load(pairs.read_text()) | {"root": str(pairs.parent)}
    target.write_text(yaml.safe_dump({**record, **change}))
    return target


def opened(folder: Path, pairs: Path, *arguments: str) -> Segmentation:
    """The job of a run, as each rank opens it before anything is trained."""
    config = parse_settings(SegmentConfig, "", [*SMALL, "--run.dir", str(folder), "--data.set", str(pairs), *arguments])
    return Segmentation(config, World(0, 1, torch.device("cpu"), Watch(0, 1), StopRequest()))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"classes": {"land": [1, 2, 3], "water": [4, 5, 6]}, "label": {"files": "label/{key}.tif"}}, (),
         "2, 4, 5, 6, which are no class; known values are 0, 1, 255"),
        ({}, ("--data.train", "training"), "has no split 'training'; it has test, train"),
        ({}, ("--optim.batch", "1"), "a pass of 1 sample has no variance for batch normalisation"),
        ({"optical": {"files": "optical/{key}.tif", "bands": [1, 2, 3]}}, (), "mean and std of optical are missing"),
        ({}, ("--evaluate_without", "rgb"), "evaluate_without is 'rgb'; the network takes optical and sar"),
        ({}, ("--model.input", "sar", "--evaluate_without", "sar"), "evaluate_without is 'sar', all that the network takes"),
        ({}, ("--dense.head", "fpn"), "dense is of method encoder, method is pad; set method to encoder"),
        ({}, ("--method", "encoder"), "model is of method pad, method is encoder; set method to pad, or leave model out"),
        ({}, ("--data.stride", "16"), "data.stride is 16, but images are read whole; give data.window as well"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line(
    change: dict[str, object], arguments: Sequence[str], message: str, tiles: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        opened(tmp_path / "run", changed(tiles, tmp_path / "pairs.yaml", change), *arguments)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_network_and_its_identity_know_which_classes_are_left_out(tiles: Path, tmp_path: Path) -> None:
    names = list(find_set(tiles).classes)
    whole, left = opened(tmp_path, tiles), opened(tmp_path, tiles, "--data.drop_classes", f"[{names[1]}]")
    kept = [name for name in names if name != names[1]]
    assert list(left.inputs.classes) == kept and left.config.model.classes == len(kept)
    assert left.identity != whole.identity
    moved = np.array(
        [IGNORE if name == names[1] else kept.index(name) for name in names] + [IGNORE] * (256 - len(names))
    )
    one, other = (np.stack([job.tiles["test"].label(index) for index in range(12)]) for job in (whole, left))
    assert (one == 1).any() and np.array_equal(moved[one], other)
    with pytest.raises(InputError, match=f"no class; did you mean '{names[0]}'"):
        opened(tmp_path, tiles, "--data.drop_classes", f"[{names[0]}s]")
    with pytest.raises(InputError, match=f"drop_classes leaves {names[0]} alone of"):
        opened(tmp_path, tiles, "--data.drop_classes", f"[{', '.join(names[1:])}]")


def test_a_network_of_other_classes_gives_all_but_its_classifiers(finished: Path, tiles: Path, tmp_path: Path) -> None:
    classes = {f"class {index}": [index, 0, 0] for index in range(8)}
    pairs = changed(tiles, tmp_path / "pairs.yaml", {"classes": classes})
    job = opened(tmp_path / "run", pairs, "--start.network", str(finished / "model"))
    model, theirs = job.make_model().state_dict(), load_pad(finished / "model").state_dict()
    anew = {name for name in theirs if model[name].shape != theirs[name].shape}
    assert anew == {f"{head}.conv_seg.{kind}" for head in ("decoder", "auxiliary") for kind in ("weight", "bias")}
    assert all(model[name].equal(theirs[name]) for name in theirs if name not in anew)


# Other contents under the same names


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("role", ["optical", "label"])
def test_a_run_whose_data_were_changed_does_not_go_on(finished: Path, tiles: Path, tmp_path: Path, role: str) -> None:
    shutil.copytree(tiles.parent, tmp_path / "tiles")
    shutil.copytree(finished, tmp_path / "run")
    file = sorted((tmp_path / "tiles" / role).glob("*.tif"))[0]
    split = "train" if file.stem in (tmp_path / "tiles" / "train.txt").read_text().split() else "test"
    with rasterio.open(file, "r+") as image:
        pixels = image.read()
        pixels[0, 3, 4] = (pixels[0, 3, 4] + 1) % 7
        image.write(pixels)
    ((code, output),) = segment(
        tmp_path / "run", tiles, "--data.path", str(tmp_path / "tiles"), "--run.resume", "auto", "--run.steps", "6"
    )
    assert code == 2 and f"another data.contents of each split.{split}" in output, output


def test_a_run_whose_data_were_moved_goes_on(finished: Path, tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles.parent, tmp_path / "tiles")
    shutil.copytree(finished, tmp_path / "run")
    ((code, output),) = segment(
        tmp_path / "run", tiles, "--data.path", str(tmp_path / "tiles"), "--run.resume", "auto", "--run.steps", "5"
    )
    assert code == 0 and "going on from step 4" in output, output
