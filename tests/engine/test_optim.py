"""Learning rate, weight decay and how the batch is dealt out."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alliance.errors import InputError
from alliance.model import create_model
from engine.build import EngineConfig, deal_batch
from engine.deepspeed_internals import ZERO_SETTINGS
from engine.optim import OptimConfig, Rule, learning_rate, parameter_groups
from tests.helpers.models import sensor_of


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    config = OptimConfig(lr=1.0, warmup=0.1)
    assert [learning_rate(step, 100, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(10, 100, config) == pytest.approx(1.0)
    assert learning_rate(55, 100, config) == pytest.approx(0.5)  # half-way down
    assert learning_rate(99, 100, config) < 0.001


@given(st.integers(1, 1000), st.floats(0, 0.9), st.floats(0, 0.5))
def test_the_rate_stays_between_its_limits(steps: int, warmup: float, low: float):
    config = OptimConfig(lr=1.0, min_lr=low, warmup=warmup)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert max(rates) <= 1.0 + 1e-9
    assert min(rates) >= min(low, rates[0]) - 1e-9


def test_norms_biases_and_learned_tokens_have_no_weight_decay():
    model = create_model("alliance_nano_patch8", [sensor_of(4)])
    decayed, free = parameter_groups(model, OptimConfig(weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert {"encoder.special.waves", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias"} <= free_names
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"encoder.blocks.0.attn.qkv.weight", "decoder.enter.weight"} <= decayed_names
    assert free_names.isdisjoint(decayed_names)
    assert free_names | decayed_names == set(names.values())


class Slow(nn.Module):
    """Both of its layers at a tenth of the rate, but a caller may say otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)

    def parameter_rules(self):
        return [(parameter, Rule(0.1)) for parameter in self.parameters()]


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slow, self.own = Slow(), nn.Linear(1, 1)
        self.own.bias.requires_grad_(False)

    def parameter_rules(self):
        return [(self.slow.second.bias, Rule(10.0, 0.2))]


def test_rules_of_modules_set_rates_and_weight_decay():
    model = Caller()
    slow = model.slow
    groups = parameter_groups(model, OptimConfig(weight_decay=0.05))
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (10.0, 0.2), (1.0, 0.05), (0.1, 0.05), (0.1, 0.0),
    ]  # fmt: skip
    expected = [[slow.second.bias], [model.own.weight], [slow.first.weight, slow.second.weight], [slow.first.bias]]
    assert [list(map(id, group["params"])) for group in groups] == [list(map(id, some)) for some in expected]


def test_weight_decay_may_be_on_everything():
    (group,) = parameter_groups(create_model("alliance_nano_patch8"), OptimConfig(decay_vectors=True))
    assert group["weight_decay"] == 0.05
    assert len(group["params"]) == len(list(create_model("alliance_nano_patch8").parameters()))


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))
def test_micro_batch_accumulation_and_ranks_multiply_to_the_batch(micro: int, passes: int, ranks: int):
    dealt = deal_batch(micro * passes * ranks, micro, ranks)
    assert dealt.micro * dealt.accumulation * ranks == micro * passes * ranks


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(InputError, match=r"optim.batch 10 is not a multiple of the 4 ranks"):
        deal_batch(10, None, 4)
    with pytest.raises(InputError, match=r"engine.micro_batch 3 does not divide the 8 samples"):
        deal_batch(16, 3, 2)


def test_precision_and_stage_suit_the_device():
    assert EngineConfig().resolve(on_cpu=True) == ("fp32", 0)
    assert EngineConfig().resolve(on_cpu=False) == ("bf16", 1)
    assert EngineConfig(zero=0).resolve(on_cpu=False) == ("autocast", 0)  # bf16 without ZeRO steps wrongly
    assert EngineConfig(precision="bf16").resolve(on_cpu=True) == ("bf16", 1)


def test_settings_that_train_wrongly_are_refused():
    with pytest.raises(InputError, match="zero >= 1"):
        EngineConfig(zero=0, precision="bf16")
    with pytest.raises(InputError, match=r"engine.deepspeed.gradient_clipping is derived"):
        EngineConfig(deepspeed={"gradient_clipping": 1.0})
    with pytest.raises(InputError, match="OptimConfig.batch is 0"):
        OptimConfig(batch=0)


@pytest.mark.parametrize(
    "given", [{"zero_optimization": {"stage": 3}}, {"zero_optimization": {"offload_optimizer": {}}}, {"data_types": {}}]
)
def test_settings_that_would_undo_the_derived_ones_are_refused(given):
    with pytest.raises(InputError, match=r"engine.deepspeed.* is derived or not supported"):
        EngineConfig(deepspeed=given)


def test_a_micro_batch_below_one_is_refused():
    with pytest.raises(InputError, match="EngineConfig.micro_batch is -1; give a whole number from 1 to"):
        EngineConfig(micro_batch=-1)


@pytest.mark.parametrize("name", ["lr", "min_lr", "weight_decay", "clip", "warmup"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_train_no_network_are_refused(name: str, value: float):
    with pytest.raises(InputError, match=r"OptimConfig"):
        OptimConfig(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (float("nan"), 0.9)])
def test_betas_that_train_no_network_are_refused(betas: tuple[float, float]):
    with pytest.raises(InputError, match=r"OptimConfig\.betas"):
        OptimConfig(betas=betas)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"csv_monitor": {"enabled": True, "output_path": "/"}}, "csv_monitor is no setting that is passed on"),
        ({"flops_profiler": {"enabled": True, "output_file": "x"}}, "flops_profiler is no setting"),
        ({"tensorboard": {"enabled": True}}, "tensorboard is no setting"),
        ({"x": {"class_path": "subprocess.Popen"}}, "x is no setting"),
        ({"class_path": "subprocess.Popen"}, "class_path is no setting"),
        ({"zero_optimization": {"leaf_module": {"classes": ["a.b"]}}}, "leaf_module is no setting"),
        ({"zero_optimisation": {}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"reduce_bucketsize": 1}}, "did you mean zero_optimization.reduce_bucket_size?"),
        ({"zero_optimization": {"reduce_bucket_size": {"class_path": "x"}}}, "give a finite number"),
        ({"zero_optimization": {"reduce_bucket_size": float("inf")}}, "give a finite number"),
        ({"zero_optimization": 3}, "give it settings such as"),
        ({"steps_per_print": {}}, "give it one value"),
        ({"steps_per_print": None}, "give a finite number"),
        ({3: 4}, "engine.deepspeed.3 is no setting"),
    ],
    ids=str,
)
def test_settings_that_deepspeed_would_ignore_or_that_reach_further_are_refused(given: dict, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        EngineConfig(deepspeed=given)


def test_what_is_passed_on_is_known_to_deepspeed():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    assert {field.alias or name for name, field in fields} >= ZERO_SETTINGS
    given = {"zero_optimization": {"reduce_bucket_size": 500000, "overlap_comm": True}, "wall_clock_breakdown": True}
    assert EngineConfig(deepspeed=given).deepspeed == given
