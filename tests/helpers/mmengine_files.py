"""Checkpoint files as mmengine writes them, without mmengine."""

import collections
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class HistoryBuffer:
    """What mmengine keeps of a logged value."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.arange(3.0), np.ones(3, dtype=np.int64)
        self._statistics_methods = collections.OrderedDict(mean=len)


class ConfigDict(dict):
    """Settings."""


class Hooks(list):
    """A list of a foreign class; mmengine has none, other frameworks do."""


def mmengine_file(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """A checkpoint as mmengine's runner writes it, with some foreign containers more."""
    module = types.ModuleType("mmengine")
    for kind in (HistoryBuffer, ConfigDict, Hooks):
        kind.__module__ = "mmengine"
        setattr(module, kind.__name__, kind)
    log = collections.OrderedDict(loss=HistoryBuffer())
    information = collections.OrderedDict(best=np.float64(56.26), kind=np.dtype("float32"))
    content = {
        "meta": {"epoch": 0, "iter": 80000, "cfg": "model = dict()", "dataset_meta": ConfigDict(classes=("a",))},
        "message_hub": {"log_scalars": log, "runtime_info": information},
        "hooks": Hooks([HistoryBuffer(), {1, 2}, collections.deque([1]), collections.defaultdict(list, a=[1])]),
        "state_dict": weights,
    }
    sys.modules["mmengine"] = module  # while the file is written
    try:
        torch.save(content, path)
    finally:
        del sys.modules["mmengine"]
    return path
