"""An Alliance encoder inside a task: what it reads, what of it learns and how fast, and what is kept of it."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from alliance import save_encoder
from alliance.errors import InputError
from alliance.records import from_record
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor
from engine.optim import OptimConfig, parameter_groups
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig, TransferredEncoder
from finetune.backbones.lora import LoraConfig, LoraLinear
from tests.helpers.models import natural_image, randomise, sensor_of, tiny_model

RGB = {"rgb": InputSensor(sensor="rgb-uint8")}
FOUR = sensor_of(4, name="four", groups=((0, 1, 2), (3,)))


def transferred(channels: dict[str, int] | None = None, **changes: Any) -> TransferredEncoder:
    """A fresh encoder of the smallest size, every weight with some value."""
    torch.manual_seed(0)
    config = TransferConfig(**{"model": "alliance_nano_patch8", "sensors": RGB, **changes})
    module = TransferredEncoder(config, channels or {"rgb": 3})
    randomise(module.encoder, std=0.02)
    return module


def image(c: int = 3, h: int = 16, w: int = 24) -> Tensor:
    return natural_image(2, c, h, w)


def saved_encoder(folder: Path, **encoder: Any) -> Path:
    """An export of the tiny encoder, trained with the sensor `four`."""
    return save_encoder(tiny_model({"encoder": encoder}, [FOUR]).encoder, folder / "encoder")


def trained(module: TransferredEncoder, steps: int = 2) -> TransferredEncoder:
    """The module after steps of AdamW with a head on its features, all in training mode."""
    network = nn.ModuleDict({"features": module, "head": nn.Conv2d(module.embed_dim, 2, 1)}).train()
    optimiser = torch.optim.AdamW(parameter_groups(network, OptimConfig(lr=0.01, weight_decay=0.5)), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        network["head"](module.maps(image(), "rgb", [-1])[0]).square().mean().backward()
        optimiser.step()
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# What it reads


def test_an_image_in_standard_deviations_needs_no_statistics() -> None:
    module = transferred().eval()
    sensor = find_sensor("rgb-uint8").with_statistics([0.0] * 3, [1.0] * 3)
    expected = module.encoder.forward_intermediates(image(), sensor, [0, -1])
    for one, two in zip(module.maps(image(), "rgb", [0, -1]), expected, strict=True):
        assert torch.equal(one, two)


def test_outliers_are_clamped_and_not_taken_for_wrong_units() -> None:
    module, bright = transferred().eval(), torch.full((1, 3, 16, 16), 40.0)
    assert torch.equal(module.maps(bright, "rgb", [-1])[0], module.maps(bright.clamp(max=5), "rgb", [-1])[0])


def test_a_checkpoint_gives_the_features_of_its_encoder(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path)
    module = TransferredEncoder(
        TransferConfig(drop_path=0.5, sensors={"ms": InputSensor(sensor="four")}), {"ms": 4}, checkpoint=str(folder)
    )
    encoder = tiny_model(sensors=[FOUR]).encoder.eval()
    assert torch.equal(module.maps(image(4), "ms", [-1])[0], encoder.forward_intermediates(image(4), "four", [-1])[0])


def test_channels_are_brought_into_the_order_of_the_bands() -> None:
    rgb, bgr = (
        transferred().eval(),
        transferred(sensors={"rgb": InputSensor(sensor="rgb-uint8", bands=("B", "G", "R"))}),
    )
    assert torch.equal(rgb.maps(image(), "rgb", [-1])[0], bgr.eval().maps(image().flip(1), "rgb", [-1])[0])


def test_one_band_given_three_times_is_read_once() -> None:
    once = transferred({"sar": 1}, sensors={"sar": InputSensor(sensor="gf3-sar")}).eval()
    thrice = transferred({"sar": 3}, sensors={"sar": InputSensor(sensor="gf3-sar", channels=(1,))}).eval()
    assert torch.equal(once.maps(image(1), "sar", [-1])[0], thrice.maps(image(1).expand(-1, 3, -1, -1), "sar", [-1])[0])


def test_a_sensor_is_made_from_wavelengths() -> None:
    def centres(wavelengths: tuple[float, ...], count: int) -> list[float | None]:
        sensors = {"spectral": InputSensor(sensor="cube", wavelengths=wavelengths)}
        return [b.wavelength for b in transferred({"spectral": count}, sensors=sensors).readings["spectral"][0].bands]

    assert centres((0.4, 1.0), 4) == [400.0, 600.0, 800.0, 1000.0]
    assert centres((450.0, 700.0), 2) == [450.0, 700.0]
    assert centres((450.0, 500.0, 700.0), 3) == [450.0, 500.0, 700.0]


def test_a_sensor_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    sensor = Sensor(name="own", bands=(Band(name="x", wavelength=555.0),))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(sensor.to_dict()))
    sensors = {"rgb": InputSensor(sensor=str(tmp_path / "own.yaml"), channels=(2,))}
    assert transferred(sensors=sensors).readings["rgb"] == (sensor, (2,))


@pytest.mark.parametrize(("h", "w"), [(16, 24), (17, 23), (9, 31)])
def test_an_image_is_filled_up_to_whole_patches(h: int, w: int) -> None:
    module, small = transferred().eval(), image(3, h, w)
    filled = torch.zeros(2, 3, -(-h // 8) * 8, -(-w // 8) * 8)
    filled[..., :h, :w] = small
    (found,), (expected,) = module.maps(small, "rgb", [-1]), module.maps(filled, "rgb", [-1])
    assert found.shape == (2, 96, -(-h // 8), -(-w // 8))
    assert torch.equal(found, expected)


# What of it learns


def test_a_frozen_encoder_stays_as_it_is() -> None:
    module = transferred(drop_path=0.5).train()
    before, features = weights(module), module.maps(image(), "rgb", [-1])[0]
    assert not features.requires_grad and module.training and not module.encoder.training
    trained(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.maps(image(), "rgb", [-1])[0], features)


def test_all_weights_of_a_full_encoder_learn() -> None:
    module = transferred(mode="full")
    before = weights(module)
    trained(module)
    assert module.encoder.training
    same = {name.rpartition(".")[2] for name, value in module.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"no_wavelength", "no_bandwidth"}  # these bands have both


@pytest.mark.parametrize("mlp", [False, True])
def test_adapters_alone_learn_and_change_nothing_at_first(mlp: bool) -> None:
    frozen, module = transferred(), transferred(mode="lora", lora=LoraConfig(rank=4, mlp=mlp))
    for name in (name for name in module.state_dict() if name.endswith(".up")):
        nn.init.zeros_(module.get_parameter(name))  # `randomise` has filled it
    module.load_state_dict(frozen.state_dict(), strict=False)
    assert torch.equal(module.maps(image(), "rgb", [-1])[0], frozen.maps(image(), "rgb", [-1])[0])
    before = weights(module)
    trained(module)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in changed} == {"down", "up"}
    assert len(changed) == 4 * 2 * (4 if mlp else 2)  # blocks, matrices, layers
    assert before.keys() - changed == weights(frozen).keys()  # names of the weights are those without adapters


def test_a_new_adapter_adds_nothing() -> None:
    layer = nn.Linear(5, 7)
    assert torch.equal(LoraLinear(layer, LoraConfig(rank=2))(torch.ones(3, 5)), layer(torch.ones(3, 5)))


def test_an_adapter_by_hand() -> None:
    layer = nn.Linear(2, 2)
    adapted = LoraLinear(layer, LoraConfig(rank=1, alpha=3.0))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
        adapted.down.copy_(torch.tensor([[1.0, 2.0]]))
        adapted.up.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([1.0, 1.0])
    assert adapted(x).tolist() == [11.0 + 9.0, 21.0 - 9.0]  # D x = 3; alpha / rank = 3
    assert adapted.merged()(x).tolist() == [20.0, 12.0]


def test_a_merged_encoder_is_plain_and_computes_the_same() -> None:
    module = transferred(mode="lora", lora=LoraConfig(mlp=True))
    assert module.encoder.blocks[0].get_parameter("attn.qkv.up").any()
    merged = module.merged()
    assert merged.state_dict().keys() == transferred().encoder.state_dict().keys()
    other = copy.deepcopy(module)
    other.encoder = merged
    found, expected = (one.eval().maps(image(), "rgb", [-1])[0] for one in (other, module))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_layer_decay_by_hand(decay_vectors: bool) -> None:
    module = transferred(mode="full", layer_decay=0.5)
    network = nn.ModuleDict({"features": module, "head": nn.Linear(96, 2)})
    groups = parameter_groups(network, OptimConfig(weight_decay=0.05, decay_vectors=decay_vectors))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == set(names.values())
    none = 0.05 if decay_vectors else 0.0
    assert {name: found[name] for name in expected_scales(none)} == expected_scales(none)
    blocks = {name.split(".")[3]: scale for name, (scale, _) in found.items() if ".blocks." in name}
    assert blocks == {"0": 0.125, "1": 0.25, "2": 0.5, "3": 1.0}


def expected_scales(none: float) -> dict[str, tuple[float, float]]:
    """Learning-rate scale and weight decay of some parameters of four blocks at a layer decay of a half."""
    return {
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, none),
        "features.encoder.norm.weight": (1.0, none),
        "features.encoder.blocks.3.attn.qkv.weight": (1.0, 0.05),
        "features.encoder.blocks.0.attn.qkv.weight": (0.125, 0.05),
        "features.encoder.blocks.0.attn.qkv.bias": (0.125, none),
        "features.encoder.special.waves": (0.0625, none),
        "features.encoder.patch_embed.kernels.source.basis": (0.0625, 0.05),
        "features.encoder.patch_embed.bias": (0.0625, none),
    }


def test_adapters_and_heads_learn_at_the_whole_rate() -> None:
    assert {group["lr_scale"] for group in parameter_groups(transferred(mode="lora"), OptimConfig())} == {1.0}
    assert parameter_groups(transferred(), OptimConfig()) == []


# What is kept


@pytest.mark.parametrize("tokenizer", ["wavelength", "fixed"])
@pytest.mark.parametrize("mode", ["frozen", "full", "lora"])
def test_a_record_rebuilds_the_network_without_the_checkpoint(tmp_path: Path, mode: Any, tokenizer: str) -> None:
    shuffled = InputSensor(sensor="four", bands=("band3", "band0", "band2", "band1"))
    config = TransferConfig(mode=mode, drop_path=0.1, sensors={"ms": shuffled})
    module = TransferredEncoder(config, {"ms": 4}, checkpoint=str(saved_encoder(tmp_path, tokenizer=tokenizer)))
    randomise(module)
    (tmp_path / "encoder" / "config.json").unlink()
    config = from_record(TransferConfig, json.loads(json.dumps(dataclasses.asdict(config))), "encoder")
    rebuilt = TransferredEncoder(config, {"ms": 4}, json.loads(json.dumps(module.record())))
    rebuilt.load_state_dict(module.state_dict())
    assert rebuilt.config == module.config and rebuilt.readings == module.readings
    found, expected = (one.eval().maps(image(4), "ms", [0, 1]) for one in (rebuilt, module))
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


# Wrong settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransferConfig(mode="half"), "encoder.mode 'half' is not one of frozen, full, lora"),
        (lambda: TransferConfig(layer_decay=0.0), "TransferConfig.layer_decay is 0.0; give a number above 0 to 1"),
        (lambda: LoraConfig(rank=0), "LoraConfig.rank is 0; give a whole number from 1"),
        (lambda: InputSensor(sensor="x", bands=("a",), wavelengths=(1.0,)), "both bands and wavelengths"),
        (lambda: transferred(model="nano"), "no model is called 'nano'"),
        (lambda: TransferredEncoder(TransferConfig(), {}, checkpoint="/nowhere"), "/nowhere holds no exported encoder"),
        (lambda: transferred({"sar": 1}), r"names no sensor for the input sar \(it has rgb\); add sar"),
        (lambda: transferred({"rgb": 1}), "rgb: 1 channels are read, but sensor rgb-uint8 has the bands R, G, B"),
        (
            lambda: transferred(sensors={"rgb": InputSensor(sensor="rgb-uint8", channels=(0, 1, 3))}),
            r"encoder.sensors.rgb.channels are \[0, 1, 3\], the input has 0 to 2",
        ),
        (lambda: transferred(sensors={"rgb": InputSensor(sensor="landsat")}), "unknown sensor 'landsat'; did you mean"),
        (
            lambda: transferred(sensors={"rgb": InputSensor(sensor="rgb-uint8", bands=("R", "G", "X"))}),
            "sensor rgb-uint8 has no band X",
        ),
        (
            lambda: transferred({"rgb": 5}, sensors={"rgb": InputSensor(sensor="x", wavelengths=(1.0, 2.0, 3.0))}),
            "sensor x: 3 wavelengths for 5 channels",
        ),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
