"""Weights out of checkpoint files of other projects, without executing anything that stands in them."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from alliance.errors import InputError

# Entries under which training frameworks keep the weights; averaged ones first, as timm loads them. Not mmengine's
# `ema_state_dict`: where it averages, the averaged weights stand under `state_dict`.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
PREFIXES = ("module.", "model.")  # that wrappers of a network put before all of its names
MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # little-endian, in the first pickle of a file
REBUILDS = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights of a `torch.save` or safetensors file by name, on the CPU, mapped from the file rather than read.

    Objects of foreign classes (an mmengine file holds its log beside the weights) become placeholders: no class or
    function that the file names is imported or called, except torch's own rebuilding of tensors.

    Raises:
        InputError: no such file, not a `torch.save` file, damaged, or without named weights.
    """
    content = _read_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else read_checkpoint(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if key in content), content)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds no weights by name; give a checkpoint with a state_dict")
    for name in content:
        if not isinstance(name, str) or not isinstance(content[name], Tensor):
            raise InputError(f"{path}: {name!r} is not a tensor; this file is damaged or not a checkpoint")
    return _without_prefix({name: content[name].detach() for name in content})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(_there(path))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what a wrapper put before every name."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _without_prefix({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights


def as_mapping(value: Any) -> Mapping[Any, Any]:
    """Entries of a mapping that a checkpoint holds, also of a foreign class; none of anything else."""
    entries = value.entries if isinstance(value, Placeholder) else value
    return entries if isinstance(entries, Mapping) else {}


class Placeholder:
    """Stands for whatever a file names that is not a tensor: can be made, called, filled, and does nothing.

    `entries` are those of a mapping of a foreign class.
    """

    entries: dict[Any, Any]

    def __new__(cls, *_arguments: Any, **_named: Any) -> "Placeholder":
        made = object.__new__(cls)
        made.entries = {}
        return made

    def __init__(self, *_arguments: Any, **_named: Any) -> None: ...

    def __call__(self, *_arguments: Any, **_named: Any) -> "Placeholder":
        return Placeholder()

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class RestrictedUnpickler(pickle.Unpickler):
    """Knows ordered dictionaries and torch's rebuilding of tensors and parameters; the rest is a `Placeholder`."""

    def find_class(self, module: str, name: str) -> Any:
        """A harmless stand-in for all that is not a tensor."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        rebuild = REBUILDS.get((module, name))
        if rebuild is not None:
            return lambda *arguments: rebuild(*arguments)  # not torch's own: a file can set attributes of what it names
        return type("Placeholder", (Placeholder,), {})


def read_checkpoint(path: str | Path) -> Any:
    """All that a `torch.save` file holds, tensors on the CPU; objects of foreign classes are placeholders.

    Raises:
        InputError: no such file, not a `torch.save` file, or damaged.
    """
    path = _there(Path(path))
    modern = zipfile.is_zipfile(path)
    if not modern and not _is_old_format(path):
        raise InputError(
            f"{path} is not a checkpoint file (a zip archive as torch.save writes it); give the .pth itself"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=modern)
    except pickle.UnpicklingError:
        pass  # an object beside the weights that torch does not know
    except Exception as error:
        raise _unreadable(path, error) from error
    restricted = SimpleNamespace(__name__="restricted", Unpickler=RestrictedUnpickler)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=modern, pickle_module=restricted)
    except Exception as error:  # what a damaged or hostile file can raise is not to be foreseen
        raise _unreadable(path, error) from error


def _is_old_format(path: Path) -> bool:
    """Whether a file begins as those of torch before 1.6: with a pickle of its magic number."""
    with open(path, "rb") as file:
        return MAGIC in file.read(32)


def _there(path: Path) -> Path:
    """The same path; InputError where no file is."""
    if not path.exists():
        raise InputError(f"there is no file {str(path)!r}; check the name")
    if not path.is_file():
        raise InputError(f"{path} is no regular file; give the file of weights itself")
    return path


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); fetch the file again")
