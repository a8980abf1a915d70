"""Principal components of features: fitted to a part of them, then the same linear map for all."""

import json
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.errors import InputError


class Components(NamedTuple):
    """k axes of features of f numbers, by falling variance, float64."""

    mean: Tensor  # (f,)
    axes: Tensor  # (k, f), of length 1
    share: Tensor  # (k,), of the variance of the features that they were fitted to

    def apply(self, features: Tensor) -> Tensor:
        """(b, f, h, w) -> (b, k, h, w) float32."""
        axes, mean = (part.to(features.device, torch.float32) for part in (self.axes, self.mean))
        return torch.einsum("k f, b f h w -> b k h w", axes, features.float() - mean[:, None, None])

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps({name: part.tolist() for name, part in self._asdict().items()})

    @classmethod
    def from_text(cls, text: str) -> "Components":
        """From what `to_text` gave.

        Raises:
            InputError: it is damaged.
        """
        try:
            record = json.loads(text)
            found = cls(*(torch.tensor(record[name], dtype=torch.float64) for name in cls._fields))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the principal components are damaged ({error}); fit them again, --pca NUMBER") from error
        if found.axes.ndim != 2 or found.axes.shape != (len(found.share), len(found.mean)):
            raise InputError("the principal components do not fit their mean; fit them again, --pca NUMBER")
        return found


def fit_components(chunks: Iterable[Tensor], count: int) -> Components:
    """The first principal components of features (m, f), given in parts; the largest entry of each axis is positive.

    Raises:
        InputError: fewer numbers per feature than components, or fewer than two features.
    """
    seen, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        values = chunk.double().cpu()
        seen += len(values)
        total = total + values.sum(0)
        squares = squares + values.T @ values
    if seen < 2:
        raise InputError(f"{seen} patches with pixels were found, too few for principal components; leave --pca out")
    if not 1 <= count <= len(total):
        raise InputError(f"--pca {count}: the encoder gives {len(total)} features; give 1 to {len(total)}")
    mean = total / seen
    variance, vectors = torch.linalg.eigh(squares / seen - torch.outer(mean, mean))
    axes = vectors.T.flip(0)[:count]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    spread = variance.clamp(min=0).flip(0)
    return Components(mean, axes * signs, spread[:count] / spread.sum().clamp(min=1e-300))
