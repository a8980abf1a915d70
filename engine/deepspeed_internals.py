"""Everything of DeepSpeed that is used and not promised by its documentation; `setup.cfg` names the versions it is known of.

Its checkpoint files are pickles. They are read with torch's `weights_only`, which makes tensors, plain values and the
three classes of plain values that DeepSpeed saves, and calls nothing else that a file may name.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alliance.files import naming

CONVERTER = Path(__file__).with_name("convert_states.py")
MODEL_STATES = "mp_rank_00_model_states.pt"
ZERO_SETTINGS = frozenset({
    "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential", "ignore_unused_parameters", "parameter_alignment", "memory_efficient_linear",
    "log_trace_cache_warnings", "enable_sanity_checks",
})  # fmt: skip
SETTINGS: dict[str, frozenset[str]] = {
    "zero_optimization": ZERO_SETTINGS,
    "comms_logger": frozenset({"enabled", "verbose", "prof_all", "debug"}),
    **dict.fromkeys(
        ("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "disable_allgather",
         "memory_breakdown", "wall_clock_breakdown", "steps_per_print"), frozenset[str](),
    ),
}  # fmt: skip  # what engine.deepspeed may hold: none of these writes a file, starts a program or imports a module


def saved_classes() -> list[type]:
    """The classes in DeepSpeed's checkpoint files; their objects hold numbers and names alone."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def load_states(path: str | Path, map_location: Any = "cpu") -> Any:
    """What a checkpoint file holds; nothing that it names is imported or called but `saved_classes`.

    Raises:
        pickle.UnpicklingError: it names something else.
    """
    with torch.serialization.safe_globals(list(saved_classes())):
        return torch.load(path, map_location=map_location, weights_only=True)


def names_beside_states(path: Path) -> list[str]:
    """Classes and functions that a checkpoint file names and no checkpoint of ours does; nothing is loaded.

    Raises:
        ValueError: not a file of torch.save.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no regular file")
    try:
        with torch.serialization.safe_globals(list(saved_classes())):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # what a damaged or hostile file can raise is not to be foreseen
        raise ValueError(f"{path.name} is no file of torch.save ({type(error).__name__})") from error


class CheckpointFiles:
    """DeepSpeed's writer and reader. Errors of writing wait until every rank is past the barriers of `save_checkpoint`."""

    def __init__(self, files: Any) -> None:
        self.files = files
        self.error: Exception | None = None
        self.written: list[Path] = []

    def save(self, state_dict: Any, path: str) -> None:
        self.written.append(Path(path))
        try:
            with naming(Path(path)):
                self.files.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError on a full disk
            self.error = error

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_states(path, map_location)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)


class Counter:
    """A file that keeps nothing but the number of its bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, content: Any) -> int:
        count = memoryview(content).nbytes
        self.bytes += count
        return count

    def flush(self) -> None:
        """Nothing waits."""


class CountedFiles(CheckpointFiles):
    """DeepSpeed's writer, without a disk: what it would write is counted."""

    def __init__(self, files: Any) -> None:
        super().__init__(files)
        self.counter = Counter()

    def save(self, state_dict: Any, path: str) -> None:
        torch.save(state_dict, self.counter)  # pyright: ignore[reportArgumentType] - it needs no more of a file

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """No folder is made."""


def count_checkpoint(engine: Any) -> int:
    """Bytes of the states that this rank would write into a checkpoint; nothing is written. Every rank must call it."""
    files = CountedFiles(engine.checkpoint_engine)
    _write_states(engine, files, Path("nowhere"), "nothing", {})
    return files.counter.bytes


def save_checkpoint(engine: Any, folder: Path, tag: str, state: dict[str, Any]) -> tuple[list[Path], Exception | None]:
    """Write the states of this rank into `folder / tag`; the files, and what went wrong, for no rank may leave the others."""
    files = CheckpointFiles(engine.checkpoint_engine)
    _write_states(engine, files, folder, tag, state)
    return files.written, files.error


def _write_states(engine: Any, files: CheckpointFiles, folder: Path, tag: str, state: dict[str, Any]) -> None:
    own, engine.checkpoint_engine = engine.checkpoint_engine, files
    engine._copy_recovery_script = lambda path: None  # a copy of DeepSpeed's script, written without the writer
    try:
        engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
    finally:
        engine.checkpoint_engine = own


def load_checkpoint(engine: Any, folder: Path, tag: str) -> None:
    """Put the states in `folder / tag` into an engine of the same layout, by `load_states`."""
    own = engine.checkpoint_engine
    engine.checkpoint_engine = CheckpointFiles(own)
    try:
        engine.load_checkpoint(str(folder), tag=tag)
    finally:
        engine.checkpoint_engine = own


def converter_command(source: Path, target: Path) -> list[str]:
    """The command that merges the parts of a checkpoint by parameter name; -P keeps code of the current folder out."""
    return [sys.executable, "-P", str(CONVERTER), "--inject_missing_state",
            "--input_folder", str(source), "--output_folder", str(target)]  # fmt: skip


def forget_gradients(engine: Any) -> None:
    """Forget the gradients of the passes since the last step; the next pass is the first one of a step."""
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()
    engine.module.zero_grad(set_to_none=True)
    if engine.zero_optimization_stage():
        engine.optimizer.zero_grad(set_to_none=True)
        for held in ("averaged_gradients", "all_grad_tensors"):
            getattr(engine.optimizer, held, {}).clear()
        forget_stale_gradients(engine)


def forget_stale_gradients(engine: Any) -> None:
    """ZeRO 3 would apply the last gradient once more to a parameter that gets none in the next step."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.grad_partitions_flat_buffer.zero_()


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimiser, which ZeRO wraps."""
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def create_moments(engine: Any, names: Sequence[str]) -> None:
    """Zero moments of these names, which the optimiser itself would create in its first step."""
    optimiser = engine.optimizer
    stage, state = engine.zero_optimization_stage(), base_optimizer(engine).state
    if stage == 0:
        updated = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    else:
        updated = optimiser.fp32_partitioned_groups_flat if stage == 3 else optimiser.single_partition_of_fp32_groups
    for values in updated:
        state[values] = {"step": torch.tensor(0.0)} | {name: torch.zeros_like(values) for name in names}
    if stage in (1, 2):
        optimiser._lazy_init_hp_params_optimizer_state()


def own_part(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: all of it, of any shape; for ZeRO stage 3 its part, (n,), without the padding
    of the last ranks, which is memory that nobody wrote.
    """
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter
    start = part.ds_numel * torch.distributed.get_rank()
    return part[: max(count_parameters(parameter) - start, 0)]


def count_parameters(parameter: Tensor) -> int:
    """Number of values of the whole parameter, of any shape, also where ZeRO stage 3 keeps only a part here, (n,)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def leave_out_shared_memory() -> None:
    """Do without an operator of inference on CPUs, which costs a C++ build."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
