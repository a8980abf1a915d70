"""Fixed kernels of some bands as kernels of any band: what `BandKernels` makes of their codes equals them (docs/model.md 3.2)."""

from collections.abc import Sequence

import torch
from timm.layers.mlp import Mlp
from torch import Tensor

from alliance.embedding import RANK, BandKernels
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.released.parts import Embedding

TOLERANCE = 3e-5  # of the largest value, for what is fitted


@torch.no_grad()
def fit_embedding(encoder: AllianceEncoder, embeddings: Sequence[Embedding]) -> None:
    """Give the encoder the kernels and constants of its sensors, exactly but for rounding.

    Raises:
        InputError: more bands than there are kernels to mix, or two bands that have one code and unlike kernels.
    """
    embed = encoder.patch_embed
    codes = [embed.code(embedding.sensor.bands) for embedding in embeddings]
    kernels = torch.cat([embedding.kernels for embedding in embeddings])
    if len(kernels) > RANK:
        raise InputError(
            f"{len(kernels)} bands of all sensors have kernels of their own, {RANK} at most; give fewer --sensor"
        )
    assert isinstance(embed.kernels.source, BandKernels)
    _fit_kernels(embed.kernels.source, torch.cat(codes), kernels)
    constants = torch.cat([embedding.constants for embedding in embeddings])
    means = [
        code[list(group)].mean(0)
        for code, embedding in zip(codes, embeddings, strict=True)
        for group in embedding.sensor.group_indices
    ]
    shared = constants.mean(0)
    embed.bias.copy_(shared)
    _fit_last_layer(embed.position.spectral.mlp, torch.stack(means), constants - shared, "constants of the band groups")


def _fit_kernels(kernels: BandKernels, codes: Tensor, wanted: Tensor) -> None:
    """Shared kernels from a singular value decomposition; those that are not needed stay as they were drawn, unmixed."""
    left, strength, right = torch.linalg.svd(wanted.flatten(1), full_matrices=False)
    root = strength.sqrt()
    kernels.basis[: len(root)] = (root[:, None] * right).reshape(-1, *kernels.basis.shape[1:]).float()
    mix = torch.zeros(len(codes), RANK, dtype=torch.float64)
    mix[:, : len(root)] = left * root
    _fit_last_layer(kernels.mixer, codes, mix, "kernels of the bands")
    refuse_apart(kernels(codes)[0], wanted, "kernels of the bands")


def _fit_last_layer(mlp: Mlp, codes: Tensor, wanted: Tensor, what: str) -> None:
    """The smallest last layer that gives `wanted` (n, o) at codes (n, i), the first one being as it was drawn."""
    hidden = mlp.act(mlp.fc1(codes)).double()
    centred = torch.linalg.pinv(hidden) @ wanted
    mlp.fc2.weight.copy_(centred.T)
    assert mlp.fc2.bias is not None
    mlp.fc2.bias.zero_()
    refuse_apart(mlp(codes), wanted, what)


def refuse_apart(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise InputError unless two tensors of the same shape are equal but for rounding."""
    error, largest = (found.double() - wanted).abs().max().item(), wanted.abs().max().item()
    if error > TOLERANCE * max(largest, 1e-3):
        raise InputError(
            f"the {what} cannot be had from their wavelengths (error {error:.2g} of {largest:.2g}): two bands of unlike "
            f"kernels have the same wavelength, bandwidth and modality; tell them apart in the --sensor"
        )
