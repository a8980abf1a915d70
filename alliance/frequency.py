"""Frequency-domain maths: pure functions on float32, no parameters.

Frequencies are in cycles per pixel (images) or cycles per token (token grids), so cut-offs mean the same at any size.
Zero frequency stays in the corner: nothing is shifted. Everything here runs in float32 whatever the caller's dtype.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor

from alliance.kept import exporting, kept

Edge = Literal["raised_cosine", "ideal"]
Extension = Literal["mirror", "periodic"]
Function = TypeVar("Function", bound=Callable[..., Any])

ONE_PRODUCT = 8  # largest patch side whose DCT is done as one matrix product: faster than two of tiny matrices
MATMUL_GRID = 256  # largest token grid (h * w) whose Fourier transform is done as one matrix product


@contextmanager
def float32_island(like: Tensor) -> Iterator[None]:
    """No autocast and full-precision float32 products for a tensor of any shape (...): transforms lose digits in bfloat16 and TF32."""
    if exporting():  # a graph in float32, which says nothing of either
        yield
        return
    with torch.autocast(like.device.type, enabled=False):
        if torch.compiler.is_compiling():  # the compiler follows no setting of products
            yield
            return
        backend = torch.backends.cuda if like.is_cuda else torch.backends.mkldnn
        products = backend.matmul  # pyright: ignore[reportAttributeAccessIssue]
        precision = products.fp32_precision
        if precision == "ieee":
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


@kept(64)
def dct_matrix(size: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II as a matrix: (size, size), row i is the cosine of i / (2 size) cycles per sample."""
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
    fx = half_frequencies(w, device) if half else bins(w, device) * _step(w, device)
    return distance(bins(h, device) * _step(h, device), fx)


def half_frequencies(size: int, device: torch.device | None = None) -> Tensor:
    """Frequencies of a real FFT, (size // 2 + 1,) float32, cycles per sample."""
    return torch.arange(size // 2 + 1, device=device) * _step(size, device)


def _step(size: int, device: torch.device | None) -> Tensor:
    """Frequency of the first bin, () float32; of a size that may be a symbol, which ONNX multiplies by as a tensor alone."""
    return 1 / torch.full((), size, dtype=torch.float32, device=device)


def distance(down: Tensor, along: Tensor) -> Tensor:
    """Length of the vectors of two axes, (h,) and (w,) -> (h, w) float32."""
    if exporting():  # ONNX has no hypot
        return (down.square()[:, None] + along.square()[None, :]).sqrt()
    return torch.hypot(down[:, None], along[None, :])


def bins(size: int, device: torch.device | None = None) -> Tensor:
    """Signed number of every FFT bin, (size,) int64: 0, 1, ... and from the middle on the negative ones."""
    return modulo(torch.arange(size, device=device) + size // 2, size) - size // 2


def modulo(values: Tensor, size: int) -> Tensor:
    """Whole numbers of any shape modulo a size, which may be a symbol of an exported graph: ONNX has none for those by itself."""
    return values % torch.full((), size, dtype=values.dtype, device=values.device)


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
    gains = _pass_gains(h, w, tuple(cutoffs), edge, extension, image.device)
    if extension == "periodic":
        spectrum = torch.fft.rfft2(image.float())
        return torch.stack([torch.fft.irfft2(spectrum * gain, s=(h, w)) for gain in gains])
    coefficients = dct2(image)
    return idct2(torch.stack([coefficients * gain for gain in gains]))


@kept(32)
def _pass_gains(
    h: int, w: int, cutoffs: tuple[float, ...], edge: Edge, extension: Extension, device: torch.device
) -> Tensor:
    """Gains of low-passes on the half spectrum (periodic) or on the DCT: (len(cutoffs), h, w // 2 + 1 or w)."""
    if extension == "periodic":
        radius = radial_frequency(h, w, half=True, device=device)
    else:
        fy, fx = (torch.arange(size, device=device) / (2 * size) for size in (h, w))
        radius = torch.hypot(fy[:, None], fx[None, :])
    return torch.stack([pass_response(radius, cutoff, edge) for cutoff in cutoffs])


def patch_log_amplitude(patches: Tensor, patch: int) -> Tensor:
    """In-patch amplitude of standardised pixels: centred log |DCT-II|, float32, about zero mean and unit deviation.

    Args:
        patches: (..., patch * patch).
    """
    if patch <= ONE_PRODUCT:
        with float32_island(patches):
            coefficients = patches.float() @ _patch_dct_matrix(patch, patches.device)
    else:
        coefficients = rearrange(dct2(rearrange(patches, "... (i j) -> ... i j", i=patch)), "... i j -> ... (i j)")
    return (torch.log(coefficients.abs() + 0.05) + 1.5) / 1.2


@kept(16)
def _patch_dct_matrix(patch: int, device: torch.device) -> Tensor:
    """`dct2` of a patch as one product from the right, (patch^2, patch^2)."""
    matrix = dct_matrix(patch, torch.device("cpu")).double()
    return torch.kron(matrix, matrix).mT.float().contiguous().to(device)


@kept(16)
def _rdft_matrices(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """rfft2 and irfft2 with ortho norm as real matrices: (2 * bins, h * w) and (h * w, 2 * bins), [Re; Im] order."""
    pixels = rearrange(torch.eye(h * w, dtype=torch.float64), "n (h w) -> n h w", h=h)
    spectrum = rearrange(torch.fft.rfft2(pixels, norm="ortho"), "n i j -> (i j) n")
    forward = torch.cat([spectrum.real, spectrum.imag])
    bins = rearrange(torch.eye(spectrum.shape[0], dtype=torch.complex128), "k (i j) -> k i j", i=h)
    real, imaginary = (torch.fft.irfft2(part, s=(h, w), norm="ortho") for part in (bins, 1j * bins))
    inverse = rearrange(torch.cat([real, imaginary]), "k h w -> (h w) k")
    return forward.float().to(device), inverse.float().to(device)


def plane_spectrum(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Half spectrum of planes by products with sines and cosines, ortho norm: for graphs without complex numbers.

    Args:
        planes: (..., h, w) float32.
    Returns:
        Real and imaginary part, (..., h, w // 2 + 1) float32 each.
    """
    h, w = planes.shape[-2:]
    (down_cos, down_sin), (along_cos, along_sin) = _waves(h, h, planes.device), _waves(w // 2 + 1, w, planes.device)
    even, odd = planes @ along_cos.mT, planes @ along_sin.mT
    norm = (h * w) ** -0.5
    return (down_cos @ even - down_sin @ odd) * norm, -(down_cos @ odd + down_sin @ even) * norm


def plane_of(real: Tensor, imaginary: Tensor, w: int) -> Tensor:
    """Inverse of `plane_spectrum`: two of (..., h, w // 2 + 1) -> (..., h, w). Parts that no real plane can have are projected away."""
    h, columns = real.shape[-2:]
    (down_cos, down_sin), (along_cos, along_sin) = _waves(h, h, real.device), _waves(columns, w, real.device)
    place = torch.arange(columns, device=real.device)
    twice = 2 - ((place == 0) | (2 * place == w)).float()  # these columns are their own mirror image
    even, odd = down_cos @ real - down_sin @ imaginary, down_sin @ real + down_cos @ imaginary
    return ((even * twice) @ along_cos - (odd * twice) @ along_sin) * (h * w) ** -0.5


def _waves(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi k n / size for k < count: (count, size) float32 each."""
    turns = torch.arange(count, device=device)[:, None] * torch.arange(size, device=device)[None, :]
    angle = modulo(turns, size).float() * (2 * math.pi / size)  # whole turns are taken off before anything is rounded
    return angle.cos(), angle.sin()


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
        if exporting():
            parts = plane_spectrum(rearrange(grid.float(), "... (h w) f -> ... f h w", h=h, w=w))
            real, imaginary = (rearrange(part, "... f i j -> ... (i j) f") for part in parts)
            return real, imaginary
        if h * w > MATMUL_GRID:
            return _rfft2(grid.float(), h, w)
        real, imaginary = (_rdft_matrices(h, w, grid.device)[0] @ grid.float()).chunk(2, dim=-2)
        return real, imaginary


def token_grid(real: Tensor, imaginary: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `token_spectrum`: (..., h * w, f) float32. Parts that no real grid can have are projected away."""
    with float32_island(real):
        if exporting():
            planes = [rearrange(part.float(), "... (i j) f -> ... f i j", i=h) for part in (real, imaginary)]
            return rearrange(plane_of(planes[0], planes[1], w), "... f h w -> ... (h w) f")
        if h * w > MATMUL_GRID:
            return _irfft2(real.float(), imaginary.float(), h, w)
        return _rdft_matrices(h, w, real.device)[1] @ torch.cat([real, imaginary], dim=-2).float()


@kept(16)
def scale_partition(h: int, w: int, cuts: tuple[float, ...], device: torch.device) -> Tensor:
    """Radial partition of the token half spectrum: (len(cuts) + 1, h * (w // 2 + 1)) of 0 and 1, columns sum to 1."""
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
