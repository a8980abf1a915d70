"""What networks that give every pixel a class have in common, whatever they are made of."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

SMALLEST = 32  # pixels along a side that all of them take


class HasRoles(Protocol):
    """What knows which images of a description it takes."""

    @property
    def roles(self) -> Mapping[str, str]:
        """Role in the description of each image, by its name in the network."""
        ...


def same_size(images: Sequence[Tensor]) -> bool:
    """Whether images (b, c, h, w) are alike in count and size, which in an exported graph are symbols that no set can hold."""
    sizes = [(image.shape[0], *image.shape[-2:]) for image in images]
    return all(size == sizes[0] for size in sizes[1:])


class PixelNetwork(nn.Module):
    """Called with standardised images (b, c, h, w) of one size by name; what it returns has `logits` (b, classes, h, w)."""

    def __init__(self, roles: Mapping[str, str], classes: int) -> None:
        super().__init__()
        self.roles, self.classes = dict(roles), classes
