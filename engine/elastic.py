"""Training states by parameter name: out of a checkpoint of any layout, into an engine of any other."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from alliance.files import remove_tree
from datasets.children import start
from engine.checkpoints import Layout
from engine.deepspeed_internals import MODEL_STATES, base_optimizer, converter_command, create_moments, load_states
from engine.errors import AgreedError
from engine.ranks import World, from_main

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, as torch and DeepSpeed call them
POLL = 1.0  # seconds; all ranks come together this often while the main one converts


class States(NamedTuple):
    """Where the full float32 states of a checkpoint are, whatever layout it was saved in."""

    folder: Path
    zero: int

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by parameter name."""
        if self.zero == 0:
            return {name: value.float() for name, value in load_states(self.folder / MODEL_STATES)["module"].items()}
        states = load_states(next(self.folder.glob("*model_states.pt")))
        buffers = {name: states["module"][name] for name in states["buffer_names"]}
        return {path.parent.name: _tensor(path) for path in self._files("fp32")} | buffers

    def moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Adam's moments and its `step` by parameter name; of parameters that were updated."""
        if self.zero == 0:
            states = load_states(self.folder / MODEL_STATES)
            for number, state in states["optimizer"]["state"].items():
                yield states["updated"][number], dict(state)
            return
        shared = load_states(self.folder / "zero" / "optimizer_state.pt")
        for path in self._files(MOMENTS[0]):
            state = {key: _tensor(path.with_name(f"{key}.pt")) for key in MOMENTS}
            step = path.with_name("step.pt")
            count = load_states(step) if step.is_file() else _shared_step(shared)
            yield path.parent.name, state | {"step": torch.as_tensor(count, dtype=torch.float32)}

    def _files(self, key: str) -> list[Path]:
        return sorted((self.folder / "zero").glob(f"*/{key}.pt"))


def open_states(checkpoint: Path, saved: Layout, world: World) -> States:
    """The states of a checkpoint by name; ZeRO's parts are merged by DeepSpeed's converter, beside the checkpoint.

    Raises:
        AgreedError: the converter fails, such as on a full disk.
    """
    if saved.zero == 0:
        return States(checkpoint, 0)
    universal = checkpoint.with_name(f"{checkpoint.name}.universal")
    command = converter_command(checkpoint, universal)
    converter, log = None, universal.with_suffix(".log")
    if world.is_main:
        remove_tree(universal)
        remove_tree(log)
        with open(log, "x") as output:
            converter = start(command, stdout=output, stderr=subprocess.STDOUT)
    code = None
    while code is None:  # in short waits, so that no collective times out on a large model
        code = from_main(converter.process.poll() if converter else None)
        time.sleep(POLL if code is None else 0)
    if converter:
        converter.end()
    if code:
        raise AgreedError(f"{checkpoint} cannot be converted for another layout (see {log}); resume with {saved}")
    if world.is_main:
        log.unlink()
        (universal.parent / "latest_universal").unlink(missing_ok=True)  # the converter's; nothing reads it
    return States(universal, saved.zero)


def load_weights(model: nn.Module, states: States) -> None:
    """Put the weights into a model that is not yet an engine.

    Frozen ones, which ZeRO stage 3 does not save, stay as the model was built with them.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights = {name: value.reshape(shapes[name]) for name, value in states.weights().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lost = trained.intersection(missing)
    assert not lost and not unexpected, f"a checkpoint of the same run has the same weights, not {lost or unexpected}"


def load_moments(engine: Any, states: States) -> None:
    """Put Adam's moments and its count of steps into a new engine, on every rank its part."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_full_optimizer_state, safe_set_local_optimizer_state

    stage, parameters = engine.zero_optimization_stage(), dict(engine.module.named_parameters())
    create_moments(engine, MOMENTS)
    step = torch.tensor(0.0)
    for name, state in states.moments():
        parameter, step = parameters[name], state["step"]
        for key in MOMENTS:
            value = state[key].to(engine.device)
            if stage == 0:
                engine.optimizer.state[parameter][key] = value.view_as(parameter)
            elif stage < 3:
                safe_set_full_optimizer_state(parameter, value, key)
            else:
                local = safe_get_local_fp32_param(parameter)
                assert local is not None, "stage 3 holds a part of every parameter"
                start, size = engine.global_rank * local.numel(), local.numel()
                part = value.flatten()[start : start + size]
                safe_set_local_optimizer_state(parameter, functional.pad(part, (0, size - part.numel())), key)
    for state in base_optimizer(engine).state.values():
        state["step"] = step.clone()


def _tensor(path: Path) -> Tensor:
    value = load_states(path)
    return value["param"] if isinstance(value, dict) else value


def _shared_step(shared: dict[str, Any]) -> Any:
    return shared["optimizer_state_dict"]["state"][0]["step"]
