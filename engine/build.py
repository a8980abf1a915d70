"""The DeepSpeed engine: our settings in, an engine out. Batch, clipping and precision live once, in our config."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from alliance.encoder import set_explicit_attention
from alliance.errors import InputError
from alliance.ranges import MANY, Ranged, ranged
from engine.checkpoints import Layout
from engine.deepspeed_internals import SETTINGS, forget_gradients, forget_stale_gradients, own_part
from engine.errors import AgreedError
from engine.optim import OptimConfig
from engine.ranks import TIMEOUT, World, count_over_ranks

COMPILE: dict[str, Any] = {  # of torch.compile
    "dynamic": False,  # sizes are few: a graph for each
    "options": {"triton.coalesce_tiling_analysis": False},  # fails on our blocks in torch 2.11, on GPUs
}
OWNED_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "fp16", "bf16", "torch_autocast", "data_types", "checkpoint",
    "zero_optimization.stage", "zero_optimization.offload_optimizer", "zero_optimization.offload_param",
    "zero_optimization.round_robin_gradients",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Ranged):
    """How steps are computed; none of it changes what is learnt beyond rounding."""

    zero: Literal[0, 1, 2, 3] | None = None
    """ZeRO stage of DeepSpeed; null: 1 on GPUs, 0 on CPUs."""
    precision: Literal["fp32", "bf16", "autocast"] | None = None
    """Number format of the computation; null: bf16 on GPUs (autocast with ZeRO stage 0), fp32 on CPUs."""
    micro_batch: int | None = ranged(None, 1, MANY)
    """Samples per rank and pass; null: the rank's whole share of `optim.batch`."""
    ranks: int | None = ranged(None, 1, MANY)
    """Refuse to start with another number of ranks, such as after a mistyped hostfile; null: any number."""
    timeout: float = ranged(TIMEOUT, 1, 86400)
    """Seconds that ranks wait for each other, at the start and in every exchange."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile with torch.compile: the blocks of an Alliance model, any other network whole."""
    explicit_attention: bool | None = None
    """Attention as two products instead of one fused call; null: for reduced precision on CPUs, where it is faster."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed settings, such as bucket sizes; keys that other settings decide are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolve(on_cpu=False)
        refuse_further_settings(self.deepspeed)

    def resolve(self, *, on_cpu: bool) -> tuple[str, int]:
        """Precision and ZeRO stage: bf16 and 1 on GPUs, fp32 and 0 on CPUs, unless set."""
        precision = self.precision or ("fp32" if on_cpu else "autocast" if self.zero == 0 else "bf16")
        stage = self.zero if self.zero is not None else (0 if on_cpu and precision != "bf16" else 1)
        if (precision, stage) == ("bf16", 0):
            raise InputError("engine.precision bf16 needs engine.zero >= 1: DeepSpeed's first step is wrong at stage 0")
        return precision, stage

    def layout(self, world: World) -> Layout:
        """How this run spreads its states.

        Raises:
            InputError: another number of ranks was started than `ranks` says.
        """
        if self.ranks not in (None, world.size):
            raise InputError(
                f"{world.size} ranks were started, engine.ranks is {self.ranks}; correct the hostfile or the launcher's options"
            )
        precision, stage = self.resolve(on_cpu=world.device.type == "cpu")
        return Layout(world.size, stage, precision)


def refuse_further_settings(given: Mapping[str, Any]) -> None:
    """Raise InputError where `engine.deepspeed` holds what we set ourselves, what DeepSpeed would ignore, or no plain values.

    Its settings may name files to write, programs and modules; those of `SETTINGS` do not.
    """
    inner = {
        (key, name): each for key, value in given.items() if isinstance(value, dict) for name, each in value.items()
    }
    owned = sorted((set(given) | {f"{key}.{name}" for key, name in inner}) & set(OWNED_KEYS), key=str)
    if owned:
        raise InputError(f"engine.deepspeed.{owned[0]} is derived or not supported; set optim.* or engine.* instead")
    for key, value in given.items():
        _refuse_unknown(str(key), SETTINGS, "")
        if bool(SETTINGS[key]) != isinstance(value, dict):
            wanted = f"settings such as {min(SETTINGS[key])}" if SETTINGS[key] else "one value"
            raise InputError(f"engine.deepspeed.{key} is {value!r:.60}; give it {wanted}")
    for (key, name), _ in inner.items():
        _refuse_unknown(str(name), SETTINGS[key], f"{key}.")
    plain = {f"{key}.{name}": each for (key, name), each in inner.items()}
    plain |= {key: value for key, value in given.items() if not isinstance(value, dict)}
    for name, value in plain.items():
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"engine.deepspeed.{name} is {value!r:.60}; give a finite number, true, false or a word")


def _refuse_unknown(name: str, known: Collection[str], place: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {place}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    raise InputError(f"engine.deepspeed.{place}{name} is no setting that is passed on to DeepSpeed; {hint}")


@dataclass(frozen=True)
class Batching:
    """How the global batch is dealt out: batch = micro * accumulation * world size."""

    micro: int
    accumulation: int


def deal_batch(batch: int, micro: int | None, world_size: int) -> Batching:
    """Split the global batch over ranks and passes; refuses what does not divide."""
    if batch % world_size:
        raise InputError(f"optim.batch {batch} is not a multiple of the {world_size} ranks; change either")
    share = batch // world_size
    micro = min(micro or share, share)
    if share % micro:
        raise InputError(f"engine.micro_batch {micro} does not divide the {share} samples of a rank; change either")
    return Batching(micro, share // micro)


def build_engine(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    optim: OptimConfig,
    config: EngineConfig,
    world: World,
    batching: Batching,
) -> Any:
    """Wrap a model into a DeepSpeed engine.

    Args:
        groups: of the parameters that learn, see `engine.optim.parameter_groups`.
    """
    import deepspeed

    on_cpu = world.device.type == "cpu"
    precision, stage = config.resolve(on_cpu=on_cpu)
    explicit = config.explicit_attention
    if explicit if explicit is not None else on_cpu and precision != "fp32":
        set_explicit_attention(model)
    for module in model.modules():
        if hasattr(module, "activation_checkpointing"):
            vars(module)["activation_checkpointing"] = config.activation_checkpointing
    if world.size > 1 and not on_cpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # no other module changes; parameters stay the same ones
    optimiser = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
    settings = deepspeed_settings(optim, config, batching, precision, stage)
    engine, *_ = deepspeed.initialize(model=model.to(world.device), optimizer=optimiser, config=settings)
    if config.compile:
        engine.compile(compile_kwargs=COMPILE)
    return engine


def refuse_rounded_norms(model: nn.Module, layout: Layout) -> None:
    """Raise InputError where bfloat16 would hold the running statistics of batch norms: small changes would be lost."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normed and layout.precision == "bf16":
        raise InputError(
            "engine.precision is bf16 (the default on GPUs from engine.zero 1 on), the network has batch norms, whose running "
            "statistics need float32; set engine.precision to autocast or fp32"
        )


def deepspeed_settings(
    optim: OptimConfig, config: EngineConfig, batching: Batching, precision: str, stage: int
) -> dict[str, Any]:
    """The dictionary DeepSpeed reads."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batching.micro,
        "gradient_accumulation_steps": batching.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if precision == "autocast":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    for key, value in config.deepspeed.items():
        both = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = settings[key] | value if both else value
    return settings


def set_learning_rate(engine: Any, rate: float) -> None:
    """Use this rate for the step to come; `lr_scale` of a group multiplies it (layer decay)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def take_step(engine: Any) -> float | None:
    """Finish a pass; after the last one of a step, apply the gradients.

    Returns:
        The norm of the gradients before clipping, None before the last pass. If it is not finite, the gradients were
        dropped and the weights are as they were.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    if engine.zero_optimization_stage():  # leaves such a step out by itself
        engine.step()
        forget_stale_gradients(engine)
        return float(engine.get_global_grad_norm())
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
    if math.isfinite(norm):
        engine.step()
    else:
        forget_gradients(engine)
    return norm


def refuse_broken_weights(engine: Any, step: int, device: torch.device) -> None:
    """Raise AgreedError, on all ranks, where a weight or a running statistic is not finite: that is no network.

    Args:
        step: steps done, to be named.
    """
    tensors = [own_part(each) for each in engine.module.parameters()]
    tensors += [each for each in engine.module.buffers() if each.is_floating_point()]
    broken = not all(bool(torch.isfinite(each).all()) for each in tensors)
    ranks = count_over_ranks(broken, device=device)[0]
    if ranks:
        raise AgreedError(
            f"after step {step} weights are not finite on {ranks} ranks; nothing of it is saved or exported: lower optim.lr, "
            f"then go on from the last good checkpoint with --run.resume auto"
        )
