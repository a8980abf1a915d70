"""Continued pretraining: from a converted encoder, then from a run's export with its decoder; and places to load from."""

import dataclasses
import json
import subprocess
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from alliance.checkpoint import digest_of, load_decoder, load_encoder, save_encoder
from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.model import AllianceConfig
from datasets.shards.loader import SourceConfig
from engine.training import refuse_another_run
from pretrain.config import DataConfig, PretrainConfig, PretrainRunConfig
from pretrain.data import adopt_statistics
from pretrain.start import open_start
from tests.helpers import warm
from tests.helpers.models import FOUR_BANDS, TINY_ENCODER, tiny_model
from tests.helpers.released import converted, shaken
from tests.helpers.runs import ROOT, TIMEOUT, environment, metrics

STILL = ("--optim.lr", "1e-20", "--optim.weight_decay", "0")  # so that weights stay what they were


def go_on(folder: Path, shards: Path, init: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """launch/pretrain.py with the configuration for continued pretraining, made small."""
    small = ("--data.crop", "32", "--optim.batch", "8", "--run.steps", "1", "--run.log_every", "1")
    small += ("--model.decoder.embed_dim", "32", "--model.decoder.depth", "3", "--model.decoder.heads", "4")
    config = ("--config", str(ROOT / "configs/pretrain/continue.yaml"), "--init", str(init), "--run.dir", str(folder))
    sources = ("--data.sources", json.dumps([{"shards": str(shards)}]))
    return warm.run([str(ROOT / "launch/pretrain.py"), *config, *small, *sources, *arguments], environment(), TIMEOUT)


def test_a_run_goes_on_with_the_weights_of_another(tmp_path: Path, optical_shards: Path):
    """Nothing is learnt, so weights stay, and the second run, of the first one's export, has the same first loss."""
    model = shaken(VisionTransformer(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0))
    begun = converted("timm", model.state_dict(), tmp_path, "--heads", "3")
    first = go_on(tmp_path / "first", optical_shards, tmp_path / "out", *STILL)
    assert first.returncode == 0, first.stdout
    assert "a new decoder" in first.stdout
    exported = load_encoder(tmp_path / "first")
    assert exported.config == begun.config and set(exported.sensors) == {"rgb-half", "synthetic-optical"}
    for name, value in begun.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], value, atol=1e-7, rtol=0)

    second = go_on(tmp_path / "second", optical_shards, tmp_path / "first", *STILL)
    assert second.returncode == 0, second.stdout
    assert "its decoder" in second.stdout
    losses = [metrics(tmp_path / name)[0]["loss"] for name in ("first", "second")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    state = json.loads(next((tmp_path / "second" / "checkpoints").glob("step_*/loop.json")).read_text())
    assert state["run"]["init"] == digest_of(tmp_path / "first")  # a resumed run must begin with the same weights
    with pytest.raises(InputError, match="another init"):
        refuse_another_run(state["run"], state["run"] | {"init": digest_of(tmp_path / "out")})


def config_of(init: str, **encoder: object) -> PretrainConfig:
    settings = dataclasses.replace(EncoderConfig(), **encoder)
    data = DataConfig(sources=[SourceConfig(shards="nowhere")])
    return PretrainConfig(
        run=PretrainRunConfig(dir="nowhere"), data=data, init=init, model=AllianceConfig(encoder=settings)
    )


def test_the_encoders_shape_comes_from_its_weights(tmp_path: Path):
    save_encoder(AllianceEncoder(TINY_ENCODER, [FOUR_BANDS]), tmp_path / "encoder")
    start = open_start(config_of(str(tmp_path)))
    assert start is not None
    settled = start.settle(config_of(str(tmp_path), drop_path=0.2))
    assert settled.model.encoder == dataclasses.replace(TINY_ENCODER, drop_path=0.2)
    with pytest.raises(InputError, match=r"depth is 7, but model.encoder of --init .* is 2; leave the setting out"):
        start.settle(config_of(str(tmp_path), depth=7))


def test_a_known_sensor_keeps_the_statistics_of_the_weights():
    mine = FOUR_BANDS.with_statistics([9.0] * 4, [3.0] * 4)
    assert adopt_statistics({"four": mine}, {"four": FOUR_BANDS})["four"].bands[0].mean == 0.0
    fewer = mine.select(["band0", "band1"])
    assert adopt_statistics({"four": fewer}, {"four": FOUR_BANDS})["four"] == fewer
    assert adopt_statistics({"other": mine}, {"four": FOUR_BANDS})["other"] == mine


def test_weights_of_another_project_are_sent_to_the_converter(tmp_path: Path):
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "mae.pth")
    with pytest.raises(InputError, match=r"launch/convert.py FORMAT"):
        load_encoder(tmp_path / "mae.pth")
    with pytest.raises(InputError, match=r"launch/convert.py FORMAT"):
        open_start(config_of(str(tmp_path / "mae.pth")))


def hub_cache(folder: Path) -> AllianceEncoder:
    """A cache as huggingface_hub leaves it, of the repository someone/encoder."""
    model = tiny_model()
    repository = folder / "models--someone--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    save_encoder(model.encoder, repository / "snapshots" / "0123abc")
    return model.encoder


def test_an_id_of_the_hub_is_served_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = hub_cache(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for place in ("someone/encoder", "someone/encoder@main", tmp_path / "models--someone--encoder"):
        found = load_encoder(place)
        assert all(torch.equal(found.state_dict()[name], value) for name, value in saved.state_dict().items())
        assert load_decoder(place) is None and len(digest_of(place)) == 64
    with pytest.raises(InputError, match="cannot be had from the hub"):
        load_encoder("someone/else")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="runs/mine holds no exported encoder"):
        load_encoder("runs/mine")
