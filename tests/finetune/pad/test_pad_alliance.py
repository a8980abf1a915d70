"""PAD on an Alliance encoder, alone or beside ConvNeXt V2: maps, what is shared, equality at the start, files."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alliance import EncoderConfig, save_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from engine.optim import OptimConfig, parameter_groups
from finetune.backbones.alliance_encoder import EncoderInput, InputSensor, TransferConfig, TransferredEncoder
from finetune.backbones.convnext import ConvNeXtV2
from finetune.backbones.lora import LoraConfig
from finetune.backbones.pyramid import PyramidConfig, TokenPyramid, rescaling
from finetune.pad.checkpoint import load_pad, save_pad, start_from
from finetune.pad.model import Pad, PadConfig
from tests.helpers.models import natural_image, randomise

SENSORS = {
    "rgb": InputSensor(sensor="gf1-optical", bands=("B", "G", "R")),
    "sar": InputSensor(sensor="gf3-sar", channels=(0,)),
}
WIDTHS = (8, 16, 24, 32)
KINDS = ("alliance", "convnext+alliance")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize(
    ("kind", "mode"),
    [("alliance", "frozen"), ("alliance", "full"), ("alliance", "lora"), ("convnext+alliance", "frozen")],
)


def settings(kind: Any = "alliance", *, patch: int = 8, mode: Any = "frozen", **changes: Any) -> PadConfig:
    """The smallest network of a kind. `changes` are those of the network, or of its encoder's use."""
    use = {name: changes.pop(name) for name in ("sensors", "layer_decay") if name in changes}
    encoder = TransferConfig(**{"model": f"alliance_nano_patch{patch}", "mode": mode, "sensors": SENSORS, **use})
    pyramid = changes.pop("pyramid", PyramidConfig(widths=WIDTHS, stem=4))
    return PadConfig(size="atto", classes=3, backbone=kind, encoder=encoder, pyramid=pyramid, **changes)


def network(kind: Any = "alliance", *, seed: int = 0, checkpoint: str = "", **changes: Any) -> Pad:
    torch.manual_seed(seed)
    return Pad(settings(kind, **changes), checkpoint=checkpoint).eval()


def pair(h: int = 64, w: int = 64, b: int = 1) -> tuple[Tensor, Tensor]:
    return natural_image(b, 3, h, w, seed=1), natural_image(b, 3, h, w, seed=2)


# Maps


@each_kind
@pytest.mark.parametrize("patch", [8, 16])
def test_maps_have_strides_4_to_32_and_logits_the_size_of_the_image(kind: str, patch: int) -> None:
    model, widths = network(kind, patch=patch), WIDTHS if kind == "alliance" else (40, 80, 160, 320)
    for h, w in [(32, 32), (64, 96), (70, 101), (33, 63)]:
        for encoder, image in zip(model.encoders.values(), pair(h, w), strict=True):
            shapes = [tuple(one.shape) for one in encoder(image)]
            assert shapes == [(1, width, h // s, w // s) for width, s in zip(widths, (4, 8, 16, 32), strict=True)]
    output = model(*pair(33, 63))
    assert output.logits.shape == output.auxiliary.shape == (1, 3, 33, 63)
    assert all(value.isfinite().all() for value in output)


@pytest.mark.parametrize(("doublings", "size"), [(3, 32), (2, 16), (1, 8), (0, 4), (-1, 2), (-2, 1)])
def test_maps_are_doubled_and_halved(doublings: int, size: int) -> None:
    assert rescaling(6, doublings)(torch.randn(1, 6, 4, 4)).shape == (1, 6, size, size)


def test_shrinking_keeps_the_largest_value() -> None:
    assert rescaling(1, -1)(torch.arange(16.0).reshape(1, 1, 4, 4)).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]


def test_what_lies_beyond_the_last_whole_stride_does_not_move_the_maps() -> None:
    pyramid = network().encoders["rgb"].alliance
    small, large = torch.zeros(1, 3, 33, 40), torch.zeros(1, 3, 40, 40)
    small[..., :33, :] = large[..., :33, :] = natural_image(1, 3, 33, 40)
    with torch.no_grad():
        for one, two in zip(pyramid(small), pyramid(large), strict=True):
            assert torch.equal(one, two[..., : one.shape[-2], :])


def test_the_four_depths_may_be_chosen() -> None:
    even, chosen, other = (
        network(pyramid=PyramidConfig(widths=WIDTHS, blocks=blocks)) for blocks in ((), (0, 1, 2, 3), (0, 0, 0, 3))
    )
    logits = [model(*pair()).logits for model in (even, chosen, other)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_the_stem_sees_what_tokens_do_not_say() -> None:
    backbones = [network(pyramid=PyramidConfig(widths=WIDTHS, stem=stem)).encoders["rgb"] for stem in (4, 0)]
    for backbone in backbones:
        for layer in backbone.alliance.project:  # the tokens say nothing
            nn.init.zeros_(layer.weight)
    rgb, sar = pair()
    seen, unseen = ((backbone(rgb)[0] - backbone(sar)[0]).abs().max() for backbone in backbones)
    assert seen > 0.1 and unseen == 0


# What is shared, and what learns


@each_kind
def test_both_modalities_share_one_encoder_which_is_stored_once(kind: str) -> None:
    model = network(kind)
    encoders = {id(module) for module in model.modules() if isinstance(module, AllianceEncoder)}
    names = [name for name in model.state_dict() if name.endswith("blocks.0.attn.qkv.weight")]
    assert len(encoders) == 1
    assert names == ["encoders.rgb.alliance.encoder.encoder.blocks.0.attn.qkv.weight"]
    assert model.encoders["rgb"].alliance.source.encoder is model.encoders["sar"].alliance.source.encoder
    assert model.transferred is model.encoders["sar"].alliance.source.encoder
    assert not [name for name in dict(model.named_parameters()) if name not in model.state_dict()]


def test_the_modalities_are_read_by_their_own_sensors() -> None:
    rgb, _ = pair()
    source = network().transferred
    assert source is not None
    optical, radar = (source.maps(rgb[:, :1].expand(-1, 3, -1, -1), name, [-1])[0] for name in ("rgb", "sar"))
    assert not torch.allclose(optical, radar, atol=1e-2)


@each_way
def test_what_should_learn_gets_a_gradient(kind: str, mode: str) -> None:
    model = network(kind, mode=mode).train()
    randomise(model, std=0.02)  # or zeros stop the gradient
    model(*pair(b=2)).logits.square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    encoder = {name for name, _ in model.named_parameters() if ".encoder.encoder." in name}
    adapters = {name for name in encoder if name.endswith((".up", ".down"))}
    auxiliary = {name for name, _ in model.named_parameters() if name.startswith("auxiliary")}
    assert without - auxiliary == {"frozen": encoder, "full": set(), "lora": encoder - adapters}[mode]


def test_layer_decay_reaches_the_optimiser() -> None:
    groups = parameter_groups(network(mode="full", layer_decay=0.5), OptimConfig(decay_vectors=True))
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (0.5**i, 0.05)
        for i in range(5)  # four blocks, the embedding
    ]


# Beside ConvNeXt


def plain(seed: int = 1) -> Pad:
    """Plain PAD, every weight with some value."""
    torch.manual_seed(seed)
    model = Pad(PadConfig(size="atto", classes=3)).eval()
    randomise(model, std=0.05, seed=seed)
    return model


@pytest.mark.parametrize("sensors", [SENSORS, {"rgb": SENSORS["rgb"]}, {"sar": SENSORS["sar"]}], ids="+".join)
def test_beside_convnext_it_starts_as_plain_pad_with_plain_weights(tmp_path: Path, sensors: Any) -> None:
    reference, model = plain(), network("convnext+alliance", sensors=sensors)
    folder = save_pad(reference.config, reference.state_dict(), tmp_path / "plain")
    added = {name for name in model.state_dict() if ".alliance." in name}
    assert model.state_dict().keys() - added == reference.state_dict().keys()
    start_from(model, folder)
    for found, expected in zip(model(*pair()), reference(*pair()), strict=True):
        assert torch.equal(found, expected)


def test_it_leaves_that_start_when_the_projections_move() -> None:
    model = network("convnext+alliance")
    before = model(*pair()).logits
    nn.init.normal_(model.encoders["rgb"].alliance.project[2].weight, std=0.1)
    assert not torch.equal(model(*pair()).logits, before)


def test_a_modality_without_a_sensor_is_plain_convnext() -> None:
    model = network("convnext+alliance", sensors={"sar": SENSORS["sar"]})
    assert type(model.encoders["rgb"]) is ConvNeXtV2
    assert [name for name in model.state_dict() if name.startswith("encoders.sar.alliance.encoder.")]


def test_other_weights_than_the_added_ones_must_be_there(tmp_path: Path) -> None:
    reference = plain()
    state = {name: value for name, value in reference.state_dict().items() if name != "encoders.rgb.stem.0.bias"}
    folder = save_pad(reference.config, state, tmp_path / "plain")
    with pytest.raises(InputError, match=r"\n  missing     encoders.rgb.stem.0.bias \(40,\)$"):
        start_from(network("convnext+alliance"), folder)
    other = Pad(dataclasses.replace(settings("convnext+alliance"), classes=4))
    save_pad(reference.config, reference.state_dict(), folder)
    start_from(other, folder)  # a classifier of another size begins anew, everything else is copied
    for name, value in reference.state_dict().items():
        if other.state_dict()[name].shape == value.shape:
            assert torch.equal(other.state_dict()[name], value), name


# Files


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To rounding: the kernels that a CPU takes depend on where weights lie in memory."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@each_way
def test_a_saved_network_needs_the_encoders_checkpoint_no_more(tmp_path: Path, kind: str, mode: str) -> None:
    torch.manual_seed(3)
    save_encoder(AllianceEncoder(EncoderConfig(embed_dim=48, depth=4, heads=3)), tmp_path / "encoder")
    model = network(kind, mode=mode, checkpoint=str(tmp_path / "encoder"), sensors={"rgb": SENSORS["rgb"]}, input="rgb")
    randomise(model, std=0.05)
    save_pad(model.config, model.state_dict(), tmp_path / "pad", encoder=model.transferred, note="kept")
    shutil.rmtree(tmp_path / "encoder")
    loaded = load_pad(tmp_path / "pad")
    assert loaded.config == model.config and not loaded.training
    assert json.loads((tmp_path / "pad" / "config.json").read_text())["note"] == "kept"
    assert_alike(loaded(pair()[0]).logits, model(pair()[0]).logits)
    learning = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (loaded, model)]
    assert learning[0] == learning[1]


def test_a_saved_network_of_two_modalities_still_shares_the_encoder(tmp_path: Path) -> None:
    model = network()
    save_pad(model.config, model.state_dict(), tmp_path, encoder=model.transferred)
    loaded = load_pad(tmp_path)
    assert loaded.encoders["rgb"].alliance.source.encoder is loaded.encoders["sar"].alliance.source.encoder
    assert_alike(loaded(*pair()).logits, model(*pair()).logits)


@pytest.mark.parametrize("part", ["encoder", "sensors", "inputs"])
def test_a_file_without_the_encoders_shape_is_refused(tmp_path: Path, part: str) -> None:
    model = network()
    save_pad(model.config, model.state_dict(), tmp_path, encoder=model.transferred)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["encoder"][part]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"not the configuration of a PAD network \\(encoder: '{part}' is missing"):
        load_pad(tmp_path)


# Wrong settings


def pyramid_of_patch(patch: int) -> TokenPyramid:
    encoder = TransferredEncoder(TransferConfig(model="alliance_nano_patch8", sensors=SENSORS), {"rgb": 3})
    encoder.encoder.patch_size = patch
    return TokenPyramid(EncoderInput(encoder, "rgb"), (), WIDTHS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PadConfig(backbone="resnet"), "backbone 'resnet' is not one of convnext, alliance, convnext"),
        (lambda: settings(sensors={"optical": SENSORS["rgb"]}), "names the input optical; the inputs are rgb and sar"),
        (lambda: network(sensors={"rgb": SENSORS["rgb"]}), r"no sensor for the input sar \(it has rgb\)"),
        (lambda: network("convnext+alliance", sensors={}), "encoder.sensors names none of the inputs rgb, sar"),
        (lambda: network("convnext+alliance", input="rgb", sensors={"sar": SENSORS["sar"]}), "none of the inputs rgb"),
        (lambda: PyramidConfig(widths=(8, 16)), r"pyramid.widths are \[8, 16\]; give the widths of 4 maps"),
        (lambda: PyramidConfig(blocks=(1, 2)), r"pyramid.blocks are \[1, 2\]; give 4 blocks"),
        (lambda: pyramid_of_patch(12), "an encoder of patch 12 gives no maps of strides 4 to 32"),
        (lambda: network(sensors={**SENSORS, "sar": InputSensor(sensor="gf3-sar")}), "3 channels are read, but sensor"),
        (lambda: network(mode="lora", rgb_channels=2), "encoder.sensors.rgb: 2 channels are read"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_low_rank_settings_reach_the_encoder() -> None:
    config = settings(mode="lora")
    encoder = dataclasses.replace(config.encoder, lora=LoraConfig(rank=2, mlp=True))
    names = Pad(dataclasses.replace(config, encoder=encoder)).state_dict()
    assert names["encoders.rgb.alliance.encoder.encoder.blocks.3.mlp.fc2.down"].shape == (2, 4 * 96)
