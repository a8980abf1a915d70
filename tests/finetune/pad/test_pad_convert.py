"""Released PAD checkpoints: every key has its place, and the converted network computes the same."""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alliance.errors import InputError
from alliance.foreign import read_weights
from finetune.conversion import main
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.convert import convert, from_release, release_name
from finetune.pad.inputs import read_pad_inputs
from finetune.pad.model import Pad, PadConfig
from tests.helpers import warm
from tests.helpers.mmengine_files import mmengine_file
from tests.helpers.models import natural_image
from tests.helpers.pad_release import manifest, reference, released, weightless
from tests.helpers.runs import environment

ROOT = Path(__file__).resolve().parents[3]
ATTO = PadConfig(size="atto", classes=3)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


# Keys


def test_the_manifest_is_that_of_the_release() -> None:
    shapes = manifest("large", 7)
    assert len(shapes) == 926
    counts = collections.Counter(
        ".".join(name.split(".")[: 2 if name.startswith("backbone") else 1]) for name in shapes
    )
    assert counts == {
        "backbone.backbone": 384,
        "backbone.backbone2": 384,
        "backbone.FFMs": 76,
        "decode_head": 74,
        "auxiliary_head": 8,
    }
    parameters = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(BUFFERS))
    assert parameters == 440_569_002


@pytest.mark.parametrize("classes", [5, 7])
def test_every_weight_has_its_released_name_and_shape(classes: int) -> None:
    with torch.device("meta"):
        state = Pad(PadConfig(classes=classes)).state_dict()
    shapes = {release_name(name): tuple(value.shape) for name, value in state.items()}
    scalars = {name: () for name in shapes if name.endswith("radius")}  # ours are vectors of one number
    assert {name: shapes[name] for name in scalars} == dict.fromkeys(scalars, (1,))
    assert shapes | scalars == manifest("large", classes)


def test_a_file_of_full_size_loads_strictly(tmp_path: Path) -> None:
    path = mmengine_file(tmp_path / "release.pth", weightless())
    state = from_release(read_weights(path), PadConfig())
    with torch.device("meta"):
        model = Pad(PadConfig())
    model.load_state_dict(state, strict=True, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 440_569_002


def test_another_count_of_classes_is_refused_by_its_number() -> None:
    with pytest.raises(InputError, match="tells 5 classes apart, not 7; pass --classes 5"):
        from_release(weightless(classes=5), PadConfig())


def test_what_does_not_fit_is_shown_in_a_table() -> None:
    weights = weightless("atto", 3)
    del weights["backbone.FFMs.2.0.radius"]
    weights["backbone.FFMs.2.0.diameter"] = torch.zeros(1)
    weights["backbone.backbone2.norm1.bias"] = torch.zeros(81)
    with pytest.raises(InputError) as refusal:
        from_release(weights, ATTO, source="release.pth")
    assert str(refusal.value).splitlines() == [
        "release.pth is no released PAD checkpoint of size atto:",
        "  missing     backbone.FFMs.2.0.radius ()",
        "  unexpected  backbone.FFMs.2.0.diameter (1,)",
        "  reshaped    backbone.backbone2.norm1.bias (81,) -> (80,)",
    ]


def test_a_long_table_is_cut() -> None:
    with pytest.raises(InputError, match="no released PAD checkpoint of size large:\n(  .*\n){40}  and [0-9]+ more$"):
        from_release(weightless("atto", 7), PadConfig())


# The whole way


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return released()


def test_a_converted_network_computes_what_the_release_does(tmp_path: Path, weights: Mapping[str, Tensor]) -> None:
    convert(mmengine_file(tmp_path / "release.pth", weights), tmp_path / "out", ATTO)
    model = load_pad(tmp_path / "out")
    rgb, sar = natural_image(2, 3, 64, 128, seed=1), natural_image(2, 3, 64, 128, seed=2)
    with torch.no_grad():
        output = model(rgb, sar)
    logits, auxiliary, penalty = reference(weights, rgb, sar)
    assert output.logits.std() > 0.05
    assert torch.allclose(output.logits.double(), logits, atol=1e-4 * logits.std().item())
    assert torch.allclose(output.auxiliary.double(), auxiliary, atol=1e-4 * auxiliary.std().item())
    assert output.penalty.sum().item() == pytest.approx(penalty, rel=1e-4)


def test_the_command_writes_weights_and_settings(
    tmp_path: Path, weights: Mapping[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = mmengine_file(tmp_path / "release.pth", weights)
    main(["pad", str(path), str(tmp_path / "out"), "--size", "atto", "--classes", "3"])
    assert capsys.readouterr().out.startswith(f"{len(manifest())} tensors of ")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {release_name(name) for name in state} == manifest().keys()
    for name, value in state.items():
        assert torch.equal(value.flatten(), weights[release_name(name)].flatten())
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["model"]["fusion"]["radius"] == 0.1
    assert record["inputs"]["optical"]["mean"] == [80.475, 98.217, 106.364]


@pytest.mark.parametrize(("classes", "first"), [(7, "farmland"), (5, "buildings"), (3, "class 0")])
def test_a_converted_network_knows_its_inputs_and_classes(tmp_path: Path, classes: int, first: str) -> None:
    path = mmengine_file(tmp_path / "release.pth", weightless("atto", classes))
    convert(path, tmp_path / "out", PadConfig(size="atto", classes=classes))
    inputs = read_pad_inputs(tmp_path / "out")
    assert len(inputs.classes) == classes and next(iter(inputs.classes)) == first
    for name, bands, mean, std in (
        ("optical", (3, 2, 1), [80.475, 98.217, 106.364], [29.48, 26.953, 24.829]),
        ("sar", (1, 1, 1), [53.837] * 3, [48.475] * 3),
    ):
        image = inputs.images[name]
        assert (image.source.bands, image.source.dtype) == (bands, "uint8")
        assert (image.preprocessing.mean.tolist(), image.preprocessing.std.tolist()) == (mean, std)


CFG = "data_preprocessor = dict(bgr_to_rgb=False, mean=[120.0, 81.5, 88.0, 40.0, 41.0, 42.0], std=[54., 39., 36., 20., 21., 22.])"


def own_release(path: Path, weights: Mapping[str, Tensor], *, prefix: str = "", **more: Any) -> Path:
    """A checkpoint of the released code that was trained on other data, as mmengine describes it."""
    names = ("impervious", "building", "car")
    meta = {"cfg": CFG, "dataset_meta": {"classes": names, "palette": [[i * 30, 99, 9] for i in range(3)]}}
    torch.save({"meta": meta, "state_dict": {prefix + name: value for name, value in weights.items()}, **more}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_release_of_own_classes_keeps_its_names_colours_and_statistics(
    tmp_path: Path, weights: Mapping[str, Tensor], prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {
        f"module.{name}": value + 1 for name, value in weights.items()
    }  # not averaged: mmengine has swapped the two
    path = own_release(tmp_path / "own.pth", weights, prefix=prefix, ema_state_dict=other)
    main(["pad", str(path), str(tmp_path / "out"), "--size", "atto"])
    inputs = read_pad_inputs(tmp_path / "out")
    assert dict(inputs.classes) == {"impervious": (0, 99, 9), "building": (30, 99, 9), "car": (60, 99, 9)}
    optical, sar = (inputs.images[name].preprocessing for name in ("optical", "sar"))
    assert (optical.mean.tolist(), optical.std.tolist()) == ([120, 81.5, 88], [54, 39, 36])
    assert (sar.mean.tolist(), sar.std.tolist()) == ([40, 41, 42], [20, 21, 22])
    state = load_pad(tmp_path / "out").state_dict()
    assert all(value.flatten().equal(weights[release_name(name)].flatten()) for name, value in state.items())
    assert "assumed: bands of the optical files, from 1: 3, 2, 1" in capsys.readouterr().out


def test_what_a_release_does_not_say_is_said_to_be_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = dict(weightless("atto", 7))
    name = "backbone.backbone2.downsample_layers.0.0.weight"
    weights[name] = weights[name][:, :1]
    torch.save({"state_dict": weights}, tmp_path / "one.pth")
    main(["pad", str(tmp_path / "one.pth"), str(tmp_path / "out"), "--size", "atto"])
    told = capsys.readouterr().out
    assert "assumed: the file names no 7 classes; taken: farmland, city" in told
    assert "assumed: the file says no mean and std of its bands; taken: those of the authors' code" in told
    sar = read_pad_inputs(tmp_path / "out").images["sar"]
    assert (sar.source.bands, sar.preprocessing.mean.tolist()) == ((1,), [53.837])


def test_the_command_refuses_in_one_message(tmp_path: Path) -> None:
    command = [str(ROOT / "launch" / "convert.py"), "pad", str(tmp_path / "a.pth"), str(tmp_path / "out")]
    done = warm.run(command, environment(), 100)
    assert done.returncode == 2
    assert done.stdout.startswith(f"error: there is no file '{tmp_path / 'a.pth'}'")
    assert not (tmp_path / "out").exists()


def test_a_saved_network_keeps_its_switches(tmp_path: Path) -> None:
    config = PadConfig(size="atto", classes=2, input="sar", sar_channels=1, stage_norms="output")
    model = Pad(config).eval()
    loaded = load_pad(save_pad(config, model.bfloat16().state_dict(), tmp_path / "pad"))
    image = natural_image(1, 1, 32, 32)
    assert loaded.config == config and not loaded.training
    assert torch.equal(loaded(sar=image).logits, model.float()(sar=image).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(task="s2fin"), "is of a network of task s2fin, needed is pad"),
        (lambda record: record.update(format=9), "format 9"),
        (lambda record: record["model"].update(depth=3), "depth"),
        (lambda record: record["model"].pop("fusion"), "fusion"),
        (lambda record: record["model"].update(classes=4), r"reshaped    decoder.conv_seg.weight \(2, 256"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    config = PadConfig(size="atto", classes=2, input="rgb")
    save_pad(config, Pad(config).state_dict(), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    change(record)
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        load_pad(tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not describe a trained network"):
        load_pad(tmp_path)
