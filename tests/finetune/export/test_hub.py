"""Folders for the hub: they load back, and the card says what the run knows and nothing of the machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import alliance
from datasets.imagery.images import ImageSource
from datasets.shards.index import Index
from finetune.export.command import main
from finetune.mapping.networks import open_network
from finetune.model_files import Inputs, image_input, nameless
from finetune.pad.checkpoint import save_pad
from finetune.pad.fusion import FusionConfig
from finetune.pad.model import Pad, PadConfig
from tests.helpers.models import FOUR_BANDS, FOUR_SAR, natural_image, tiny_model

SECRET = "hunter2"


@pytest.fixture
def run(tmp_path: Path, sar_shards: Path) -> Path:
    """A folder as pretraining leaves it: 10 steps, half of them logged."""
    folder = tmp_path / "runs" / "mine"
    alliance.save_encoder(tiny_model(sensors=(FOUR_BANDS, FOUR_SAR)).encoder, folder / "encoder")
    sources = [
        {"shards": str(sar_shards), "weight": 2.0, "sensors": []},
        {"shards": f"https://me:{SECRET}@host/data/optical", "weight": 1.0, "sensors": []},
        {"shards": f"pipe:ssh me@host cat {tmp_path}/{{}}", "weight": 1.0, "sensors": []},
    ]
    settings = {
        "run": {"dir": str(folder), "steps": 20, "seed": 7},
        "data": {"sources": sources},
        "optim": {"batch": 8, "lr": 1e-3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    records: list[dict[str, Any]] = [
        {"step": step, "sensor": "four", "loss": 1.0, "loss_low": 1.0 - 0.05 * step} for step in range(10)
    ]
    records += [{"event": "probe", "step": step, "sensor": "four", "psnr": 20.0 + step} for step in (4, 9)]
    records += [{"event": "picture", "step": 9, "sensor": "four", "path": str(folder / "a.png")}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def header_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_an_encoder_loads_back_and_its_card_says_what_the_run_knows(
    run: Path, sar_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hub"
    main([str(run), str(out), "--format", "hub", "--licence", "apache-2.0"])
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "sensors.json", "README.md"}
    image = natural_image(1, 4, 8, 8)
    with torch.no_grad():
        found, expected = (alliance.load_encoder(place)(image, "four").tokens for place in (out, run))
    assert torch.equal(found, expected)
    card = (out / "README.md").read_text()
    assert header_of(card)["license"] == "apache-2.0" and header_of(card)["library_name"] == "alliance-rs"
    digest = hashlib.sha256("".join(shard.sha256 for shard in Index.read(sar_shards).shards).encode()).hexdigest()
    for part in (
        "2 blocks of width 48, 3 heads, patches of 4 x 4", "| four | band0, band1, band2, band3 | reflectance | - |",
        "| radar | vv, vh | dB | - |", f"| sar | 2.0 | 8 | `{digest[:16]}` |", "| optical | 1.0 | - | the shards are not at hand |",
        "| a stream | 1.0 |", "* steps: 10 of 20", "* batch: 8", "* learning rate: 0.001", "* seed: 7",
        "four: low 0.975 -> 0.575 (-41%)", "* probe, four, after step 10: psnr 29", 'alliance.load_encoder("hub")',
    ):  # fmt: skip
        assert part in card
    assert not [each for each in (SECRET, str(tmp_path), str(sar_shards.parent), "ssh", "host") if each in card]


def test_no_licence_is_claimed_by_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run / "encoder" / "model.safetensors"), str(tmp_path / "hub"), "--format", "hub"])
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "license" not in header_of(card) and "Not stated." in card
    assert "claims no licence" in capsys.readouterr().out
    main([str(tmp_path / "hub"), str(tmp_path / "again"), "--format", "hub"])  # without its run
    assert "were converted, or exported without their run" in (tmp_path / "again" / "README.md").read_text()


def network_at(folder: Path, **changes: Any) -> Path:
    config = PadConfig(size="atto", classes=3, sar_channels=1, early_fusion=True, fusion=FusionConfig(stages=()))
    sources = {
        "optical": ImageSource(bands=(1, 2, 3), dtype="uint8", mean=(5,) * 3, std=(2,) * 3),
        "sar": ImageSource(**{"bands": (1,), "mean": (5,), "std": (2,)} | changes),
    }
    inputs = Inputs(classes=nameless(3), images={name: image_input(source) for name, source in sources.items()})
    return save_pad(config, Pad(config).state_dict(), folder / "model", **inputs.to_record())


def test_a_network_is_copied_with_its_scores(tmp_path: Path) -> None:
    run = tmp_path / "run"
    network = network_at(run)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"set": str(tmp_path / "whu.yaml")}, "run": {"steps": 5}}))
    (run / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    (run / "scores.json").write_text('{"split": "test", "step": 5, "miou": 61.237, "iou": {"a": 1}}')
    main([str(run), str(tmp_path / "hub"), "--format", "hub"])
    card = (tmp_path / "hub" / "README.md").read_text()
    for part in ("task `pad`", "3 classes", "`optical`: 3 channels, bands 1, 2, 3, stored as uint8", "Labelled images: `whu`",
                 "* test, miou 61.24", "--image optical=FILE --image sar=FILE", "* steps: 5 of 5"):  # fmt: skip
        assert part in card
    assert str(tmp_path) not in card + (tmp_path / "hub" / "config.json").read_text()
    found, own = (open_network(folder, "cpu") for folder in (tmp_path / "hub", network))
    weights = own.network.state_dict()  # pyright: ignore[reportFunctionMemberAccess]
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())  # pyright: ignore[reportFunctionMemberAccess]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "OUT", "--format", "onnx"], "OUT: --format onnx writes a file that ends in .onnx; name it so"),
        (["RUN", "OUT.pt2", "--format", "torch"], "knows the sensors four, radar, and a file is for one; give --sensor NAME"),
        (["RUN", "OUT.pt2", "--format", "torch", "--sensor", "x"], "knows the sensors four, radar, not 'x'"),
        (["RUN", "OUT.pt2", "--format", "torch", "--sensor", "four", "--size", "30"], "--size 30 is not a size; give multiples "
         "of 4 pixels, such as 16 or 16x24"),
        (["RUN", "OUT.pt2", "--format", "torch", "--sensor", "four", "--size", "8x"], "--size 8x is not a size"),
        (["RUN", "no/OUT.pt2", "--format", "torch", "--sensor", "four"], "there is no folder"),
        (["RUN", "USED.onnx", "--format", "onnx", "--sensor", "four"], "exists, and nothing is overwritten"),
        (["RUN", "OUT.onnx", "--format", "onnx", "--sensor", "four", "--opset", "17"], "argument --opset: '17' is not allowed; give a whole number from 18 to"),
        (["RUN", "OUT.pt2", "--format", "torch", "--opset", "18"], "--opset goes with --format onnx"),
        (["RUN", "OUT.pt2", "--format", "torch", "--licence", "mit"], "--licence goes with --format hub"),
        (["RUN", "OUT", "--format", "hub", "--sensor", "four"], "leave --sensor and --size out"),
        (["RUN", "OUT", "--format", "hub", "--private"], "give both or none"),
        (["RUN", "OUT", "--format", "hub", "--push", "mine"], "--push 'mine' is no id of the hub; give owner/name"),
        (["RUN", "FULL", "--format", "hub"], "FULL is not empty"),
        (["NONE", "OUT", "--format", "hub"], "holds no exported encoder"),
        (["NETWORK", "OUT.onnx", "--format", "onnx", "--sensor", "four"], "has its own images; leave --sensor out"),
        (["SEEDS", "OUT.onnx", "--format", "onnx"], "choose one of its seeds, such as"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_mend(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").touch()
    (tmp_path / "USED.onnx").touch()
    network_at(tmp_path / "SEEDS" / "seed_0")
    given = {"RUN": str(run), "NETWORK": str(tmp_path / "SEEDS" / "seed_0")}
    paths = [given.get(each, str(tmp_path / each)) for each in arguments[:2]]
    assert message in refused([*paths, *arguments[2:]], capsys)
    assert not list(tmp_path.glob("OUT*"))


def test_a_network_that_needs_a_file_of_this_machine_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = tmp_path / "own.yaml"
    described.write_text("name: own\nunit: dB\nbands:\n  - {name: VV, modality: sar-vv}\n")
    network_at(tmp_path / "run", sensor=str(described), bands=("VV",))
    said = refused([str(tmp_path / "run"), str(tmp_path / "hub"), "--format", "hub"], capsys)
    assert f"reads the sensor of its sar image from {described}" in said and not (tmp_path / "hub").exists()


def test_a_hub_that_cannot_be_reached_leaves_the_folder_complete(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    said = refused([str(run), str(tmp_path / "hub"), "--format", "hub", "--push", "me/encoder"], capsys)
    assert "hub is complete, but me/encoder cannot be written on the hub" in said and "hf auth login" in said
    assert 'alliance.load_encoder("me/encoder")' in (tmp_path / "hub" / "README.md").read_text()


def test_what_onnx_needs_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # as if it were not installed
    said = refused([str(run), str(tmp_path / "a.onnx"), "--format", "onnx", "--sensor", "four"], capsys)
    assert "onnxruntime is not installed; pip install 'alliance-rs[export]'" in said
