"""Frequency-domain maths against scipy, numpy and theory."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alliance.frequency import (
    MATMUL_GRID,
    dct2,
    idct2,
    low_pass,
    pass_response,
    radial_power,
    scale_partition,
    token_grid,
    token_spectrum,
)
from alliance.losses import LossConfig, frequency_bands
from tests.helpers.models import natural_image

SIZES = [(8, 8), (7, 12), (15, 9), (1, 5), (24, 24)]
GRIDS = [
    (4, 4),
    (5, 5),
    (3, 8),
    (8, 3),
    (1, 6),
    (6, 1),
    (12, 12),
    (17, 19),
    (20, 20),
]  # the last two beyond MATMUL_GRID
CUTOFFS = (0.0631, 0.1311)  # on no bin of these sizes, where rounding would decide
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def half_spectrum(grid: np.ndarray, h: int, w: int) -> np.ndarray:
    """numpy's rfft2 of (..., h * w, f), bins flattened."""
    cells = grid.reshape(*grid.shape[:-2], h, w, grid.shape[-1])
    bins = np.fft.rfft2(cells, axes=(-3, -2), norm="ortho")
    return bins.reshape(*grid.shape[:-2], h * (w // 2 + 1), grid.shape[-1])


def response(radius: np.ndarray, cutoff: float, edge: str) -> np.ndarray:
    if edge == "ideal":
        return (radius <= cutoff).astype(float)
    rising = 0.5 * (1 + np.cos(np.pi * (radius - 0.75 * cutoff) / (0.5 * cutoff)))
    return np.where(radius < 0.75 * cutoff, 1.0, np.where(radius > 1.25 * cutoff, 0.0, rising))


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 20), w=st.integers(1, 20), seed=st.integers(0, 99))
def test_dct_equals_scipy_and_is_undone(h, w, seed):
    image = random(2, h, w, seed=seed)
    expected = scipy.fft.dctn(image.double().numpy(), type=2, norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(dct2(image).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(idct2(dct2(image)), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_dct_keeps_the_energy(h, w):
    image = random(3, h, w)
    torch.testing.assert_close(dct2(image).square().sum(), image.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_half_spectrum_keeps_the_energy_when_mirrored_bins_count_twice(h, w):
    grid = random(2, h * w, 3)
    real, imaginary = token_spectrum(grid, h, w)
    power = (real.square() + imaginary.square()).unflatten(-2, (h, w // 2 + 1))
    twice = torch.full((w // 2 + 1,), 2.0)
    twice[0] = 1
    if w % 2 == 0:
        twice[-1] = 1
    torch.testing.assert_close((power * twice[:, None]).sum(), grid.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("extension", ["mirror", "periodic"])
@pytest.mark.parametrize("edge", ["raised_cosine", "ideal"])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_bands_sum_to_the_image(h, w, edge, extension):
    image = random(2, 3, h, w)
    bands = frequency_bands(image, CUTOFFS, edge, extension)
    assert bands.shape == (3, 2, 3, h, w)
    torch.testing.assert_close(bands.sum(0), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("extension", ["mirror", "periodic"])
@pytest.mark.parametrize("edge", ["raised_cosine", "ideal"])
def test_a_flat_image_is_all_low(edge, extension):
    image = torch.full((1, 1, 9, 16), 3.0)
    low, mid, high = frequency_bands(image, CUTOFFS, edge, extension)
    torch.testing.assert_close(low, image, atol=1e-5, rtol=0)
    assert mid.abs().max() < 1e-5
    assert high.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("rows", "columns", "band"),
    [(0, 2, 0), (3, 0, 0), (2, -2, 0), (0, 5, 1), (-4, 4, 1), (12, 0, 2), (9, 9, 2), (31, 31, 2)],
)
@pytest.mark.parametrize("edge", ["raised_cosine", "ideal"])
def test_a_grating_lands_in_its_band(rows, columns, band, edge):
    # Cycles per 64 pixels: the cut-offs 1/16 and 1/8 are 4 and 8 cycles, their soft edges 3..5 and 6..10.
    place = torch.arange(64)
    image = torch.cos(2 * math.pi * (rows * place[:, None] + columns * place[None, :]) / 64)[None, None]
    energy = frequency_bands(image, (1 / 16, 1 / 8), edge, "periodic").square().mean(dim=(1, 2, 3, 4))
    assert energy[band] > 0.999 * energy.sum()


def test_cosines_of_the_mirrored_image_pass_whole_or_not_at_all():
    place = torch.arange(64)
    for index, band in ((4, 0), (11, 1), (40, 2)):  # index / 128 cycles per pixel
        image = torch.cos(math.pi * index * (place + 0.5) / 64).expand(48, 64)[None, None]
        bands = frequency_bands(image, (1 / 16, 1 / 8), "raised_cosine", "mirror")
        torch.testing.assert_close(bands[band], image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("edge", ["raised_cosine", "ideal"])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_mirrored_low_pass_equals_filtering_the_mirrored_image(h, w, edge):
    image = random(2, h, w).double().numpy()
    mirrored = np.concatenate([image, image[..., ::-1]], axis=-1)
    mirrored = np.concatenate([mirrored, mirrored[..., ::-1, :]], axis=-2)
    radius = np.hypot(np.fft.fftfreq(2 * h)[:, None], np.fft.fftfreq(2 * w)[None, :])
    for passed, cutoff in zip(low_pass(torch.from_numpy(image), CUTOFFS, edge=edge), CUTOFFS, strict=True):
        expected = np.fft.ifft2(np.fft.fft2(mirrored) * response(radius, cutoff, edge)).real[..., :h, :w]
        np.testing.assert_allclose(passed.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("edge", ["raised_cosine", "ideal"])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_periodic_low_pass_equals_numpy(h, w, edge):
    image = random(2, h, w).double().numpy()
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])
    expected = np.fft.ifft2(np.fft.fft2(image) * response(radius, CUTOFFS[1], edge)).real
    passed = low_pass(torch.from_numpy(image), CUTOFFS, edge=edge, extension="periodic")[1]
    np.testing.assert_allclose(passed.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("extension", ["mirror", "periodic"])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_an_ideal_low_pass_applied_twice_is_applied_once(h, w, extension):
    once = low_pass(random(2, h, w), CUTOFFS, edge="ideal", extension=extension)[1]
    twice = low_pass(once, CUTOFFS, edge="ideal", extension=extension)[1]
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)


def test_a_soft_edge_falls_from_three_to_five_quarters_of_the_cutoff():
    gain = pass_response(torch.tensor([0.0, 0.0749, 0.1, 0.1251, 0.7]), 0.1, "raised_cosine")
    torch.testing.assert_close(gain, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_an_image_of_natural_power_is_mostly_low():
    energy = (
        frequency_bands(natural_image(8, 1, 96, 96), (1 / 16, 1 / 8), "ideal", "periodic").square().mean((1, 2, 3, 4))
    )
    assert energy[0] > energy[1] and energy[0] > energy[2]


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_token_spectrum_equals_numpy_and_is_undone(h, w):
    grid = random(2, 3, h * w, 4)
    real, imaginary = token_spectrum(grid, h, w)
    expected = half_spectrum(grid.double().numpy(), h, w)
    assert real.shape == imaginary.shape == (2, 3, h * (w // 2 + 1), 4)
    np.testing.assert_allclose(real.numpy(), expected.real, atol=2e-6 * math.sqrt(h * w))
    np.testing.assert_allclose(imaginary.numpy(), expected.imag, atol=2e-6 * math.sqrt(h * w))
    torch.testing.assert_close(token_grid(real, imaginary, h, w), grid, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_token_grid_drops_what_no_real_grid_can_have(h, w):
    real, imaginary = random(2, h * (w // 2 + 1), 4), random(2, h * (w // 2 + 1), 4, seed=1)
    bins = (real.double().numpy() + 1j * imaginary.double().numpy()).reshape(2, h, w // 2 + 1, 4)
    expected = np.fft.irfft2(bins, s=(h, w), axes=(1, 2), norm="ortho").reshape(2, h * w, 4)
    grid = token_grid(real, imaginary, h, w)
    np.testing.assert_allclose(grid.numpy(), expected, atol=1e-5)
    again = token_grid(*token_spectrum(grid, h, w), h, w)
    torch.testing.assert_close(again, grid, atol=1e-5, rtol=0)


def test_both_ways_of_transforming_are_tested():
    assert min(h * w for h, w in GRIDS) < MATMUL_GRID < max(h * w for h, w in GRIDS)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 24), w=st.integers(1, 24))
def test_scales_partition_the_token_spectrum_at_their_cuts(h, w):
    partition = scale_partition(h, w, (1 / 8, 1 / 4), CPU)
    assert partition.shape == (3, h * (w // 2 + 1))
    assert torch.equal(partition.sum(0), torch.ones(h * (w // 2 + 1)))
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    radius = np.hypot(fy, fx).ravel()
    expected = np.stack([radius <= 1 / 8, (radius > 1 / 8) & (radius <= 1 / 4), radius > 1 / 4])
    clear = (np.abs(radius - 1 / 8) > 1e-6) & (np.abs(radius - 1 / 4) > 1e-6)
    np.testing.assert_array_equal(partition.numpy()[:, clear], expected[:, clear])
    on_axis = (fy == 0).repeat(fx.shape[1], 1).ravel()  # there the cuts themselves belong below
    np.testing.assert_array_equal(partition.numpy()[:, on_axis], expected[:, on_axis])


@pytest.mark.parametrize("cycles", [5, 12, 24])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
def test_radial_power_finds_the_frequency_of_a_grating(cycles, shape):
    h, w = shape
    grating = torch.sin(2 * math.pi * cycles / 64 * torch.arange(w)).expand(h, w)
    frequency, power = radial_power(torch.stack([grating, 2 * grating + 7]))
    assert frequency[power[0].argmax()] == pytest.approx(cycles / 64, abs=0.5 / 64)
    torch.testing.assert_close(power[1], 4 * power[0], rtol=1e-3, atol=1e-4)  # the mean does not count
    assert frequency.max() <= 0.5


def features(image: Tensor, times: int = 1) -> Tensor:
    """Images (b, h, w) as token features (b, h * w, 2), tiled."""
    flat = image.repeat(1, times, times).flatten(1, 2)
    return torch.stack([flat, -flat], dim=-1)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "dct2": dct2,
    "idct2": idct2,
    "low_pass": lambda image: low_pass(image, CUTOFFS),
    "low_pass, periodic": lambda image: low_pass(image, CUTOFFS, extension="periodic"),
    "token_spectrum": lambda image: torch.cat(token_spectrum(features(image), 12, 12)),
    "token_spectrum, large": lambda image: torch.cat(token_spectrum(features(image, 2), 24, 24)),
    "token_grid": lambda image: token_grid(features(image), features(-image), 16, 16),
    "token_grid, large": lambda image: token_grid(features(image), features(-image), 12, 22),
    "radial_power": lambda image: radial_power(image)[1],
}


@contextmanager
def medium_products() -> Iterator[None]:
    """Products of float32 matrices in bfloat16, set for all devices at once."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium", "a transform changed the setting for others"
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """The same by the newer setting of one device."""
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        yield
        assert backend.fp32_precision == "bf16", "a transform changed the setting for others"
    finally:
        backend.fp32_precision = before


def bfloat16_autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("inexact", [medium_products, bfloat16_products, bfloat16_autocast])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_exact_where_products_are_not(name, inexact):
    image, run = random(2, 12, 12), TRANSFORMS[name]
    expected = run(image)
    with inexact():
        result = run(image)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_take_bfloat16_and_give_float32(name):
    image, run = random(2, 12, 12).bfloat16(), TRANSFORMS[name]
    assert run(image).dtype == torch.float32
    torch.testing.assert_close(run(image), run(image.float()))


def test_default_cuts_of_an_image_follow_the_patch():
    assert LossConfig().cutoffs_for(8) == (1 / 16, 1 / 8)
    assert LossConfig().cutoffs_for(16) == (1 / 32, 1 / 16)
