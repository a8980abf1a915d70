"""S2Fin with Alliance features in place of its stems: what is read, what learns, and at which rate."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alliance.errors import InputError
from engine.optim import OptimConfig, parameter_groups
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig
from finetune.s2fin import S2Fin, S2FinConfig
from finetune.s2fin.stem import EncoderStem
from tests.helpers.models import randomise

COUNTS = {"bands": 20, "components": 4, "channels": 2, "classes": 3}
CUBE = InputSensor(sensor="cube", wavelengths=(0.4, 1.0))
RADAR = InputSensor(sensor="sentinel1-grd-db")
FOUR = InputSensor(sensor="rgbn-uint8")
CHOICES: dict[str, dict[str, InputSensor]] = {
    "all bands and radar": {"spectral": CUBE, "active": RADAR},
    "three of the bands": {"spectral": InputSensor(sensor="rgb-uint8", channels=(12, 6, 2))},
    "few bands": {"passive": FOUR},
    "radar": {"active": RADAR},
}


def config(sensors: Any, *, mode: Any = "frozen", side: int = 0, **changes: Any) -> S2FinConfig:
    encoder = TransferConfig(model="alliance_nano_patch8", mode=mode, sensors=sensors)
    return S2FinConfig(width=16, patch=5, dropout=0.0, encoder=encoder, encoder_side=side, **changes)


def network(sensors: Any = CHOICES["all bands and radar"], **changes: Any) -> S2Fin:
    torch.manual_seed(0)
    return S2Fin(config(sensors, **changes), **COUNTS)


def patches(b: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    spectral, passive, active = (torch.randn(b, c, 5, 5, generator=generator) for c in (20, 4, 2))
    return spectral, passive, active


@pytest.mark.parametrize("sensors", CHOICES.values(), ids=CHOICES)
def test_each_branch_with_a_sensor_has_an_encoder_for_its_stem(sensors: dict[str, InputSensor]) -> None:
    model = network(sensors)
    passive, active = (isinstance(stem, EncoderStem) for stem in model.stems)
    assert passive == bool({"spectral", "passive"} & set(sensors)) and active == ("active" in sensors)
    prediction = model(*patches())
    assert prediction.logits.shape == (3, 3) and prediction.logits.isfinite().all()


def test_without_an_encoder_nothing_is_added() -> None:
    torch.manual_seed(0)
    model = S2Fin(S2FinConfig(width=16, patch=5), **COUNTS)
    assert model.encoder is None and not [name for name in model.state_dict() if name.startswith("encoder")]
    assert not [stem for stem in model.stems if isinstance(stem, EncoderStem)]


@pytest.mark.parametrize(("sensors", "read"), [({"spectral": CUBE}, 0), ({"passive": FOUR}, 1)])
def test_the_stem_of_the_passive_branch_reads_the_image_with_the_sensor(sensors: Any, read: int) -> None:
    model, images = network(sensors).eval(), patches()
    seen, changed = (model.stems[0](images[read] + shift) for shift in (0, 1))
    assert not torch.allclose(seen, changed, atol=1e-3)
    spectral, passive, active = images
    same = torch.equal(model(spectral, passive + 1, active).logits, model(*images).logits)
    assert same == (read == 0)  # then nothing looks at the components


def test_a_token_of_a_stem_is_a_pixel() -> None:
    """The map is that of the patch resized to 8 pixels per pixel, projected."""
    model = network({"active": RADAR}).eval()
    active = patches()[2]
    large = functional.interpolate(active, scale_factor=8.0, mode="bilinear")
    assert model.encoder is not None
    (features,) = model.encoder.maps(large, "active", [-1])
    assert features.shape == (3, 96, 5, 5)
    torch.testing.assert_close(model.stems[1](active), model.stems[1].project(features))


@pytest.mark.parametrize("side", [8, 16, 48])
def test_a_patch_may_be_resized_to_another_side(side: int) -> None:
    model = network({"active": RADAR}, side=side)
    assert model.stems[1](patches()[2]).shape == (3, 16, 5, 5)


@pytest.mark.parametrize("mode", ["frozen", "full", "lora"])
def test_what_should_learn_gets_a_gradient(mode: str) -> None:
    model = network(mode=mode)
    randomise(model, std=0.02)  # or zeros stop the gradient
    model(*patches()).logits.square().sum().backward()
    names = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    adapters = {name for name in names if name.endswith((".up", ".down"))}
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"frozen": set(names), "full": set(), "lora": set(names) - adapters}[mode]


def test_a_frozen_encoder_stays_as_it_is_while_the_rest_learns() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(parameter_groups(model, OptimConfig()), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        model(*patches()).logits.square().sum().backward()
        optimiser.step()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if name.startswith("encoder.")} <= same
    assert not {name for name in same if name.startswith("stems")}
    assert model.encoder is not None and not model.encoder.encoder.training


def test_filters_learn_at_ten_times_the_rate_without_weight_decay() -> None:
    model = network(mode="full")
    groups = parameter_groups(model, OptimConfig(weight_decay=0.05, decay_vectors=True))
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert {found[id(p)] for p in model.frequency_parameters()} == {(10.0, 0.0)}
    assert found[id(model.head.weight)] == (1.0, 0.05)
    assert found[id(model.get_parameter("encoder.encoder.blocks.1.attn.qkv.weight"))] == (pytest.approx(0.9**2), 0.05)
    assert len(found) == len(list(model.parameters()))


def test_a_record_rebuilds_the_network() -> None:
    model = network(mode="lora")
    randomise(model, std=0.05)
    assert model.encoder is not None
    rebuilt = S2Fin(model.config, **COUNTS, record=model.encoder.record())
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(*patches()).logits, model.eval()(*patches()).logits)


def test_half_precision_predicts_nearly_the_same() -> None:
    model, images = network().eval(), patches()
    expected = model(*images).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(*images).logits.float(), expected, atol=0.05, rtol=0.1)
    whole = model.bfloat16()(*(image.bfloat16() for image in images)).logits
    torch.testing.assert_close(whole.float(), expected, atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config({"lidar": RADAR}), "names the input lidar; there are spectral, passive and active"),
        (lambda: network({"spectral": CUBE, "passive": FOUR}), "names spectral and passive, which are one image"),
        (lambda: network({}), "encoder.sensors names no image of passive, active; add one"),
        (lambda: network({"spectral": CUBE}, inputs="active"), "encoder.sensors names no image of active"),
        (
            lambda: network({"active": RADAR}, side=12),
            "model.encoder_side 12 is not a multiple of the encoder's patch",
        ),
        (lambda: network({"passive": RADAR}), "passive: 4 channels are read"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_branch_alone_takes_the_sensor_of_its_own() -> None:
    both = CHOICES["all bands and radar"]
    for inputs, name in (("passive", "spectral"), ("active", "active")):
        model = S2Fin(dataclasses.replace(config(both), inputs=inputs), **COUNTS)
        assert model.encoder is not None and set(model.encoder.readings) == {name}
        assert model(*patches()).logits.shape == (3, 3)
