"""PAD's spectra, its mask and its fusion block, against numpy and hand-worked cases."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.pad.fusion import AmplitudeFusion, FusionBlock, FusionConfig, PhaseCorrection
from finetune.pad.spectrum import bin_distance, decouple, high_pass, recouple
from tests.helpers.models import natural_image, randomise

SIZES = [(8, 8), (7, 9), (8, 5), (5, 8), (1, 1), (1, 4)]
each_size = pytest.mark.parametrize(("h", "w"), SIZES)


def maps(channels: int, h: int, w: int, seed: int = 0) -> Tensor:
    return natural_image(2, channels, h, w, seed=seed) + 0.5


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(x: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A 1 x 1 convolution or a linear layer over axis 1, by numpy."""
    weight, bias = (array(value) for value in layer.state_dict().values())
    return np.einsum("oc,bchw->bohw", weight.reshape(len(weight), -1), x) + bias[:, None, None]


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def sigmoid(x: np.ndarray | float) -> Any:
    return 1 / (1 + np.exp(-x))


def half_spectrum(x: np.ndarray) -> np.ndarray:
    """By numpy, exactly real where it is real but for rounding: zero and Nyquist frequencies."""
    spectrum = np.fft.rfft2(x, norm="ortho")
    h, w = x.shape[-2:]
    for u, v in itertools.product({0, h / 2}, {0, w / 2}):
        if u == int(u) and v == int(v):
            spectrum[..., int(u), int(v)] = spectrum[..., int(u), int(v)].real
    return spectrum


# Spectra


@each_size
def test_recoupling_what_was_decoupled_gives_the_map_back(h: int, w: int) -> None:
    features = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    amplitude, phase = decouple(features)
    assert amplitude.shape == phase.shape == (2, 3, h, w // 2 + 1)
    assert torch.allclose(recouple(amplitude, phase, w), features, atol=1e-5)


@each_size
def test_amplitude_and_phase_are_those_of_numpy(h: int, w: int) -> None:
    features = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    expected = np.fft.rfft2(array(features), norm="ortho")
    amplitude, phase = map(array, decouple(features))
    assert np.allclose(amplitude, abs(expected), atol=1e-5)
    assert np.allclose(np.exp(1j * phase), expected / abs(expected), atol=1e-4)
    assert phase.min() > -np.pi and phase.max() <= np.float32(np.pi)


def test_a_cosine_is_one_bin_of_its_amplitude_and_phase() -> None:
    rows = 2 * math.pi * 3 * torch.arange(16)[:, None] / 16
    amplitude, phase = decouple((5 * torch.cos(rows + 0.7)).expand(1, 1, 16, 16))
    expected = torch.zeros(16, 9)
    expected[3, 0] = expected[-3, 0] = 5 * 16 / 2  # 5 / 2 in each of the two bins, times sqrt(16 * 16)
    assert torch.allclose(amplitude[0, 0], expected, atol=1e-4)
    assert phase[0, 0, 3, 0].item() == pytest.approx(0.7, abs=1e-5)
    assert phase[0, 0, -3, 0].item() == pytest.approx(-0.7, abs=1e-5)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (6, 10), (7, 9), (24, 8), (30, 9)])
def test_a_negative_bin_that_is_real_has_phase_pi(h: int, w: int) -> None:
    rows, columns = 1 - 2 * (torch.arange(h) % 2), 1 - 2 * (torch.arange(w) % 2)
    noise = 1e-2 * torch.randn(64, 1, h, w)
    for u, v in itertools.product({0, h / 2}, {0, w / 2}):
        if u == int(u) and v == int(v):
            wave = (rows if u else torch.ones(h))[:, None] * (columns if v else torch.ones(w))[None, :]
            assert torch.allclose(decouple(noise - wave)[1][..., int(u), int(v)], torch.tensor(math.pi))


@each_size
def test_recoupling_any_amplitude_and_phase_is_numpys_inverse_transform(h: int, w: int) -> None:
    generator = torch.Generator().manual_seed(0)
    amplitude, phase = torch.randn(2, 2, 3, h, w // 2 + 1, generator=generator)
    spectrum = array(amplitude) * np.exp(1j * array(phase))
    expected = np.fft.irfft2(spectrum, s=(h, w), norm="ortho")
    assert np.allclose(array(recouple(amplitude, phase, w)), expected, atol=1e-5)


def test_the_gradient_of_the_phase_is_that_of_the_angle() -> None:
    features, weights = torch.randn(2, 1, 2, 6, 8), torch.randn(1, 2, 6, 5)
    ours, theirs = features[0].clone().requires_grad_(), features[0].clone().requires_grad_()
    (decouple(ours)[1] * weights).sum().backward()
    (torch.fft.rfft2(theirs, norm="ortho").angle() * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
@pytest.mark.parametrize("constant", [True, False])
def test_gradients_are_finite_for_any_map(scale: float, constant: bool) -> None:
    block = FusionBlock(8, FusionConfig())
    features = (torch.ones(1, 8, 8, 8) if constant else torch.randn(1, 8, 8, 8)) * scale
    features.requires_grad_()
    fused, penalty = block.correct(features)
    (fused.sum() + penalty).backward()
    assert features.grad is not None and features.grad.isfinite().all() and fused.isfinite().all()


@pytest.mark.parametrize("level", [0.0, 1e-4, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6, 1e-4])
def test_the_gradient_of_the_phase_is_bounded_on_nearly_flat_maps(level: float, noise: float) -> None:
    """A phase moves by 1 / amplitude, an amplitude of sqrt(1e-6) of the strongest bin's or of 1 being the least that counts;
    the orthonormal transform hands a gradient on without making it longer."""
    features = (level + noise * natural_image(1, 2, 64, 64)).requires_grad_()
    phase = decouple(features)[1]
    weights = torch.randn(phase.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(phase, features, weights)
    strongest = max(level * 64, 1.0)  # of the flat part: level * sqrt(64 * 64)
    assert slope.norm() <= 1.01 * weights.norm() / (1e-3 * strongest)


# The mask of high frequencies


@pytest.mark.parametrize(("h", "w"), [(16, 16), (8, 10), (7, 9), (5, 8)])
def test_release_distances_are_those_of_the_doubly_shifted_half_spectrum(h: int, w: int) -> None:
    v = w // 2 + 1
    rows, columns = np.mgrid[:h, :v]
    shifted = np.hypot(rows - h // 2, columns - v // 2)
    expected = np.fft.ifftshift(shifted / shifted.max())
    assert np.allclose(array(bin_distance(h, w, "release")), expected)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_in_the_release_the_highest_column_lies_one_bin_from_the_centre(size: int) -> None:
    farthest = math.hypot(size // 2, (size // 2 + 1) // 2)
    assert bin_distance(size, size, "release")[0, -1].item() * farthest == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (8, 10), (7, 9)])
def test_true_radius_is_the_radial_frequency_over_its_largest(h: int, w: int) -> None:
    expected = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    assert np.allclose(array(bin_distance(h, w, "true_radius")), expected / expected.max(), atol=1e-6)


def test_a_map_of_one_pixel_has_distance_zero() -> None:
    assert bin_distance(1, 1, "release").tolist() == bin_distance(1, 1, "true_radius").tolist() == [[0.0]]


def test_the_released_mask_has_the_range_that_was_measured() -> None:
    """Reference: 0.005 in the centre to 0.991 in the corner, mean about 0.51, correlation with a true radius 0.61."""
    release, true = (
        high_pass(bin_distance(128, 128, layout), torch.tensor(0.1)) for layout in ("release", "true_radius")
    )
    assert release.min().item() == pytest.approx(0.005, abs=5e-4)
    assert release.max().item() == pytest.approx(0.991, abs=5e-4)
    assert release.mean().item() == pytest.approx(0.51, abs=0.01)
    assert np.corrcoef(array(release).ravel(), array(true).ravel())[0, 1] == pytest.approx(0.61, abs=0.03)


def test_the_mask_falls_with_the_radius_as_its_formula_does() -> None:
    distance, radius = bin_distance(8, 8, "true_radius"), torch.tensor(0.1, requires_grad=True)
    mask = high_pass(distance, radius)
    weights = torch.randn(mask.shape)
    (mask * weights).sum().backward()
    r = sigmoid(0.1)
    assert r == pytest.approx(0.525, abs=5e-4)
    expected = sigmoid(10 * (array(distance) - r))
    assert np.allclose(array(mask), expected, atol=1e-6)
    slope = -10 * expected * (1 - expected) * r * (1 - r)
    assert radius.grad is not None
    assert radius.grad.item() == pytest.approx((slope * array(weights)).sum(), abs=1e-4)


# The formulas of the block


def corrected_phase(phase: np.ndarray, module: PhaseCorrection) -> np.ndarray:
    mask = sigmoid(linear(leaky(linear(phase, module.attention[0])), module.attention[2]))
    return phase * (1 + mask)


def fused_amplitude(amplitude: np.ndarray, mask: np.ndarray, module: AmplitudeFusion) -> np.ndarray:
    high = leaky(linear(mask * amplitude, module.layers[0]))
    high = linear(leaky(linear(high, module.layers[2])), module.layers[4])
    return linear(np.concatenate([amplitude, high], 1), module.mix) + amplitude


def test_phase_correction_is_its_formula() -> None:
    module, phase = PhaseCorrection(16), (torch.rand(2, 16, 6, 4) - 0.5) * 2 * math.pi
    randomise(module)
    result = module(phase)
    assert np.allclose(array(result), corrected_phase(array(phase), module), atol=1e-5)
    factor = result / phase
    assert (factor > 1).all() and (factor < 2).all()
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=1e-3)  # one mask for all channels


@pytest.mark.parametrize(("channels", "hidden"), [(192, 24), (8, 1), (5, 1)])
def test_phase_attention_is_an_eighth_as_wide(channels: int, hidden: int) -> None:
    assert PhaseCorrection(channels).attention[0].weight.shape == (hidden, channels, 1, 1)


def test_amplitude_fusion_is_its_formula_and_moves_the_radius() -> None:
    module, amplitude = AmplitudeFusion(6), torch.rand(2, 6, 8, 5)
    randomise(module)
    distance = bin_distance(8, 8, "release")
    result = module(amplitude, distance)
    mask = sigmoid(10 * (array(distance) - sigmoid(module.radius.item())))
    assert np.allclose(array(result), fused_amplitude(array(amplitude), mask, module), atol=1e-5)
    result.square().mean().backward()
    assert module.radius.grad is not None
    step = 1e-4
    losses = []
    for rho in (module.radius.item() - step, module.radius.item() + step):
        mask = sigmoid(10 * (array(distance) - sigmoid(rho)))
        losses.append(np.square(fused_amplitude(array(amplitude), mask, module)).mean())
    assert module.radius.grad.item() == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("layout", ["release", "true_radius"])
@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 9), (6, 5)])
def test_a_fusion_block_is_equations_5_to_9(layout: Any, second: bool, h: int, w: int) -> None:
    """With the shifts written out as in the paper."""
    block = FusionBlock(8, FusionConfig(spectrum_layout=layout, second_residual=second))
    randomise(block)
    rgb, sar = maps(8, h, w, seed=1), maps(8, h, w, seed=2)
    both = np.concatenate([array(rgb), array(sar)], 1)
    gate, residual = sigmoid(linear(both, block.gate)), linear(both, block.residual)
    f = linear(np.concatenate([gate * array(rgb), (1 - gate) * array(sar)], 1), block.merge) + residual
    axes = (-2, -1) if layout == "release" else (-2,)
    spectrum = np.fft.fftshift(half_spectrum(f), axes)
    amplitude, phase = abs(spectrum), np.angle(spectrum)
    u = np.arange(h) - h // 2
    v = np.arange(w // 2 + 1)
    v = v - len(v) // 2 if layout == "release" else v
    scale = (1, 1) if layout == "release" else (h, w)
    distance = np.hypot(u[:, None] / scale[0], v[None, :] / scale[1])
    assert block.asf is not None and block.psc is not None
    mask = sigmoid(10 * (distance / distance.max() - sigmoid(block.asf.radius.item())))
    corrected = fused_amplitude(amplitude, mask, block.asf)
    unshifted = np.fft.ifftshift(corrected * np.exp(1j * corrected_phase(phase, block.psc)), axes)
    expected = np.fft.irfft2(unshifted, s=(h, w), norm="ortho") + second * residual
    fused, penalty = block(rgb, sar)
    assert np.allclose(array(fused), expected, atol=2e-4)
    assert penalty.item() == pytest.approx(np.square(corrected - amplitude).mean(), rel=1e-4)


def test_the_penalty_pulls_at_both_amplitudes() -> None:
    """Neither is detached: the gradient reaches the map also where it passes the amplitude by."""
    block = FusionBlock(8, FusionConfig(psc=False))
    assert block.asf is not None
    nn.init.zeros_(block.asf.mix.weight)
    nn.init.constant_(block.asf.mix.bias, 0.5)
    features = maps(8, 8, 8).requires_grad_()
    _, penalty = block.correct(features)
    assert penalty.item() == pytest.approx(0.25)
    (slope,) = torch.autograd.grad(penalty, features)
    assert torch.allclose(slope, torch.zeros_like(slope), atol=1e-7)  # A + 0.5 and A move alike


def test_without_both_the_spatial_fusion_is_left() -> None:
    block = FusionBlock(8, FusionConfig(asf=False, psc=False, second_residual=False))
    rgb, sar = maps(8, 6, 6, seed=1), maps(8, 6, 6, seed=2)
    both = torch.cat([rgb, sar], 1)
    gate = block.gate(both).sigmoid()
    with Recorder() as recorder:
        fused, penalty = block(rgb, sar)
    expected = block.merge(torch.cat([gate * rgb, (1 - gate) * sar], 1)) + block.residual(both)
    assert torch.equal(fused, expected) and penalty.item() == 0
    assert not [name for name in recorder.seen if name.startswith("fft")]


def test_the_radius_starts_where_it_is_told_and_stays_when_fixed() -> None:
    for trainable in (True, False):
        block = FusionBlock(8, FusionConfig(radius=-2.197, radius_trainable=trainable))
        assert block.asf is not None
        assert torch.sigmoid(block.asf.radius).item() == pytest.approx(0.1, abs=1e-4)
        block(maps(8, 6, 6, 1), maps(8, 6, 6, 2))[0].square().sum().backward()
        assert (block.asf.radius.grad is not None) == trainable


# Precision


class Recorder(TorchFunctionMode):
    """Remembers the float types that each torch function is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtypes = {
            arg.dtype for arg in args if isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex())
        }
        self.seen.setdefault(getattr(func, "__name__", ""), set()).update(dtypes)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_transforms_are_float32_whatever_the_precision_around_them(autocast: bool) -> None:
    block, features = FusionBlock(8, FusionConfig()), (maps(8, 8, 8, seed=1), maps(8, 8, 8, seed=2))
    if not autocast:
        block, features = block.bfloat16(), tuple(each.bfloat16() for each in features)
    with Recorder() as recorder, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fused, penalty = block(*features)
    real, transformed = {torch.float32}, {torch.complex64}
    for name, expected in {"fft_rfft2": real, "atan2": real, "cos": real, "sin": real, "complex": real}.items():
        assert recorder.seen[name] == expected, name
    assert recorder.seen["fft_ifft"] == recorder.seen["fft_irfft"] == transformed
    assert fused.dtype == torch.bfloat16 and penalty.dtype == torch.float32
