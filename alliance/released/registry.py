"""The families of released encoders by name, and the one way in which a file of any of them becomes ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alliance.checkpoint import load_weights
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.export_files import differences
from alliance.foreign import read_weights
from alliance.released import galileo, generated, prithvi, satmae, vit
from alliance.released.fitting import fit_embedding
from alliance.released.parts import Options, Released, Shapes, Weights

SEED = 0  # of what no file has: the codes of bands, and the first layers that mix kernels by them
SHOWN = 40  # rows of a table of differences
LAST = r"head\.|fc_norm\.|mask_token$|decoder_|"  # beyond the encoder, in files of many kinds
FITTED = ("patch_embed.kernels.", "patch_embed.bias", "patch_embed.position.spectral.", "patch_embed.code.")


class Family(NamedTuple):
    """Released encoders whose files are alike."""

    title: str
    licence: str  # of the weights, not of the code
    expected: Callable[[Weights, Options], Shapes]
    build: Callable[[Weights, Options], Released]
    beyond: str = LAST  # regular expression for the start of names that are no part of an encoder
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict  # to one spelling of the names


class Conversion(NamedTuple):
    """An encoder of ours, and what became of every weight."""

    encoder: AllianceEncoder
    rows: list[str]  # loaded, adapted, left out, new
    notes: tuple[str, ...]  # what was assumed


FAMILIES: Mapping[str, Family] = {
    "timm": Family("vision transformers of timm", "as its card says; augreg: Apache-2.0", vit.expected, vit.build_timm),
    "mae": Family("MAE on ImageNet", "CC-BY-NC-4.0", vit.expected, vit.build_mae),
    "dinov2": Family("DINOv2, also with registers", "Apache-2.0", vit.expected, vit.build_dinov2),
    "ssl4eo": Family(
        "SSL4EO-S12 (MAE, DINO, MoCo), FG-MAE, SoftCon", "CC-BY-4.0", vit.expected, vit.build_ssl4eo
    ),
    "satmae": Family(
        "SatMAE and SatMAE++ with band groups", "SatMAE CC-BY-NC-4.0, SatMAE++ Apache-2.0",
        satmae.expected, satmae.build, LAST + r"proj_up_|up_block|",
    ),
    "prithvi": Family(
        "Prithvi 1 and 2, one date", "Apache-2.0", prithvi.expected, prithvi.build,
        LAST + r"decoder\.|temporal_embed_enc\.|location_embed_enc\.|", prithvi.prepare,
    ),
    "dofa": Family(
        "DOFA 1", "CC-BY-4.0", generated.expected_dofa, generated.build_dofa, LAST + r"projector\.|",
    ),
    "clay": Family(
        "Clay 1.5", "Apache-2.0", generated.expected_clay, generated.build_clay,
        LAST + r"decoder\.|teacher\.|proj\.|mrl|", generated.prepare_clay,
    ),
    "galileo": Family(
        "Galileo, one date of Sentinel-1 and 2", "MIT", galileo.expected, galileo.build,
        LAST + r"(space|time|static)_embed\.|(sp|t|st)_channel_embed$|",
    ),
}  # fmt: skip


def convert_released(format: str, path: str | Path, options: Options) -> Conversion:
    """An encoder out of a file that another project released.

    Raises:
        InputError: the file cannot be read, or its weights are not those of this family: with a table of what is missing,
            unexpected, reshaped or no finite floating-point numbers.
    """
    family = FAMILIES[format]
    weights = family.prepare(read_weights(path))
    wanted = family.expected(weights, options)
    beyond = [name for name in weights if name not in wanted and re.match(family.beyond.rstrip("|"), name)]
    own = {name: value for name, value in weights.items() if name not in beyond}
    with torch.device("meta"):
        rows = differences({name: torch.empty(shape) for name, shape in wanted.items()}, own)
    rows += [f"  not-finite  {name}" for name in beyond if not weights[name].isfinite().all()]
    if rows:
        more = [f"  ... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        raise InputError("\n".join([f"{path} is no file of {format} ({family.title}):", *rows[:SHOWN], *more]))
    released = family.build(own, options)
    encoder = assemble(released)
    return Conversion(encoder, _report(own, beyond, weights, released, encoder), released.notes)


def assemble(released: Released) -> AllianceEncoder:
    """The encoder with all weights in place, in evaluation mode; what no file has is always drawn alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        encoder = AllianceEncoder(released.config, [embedding.sensor for embedding in released.embeddings])
    fit_embedding(encoder, released.embeddings)
    fitted = {name: value for name, value in encoder.state_dict().items() if name.startswith(FITTED)}
    load_weights(encoder, {**fitted, **{name: value.float() for name, value in released.weights.items()}})
    return encoder.eval()


def _report(
    own: Weights, beyond: list[str], weights: Weights, released: Released, encoder: AllianceEncoder
) -> list[str]:
    same = {name for name, value in own.items() if released.weights.get(name) is value}
    rows = [f"  loaded      {name} {tuple(own[name].shape)}" for name in own if name in same]
    rows += [f"  adapted     {name} {tuple(own[name].shape)}" for name in own if name not in same]
    rows += [f"  left out    {name} {tuple(weights[name].shape)}" for name in beyond]
    drawn = [name for name in encoder.state_dict() if name.startswith("patch_embed.code.") or ".fc1." in name]
    return rows + [f"  new         {name}" for name in drawn if name.startswith(FITTED)]
