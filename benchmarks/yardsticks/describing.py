"""Numbers that stand for images and their places: of an encoder, or what the pixels say without one."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from alliance.encoder import AllianceEncoder
from alliance.frequency import radial_power
from alliance.readout import ReadOut, read_map, read_out
from alliance.sensors import Sensor
from benchmarks.yardsticks.scoring import PIXELS, RAW
from datasets.labelled.tiles import Cut
from engine.probing import raw_statistics
from finetune.probing.dense import raw_patches

RINGS = 8  # of the radial log power
SIDE = 16  # patches, of the windows that an encoder sees of larger images
FAINT = 1e-6  # power of standardised images, below which nothing is told apart
Describe = Callable[[Tensor], Tensor]


class Places(NamedTuple):
    """How the places of a piece of an image are described."""

    patch: int  # pixels of a place
    of: Mapping[str, Describe]  # by the image's role: physical (c, h, w) -> (places, f), row by row


def read_by(encoder: AllianceEncoder, sensor: Sensor) -> tuple[Sensor, list[int]] | None:
    """The encoder's own sensor for images of a sensor, and the bands of these that it has; None: it has none in that unit."""
    if sensor.name in encoder.sensors:
        return encoder.sensors[sensor.name], list(range(len(sensor.bands)))
    known = next(iter(encoder.sensors.values()))
    place = {(name, band.unit): at for at, band in enumerate(sensor.bands) for name in band.known_as}
    found = {band.name: next((place[n, band.unit] for n in band.known_as if (n, band.unit) in place), None)
             for band in known.bands}  # fmt: skip
    shared = {name: at for name, at in found.items() if at is not None}
    return (known.select(list(shared)), list(shared.values())) if shared else None


def whole_images(
    encoders: Mapping[str, AllianceEncoder], sensor: Sensor, readouts: Sequence[ReadOut] = ("groups",)
) -> dict[str, Describe]:
    """Of every row: physical images (b, c, h, w) -> (b, f); further read-outs make further rows."""
    rows: dict[str, Describe] = {RAW: lambda images: image_statistics(sensor.standardise(images)[0])}
    for row, encoder in encoders.items():
        if (own := read_by(encoder, sensor)) is not None:
            rows[row] = _read_out(encoder, *own, readouts[0])
            rows |= {f"{row}, {kind}": _read_out(encoder, *own, kind) for kind in readouts[1:]}
    return rows


def all_places(encoders: Mapping[str, AllianceEncoder], sensors: Mapping[str, Sensor], patch: int) -> dict[str, Places]:
    """Of every row that can read all images, by the role of these.

    Args:
        patch: side of the squares whose mean and deviation are raw statistics, pixels.
    """
    rows = {
        row: Places(side, {role: _raw_places(sensor, side, deviation) for role, sensor in sensors.items()})
        for row, side, deviation in ((RAW, patch, True), (PIXELS, 1, False))
    }
    for row, encoder in encoders.items():
        own = {role: read_by(encoder, sensor) for role, sensor in sensors.items()}
        read = {role: _read_places(encoder, *each) for role, each in own.items() if each is not None}
        if len(read) == len(own):
            rows[row] = Places(encoder.patch_size, read)
    return rows


def image_statistics(images: Tensor) -> Tensor:
    """Mean, deviation and logarithm of the power in rings of frequency, of every band: (b, c, h, w) -> (b, c * (2 + rings))."""
    power = radial_power(images)[1]
    rings = [each.mean(-1) for each in power.tensor_split(min(RINGS, power.shape[-1]), dim=-1)]
    return torch.cat([raw_statistics(images), torch.stack(rings, -1).clamp(min=FAINT).log().flatten(1)], dim=1)


def _read_out(encoder: AllianceEncoder, sensor: Sensor, bands: list[int], kind: ReadOut) -> Describe:
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        return read_out(encoder(images[:, bands].to(device), sensor), kind).float().cpu()

    return describe


def _raw_places(sensor: Sensor, patch: int, deviation: bool) -> Describe:
    raw, kept = raw_patches(patch), 2 * len(sensor.bands) if deviation else len(sensor.bands)
    return lambda image: raw(sensor.standardise(image[None])[0][0])[:, :kept]


def _read_places(encoder: AllianceEncoder, sensor: Sensor, bands: list[int]) -> Describe:
    """Features of patches, band groups side by side, each from the window of about `SIDE` patches in which it lies."""
    patch, device = encoder.patch_size, next(encoder.parameters()).device

    @torch.inference_mode()
    def describe(image: Tensor) -> Tensor:
        h, w = (side // patch for side in image.shape[-2:])
        windows: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for box in Cut(SIDE).boxes(h, w):
            windows.setdefault((box.height, box.width), []).append((box.row, box.col))
        found = None
        for (high, wide), starts in windows.items():
            cut = [image[bands, y * patch : (y + high) * patch, x * patch : (x + wide) * patch] for y, x in starts]
            maps = read_map(encoder(torch.stack(cut).to(device), sensor), "groups").float().cpu()
            found = torch.zeros(h, w, maps.shape[-1]) if found is None else found
            for (y, x), each in zip(starts, maps, strict=True):
                found[y : y + high, x : x + wide] = rearrange(each, "(y x) f -> y x f", y=high)
        assert found is not None, "an image has a patch at least"
        return rearrange(found, "h w f -> (h w) f")

    return describe
