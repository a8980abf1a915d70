"""Frequency decoupling and recoupling: pure functions, float32 whatever the caller's dtype or autocast.

The release shifts zero frequency to the middle and back. All that happens in between is per bin, so nothing is
shifted here; only the distance of every bin, which depends on the shift, is laid out accordingly.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from alliance.frequency import (
    bins,
    distance,
    float32_island,
    modulo,
    plane_of,
    plane_spectrum,
    radial_frequency,
    uncompiled,
)
from alliance.kept import exporting

SpectrumLayout = Literal["release", "true_radius"]

SHARPNESS = 10.0  # of the high-pass mask's edge, equation 16
FLOOR = 1e-6  # of a bin's power next to the strongest one of its map, or to 1: the slope of its phase grows no further


@uncompiled
def decouple(features: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude and phase of the orthonormal half spectrum (equations 11 and 13).

    Args:
        features: (b, c, h, w), any float dtype.
    Returns:
        Amplitude and phase in (-pi, pi], each (b, c, h, w // 2 + 1) float32, zero frequency at [0, 0].
    """
    self_conjugate = real_bins(*features.shape[-2:], device=features.device)
    if exporting():
        real, imaginary = plane_spectrum(features.float())
        return (real.square() + imaginary.square()).sqrt(), _angle(imaginary.masked_fill(self_conjugate, 0.0), real)
    with float32_island(features):
        spectrum = torch.fft.rfft2(features.float(), norm="ortho")
        return spectrum.abs(), _phase(spectrum, self_conjugate)


@uncompiled
def recouple(amplitude: Tensor, phase: Tensor, w: int) -> Tensor:
    """Map whose half spectrum is amplitude * exp(j phase) (equation 9).

    Args:
        amplitude: (b, c, h, w // 2 + 1) float32; a negative one turns the phase by pi.
        phase: the same shape; what no real map can have is dropped.
        w: width of the map, which the half spectrum leaves open.
    Returns:
        (b, c, h, w) float32.
    """
    if exporting():
        return plane_of(amplitude * phase.cos(), amplitude * phase.sin(), w)
    with float32_island(amplitude):
        spectrum = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
        # One axis at a time: devices differ in what irfft2 makes of spectra that no real map has.
        return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2, norm="ortho"), n=w, dim=-1, norm="ortho")


def bin_distance(h: int, w: int, layout: SpectrumLayout, device: torch.device | None = None) -> Tensor:
    """Distance of every half-spectrum bin from the centre of equation 15, 1 at the farthest.

    `true_radius` is the radial frequency. `release` is what its code gives: it also shifts the column axis, which
    holds no negative frequencies, so the upper half of the columns counts as low, the highest as 1 from the centre.

    Returns:
        (h, w // 2 + 1) float32, laid out as by `decouple`.
    """
    if layout == "true_radius":
        found = radial_frequency(h, w, half=True, device=device)
    else:
        found = distance(bins(h, device).float(), bins(w // 2 + 1, device).float())
    return found / found.max().clamp(min=1e-6)


def real_bins(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Where the half spectrum of every map is real: (h, w // 2 + 1) boolean, true at zero and Nyquist frequencies."""
    u, v = torch.arange(h, device=device), torch.arange(w // 2 + 1, device=device)
    return (modulo(2 * u, h) == 0)[:, None] & (modulo(2 * v, w) == 0)[None, :]


def high_pass(distance: Tensor, radius: Tensor) -> Tensor:
    """Soft mask of the bins beyond r = sigmoid(radius) (equation 16), float32; `radius` is a scalar."""
    return torch.sigmoid(SHARPNESS * (distance - torch.sigmoid(radius.float())))


def _phase(spectrum: Tensor, real_bins: Tensor) -> Tensor:
    """The angle; of weak bins with a gradient that is bounded: sqrt(1 / floor) at most, 0 where there is no amplitude."""
    # Rounding must not choose between pi and -pi for a negative number that is real.
    real, imaginary = spectrum.real, spectrum.imag.masked_fill(real_bins, 0.0)
    x, y = real.detach(), imaginary.detach()
    power = x.square() + y.square()
    floor = FLOOR * power.amax(dim=(-2, -1), keepdim=True).clamp(min=1.0)
    # The second term is zero and carries the derivative (x dy - y dx) / (x^2 + y^2).
    return torch.atan2(y, x) + (x * imaginary - y * real) / torch.maximum(power, floor)


def _angle(y: Tensor, x: Tensor) -> Tensor:
    """atan2 of what graphs have: any shape -> the same, in (-pi, pi], 0 where both are 0."""
    acute = torch.atan(y.abs() / x.abs().clamp(min=torch.finfo(x.dtype).tiny))
    upper = torch.where(x < 0, math.pi - acute, acute)
    return torch.where(y < 0, -upper, upper)
