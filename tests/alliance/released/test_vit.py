"""Files of plain vision transformers become encoders with their features: timm, MAE, DINOv2, SSL4EO-S12, SatMAE."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from alliance.errors import InputError
from alliance.released.parts import Options
from alliance.released.registry import FAMILIES, convert_released
from finetune.conversion import main
from tests.helpers.released import (
    block_weights,
    blocks,
    converted,
    image_of,
    mae_positions,
    random,
    shaken,
    standardised,
)

SMALL: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 16,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
HEADS = ("--heads", "3")
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "timm": ("timm", {}, "rgb-half"),
    "timm without cls": ("timm", {"class_token": False, "global_pool": ""}, "rgb-half"),
    "dinov2": ("dinov2", {"init_values": 0.1, "patch_size": 14, "img_size": 56}, "rgb-imagenet"),
    "registers": (
        "dinov2",
        {"init_values": 0.1, "patch_size": 14, "img_size": 56, "reg_tokens": 4, "no_embed_class": True},
        "rgb-imagenet",
    ),
    "registers with positions": ("timm", {"reg_tokens": 4}, "rgb-half"),
    "13 bands": ("ssl4eo", {"in_chans": 13}, "ssl4eo-sentinel2"),
    "radar": ("ssl4eo", {"in_chans": 2}, "ssl4eo-sentinel1"),
}


def features_of(model: Any, image: torch.Tensor) -> torch.Tensor:
    return model.forward_features(image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vision_transformer_keeps_its_features(kind: str, tmp_path: Path):
    format, changes, name = KINDS[kind]
    model = shaken(VisionTransformer(**{**SMALL, **changes}))
    encoder = converted(format, model.state_dict(), tmp_path, *HEADS)
    sensor = encoder.sensors[name]
    image = image_of(sensor, changes.get("img_size", 64))
    given = image if name == "ssl4eo-sentinel2" else standardised(image, sensor)
    with torch.no_grad():
        theirs, ours = features_of(model, given), encoder(image, sensor)
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(ours.tokens[:, 0], theirs[:, prefix:], atol=1e-4, rtol=1e-4)
    if model.has_class_token:
        torch.testing.assert_close(ours.cls, theirs[:, 0], atol=1e-4, rtol=1e-4)


def test_timm_positions_are_resampled_as_timm_does(tmp_path: Path):
    model = shaken(VisionTransformer(**SMALL, dynamic_img_size=True))
    encoder = converted("timm", model.state_dict(), tmp_path, *HEADS)
    image = image_of(encoder.sensors["rgb-half"], 96)[..., :80]
    with torch.no_grad():
        theirs = features_of(model, standardised(image, encoder.sensors["rgb-half"]))[:, 1:]
        torch.testing.assert_close(encoder(image, "rgb-half").tokens[:, 0], theirs, atol=1e-4, rtol=1e-4)


def test_dinov2_positions_are_sampled_a_tenth_of_a_token_off(tmp_path: Path):
    """Where DINOv2 resamples, it scales by (h + 0.1) / side; its official files name registers `register_tokens`."""
    d, side = 48, 4
    weights = block_weights(d, 2) | {
        "cls_token": random(1, 1, d), "pos_embed": random(1, side**2 + 1, d, seed=5), "mask_token": random(1, d),
        "patch_embed.proj.weight": random(d, 3, 14, 14, seed=6), "patch_embed.proj.bias": random(d, seed=7),
    }  # fmt: skip
    encoder = converted("dinov2", weights, tmp_path, *HEADS)
    sensor = encoder.sensors["rgb-imagenet"]
    image = image_of(sensor, 42)
    tokens = functional.conv2d(
        standardised(image, sensor), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=14
    )
    grid = weights["pos_embed"][:, 1:].reshape(1, side, side, d).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, scale_factor=(3.1 / 4, 3.1 / 4), mode="bicubic")
    cls = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(2, -1, -1)
    theirs = blocks(torch.cat([cls, (tokens + grid).flatten(2).transpose(1, 2)], 1), weights, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image, sensor).tokens[:, 0], theirs[:, 1:], atol=1e-4, rtol=1e-4)


def mae_file(d: int = 48, side: int = 4) -> dict[str, torch.Tensor]:
    positions = torch.cat([torch.zeros(1, d), mae_positions(side, d)])[None]
    return block_weights(d, 2) | {
        "cls_token": random(1, 1, d), "pos_embed": positions, "mask_token": random(1, 1, 32),
        "patch_embed.proj.weight": random(d, 3, 16, 16, seed=3), "patch_embed.proj.bias": random(d, seed=4),
        "decoder_embed.weight": random(32, d), "decoder_blocks.0.norm1.weight": random(32),
    }  # fmt: skip


def test_mae_keeps_its_features_and_has_positions_for_any_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = mae_file()
    encoder = converted("mae", {"model": weights, "epoch": 3}, tmp_path, *HEADS)
    report = capsys.readouterr().out
    assert "loaded      blocks.0.attn.qkv.weight" in report
    assert "adapted     patch_embed.proj.weight" in report
    assert "left out    decoder_embed.weight" in report
    assert "new         patch_embed.code.modality" in report
    assert encoder.config.table == 0 and encoder.config.spatial_order == "x_first"
    sensor = encoder.sensors["rgb-imagenet"]
    for side in (4, 6):
        image = image_of(sensor, 16 * side)
        tokens = functional.conv2d(
            standardised(image, sensor), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=16
        )
        tokens = tokens.flatten(2).transpose(1, 2) + mae_positions(side, 48)
        theirs = blocks(torch.cat([weights["cls_token"].expand(2, -1, -1), tokens], 1), weights, 2, 3)
        with torch.no_grad():
            ours = encoder(image, sensor)
        torch.testing.assert_close(ours.tokens[:, 0], theirs[:, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.cls, theirs[:, 0], atol=1e-4, rtol=1e-4)


def satmae_file(d: int = 64, beside: int = 16, side: int = 3) -> dict[str, torch.Tensor]:
    angle = torch.arange(3)
    own = block_weights(d, 2)
    for group, bands in enumerate((4, 4, 2)):
        own[f"patch_embed.{group}.proj.weight"] = random(d, bands, 8, 8, seed=10 + group)
        own[f"patch_embed.{group}.proj.bias"] = random(d, seed=20 + group)
    positions = torch.cat([torch.zeros(1, d - beside), mae_positions(side, d - beside)])[None]
    channel = torch.stack([angle.sin(), angle.cos()], 1).repeat(1, beside // 2)[None]
    return own | {
        "cls_token": random(1, 1, d),
        "pos_embed": positions,
        "channel_embed": channel,
        "decoder_norm.weight": random(8),
    }


def test_satmae_keeps_its_features_where_it_clips_too(tmp_path: Path):
    weights, d = satmae_file(), 64
    encoder = converted("satmae", {"model": weights}, tmp_path, "--heads", "4")
    sensor = encoder.sensors["satmae-sentinel2"]
    image = image_of(sensor, 24, spread=1.2).clamp(min=0.0)
    clipped = (standardised(image, sensor) / 4 + 0.5).clamp(0, 1)
    assert ((clipped == 0) | (clipped == 1)).float().mean() > 0.01
    sequences, first = [], 0
    for group, bands in enumerate((4, 4, 2)):
        kernel, bias = (weights[f"patch_embed.{group}.proj.{part}"] for part in ("weight", "bias"))
        tokens = functional.conv2d(clipped[:, first : first + bands], kernel, bias, stride=8).flatten(2).transpose(1, 2)
        channel = weights["channel_embed"][:, group : group + 1].expand(-1, 9, -1)
        sequences.append(tokens + torch.cat([weights["pos_embed"][:, 1:], channel], 2))
        first += bands
    theirs = blocks(torch.cat([weights["cls_token"].expand(2, -1, -1), *sequences], 1), weights, 2, 4)[:, 1:]
    with torch.no_grad():
        ours = encoder(image, sensor).tokens
    torch.testing.assert_close(ours.reshape(2, 27, d), theirs, atol=1e-4, rtol=1e-4)


def test_a_safetensors_file_beside_its_config_says_mean_and_std(tmp_path: Path):
    from safetensors.torch import save_file

    save_file(shaken(VisionTransformer(**SMALL)).state_dict(), tmp_path / "model.safetensors")
    record = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    main(["timm", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), *HEADS])
    sensors = json.loads((tmp_path / "out" / "sensors.json").read_text())
    assert [band["mean"] for band in sensors[0]["bands"]] == [0.1, 0.2, 0.3]


WRONG = {
    "missing": lambda own: own.pop("blocks.1.mlp.fc1.bias"),
    "unexpected": lambda own: own.update({"blocks.0.attn.rope": random(3)}),
    "reshaped": lambda own: own.update({"blocks.1.attn.proj.weight": random(48, 40)}),
    "finite": lambda own: own["blocks.0.norm1.bias"].fill_(float("nan")),
    "floating-point": lambda own: own.update({"norm.bias": torch.ones(48, dtype=torch.int64)}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_told_and_nothing_is_written(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = mae_file()
    WRONG[fault](weights)
    with pytest.raises(SystemExit) as stopped:
        converted("mae", weights, tmp_path, *HEADS)
    assert stopped.value.code == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["mae", "satmae"])
def test_no_weight_of_the_encoder_may_be_missing_or_longer(format: str, tmp_path: Path):
    weights = mae_file() if format == "mae" else satmae_file()
    heads = Options(heads=2)
    for name in [name for name in weights if not name.startswith(("decoder", "mask_token"))]:
        for changed in (
            {key: value for key, value in weights.items() if key != name},
            weights | {name: torch.cat([weights[name], weights[name]])},
        ):
            torch.save(changed, tmp_path / "file.pth")
            with pytest.raises(InputError, match=name):
                convert_released(format, tmp_path / "file.pth", heads)


def test_a_part_that_is_left_out_must_be_finite_too(tmp_path: Path):
    torch.save(mae_file() | {"decoder_embed.weight": torch.full((32, 48), torch.inf)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="not-finite  decoder_embed.weight"):
        convert_released("mae", tmp_path / "file.pth", Options(heads=3))


@pytest.mark.parametrize("format", FAMILIES)
def test_a_file_of_another_family_is_refused_with_a_table(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        converted(format, {"encoder.layer.0.weight": random(4, 4), "stem.bias": random(4)}, tmp_path, *HEADS)
    shown = capsys.readouterr().err
    assert stopped.value.code == 2 and "missing" in shown and "unexpected  stem.bias (4,)" in shown


def test_a_used_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        converted("mae", mae_file(), tmp_path, *HEADS)
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_unknown_heads_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        converted("mae", mae_file(), tmp_path)
    assert "--heads" in capsys.readouterr().err
