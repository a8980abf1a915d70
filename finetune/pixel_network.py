"""What networks that give every pixel a class have in common, whatever they are made of."""

from collections.abc import Mapping
from typing import Protocol

from torch import nn

SMALLEST = 32  # pixels along a side that all of them take


class HasRoles(Protocol):
    """What knows which images of a description it takes."""

    @property
    def roles(self) -> Mapping[str, str]:
        """Role in the description of each image, by its name in the network."""
        ...


class PixelNetwork(nn.Module):
    """Called with standardised images (b, c, h, w) of one size by name; what it returns has `logits` (b, classes, h, w)."""

    def __init__(self, roles: Mapping[str, str], classes: int) -> None:
        super().__init__()
        self.roles, self.classes = dict(roles), classes
