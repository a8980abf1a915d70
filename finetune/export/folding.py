"""An encoder for one sensor: what depends on its bands alone, and not on the image, as plain numbers."""

import copy
from typing import Any

import torch
from torch import nn

from alliance.embedding import GroupKernels
from alliance.encoder import AllianceEncoder
from alliance.sensors import Sensor


class Kept(nn.Module):
    """Gives what another module gave, a tensor or a tuple of some or None, whatever it is called with."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        parts = found if isinstance(found, tuple) else (found,)
        self.count, self.make = len(parts), getattr(type(found), "_make", tuple) if isinstance(found, tuple) else None
        for place, value in enumerate(parts):
            self.register_buffer(f"part{place}", value)

    def forward(self, *_: object) -> Any:
        found = [getattr(self, f"part{place}") for place in range(self.count)]
        return found[0] if self.make is None else self.make(found)


@torch.no_grad()
def for_sensor(encoder: AllianceEncoder, sensor: Sensor) -> AllianceEncoder:
    """The same features of the images of one sensor, and of no other; fewer weights, as nothing is generated any more."""
    made = copy.deepcopy(encoder).eval()
    embed, groups = made.patch_embed, sensor.group_indices
    code = embed.code(sensor.bands)
    for name in ("kernels", "amplitude_kernels"):
        generator = getattr(embed, name)
        if isinstance(generator, GroupKernels):
            setattr(embed, name, Kept(generator(code, sensor, groups)))
    embed.position.spectral = Kept(embed.position.spectral(code, groups))  # pyright: ignore[reportAttributeAccessIssue]
    made.special = Kept(made.special())  # pyright: ignore[reportAttributeAccessIssue]
    return made
