"""configs/finetune/backbones: each overlay builds a PAD network that fits the tiles it says it is for, and no others."""

import json
from pathlib import Path

import pytest
import torch

from alliance import save_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.model import model_config
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Tiles
from datasets.releases.command import main as prepare
from datasets.synthetic.pair_trees import write_whu
from engine.settings import parse_settings
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.inputs import describe
from finetune.pad.model import Pad, PadConfig
from finetune.tasks.evaluate import predict
from finetune.tasks.segmentation import for_data
from finetune.tasks.segmentation_config import SegmentConfig
from tests.helpers.models import randomise

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "finetune"
OVERLAYS = sorted((CONFIGS / "backbones").glob("*.yaml"))
NANO = "alliance_nano_patch8"
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LabelledSet]:
    """Tiles of 32 pixels, with measured constants and with released ones."""
    root = tmp_path_factory.mktemp("whu")
    write_whu(root / "raw", height=64, width=64)
    for constants in ("measured", "released"):
        arguments = [str(root / "raw"), str(root / constants), "--tile", "32", "--constants", constants]
        prepare(["whu-opt-sar", *arguments])
    return {constants: find_set(root / constants / "pairs.yaml") for constants in ("measured", "released")}


def settings(overlay: Path, pairs: LabelledSet, *arguments: str) -> PadConfig:
    """The network of a run with the overlay behind the setting of WHU-OPT-SAR, at its smallest."""
    files = (CONFIGS / "segment_whu_opt_sar.yaml", overlay)
    small = ["--run.dir", "run", "--model.size", "atto", "--model.encoder.model", NANO, *arguments]
    tree = parse_settings(SegmentConfig, "", [*(f"--config={file}" for file in files), *small])
    assert tree.model.backbone == overlay.stem.replace("_", "+")
    return for_data(tree.model, pairs)


def network(config: PadConfig, checkpoint: str = "") -> Pad:
    torch.manual_seed(0)
    return Pad(config, checkpoint=checkpoint).eval()


@each_overlay
def test_an_overlay_says_its_own_command(overlay: Path) -> None:
    assert f"--config configs/finetune/backbones/{overlay.name}" in overlay.read_text()


@each_overlay
def test_an_overlay_builds_a_network_that_reads_prepared_tiles(
    overlay: Path, prepared: dict[str, LabelledSet], tmp_path: Path
) -> None:
    """All of it learns, and the written network predicts the same."""
    pairs = prepared["measured"]
    config = settings(overlay, pairs)
    model, tile = network(config), Tiles(pairs, "train")[0]
    randomise(model, std=0.05)
    found = predict(model, tile, pairs)
    assert found.shape == (1, 32, 32) and int(found.max()) < 7
    assert model.transferred is not None and all(p.requires_grad for p in model.transferred.parameters())
    save_pad(config, model.state_dict(), tmp_path, encoder=model.transferred, **describe(pairs))
    assert torch.equal(predict(load_pad(tmp_path), tile, pairs), found)
    inputs = json.loads((tmp_path / "config.json").read_text())["encoder"]["inputs"]
    names = [band["name"] for band in inputs["rgb"]["sensor"]["bands"]]
    assert dict(zip(names, inputs["rgb"]["channels"], strict=True)) == {"R": 0, "G": 1, "B": 2}  # as in the tiles
    assert inputs["sar"]["channels"] == [0]


@each_overlay
def test_an_overlay_begins_with_a_pretrained_encoder(
    overlay: Path, prepared: dict[str, LabelledSet], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    encoder = AllianceEncoder(model_config(NANO).encoder)
    save_encoder(encoder, tmp_path / "mine")
    model = network(settings(overlay, prepared["measured"]), str(tmp_path / "mine"))
    assert model.transferred is not None
    held = model.transferred.encoder.state_dict()
    assert all(value.equal(held[name]) for name, value in encoder.state_dict().items())


@each_overlay
def test_tiles_with_released_constants_are_refused(overlay: Path, prepared: dict[str, LabelledSet]) -> None:
    """They have the bands of the file backwards and SAR three times, which these sensors are not."""
    with pytest.raises(InputError) as refused:
        network(settings(overlay, prepared["released"]))
    assert "encoder.sensors.sar: 3 channels are read, but sensor gf3-sar has the bands SAR" in str(refused.value)
    assert "\n" not in str(refused.value)
