"""The attacks of before in other spellings, with other files, at other doors: nothing runs, reads outside or is lost."""

import json
import os
import pickle
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from alliance import load_encoder, save_encoder
from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.export_files import save_tensors
from alliance.released.registry import FAMILIES
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor
from datasets.figures import save_figure
from datasets.imagery.images import ImageSource, describe, read_image
from datasets.imagery.labels import LabelSource, read_label
from datasets.imagery.maps import Grid, write_class_map
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set, write_set
from datasets.shards.index import NAME, Index
from engine.checkpoints import clear_unfinished, list_folders
from engine.settings import parse_settings
from finetune.chips.tables import Line, write_footprints, write_labels
from finetune.conversion import main as convert
from finetune.model_files import read_inputs
from finetune.scores import write_scores
from finetune.studies import report
from finetune.sweep.command import _claim
from finetune.sweep.processes import train_part
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.chips_config import MultilabelConfig, SceneConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.scene import SceneSeeds
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig
from tests.helpers.rasters import counts, write_tiff
from tests.helpers.shards import write_tiny_shards

NEEDED = {
    PretrainConfig: ["--run.dir", "x", "--data.sources", "[{shards: x}]"],
    ClassifyConfig: ["--run.dir", "x", "--data.set", "augsburg", "--data.path", "x"],
    **dict.fromkeys((SceneConfig, MultilabelConfig), ["--run.dir", "x", "--data.path", "x"]),
    **dict.fromkeys((SegmentConfig, ChangeConfig, CrossDomainConfig), ["--run.dir", "x", "--data.set", "x"]),
}


# A config or a description runs nothing.

CODE = "{class_path: planted.Made, init_args: {args: [touch, MARKER]}}"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a planted module, if imported, leaves a file."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Made: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "marker"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (SegmentConfig, f"optim: {CODE}"),
        (SegmentConfig, f"start: {CODE}"),
        (ClassifyConfig, f"model: {{encoder: {CODE}}}"),
        (ClassifyConfig, f"--data.protocol={CODE}"),
        (SceneConfig, f"data: {{path: x, image: {CODE}}}"),
        (SceneConfig, "--data.image.class_path=planted.Made"),
        (MultilabelConfig, f"augment: [{CODE}]"),
        (MultilabelConfig, "--model.encoder=planted.Made"),
        (ChangeConfig, f"engine: {{deepspeed: {{optimizer: {{params: {CODE}}}}}}}"),
        (ChangeConfig, "run: !!python/object/new:planted.Made []"),
        (CrossDomainConfig, f"adapt: {{<<: {CODE}}}"),
        (CrossDomainConfig, "--loss=planted.Made"),
        (PretrainConfig, f"probe: {CODE}"),
        (PretrainConfig, "model: {loss: !!python/module:planted ''}"),
    ],
)
def test_no_setting_of_any_task_runs_code(tree: type, text: str, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text.replace("MARKER", str(marker)))
    given = [text] if text.startswith("--") else ["--config", str(tmp_path / "a.yaml")]
    with pytest.raises(InputError):
        parse_settings(tree, "", [*NEEDED[tree], *given])
    assert not marker.exists() and "planted" not in sys.modules


@pytest.mark.parametrize("read", [lambda path: find_sensor(str(path)), find_set], ids=["sensor", "set"])
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [touch MARKER]", "!!python/name:planted.Made ''", "!planted.Made {}", "!!python/module:planted ''"]
)  # fmt: skip
def test_no_description_runs_code(read: Callable[[Path], object], tag: str, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: {tag.replace('MARKER', str(marker))}\nbands: []\n")
    with pytest.raises(InputError):
        read(tmp_path / "a.yaml")
    assert not marker.exists() and "planted" not in sys.modules


# Weights and arrays run nothing.


class Trap:
    """Pickled, it makes a file wherever it is loaded as any pickle is."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["pad", *FAMILIES])
def test_no_released_weights_run_code(kind: str, marker: Path, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "meta": Trap(marker), "args": Trap(marker)}, tmp_path / "a.pth")
    with pytest.raises(SystemExit) as ended:
        convert([kind, str(tmp_path / "a.pth"), str(tmp_path / "out")])
    assert ended.value.code == 2
    assert not marker.exists() and not (tmp_path / "out").exists()


def object_array(path: Path, marker: Path) -> Path:
    np.save(path.with_suffix(".npy"), np.array([Trap(marker)], dtype=object), allow_pickle=True)
    return path.with_suffix(".npy").rename(path)


def encoder_of(path: Path, content: bytes) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(content)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    "read",
    {
        "image": lambda place, trap: read_image(object_array(place / "a.npy", trap), ImageSource()),
        "label": lambda place, trap: read_label(object_array(place / "a.npy", trap), LabelSource(), {}),
        "header": lambda place, trap: describe(object_array(place / "b.npy", trap)),
        "encoder": lambda place, trap: load_encoder(encoder_of(place / "e", pickle.dumps(Trap(trap)))),
        "weights": lambda place, trap: load_encoder(object_array(place / "model.safetensors", trap)),
        "sensor": lambda place, trap: find_sensor(str(object_array(place / "s.yaml", trap))),
        "index": lambda place, trap: Index.read(object_array(place / NAME, trap).parent),
    }.values(),
    ids=["image", "label", "header", "encoder", "weights", "sensor", "index"],
)
def test_no_array_or_network_is_unpickled(read: Callable[[Path, Path], object], marker: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read(tmp_path, marker)
    assert not marker.exists()


# A scene reads no other file.

VRT = (
    '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="{}">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
)
READERS = {
    "image": lambda path: read_image(path, ImageSource()),
    "label": lambda path: read_label(path, LabelSource(), {"a": (0, 0, 0), "b": (1, 1, 1)}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.TIF", "a.Tiff", "a.jpeg", "a.JP2", "a.Img", "a.VRT"])
def test_no_suffix_opens_a_file_outside(name: str, reader: str, tmp_path: Path) -> None:
    write_tiff(tmp_path / "secret.tif", counts((1, 8, 8)))
    (tmp_path / "in").mkdir()
    for relative, place in ((1, "../secret.tif"), (0, tmp_path / "secret.tif")):
        (tmp_path / "in" / name).write_text(VRT.format(relative, place))
        with pytest.raises(InputError):
            READERS[reader](tmp_path / "in" / name)


def external(path: Path, secret: Path, kind: str) -> None:
    with h5py.File(path, "w") as file:
        if kind == "link":
            file["cube"] = h5py.ExternalLink(str(secret), "cube")
        elif kind == "storage":
            file.create_dataset("cube", (4, 8, 8), "<u2", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout((4, 8, 8), "<u2")
            layout[:] = h5py.VirtualSource(str(secret), "cube", shape=(4, 8, 8))
            file.create_virtual_dataset("cube", layout)


@pytest.mark.parametrize("suffix", [".h5", ".nc", ".mat", ".he5"])
@pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
def test_no_array_comes_out_of_another_file(kind: str, suffix: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["cube"] = np.full((4, 8, 8), 77, "u2")
    external(tmp_path / f"a{suffix}", tmp_path / "secret.h5", kind)
    with pytest.raises(InputError):
        read_image(tmp_path / f"a{suffix}", ImageSource())


@pytest.mark.parametrize(
    "ask",
    [load_encoder, lambda place: find_set(f"{place}.yaml"), lambda place: find_sensor(f"{place}.yaml"), lambda place: Index.read(Path(place)),
     lambda place: parse_settings(PretrainConfig, "", ["--run.dir", "x", "--data.sources", f"[{{shards: '{place}', weight: -1}}]"]),
     lambda place: parse_settings(SceneConfig, "", [*NEEDED[SceneConfig], f"--run.wandb={place}"])],
    ids=["encoder", "set", "sensor", "index", "sources", "setting"],
)  # fmt: skip
def test_no_refusal_shows_a_password(ask: Callable[[str], object]) -> None:
    with pytest.raises(InputError) as refused:
        ask("https://me:hunter2@127.0.0.1:9/data")
    assert "hunter2" not in str(refused.value)


# What is written follows no link and has the rights of the umask.

CLASSES = {"a": (0, 0, 0), "b": (9, 9, 9)}
WRITERS: dict[str, Callable[[Path], object]] = {
    "labels.csv": lambda path: write_labels(path, [Line("a", np.array([0.5, 0.5]), {})], ["a", "b"], several=False),
    "labels.geojson": lambda path: write_footprints(path, [], ["a"], several=False),
    "scores.json": lambda path: write_scores(path, {"oa": 1.0}),
    "rows.csv": lambda path: report.write_rows(path, [{"a": 1.0}]),
    "table.csv": lambda path: report.write_table(path, ["a"], [[1.0]], digits=6),
    "set.yaml": lambda path: write_set(LabelledSet(name="s", images={}, classes=CLASSES, patches="a"), path),
    "model.safetensors": lambda path: save_tensors({"a": torch.zeros(2)}, path),
    "map.tif": lambda path: write_class_map(path, Grid(8, 8), CLASSES, np.zeros((8, 8), np.uint8)),
    "picture.png": lambda path: save_figure(plt.figure(), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_planted_link_is_replaced_and_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "theirs")
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
        plt.close("all")
    assert (tmp_path / "theirs").read_text() == "precious" and not (tmp_path / name).is_symlink()
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert {each.name for each in tmp_path.iterdir()} <= {name, f"{name}.aux.xml", "theirs"}


def test_the_log_of_a_process_of_seeds_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "process_0.log").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links"):
        train_part(SceneSeeds(), lambda *_: lambda: None, [], str(tmp_path / "process_0.log"), 1)
    assert (tmp_path / "theirs").read_text() == "precious"


# What is not ours stays.


@pytest.mark.parametrize(
    "name",
    ["step_\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0662", "step_\uff10\uff10\uff10\uff10\uff10\uff10\uff10\uff12", "step_00000002 (copy)",
     "step_000000020", "step_0000002", "STEP_00000002", "step_00000002~", "step_00000002.bak", "step_-0000002", "step_1e000002",
     "step_0000_002", "step_00000002\n", "step_\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.partial"],
)  # fmt: skip
def test_copies_under_other_names_are_the_users(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    clear_unfinished(tmp_path)
    assert list_folders(tmp_path) == [] and (tmp_path / name).is_dir()


@pytest.mark.parametrize(
    "entry",
    ["seed_0/scores.json", "scores.json", "contents.yaml", "config.yaml", "thesis/chapter.txt", "plain_stems/a"],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_sweep_takes_no_folder_of_others(entry: str, resume: str, tmp_path: Path) -> None:
    (tmp_path / "run" / entry).parent.mkdir(parents=True)
    (tmp_path / "run" / entry).write_text("{}")
    images = tmp_path / "data"
    for name in ("a", "b"):
        write_tiff(images / name / "0.tif", np.full((3, 8, 8), 7, "u1"))
    given = ["--run.dir", str(tmp_path / "run"), "--run.resume", resume, "--data.path", str(images), "--seeds", "0,1"]
    with pytest.raises(InputError, match="holds"):
        _claim(SceneSeeds(), parse_settings(SceneConfig, "", given), None)
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").rglob("*") if path.is_file()] == [
        (Path(entry).name, "{}")
    ]


@pytest.mark.parametrize("kind", ["file", "folder", "link to a folder", "hidden file"])
def test_a_conversion_takes_no_place_of_others(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / ".precious").write_text("mine")
    if kind == "file":
        out.write_text("mine")
    elif kind == "link to a folder":
        out.symlink_to(theirs)
    else:
        out.mkdir()
        (out / (".keep" if kind == "hidden file" else "notes")).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        convert(["mae", str(tmp_path / "a.pth"), str(out)])
    assert ended.value.code == 2
    assert "nothing in it is overwritten; give a new folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Numbers that are none go on nowhere.


@pytest.mark.parametrize("tree", [SegmentConfig, SceneConfig, ChangeConfig, CrossDomainConfig])
@pytest.mark.parametrize(
    "text",
    [
        "optim: {lr: !!float nan}",
        "optim: {lr: .NaN}",
        "optim: {weight_decay: 1e400}",
        "--optim={lr: -.Inf}",
        "--optim.lr=+.inf",
    ],
)
def test_no_task_learns_at_a_rate_that_is_none(tree: type, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    given = [text] if text.startswith("--") else ["--config", str(tmp_path / "a.yaml")]
    with pytest.raises(InputError, match=r"optim\.(lr|weight_decay)"):
        parse_settings(tree, "", [*NEEDED[tree], *given])


WRONG: list[tuple[str, Any]] = [
    ("scale", 0), ("scale", -1), ("scale", "text"), ("scale", float("nan")), ("std", 0), ("std", -2.0), ("std", float("inf")),
    ("mean", float("nan")), ("mean", 1e39), ("mean", "1,5"), ("offset", float("-inf")), ("wavelength", float("inf")), ("wavelength", -5),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An export and a folder of shards."""
    band = Band(name="grey", wavelength=600.0, mean=1.0, std=2.0)
    encoder = AllianceEncoder(EncoderConfig(embed_dim=16, depth=1, heads=2, patch=2), [Sensor(name="s", bands=(band,))])
    root = tmp_path_factory.mktemp("made")
    return save_encoder(encoder, root / "encoder"), write_tiny_shards(root / "shards", (2,))


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_no_export_or_index_goes_on_with_such_a_number(field: str, value: Any, made: tuple[Path, Path]) -> None:
    for folder, name, read in ((made[0], "sensors.json", load_encoder), (made[1], NAME, Index.read)):
        good = (folder / name).read_text()
        record = json.loads(good)
        (record if isinstance(record, list) else record["sensors"])[0]["bands"][0][field] = value
        (folder / name).write_text(json.dumps(record))
        try:
            with pytest.raises(InputError, match=f"{field}|is not finite"):
                read(folder)
        finally:
            (folder / name).write_text(good)
        read(folder)


@pytest.mark.parametrize(("field", "value"), [case for case in WRONG if case[0] != "wavelength"])
def test_no_network_goes_on_with_such_a_number(field: str, value: Any, tmp_path: Path) -> None:
    image = {"bands": [1], "mean": [1.0], "std": [2.0], "scale": 1.0}
    record = {"format": 2, "task": "pad", "model": {}, "classes": {"a": [0, 0, 0]}, "inputs": {"optical": image}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    read_inputs(tmp_path, {"optical": 1}, 1)
    image[field] = [value] if field in ("mean", "std") else value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError):
        read_inputs(tmp_path, {"optical": 1}, 1)
