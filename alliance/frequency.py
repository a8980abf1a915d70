"""Frequency-domain maths: pure functions on float32, no parameters.

Frequencies are in cycles per pixel (images) or cycles per token (token grids), so cut-offs mean the same at any size.
Zero frequency stays in the corner: nothing is shifted. Everything here runs in float32 whatever the caller's dtype.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor

Edge = Literal["raised_cosine", "ideal"]
Extension = Literal["mirror", "periodic"]
Function = TypeVar("Function", bound=Callable[..., Any])

MATMUL_GRID = 256  # largest token grid (h * w) whose Fourier transform is done as one matrix product


@contextmanager
def float32_island(like: Tensor) -> Iterator[None]:
    """No autocast and full-precision float32 products for a tensor of any shape (...): transforms lose digits in bfloat16 and TF32."""
    with torch.autocast(like.device.type, enabled=False):
        backend = torch.backends.cuda if like.is_cuda else torch.backends.mkldnn
        products = backend.matmul  # pyright: ignore[reportAttributeAccessIssue]
        precision = products.fp32_precision
        if torch.compiler.is_compiling() or precision == "ieee":
            yield
            return
        products.fp32_precision = "ieee"
        try:
            yield
        finally:
            products.fp32_precision = precision


def uncompiled(function: Function) -> Function:
    """Keep complex arithmetic, which the compiler lacks, out of compiled graphs."""
    return cast(Function, torch.compiler.disable(function))


@functools.lru_cache(maxsize=64)
def dct_matrix(size: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II as a matrix: (size, size), row i is the cosine of i / (2 size) cycles per sample."""
    with torch.inference_mode(False):
        place = torch.arange(size, dtype=torch.float64)
        rows = torch.cos(math.pi * (place + 0.5)[None, :] * place[:, None] / size) * math.sqrt(2 / size)
        rows[0] /= math.sqrt(2)
        return rows.float().to(device)


def dct2(image: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II over the last two axes: (..., h, w) -> (..., h, w) float32."""
    with float32_island(image):
        rows, columns = (dct_matrix(size, image.device) for size in image.shape[-2:])
        return rows @ image.float() @ columns.mT


def idct2(coefficients: Tensor) -> Tensor:
    """Inverse of `dct2`: (..., h, w) -> (..., h, w) float32."""
    with float32_island(coefficients):
        rows, columns = (dct_matrix(size, coefficients.device) for size in coefficients.shape[-2:])
        return rows.mT @ coefficients.float() @ columns


def radial_frequency(h: int, w: int, *, half: bool = False, device: torch.device | None = None) -> Tensor:
    """Distance of every FFT bin from zero frequency: (h, w), or (h, w // 2 + 1) for rfft2; cycles per sample."""
    fy = torch.fft.fftfreq(h, device=device)
    fx = torch.fft.rfftfreq(w, device=device) if half else torch.fft.fftfreq(w, device=device)
    return torch.hypot(fy[:, None], fx[None, :])


def pass_response(frequency: Tensor, cutoff: float, edge: Edge) -> Tensor:
    """Gain of a low-pass filter at each frequency (...,), same shape, float32: a step, or a raised cosine from 0.75 to 1.25 of the cut-off."""
    if edge == "ideal":
        return (frequency <= cutoff).float()
    ramp = ((frequency / cutoff - 0.75) / 0.5).clamp(0, 1)
    return 0.5 * (1 + torch.cos(math.pi * ramp))


def low_pass(
    image: Tensor, cutoffs: Sequence[float], *, edge: Edge = "raised_cosine", extension: Extension = "mirror"
) -> Tensor:
    """Low-pass an image at several cut-offs.

    The mirror extension (to 2h x 2w) is done without building it: the DCT-II diagonalises it.

    Args:
        image: (..., h, w), any float dtype.
        cutoffs: cycles per pixel.
    Returns:
        (len(cutoffs), ..., h, w) float32.
    """
    h, w = image.shape[-2:]
    if extension == "periodic":
        spectrum = torch.fft.rfft2(image.float())
        radius = radial_frequency(h, w, half=True, device=image.device)
        passed = [torch.fft.irfft2(spectrum * pass_response(radius, cutoff, edge), s=(h, w)) for cutoff in cutoffs]
        return torch.stack(passed)
    coefficients = dct2(image)
    fy, fx = (torch.arange(size, device=image.device) / (2 * size) for size in (h, w))
    radius = torch.hypot(fy[:, None], fx[None, :])
    return idct2(torch.stack([coefficients * pass_response(radius, cutoff, edge) for cutoff in cutoffs]))


def patch_log_amplitude(patches: Tensor, patch: int) -> Tensor:
    """In-patch amplitude of standardised pixels: centred log |DCT-II|, float32, about zero mean and unit deviation.

    Args:
        patches: (..., patch * patch).
    """
    coefficients = rearrange(dct2(rearrange(patches, "... (i j) -> ... i j", i=patch)), "... i j -> ... (i j)")
    return (torch.log(coefficients.abs() + 0.05) + 1.5) / 1.2


@functools.lru_cache(maxsize=16)
def _rdft_matrices(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """rfft2 and irfft2 with ortho norm as real matrices: (2 * bins, h * w) and (h * w, 2 * bins), [Re; Im] order."""
    with torch.inference_mode(False):
        pixels = rearrange(torch.eye(h * w, dtype=torch.float64), "n (h w) -> n h w", h=h)
        spectrum = rearrange(torch.fft.rfft2(pixels, norm="ortho"), "n i j -> (i j) n")
        forward = torch.cat([spectrum.real, spectrum.imag])
        bins = rearrange(torch.eye(spectrum.shape[0], dtype=torch.complex128), "k (i j) -> k i j", i=h)
        real, imaginary = (torch.fft.irfft2(part, s=(h, w), norm="ortho") for part in (bins, 1j * bins))
        inverse = rearrange(torch.cat([real, imaginary]), "k h w -> (h w) k")
        return forward.float().to(device), inverse.float().to(device)


@uncompiled
def _rfft2(grid: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    spectrum = torch.fft.rfft2(rearrange(grid, "... (h w) f -> ... h w f", h=h), dim=(-3, -2), norm="ortho")
    spectrum = rearrange(spectrum, "... i j f -> ... (i j) f")
    return spectrum.real, spectrum.imag


@uncompiled
def _irfft2(real: Tensor, imaginary: Tensor, h: int, w: int) -> Tensor:
    spectrum = rearrange(torch.complex(real, imaginary), "... (i j) f -> ... i j f", i=h)
    return rearrange(torch.fft.irfft2(spectrum, s=(h, w), dim=(-3, -2), norm="ortho"), "... h w f -> ... (h w) f")


def token_spectrum(grid: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Half spectrum of features on a token grid, ortho norm, as real and imaginary part.

    Args:
        grid: (..., h * w, f).
    Returns:
        Two tensors (..., h * (w // 2 + 1), f) float32.
    """
    with float32_island(grid):
        if h * w > MATMUL_GRID:
            return _rfft2(grid.float(), h, w)
        real, imaginary = (_rdft_matrices(h, w, grid.device)[0] @ grid.float()).chunk(2, dim=-2)
        return real, imaginary


def token_grid(real: Tensor, imaginary: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `token_spectrum`: (..., h * w, f) float32. Parts that no real grid can have are projected away."""
    with float32_island(real):
        if h * w > MATMUL_GRID:
            return _irfft2(real.float(), imaginary.float(), h, w)
        return _rdft_matrices(h, w, real.device)[1] @ torch.cat([real, imaginary], dim=-2).float()


@functools.lru_cache(maxsize=16)
def scale_partition(h: int, w: int, cuts: tuple[float, ...], device: torch.device) -> Tensor:
    """Radial partition of the token half spectrum: (len(cuts) + 1, h * (w // 2 + 1)) of 0 and 1, columns sum to 1."""
    with torch.inference_mode(False):
        radius = rearrange(radial_frequency(h, w, half=True), "i j -> (i j)")
        band = torch.bucketize(radius, torch.tensor(cuts))
        return torch.nn.functional.one_hot(band, len(cuts) + 1).T.float().to(device)


def radial_power(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power in rings one bin wide, for pictures and probes.

    Args:
        image: (..., h, w); the mean is removed and a Hann window applied.
    Returns:
        Frequencies (r,) in cycles per pixel up to 0.5, and power (..., r) float32.
    """
    h, w = image.shape[-2:]
    rows, columns = (torch.hann_window(size, device=image.device) for size in (h, w))
    centred = image.float() - image.float().mean(dim=(-2, -1), keepdim=True)
    power = torch.fft.fft2(centred * torch.outer(rows, columns), norm="ortho").abs().square()
    count = min(h, w) // 2
    ring = (radial_frequency(h, w, device=image.device) * min(h, w)).round().long()
    member = torch.nn.functional.one_hot(ring.clamp(max=count + 1), count + 2).float()
    with float32_island(power):
        totals = torch.einsum("...hw,hwr->...r", power, member) / member.sum((0, 1)).clamp(min=1)
    return torch.arange(1, count + 1, device=image.device) / min(h, w), totals[..., 1 : count + 1]
