"""Read-outs: one vector for an image, or one for each of its places, from the tokens of an encoder."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from alliance.encoder import Features

ReadOut = Literal["cls", "mean", "mean_std", "groups"]
LEAST = 1e-12  # of a variance, so that the deviation of equal tokens has a gradient


def read_out(features: Features, kind: ReadOut) -> Tensor:
    """One vector per image, (b, `read_out_width`).

    cls (b, d): the cls token. mean (b, d): the mean of all tokens. mean_std (b, 2 * d): mean and deviation over the places,
    band groups averaged. groups (b, g * 2 * d): mean and deviation over the places of every band group, side by side.
    """
    if kind == "cls":
        return features.cls
    if kind == "mean":
        return features.tokens.mean((1, 2))
    places = read_places(features, kind)
    return rearrange(_moments(places), "k b g d -> b (g k d)")


def read_map(features: Features, kind: ReadOut) -> Tensor:
    """One vector per place, (b, n, d); (b, n, g * d) with the band groups side by side for `groups`, else averaged."""
    return rearrange(read_places(features, kind), "b g n d -> b n (g d)")


def read_places(features: Features, kind: ReadOut) -> Tensor:
    """Tokens by band group for `groups`, (b, g, n, d); else averaged over the groups, (b, 1, n, d)."""
    return features.tokens if kind == "groups" else features.tokens.mean(1, keepdim=True)


def read_out_width(kind: ReadOut, d: int, groups: int) -> int:
    """Length of the vector of an image, for tokens of width d in some number of band groups."""
    return {"cls": d, "mean": d, "mean_std": 2 * d, "groups": 2 * groups * d}[kind]


def _moments(tokens: Tensor) -> Tensor:
    """Mean and deviation over the places: (b, g, n, d) -> (2, b, g, d)."""
    variance = tokens.var(2, correction=0)
    return torch.stack([tokens.mean(2), (variance + LEAST).sqrt()])
