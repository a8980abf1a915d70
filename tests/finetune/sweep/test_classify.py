"""finetune/classify.py as a user runs it, on a synthetic scene in the layout of Augsburg."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alliance.errors import InputError
from datasets.labelled.patch_samples import mirrored
from datasets.synthetic.labelled_scenes import write_labelled
from engine.build import refuse_rounded_norms
from engine.checkpoints import Layout
from engine.settings import parse_settings
from finetune.mapping.pixels import predict_places
from finetune.s2fin.checkpoint import load_network
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.classification_seeds import draw_split, open_data
from tests.helpers import warm
from tests.helpers.runs import ROOT, TIMEOUT, Ranks, environment, metrics

SMALL = [
    *("--config", str(ROOT / "configs/finetune/classify_augsburg.yaml"), "--model.width", "16", "--model.patch", "5"),
    *("--model.mixer", "none", "--data.components", "4", "--data.protocol.per_class", "6", "--data.protocol.kind", "random"),
    *("--epochs", "8", "--optim.batch", "16", "--run.log_every", "1", "--run.save_every", "5", "--run.keep", "9", "--run.page", "false"),
]  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augsburg") / "scene"
    write_labelled("augsburg", folder, height=48, width=64, classes=3)
    return folder


def command(folder: Path, scene: Path, *arguments: str) -> list[str]:
    own = ["--run.dir", str(folder), "--data.path", str(scene), *arguments]
    return [str(ROOT / "finetune/classify.py"), *SMALL, *own]


def classify(folder: Path, scene: Path, *arguments: str, code: int = 0) -> str:
    ended = warm.run(command(folder, scene, *arguments), environment(), TIMEOUT)
    assert ended.returncode == code, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, scene: Path) -> tuple[Path, str]:
    """Two seeds, one after the other in one process: the folder, and what was said."""
    folder = tmp_path_factory.mktemp("run") / "one"
    return folder, classify(folder, scene, "--seeds", "0,3", "--jobs", "1")


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_one_table_holds_all_seeds_and_references(finished: tuple[Path, str]) -> None:
    folder, said = finished
    record = scores(folder)
    each = [scores(folder / f"seed_{seed}")["oa"] for seed in (0, 3)]
    assert record["oa"]["mean"] == pytest.approx(np.mean(each), abs=0.01)
    assert record["oa"]["std"] == pytest.approx(np.std(each, ddof=1), abs=0.01)
    assert list(record["oa"]["seeds"]) == ["0", "3"] and len(record["references"]) == 6
    (row,) = [line for line in said.splitlines() if line.startswith("S2Fin")]
    assert f"{record['oa']['mean']:.1f} ± {record['oa']['std']:.1f}" in row
    assert f"{record['parameters']:,}" in row
    assert (
        f"{record['leakage']['mean']:.1f}" in row and record["leakage"]["mean"] > 20
    )  # random pixels of small parcels


def test_the_saved_network_and_split_give_the_scores(finished: tuple[Path, str], scene: Path) -> None:
    folder, _ = finished
    config = parse_settings(ClassifyConfig, "", [*SMALL, "--run.dir", "any", "--data.path", str(scene)])
    patches, saved = open_data(config), np.load(folder / "seed_3" / "split.npz")
    assert np.array_equal(saved["test"], draw_split(patches, config, 3).test)
    predicted = predict_places(load_network(folder / "seed_3" / "model"), patches, patches.place[saved["test"]])
    share = np.mean(predicted.numpy() == patches.label[saved["test"]])
    assert scores(folder / "seed_3")["oa"] == pytest.approx(100 * share, abs=0.006)


def test_the_first_seed_is_mapped(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    drawn = {path.name for path in (folder / "seed_0" / "pictures").iterdir()}
    assert "frequencies.png" in drawn and len(drawn) == 2
    assert not (folder / "seed_3" / "pictures").exists()


def test_several_processes_give_the_same_scores(finished: tuple[Path, str], scene: Path, tmp_path: Path) -> None:
    said = classify(tmp_path / "run", scene, "--seeds", "0,3", "--jobs", "2", "--maps", "none", "--references", "false")
    assert "2 seeds in 2 processes" in said
    for seed in (0, 3):
        one, other = (scores(folder / f"seed_{seed}") for folder in (finished[0], tmp_path / "run"))
        assert one["confusion"] == other["confusion"]


def test_an_interrupted_seed_goes_on_exactly(finished: tuple[Path, str], scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    last = sorted((folder / "seed_3" / "checkpoints").glob("step_*"))[-1]
    shutil.rmtree(last)
    for left in (folder / "scores.json", folder / "seed_3" / "scores.json"):
        left.unlink()
    said = classify(folder, scene, "--seeds", "0,3", "--jobs", "1", "--run.resume", "auto")
    assert "going on from step 5" in said and "seed 0:" not in said
    kept = ("step", "loss", "lr", "grad_norm", "sample_digest")
    before, after = ([[line[key] for key in kept] for line in metrics(run / "seed_3")] for run in (finished[0], folder))
    assert before == after
    assert scores(folder)["oa"] == scores(finished[0])["oa"]


def test_a_signal_saves_all_processes(scene: Path, tmp_path: Path) -> None:
    """The command passes it on, the seeds save, and the command given again finishes them."""
    arguments = ("--seeds", "0,1", "--jobs", "2", "--epochs", "4000", "--maps", "none", "--references", "false")
    started = warm.start(command(tmp_path / "run", scene, *arguments), environment())
    logs, until = [tmp_path / "run" / f"seed_{seed}" / "metrics.jsonl" for seed in (0, 1)], time.monotonic() + TIMEOUT
    while not all(log.is_file() and log.stat().st_size for log in logs):
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.2)
    started.send_signal(signal.SIGTERM)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 0, output
    assert "stopped as asked; give the same command with --run.resume auto to go on" in output
    for seed in (0, 1):
        assert list((tmp_path / "run" / f"seed_{seed}" / "checkpoints").glob("step_*/MANIFEST.json"))


def test_other_settings_do_not_mix_with_finished_seeds(finished: tuple[Path, str], scene: Path) -> None:
    said = classify(finished[0], scene, "--seeds", "0-4", "--run.resume", "auto", "--epochs", "9", code=2)
    assert "belongs to a run with another epochs (8 then, 9 now)" in said


def test_beside_an_encoder_stand_the_same_network_s_plain_stems(scene: Path, tmp_path: Path) -> None:
    encoder = "{model: alliance_nano_patch8, sensors: {spectral: {sensor: hyspex, wavelengths: [400, 2500]}}}"
    said = classify(tmp_path / "run", scene, "--model.encoder", encoder, "--model.encoder_side", "8", "--epochs", "1",
                    "--seeds", "0", "--maps", "none", "--references", "false")  # fmt: skip
    rows = {line.split("  ")[0] for line in said.splitlines() if line.startswith("S2Fin")}
    assert rows == {"S2Fin with Alliance", "S2Fin with plain stems"}
    with_it, plain = (load_network(tmp_path / "run" / part / "seed_0" / "model") for part in (".", "plain_stems"))
    assert with_it.encoder is not None and plain.encoder is None
    assert list(scores(tmp_path / "run")["references"]) == ["S2Fin with plain stems"]


def test_two_ranks_share_a_seed_at_zero_3(scene: Path, tmp_path: Path) -> None:
    arguments = ("--seeds", "0", "--engine.zero", "3", "--references", "false")
    ended = Ranks(command(tmp_path / "run", scene, *arguments), 2).wait()
    assert [code for code, _ in ended] == [0, 0], ended[0][1] + ended[1][1]
    record = scores(tmp_path / "run" / "seed_0")
    assert np.sum(record["confusion"]) == sum(record["split"]["test"].values())
    assert (tmp_path / "run" / "seed_0" / "pictures" / "frequencies.png").is_file()


def test_a_signal_to_one_rank_stops_all_well(scene: Path, tmp_path: Path) -> None:
    ranks = Ranks(command(tmp_path / "run", scene, "--seeds", "0,1", "--epochs", "4000"), 2)
    log, until = tmp_path / "run" / "seed_0" / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not (log.is_file() and log.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.2)
    ranks.processes[1].send_signal(signal.SIGUSR1)
    ended = ranks.wait()
    assert [code for code, _ in ended] == [0, 0], ended[0][1] + ended[1][1]
    assert "stopped as asked; give the same command with --run.resume auto to go on" in ended[0][1]


def test_references_alone(scene: Path, tmp_path: Path) -> None:
    classify(tmp_path / "run", scene, "--method", "rf", "--seeds", "0-1")
    record = scores(tmp_path / "run")
    assert record["model"].startswith("forest") and all(name.startswith("forest") for name in record["references"])
    assert not (tmp_path / "run" / "seed_0").exists()


def test_a_split_from_a_file(scene: Path, tmp_path: Path) -> None:
    config = parse_settings(ClassifyConfig, "", [*SMALL, "--run.dir", "any", "--data.path", str(scene)])
    patches = open_data(config)
    every = np.random.default_rng(0).permutation(len(patches))
    np.savez(tmp_path / "split.npz", seed5_train=every[:60], seed5_test=every[60:100])
    given = parse_settings(ClassifyConfig, "", [*SMALL, "--run.dir", "any", "--data.path", str(scene),
                                                "--data.split", f"{tmp_path}/split.npz:seed{{seed}}_"])  # fmt: skip
    split = draw_split(patches, given, 5)
    assert np.array_equal(split.train, np.sort(every[:60])) and np.array_equal(split.test, np.sort(every[60:100]))
    assert not set(split.validation) & set(every[:100])


def test_the_advice_for_a_class_without_training_pixels_works_when_followed(scene: Path) -> None:
    """The words after `data.drop_classes` as a shell takes them; names, counts and identity are those that remain."""
    given = [*SMALL, "--run.dir", "any", "--data.path", str(scene), "--data.protocol.cap", "false"]
    patches = open_data(parse_settings(ClassifyConfig, "", given))
    sizes = np.bincount(patches.label)
    small = patches.classes[sizes.argmin()]
    given += ["--data.protocol.per_class", str(sizes.min()), "--data.protocol.validation", "0"]  # one more is for test
    config = parse_settings(ClassifyConfig, "", given)
    with pytest.raises(InputError, match=rf"\({small}\) has {sizes.min()} pixels") as raised:
        draw_split(patches, config, 0)
    advised = shlex.split(str(raised.value).rpartition("with ")[2])
    left = parse_settings(ClassifyConfig, "", [*given, f"--{advised[0]}", advised[1]])
    kept = open_data(left)
    assert kept.classes == tuple(name for name in patches.classes if name != small)
    assert (np.bincount(kept.label[draw_split(kept, left, 0).train]) == left.data.protocol.per_class).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.patch", "6"), "model.patch 6 has no centre pixel"),
        (("--seeds", "0,0"), "seeds are 0,0; give different whole numbers"),
        (("--seeds", "a"), "give whole numbers such as 0,1,2 or 0-9"),
        (("--model.widht", "8"), "did you mean 'model.width'?"),
        (("--epochs", "0"), "epochs is 0; give a whole number from 1"),
        (
            ("--data.protocol.per_class", "5000", "--data.protocol.cap", "false"),
            "pixels of the 7501 that the split needs",
        ),
        (("--data.set", "augsberg"), "augsberg"),
        (("--data.path", "/nowhere"), "/nowhere"),
        (("--network.width", "8"), "unknown setting 'network.width'; here model does it (--model on the command line)"),
        (("--run.seed", "1"), "unknown setting 'run.seed'; here seeds does it (--seeds on the command line)"),
        (("--run.steps", "1"), "unknown setting 'run.steps'; here epochs does it (--epochs on the command line)"),
        (
            ("--run.picture_every", "1"),
            "unknown setting 'run.picture_every'; here maps does it (--maps on the command line)",
        ),
        (
            ("--data.benchmark", "augsburg"),
            "unknown setting 'data.benchmark'; here data.set does it (--data.set on the command line)",
        ),
        (
            ("--data.protocol.file", "x.npz"),
            "unknown setting 'data.protocol.file'; here data.split does it (--data.split on the command line)",
        ),
        (
            ("--model.encoder.checkpoint", "x"),
            "unknown setting 'model.encoder.checkpoint'; here checkpoint does it (--checkpoint on the command line)",
        ),
        (("--checkpoint", "runs/mine"), "--checkpoint is of an Alliance encoder, the network has none"),
    ],
)
def test_wrong_inputs_are_one_line(arguments: tuple[str, ...], message: str, scene: Path) -> None:
    with pytest.raises(InputError) as refused:
        config = parse_settings(ClassifyConfig, "", [*SMALL, "--run.dir", "x", "--data.path", str(scene), *arguments])
        draw_split(open_data(config), config, 0)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_batch_norms_are_not_rounded() -> None:
    norms, layout = torch.nn.BatchNorm2d(3), Layout(ranks=1, zero=1, precision="bf16")
    with pytest.raises(InputError, match="set engine.precision to autocast or fp32"):
        refuse_rounded_norms(torch.nn.Sequential(norms), layout)
    refuse_rounded_norms(torch.nn.LayerNorm(3), layout)
    refuse_rounded_norms(norms, layout._replace(precision="autocast"))


def test_a_used_folder_is_refused(finished: tuple[Path, str], scene: Path) -> None:
    said = classify(finished[0], scene, "--seeds", "7", code=2)
    assert "already holds runs; go on with --run.resume auto, or choose another --run.dir" in said


def test_a_patch_that_is_mirrored_is_so_in_all_images() -> None:
    image = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    rows = mirrored(image, torch.tensor([0, 1, 2, 3]))[:, 0].tolist()
    assert rows == [[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[2, 3], [0, 1]], [[3, 2], [1, 0]]]


def test_scores_of_one_scene_are_not_told_beside_those_of_another(
    finished: tuple[Path, str], scene: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    write_labelled("augsburg", tmp_path / "other", height=48, width=64, classes=3, seed=7)
    told = classify(tmp_path / "run", tmp_path / "other", "--seeds", "0,3", "--run.resume", "auto", code=2)
    assert "another contents of data" in told and "another --run.dir" in told
    shutil.copytree(scene, tmp_path / "moved")
    classify(tmp_path / "run", tmp_path / "moved", "--seeds", "0,3", "--run.resume", "auto", "--maps", "none")
