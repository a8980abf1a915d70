"""Transforms as exported graphs do them, without complex numbers: equal to torch's own FFT."""

import numpy as np
import pytest
import torch
from torch import nn

from alliance.frequency import bins, half_frequencies, plane_of, plane_spectrum, radial_frequency
from finetune.heads import part_weights
from finetune.pad.spectrum import _angle, bin_distance

PLANES = [(1, 1), (1, 7), (8, 8), (9, 6), (64, 48), (5, 224)]


@pytest.mark.parametrize(("h", "w"), PLANES)
def test_a_plane_and_its_half_spectrum(h: int, w: int):
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 3, h, w, generator=generator)
    spectrum = torch.fft.rfft2(plane, norm="ortho")
    real, imaginary = plane_spectrum(plane)
    torch.testing.assert_close(torch.complex(real, imaginary), spectrum, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plane_of(real, imaginary, w), plane, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("h", "w"), PLANES)
def test_what_no_real_plane_has_is_dropped_as_by_numpy(h: int, w: int):
    generator = torch.Generator().manual_seed(0)
    real, imaginary = (torch.randn(h, w // 2 + 1, generator=generator) for _ in range(2))
    complex_plane = real.double().numpy() + 1j * imaginary.double().numpy()
    expected = np.fft.irfft(np.fft.ifft(complex_plane, axis=0, norm="ortho"), n=w, norm="ortho")
    torch.testing.assert_close(plane_of(real, imaginary, w).double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 56, 101, 256])
def test_frequencies_are_those_of_torch_to_the_last_bit(size: int):
    assert torch.equal(radial_frequency(size, 1)[:, 0] * bins(size).sign(), torch.fft.fftfreq(size))
    assert torch.equal(half_frequencies(size), torch.fft.rfftfreq(size))
    rows, columns = torch.fft.fftfreq(size), torch.fft.rfftfreq(size + 3)
    assert torch.equal(radial_frequency(size, size + 3, half=True), torch.hypot(rows[:, None], columns[None]))
    u, v = torch.arange(size) - size // 2, torch.arange(size // 2 + 1) - (size // 2 + 1) // 2
    shifted = torch.fft.ifftshift(torch.hypot(u[:, None].float(), v[None].float()), dim=(0, 1))
    assert torch.equal(bin_distance(size, size, "release"), shifted / shifted.max().clamp(min=1e-6))


def test_angles_are_those_of_atan2_on_the_axes_too():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])
    y, x = torch.meshgrid(values, values, indexing="ij")
    torch.testing.assert_close(_angle(y, x), torch.atan2(y, x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (1, 6), (5, 3), (6, 6), (7, 2), (16, 6)])
def test_means_of_parts_are_those_of_adaptive_pooling(size: int, parts: int):
    line = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    weights = part_weights(size, parts, line.device)
    torch.testing.assert_close(line @ weights.mT, nn.functional.adaptive_avg_pool1d(line, parts))
