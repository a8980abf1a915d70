"""Change detection, segmentation with an encoder and across domains, as a user runs them, on small synthetic files."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Tiles
from datasets.synthetic.domains import write_yellow_river
from engine.ranks import World
from engine.settings import parse_settings
from engine.signals import StopRequest
from engine.watch import Watch
from finetune.dense.adapting import entropy_loss
from finetune.dense.checkpoint import load_dense
from finetune.dense.losses import mean_cross_entropy
from finetune.mapping.command import main as predict
from finetune.tasks.change import Change
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.crossdomain import CrossDomain
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.segmentation import EncoderSegmentation, Segmentation
from finetune.tasks.segmentation_config import SegmentConfig
from tests.helpers.dates import write_dates
from tests.helpers.rasters import write_tiff
from tests.helpers.runs import PICTURE, PLAIN, ROOT, Ranks, metrics

CONFIGS = ROOT / "configs" / "finetune"
RUN = ["--run.steps", "4", "--run.save_every", "2", "--run.log_every", "1", "--run.keep", "9", "--data.workers", "1",
       "--augment.crop", "32", "--optim.batch", "2", *PLAIN]  # fmt: skip
TINY = "{widths: [8, 8, 8, 8], stem: 4}"
WORLD = World(0, 1, torch.device("cpu"), Watch(0, 1), StopRequest())


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dates(tmp_path_factory.mktemp("dates"))


def change_options(folder: Path, dates: Path, *more: str) -> list[str]:
    named = ["--data.set", str(dates), "--data.before", "early", "--data.after", "late", "--evaluate_every", "2"]
    network = ["--model.encoder.sensors", "{after: {sensor: sentinel1-grd-db, bands: [VV]}}", "--model.pyramid", TINY]
    small = [*network, "--model.width", "8", "--optim.lr", "2e-3", "--run.dir", str(folder)]
    return ["--config", str(CONFIGS / "change_oscd.yaml"), "--data.window", "null", "--data.stride", "null",
            *RUN, *named, *small, *more]  # fmt: skip


def ran(script: str, options: Sequence[str]) -> str:
    ((code, output),) = Ranks([str(ROOT / "finetune" / script), *options], 1).wait()
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory, dates: Path) -> Path:
    """Runs of two seeds, one after the other, with each date left out at the end."""
    folder = tmp_path_factory.mktemp("runs") / "change"
    ran(
        "change.py",
        change_options(folder, dates, "--seeds", "0,1", "--jobs", "1", "--evaluate_without", "all", *PICTURE),
    )
    return folder


def shown(tiles: Tiles, model: Any, lacking: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of all labelled pixels."""
    truth, found = [], []
    for tile in map(tiles.__getitem__, range(len(tiles))):
        images = {role: tiles.described.image(role).standardise(image)[None] for role, image in tile.images.items()}
        images |= {lacking: torch.zeros_like(images[lacking])} if lacking else {}
        with torch.no_grad():
            found.append(model(**images).logits.argmax(dim=1).flatten().numpy())
        truth.append(tile.label.flatten().numpy())
    known = np.concatenate(truth) != IGNORE
    return np.concatenate(truth)[known], np.concatenate(found)[known]


def test_change_is_scored_as_scikit_learn_does_also_without_a_date(changes: Path, dates: Path) -> None:
    job = Change(parse_settings(ChangeConfig, "", change_options(changes, dates)), WORLD)
    model, scores = load_dense(changes / "seed_0" / "model"), json.loads((changes / "seed_0/scores.json").read_text())
    for said, lacking in ((scores, ""), (scores["without"]["before"], "before"), (scores["without"]["after"], "after")):
        pair = shown(job.tiles["test"], model, lacking)
        expected = {"f1": f1_score, "precision": precision_score, "recall": recall_score, "iou": jaccard_score}
        for name, score in expected.items():
            if said[name] is not None:
                assert said[name] == pytest.approx(100 * score(*pair, zero_division=0), abs=0.006)
        assert said["oa"] == pytest.approx(100 * (pair[0] == pair[1]).mean(), abs=0.006)
    table = json.loads((changes / "scores.json").read_text())
    seeds = [json.loads((changes / f"seed_{seed}" / "scores.json").read_text())["f1"] for seed in (0, 1)]
    assert table["f1"]["mean"] == pytest.approx(np.mean(seeds)) and table["model"] == "change, fpn"
    assert len(list((changes / "seed_1" / "pictures").iterdir())) == 1


def test_a_change_run_goes_on_exactly(changes: Path, dates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(changes / "seed_1", folder)
    (folder / "checkpoints" / "step_00000004" / "MANIFEST.json").unlink()
    ran(
        "change.py",
        change_options(folder, dates, "--run.seed", "1", "--run.resume", "auto", "--evaluate_without", "all"),
    )
    names = ("step", "loss", "lr", "grad_norm", "sample_digest")
    told = [[[record[name] for name in names] for record in metrics(run)] for run in (folder, changes / "seed_1")]
    assert told[0] == told[1]
    scores = [json.loads((run / "scores.json").read_text()) for run in (folder, changes / "seed_1")]
    assert scores[0] == scores[1]


def test_two_dates_are_mapped_and_a_pixel_missing_in_one_stays_unknown(
    changes: Path, dates: Path, tmp_path: Path
) -> None:
    root = dates.parent
    shutil.copy(root / "one" / "e.tif", tmp_path / "early.tif")
    with rasterio.open(root / "two" / "e.tif") as file:
        later, profile = file.read(), file.profile
    later[0, :, 40:] = 0
    write_tiff(tmp_path / "late.tif", later, nodata=0)
    predict(["--checkpoint", str(changes / "seed_0"), "--image", f"before={tmp_path / 'early.tif'}",
             "--image", f"after={tmp_path / 'late.tif'}", "--out", str(tmp_path / "map.tif"), "--device", "cpu"])  # fmt: skip
    with rasterio.open(tmp_path / "map.tif") as file:
        found = file.read(1)
    assert (found[:, 40:] == IGNORE).all() and set(np.unique(found[:, :40])) <= {0, 1}
    assert profile["height"] == found.shape[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.after", "early"), "data.before and data.after are both early; there are early, late"),
        (("--data.after", "sar"), "has no image 'sar'; it has early, late"),
        (("--model.images", "[early]"), "model.images are before and after; name those of the set"),
        (("--model.encoder.sensors", "{}"), "encoder.sensors names no sensor for the input after"),
        (("--model.encoder.sensors", "{late: {sensor: rgb-uint8}}"), "names the input late; the inputs are before, after"),
        (("--loss.class_weights", "[1, 2, 3]", "--loss.balance", "none"), "loss.class_weights has 3 numbers for 2 classes"),
        (("--optim.batch", "1"), "a pass of 1 sample has no variance"),
        (("--evaluate_without", "early"), "evaluate_without is 'early'; the network takes before and after"),
    ],
)  # fmt: skip
def test_wrong_settings_of_change_are_refused(
    arguments: Sequence[str], message: str, dates: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        Change(parse_settings(ChangeConfig, "", change_options(tmp_path, dates, *arguments)), WORLD).make_model()
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_one_image_is_segmented_with_a_linear_head_from_a_share_of_the_images(dates: Path, tmp_path: Path) -> None:
    options = ["--config", str(CONFIGS / "segment_dubai.yaml"), "--data.set", str(dates), "--data.evaluate", "test",
               "--data.test", "null", "--data.window", "32", "--data.share", "0.5", "--dense.images", "[early]",
               "--dense.head", "linear", "--dense.encoder.mode", "frozen", "--evaluate_every", "4", *RUN,
               "--run.dir", str(tmp_path / "run")]  # fmt: skip
    ran("segment.py", options)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    job = EncoderSegmentation(parse_settings(SegmentConfig, "", options), WORLD)
    assert len(job.tiles["train"].images) == 2 and list(job.described.images) == ["early"]
    pair = shown(job.tiles["test"], load_dense(tmp_path / "run" / "model"))
    present = sorted({*pair[0], *pair[1]})
    assert scores["miou"] == pytest.approx(100 * jaccard_score(*pair, average="macro", labels=present), abs=0.006)
    assert "without" not in scores and scores["tiles"] == 4  # two images of two windows


def test_pad_on_other_images_is_refused_with_what_takes_them(dates: Path, tmp_path: Path) -> None:
    options = [
        "--config",
        str(CONFIGS / "segment_ombria_pad.yaml"),
        "--data.set",
        str(dates),
        "--run.dir",
        str(tmp_path),
    ]
    with pytest.raises(
        InputError, match="has no image 'optical', which PAD takes; it has early, late.*method to encoder"
    ):
        Segmentation(parse_settings(SegmentConfig, "", options), WORLD)


def test_images_of_which_none_can_be_read_are_not_measured(dates: Path, tmp_path: Path) -> None:
    shutil.copytree(dates.parent, tmp_path / "set")
    for path in (tmp_path / "set" / "two").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="no image of train can be measured; .*two/a.tif"):
        Change(parse_settings(ChangeConfig, "", change_options(tmp_path, tmp_path / "set" / "set.yaml")), WORLD)


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("years")
    write_yellow_river(folder, size=96)
    return folder


def domain_options(folder: Path, years: Path, *more: str) -> list[str]:
    return ["--config", str(CONFIGS / "crossdomain_yellow_river.yaml"), "--data.path", str(years), "--data.window", "32",
            "--data.stride", "32", "--model.pyramid", TINY, "--model.width", "8", "--run.dir", str(folder),
            "--adapt.confidence", "0.1", "--adapt.momentum", "0.5", *RUN, *more]  # fmt: skip


def domains(years: Path, *more: str) -> CrossDomain:
    return CrossDomain(parse_settings(CrossDomainConfig, "", domain_options(Path("run"), years, *more)), WORLD)


def test_self_training_goes_on_exactly_and_scores_the_target(years: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    ran("crossdomain.py", domain_options(whole, years))
    shutil.copytree(whole, parted)
    (parted / "checkpoints" / "step_00000004" / "MANIFEST.json").unlink()
    ran("crossdomain.py", domain_options(parted, years, "--run.resume", "auto"))
    names = ("step", "loss_source", "loss_target", "loss_guessed_share", "grad_norm", "sample_digest")
    told = [[[record[name] for name in names] for record in metrics(run)] for run in (whole, parted)]
    assert told[0] == told[1] and told[0][-1][3] > 0
    scores = json.loads((parted / "scores.json").read_text())
    assert scores == json.loads((whole / "scores.json").read_text())
    pair = shown(domains(years).tiles["2022"], load_dense(parted / "model"))
    present = sorted({*pair[0], *pair[1]})
    assert scores["miou"] == pytest.approx(100 * jaccard_score(*pair, average="macro", labels=present), abs=0.006)
    assert sum(map(sum, scores["confusion"])) == 96 * 88  # eight columns have no image


def test_each_domain_is_standardised_by_its_own_or_by_the_sources_statistics(years: Path) -> None:
    with rasterio.open(years / "2021_1/img.tif") as one, rasterio.open(years / "2022_1/img.tif") as two:
        means = [file.read().astype(float)[:, :, 8:].mean(axis=(1, 2)) for file in (one, two)]
    job = domains(years)
    assert job.source.image("optical").mean == pytest.approx(means[0], rel=1e-5)
    assert job.described.image("optical").mean == pytest.approx(means[1], rel=1e-5)
    assert job.tiles["2021"].described is job.source
    assert domains(years, "--data.statistics", "source").described.image("optical").mean == pytest.approx(means[0])


def test_entropy_counts_on_the_target_alone_and_labels_on_the_source(years: Path) -> None:
    """The target's labels are not read: the run is the same where they are gone."""
    job = domains(years, "--method", "entropy", "--adapt.weight", "0.5")
    batch = next(job.batches())
    model = job.make_model().eval()
    losses = job.losses(model, batch, 0)
    assert batch.target is not None
    source, target = (model(**job.given(part.images)).logits for part in (batch.source, batch.target))
    own, other = mean_cross_entropy(source, batch.source.label), entropy_loss(target, batch.target.label != IGNORE)
    assert losses["loss"].item() == pytest.approx((own + 0.5 * other).item(), rel=1e-4)
    assert set(batch.target.label.unique().tolist()) <= {0, IGNORE}
    assert set(batch.source.label.unique().tolist()) - {0, IGNORE}


def test_the_loss_on_the_source_knows_nothing_of_the_target(years: Path) -> None:
    """Also in training, where norms look at all of a batch."""
    job = domains(years, "--method", "entropy")
    batch = next(job.batches())
    assert batch.target is not None
    others = {role: image * 5 + 3 for role, image in batch.target.images.items()}
    changed = batch._replace(target=batch.target._replace(images=others))
    torch.manual_seed(0)
    model = job.make_model().train()
    told = []
    for each in (batch, changed):
        torch.manual_seed(1)  # of dropout
        told.append(job.losses(model, each, 0))
    assert torch.equal(told[0]["loss_source"], told[1]["loss_source"])
    assert not torch.equal(told[0]["loss_target"], told[1]["loss_target"])


def test_source_only_reads_no_target_in_training(years: Path) -> None:
    job = domains(years, "--method", "source_only")
    batch = next(job.batches())
    assert batch.target is None and all(key.startswith("2021_1") for key in batch.keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.evaluate", "2021"), "train and evaluate are both 2021"),
        (("--data.adapt", "2021"), "data.adapt is 2021, the source itself"),
        (("--engine.zero", "3"), "self_training averages weights in float32"),
        (("--data.evaluate", "2023"), "has no split '2023'; it has 2021, 2022"),
    ],
)  # fmt: skip
def test_wrong_domains_are_refused(arguments: Sequence[str], message: str, years: Path) -> None:
    with pytest.raises(InputError) as refused:
        domains(years, *arguments)
    assert message in str(refused.value) and "\n" not in str(refused.value)


TREES = {"segment": SegmentConfig, "change": ChangeConfig, "crossdomain": CrossDomainConfig}
SHIPPED = [path for kind in TREES for path in sorted(CONFIGS.glob(f"{kind}_*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_setting_loads_and_says_its_command(path: Path) -> None:
    kind = path.stem.partition("_")[0]
    config = parse_settings(TREES[kind], "", ["--config", str(path), "--run.dir", "run"])
    assert f"finetune/{kind}.py --config configs/finetune/{path.name}" in path.read_text()
    if not config.data.set.startswith("data/"):
        found = find_set(ROOT / config.data.set if "/" in config.data.set else config.data.set)
        assert {config.data.train, config.data.evaluate} <= set(found.splits)
