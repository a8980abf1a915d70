"""launch/pretrain.py with trouble: `TROUBLE=nan:RANK:CALLS` spoils the loss of some forward passes on one rank.

`error:RANK:CALLS` raises there instead. The hook is torch's own; the code under test is as users run it.
"""

import os
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from alliance.losses import Losses
from pretrain.run import main


def trouble(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
    """Spoil the third stage of the loss, or raise."""
    global passes
    if not isinstance(output, Losses) or module.__class__.__name__ != "Alliance" or not module.training:
        return None
    passes += 1
    if os.environ["RANK"] != rank or (calls != "all" and str(passes - 1) not in calls.split(",")):
        return None
    if kind == "error":
        raise ValueError("the cosmic ray of a test")
    return Losses(output.total * torch.nan, output.stages * torch.tensor([1, 1, torch.nan]))


kind, rank, calls = os.environ["TROUBLE"].split(":")
passes = 0
register_module_forward_hook(trouble)
main()
