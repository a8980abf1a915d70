"""From files as they are downloaded to a class map: prepare, train for two steps, predict; DDHR-SK and WHU-OPT-SAR."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set
from datasets.releases.command import main as prepare
from datasets.releases.facts import DDHR_CLASSES, WHU_CLASSES
from datasets.synthetic.pair_trees import WHU_SCENES, write_ddhr, write_plain, write_whu
from finetune.mapping.command import main as predict
from tests.helpers.runs import PLAIN, ROOT, Ranks

PLACE = {"crs": "EPSG:32649", "transform": rasterio.Affine(5, 0, 500_000, 0, -5, 3_400_000)}
SMALL = [
    *("--model.size", "atto", "--augment.crop", "32", "--run.steps", "2", "--evaluate_every", "2", "--data.workers", "0"),
    *(*PLAIN, "--run.log_every", "1", "--optim.lr", "1e-3"),
]  # fmt: skip


def trained(root: Path, name: str) -> tuple[Path, LabelledSet]:
    """Prepares root/raw, trains two steps; the run's folder, and the description of the tiles."""
    prepare([name, str(root / "raw"), str(root / "tiles"), "--tile", "32"])
    config = ROOT / "configs" / "finetune" / f"segment_{name.replace('-', '_')}.yaml"
    pairs = root / "tiles" / "pairs.yaml"
    own = ["--config", str(config), "--data.set", str(pairs), "--run.dir", str(root / "run"), *SMALL]
    ((code, output),) = Ranks([str(ROOT / "finetune" / "segment.py"), *own], 1).wait()
    assert code == 0, output
    return root / "run", find_set(pairs)


@pytest.fixture(scope="module")
def ddhr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelledSet]:
    root = tmp_path_factory.mktemp("ddhr")
    write_ddhr(root / "raw")
    return trained(root, "ddhr-sk")


@pytest.fixture(scope="module")
def whu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelledSet]:
    """Scenes of 80 x 112 pixels that know where they lie."""
    root = tmp_path_factory.mktemp("whu")
    for name, scene in write_whu(root / "raw").items():
        write_plain(root / "raw" / "optical" / f"{name}.tif", scene.optical, **PLACE)
        write_plain(root / "raw" / "sar" / f"{name}.tif", scene.sar, **PLACE)
        write_plain(root / "raw" / "lbl" / f"{name}.tif", 10 * (scene.label[None] + 1), **PLACE)
    return trained(root, "whu-opt-sar")


def mapped(run: Path, optical: Path, sar: Path, out: Path, *arguments: str) -> np.ndarray:
    images = ["--optical", str(optical), "--sar", str(sar)]
    predict(["--checkpoint", str(run), *images, "--out", str(out), "--device", "cpu", *arguments])
    with rasterio.open(out) as file:
        return file.read(1)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # JPEG pairs lie nowhere
def test_ddhr_sk_maps_of_jpeg_pairs_have_the_scores_of_the_run(ddhr: tuple[Path, LabelledSet], tmp_path: Path) -> None:
    """Every second pair is for testing; its maps, counted against the labels as they were drawn, give scores.json."""
    (run, pairs), counts = ddhr, np.zeros((5, 5), dtype=int)
    home = pairs.root.parent / "raw" / "korea" / "256_cloud"
    for number in (2, 4, 6):
        out = tmp_path / f"{number}.tif"
        found = mapped(run, home / "GF2" / f"{number}.jpg", home / "GF3" / f"{number}.jpg", out)
        with rasterio.open(home / "label" / f"{number}.png") as file:
            truth = file.read(1)
        assert found.shape == (32, 32) and found.max() < 5
        np.add.at(counts, (truth[truth < 5], found[truth < 5]), 1)
        with rasterio.open(out) as file:
            assert file.crs is None
            colours = file.colormap(1)
        assert [colours[index][:3] for index in range(5)] == list(DDHR_CLASSES.values())
    scores = json.loads((run / "scores.json").read_text())
    assert scores["classes"] == list(DDHR_CLASSES) and (scores["split"], scores["pairs"]) == ("test", 3)
    assert scores["confusion"] == counts.tolist()


def test_whu_opt_sar_map_lies_where_its_scene_lies(whu: tuple[Path, LabelledSet], tmp_path: Path) -> None:
    """A test scene that no window covers whole."""
    (run, pairs), name = whu, WHU_SCENES[1]
    raw = pairs.root.parent / "raw"
    windows = ("--window", "64", "--overlap", "16")
    found = mapped(run, raw / "optical" / f"{name}.tif", raw / "sar" / f"{name}.tif", tmp_path / "map.tif", *windows)
    assert found.shape == (80, 112) and found.max() < 7
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs == CRS.from_epsg(32649) and file.transform == PLACE["transform"]
        assert [file.colormap(1)[index][:3] for index in range(7)] == list(WHU_CLASSES.values())


def test_the_network_knows_what_was_measured_on_the_tiles(whu: tuple[Path, LabelledSet]) -> None:
    """Image by image: the file's bands in their order, SAR once, mean and deviation of the training tiles."""
    run, pairs = whu
    record = json.loads((run / "model" / "config.json").read_text())
    assert (record["model"]["rgb_channels"], record["model"]["sar_channels"], record["model"]["classes"]) == (3, 1, 7)
    for modality, source in (("optical", pairs.images["optical"]), ("sar", pairs.images["sar"])):
        kept = record["inputs"][modality]
        assert (kept["bands"], kept["mean"], kept["std"]) == (list(source.bands), list(source.mean), list(source.std))
    assert (pairs.images["optical"].bands, pairs.images["sar"].bands) == ((1, 2, 3), (1,))


def test_tiles_lie_where_they_were_cut(whu: tuple[Path, LabelledSet]) -> None:
    _, pairs = whu
    with rasterio.open(pairs.root / "optical" / f"{WHU_SCENES[1]}_r00032_c00064.tif") as file:
        assert file.crs == CRS.from_epsg(32649) and (file.transform.c, file.transform.f) == (500_320, 3_399_840)
