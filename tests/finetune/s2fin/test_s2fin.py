"""S2Fin: every module against theory, hand-worked cases or an independent computation, and the ablations."""

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from alliance.errors import InputError
from finetune import s2fin
from finetune.s2fin import SIZES, AttentionConfig, EnhancementConfig, Prediction, ResonanceConfig, S2Fin, S2FinConfig
from finetune.s2fin.attention import SparseAttention, keep_largest
from finetune.s2fin.channels import AdaptiveFrequencyChannels
from finetune.s2fin.enhancement import (
    HighFrequencyEnhancement,
    HighFrequencyFilter,
    SpatialSpectralBlock,
    filter_bands,
    high_frequency_response,
)
from finetune.s2fin.fusion import SpatialSpectralFusion
from finetune.s2fin.layers import HighPass, spectrum
from finetune.s2fin.mixer import GruMixer, ScanMixer, SelectiveScan, decay_matrix, selective_scan
from finetune.s2fin.resonance import HighFrequencyResonance, hann, phase_similarity
from tests.helpers.models import randomise

T = 0.05
START_TAU = 0.05 + 0.90 / (1 + math.e)  # 0.05 + 0.90 s(-1), about 0.29
START_GAIN = math.log(1 + math.exp(-1))  # softplus(-1), about 0.31
PLAIN = AttentionConfig(kind="plain")
TINY = S2FinConfig(width=16, patch=5, dropout=0.0)
COUNTS = {"bands": 12, "components": 4, "channels": 2, "classes": 3}

# One change each: section 7 of the specification, and the options of the modules.
ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no filter": {"hfset": EnhancementConfig(filter=False)},
    "fixed threshold": {"hfset": EnhancementConfig(threshold="fixed")},
    "two blocks": {"hfset": EnhancementConfig(blocks=2)},
    "no transformer": {"hfset": EnhancementConfig(filter=False, blocks=0)},
    "plain attention": {"attention": PLAIN},
    "squared relu": {"attention": AttentionConfig(kind="relu2")},
    "no AFCM": {"afcm": False},
    "no SSAF": {"ssaf": False},
    "no HFRM": {"hfrm": ResonanceConfig(mask="none")},
    "mask without phase": {"hfrm": ResonanceConfig(mask="high-pass")},
    "pooled similarity": {"hfrm": ResonanceConfig(pooled=True)},
    "windowed similarity": {"hfrm": ResonanceConfig(window=True)},
    "order swapped": {"swapped": True},
    "passive alone": {"inputs": "passive"},
    "active alone": {"inputs": "active"},
    "gru": {"mixer": "gru"},
    "scan without norm": {"mixer_norm": False},
    "no mixer": {"mixer": "none"},
    "auxiliary heads": {"auxiliary": 0.3, "label_smoothing": 0.05},
    "none of the four": {
        "hfset": EnhancementConfig(filter=False),
        "afcm": False,
        "ssaf": False,
        "hfrm": ResonanceConfig(mask="none"),
    },
}
each_ablation = pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(config: S2FinConfig = TINY, b: int = 4, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    side = config.patch
    sizes = (COUNTS["bands"], COUNTS["components"], COUNTS["channels"])
    spectral, passive, active = (random(b, c, side, side, seed=seed + i) for i, c in enumerate(sizes))
    return spectral, passive, active


def network(changes: dict[str, Any] | None = None) -> S2Fin:
    torch.manual_seed(0)
    return S2Fin(dataclasses.replace(TINY, **(changes or {})), **COUNTS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def high_pass_mask(side: int, cutoff: float = 0.31) -> np.ndarray:
    """M of the half spectrum, from its formula: (side, side // 2 + 1)."""
    rows, columns = 2 * np.fft.fftfreq(side), 2 * np.fft.rfftfreq(side)
    return sigmoid((np.sqrt((rows[:, None] ** 2 + columns**2) / 2) - cutoff) / T)


# Sparse attention


@pytest.mark.parametrize(("kept", "m", "count"), [(0.5, 49, 25), (0.5, 4, 2), (0.28, 25, 7), (0.01, 9, 1), (1.0, 9, 9)])
def test_top_k_keeps_the_largest_scores_of_each_row(kept, m, count):
    scores = random(2, 3, m)
    kept_scores = keep_largest(scores, kept)
    order = np.argsort(-scores.numpy(), axis=-1)
    expected = np.full(scores.shape, -np.inf, dtype=np.float32)
    np.put_along_axis(expected, order[..., :count], np.take_along_axis(scores.numpy(), order[..., :count], -1), -1)
    np.testing.assert_array_equal(kept_scores.numpy(), expected)


def test_top_k_keeps_no_more_where_scores_are_equal():
    assert (keep_largest(torch.zeros(3, 8), 0.5) == 0).sum(-1).tolist() == [4, 4, 4]


def test_attention_weights_by_hand():
    attention = SparseAttention(4, 4, AttentionConfig(kept=0.5))
    weights = attention.weights(torch.tensor([[0.0, math.log(3), -5.0, math.log(1)]])[:, :3])
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75, 0.0]]))  # ceil(1.5) = 2 are kept
    relu2 = SparseAttention(4, 4, AttentionConfig(kind="relu2")).weights(torch.tensor([[0.0, math.log(3)]]))
    torch.testing.assert_close(relu2, torch.tensor([[0.125, 0.375 + 0.5 * math.log(3) ** 2]]))


@pytest.mark.parametrize("config", [PLAIN, AttentionConfig(kept=1.0)])
def test_attention_that_keeps_all_is_plain_attention(config):
    attention, tokens = SparseAttention(6, 8, config), random(2, 9, 6)
    query, key, value = (tokens @ weight.mT for weight in attention.qkv.weight.chunk(3))
    expected = functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(tokens), expected)


# HFSET


@pytest.mark.parametrize("bands", [4, 5, 144, 145, 300])
def test_no_gain_gives_the_signature_back(bands):
    image = random(2, bands, 3, 3)
    response = high_frequency_response(torch.tensor([0.3, 0.6]), torch.zeros(2, 8), bands, T)
    torch.testing.assert_close(filter_bands(image, response), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bands", [10, 11, 180, 301])
def test_the_filter_equals_its_formula(bands):
    image, threshold, gain = random(2, bands, 3, 3), torch.tensor([0.2, 0.7]), random(2, 8).abs()
    frequency = 2 * np.fft.rfftfreq(bands)
    bins = np.arange(len(frequency)) / (len(frequency) - 1)
    mask = sigmoid((frequency - threshold.numpy()[:, None]) / T)
    response = 1 + mask * np.stack([np.interp(bins, np.linspace(0, 1, 8), row) for row in gain.numpy()])
    filtered = np.fft.irfft(np.fft.rfft(image.numpy(), axis=1) * response[..., None, None], n=bands, axis=1)
    found = filter_bands(image, high_frequency_response(threshold, gain, bands, T))
    np.testing.assert_allclose(found.numpy(), filtered, atol=1e-5)


def test_the_mean_over_bands_changes_by_the_mask_at_zero_alone():
    image, threshold, gain = random(3, 60, 2, 2) + 2, torch.full((3,), START_TAU), torch.full((3, 8), 1.7)
    change = filter_bands(image, high_frequency_response(threshold, gain, 60, T)).mean(1) - image.mean(1)
    most = 1.7 * sigmoid(-START_TAU / T) * image.mean(1).abs()
    assert (change.abs() <= most + 1e-6).all()


@pytest.mark.parametrize("bands", [144, 145])
def test_slow_signatures_pass_and_fast_ones_grow_by_the_gain(bands):
    place = torch.arange(bands) / bands
    response = high_frequency_response(torch.tensor([START_TAU]), torch.full((1, 8), START_GAIN), bands, T)
    for cycles, growth, tolerance in ((2, 1.0, 2e-3), (60, 1 + START_GAIN, 1e-4)):
        wave = rearrange(torch.cos(2 * math.pi * cycles * place + 0.4), "c -> 1 c 1 1")
        torch.testing.assert_close(filter_bands(wave, response), growth * wave, atol=tolerance, rtol=0)


def test_the_response_follows_its_threshold():
    """dh/dtau = -m (1 - m) g / T, at every bin."""
    threshold = torch.tensor([0.4], requires_grad=True)
    response = high_frequency_response(threshold, torch.full((1, 2), 0.8), 20, T)
    mask = (response.detach()[0] - 1) / 0.8
    for f in range(11):
        (slope,) = torch.autograd.grad(response[0, f], threshold, retain_graph=True)
        torch.testing.assert_close(slope[0], -mask[f] * (1 - mask[f]) * 0.8 / T, atol=1e-6, rtol=1e-4)


def test_the_filter_starts_at_its_stated_settings_and_stays_in_range():
    module = HighFrequencyFilter(30, 25, T, PLAIN, EnhancementConfig())
    threshold, gain = module.settings(torch.zeros(2, 30, 5, 5))
    torch.testing.assert_close(threshold, torch.full((2,), START_TAU))
    torch.testing.assert_close(gain, torch.full((2, 8), START_GAIN))
    randomise(module, std=50)
    threshold, gain = module.settings(random(9, 30, 5, 5))
    assert threshold.min() >= 0.05 and threshold.max() <= 0.95 and gain.min() >= 0 and threshold.std() > 0


def test_a_fixed_threshold_is_the_start_of_a_trainable_one():
    module = HighFrequencyFilter(30, 25, T, PLAIN, EnhancementConfig(threshold="fixed"))
    randomise(module)
    torch.testing.assert_close(module(random(3, 30, 5, 5))[1], torch.full((3,), START_TAU))
    assert not module.frequency_parameters()


def test_attention_and_threshold_of_the_filter_learn_from_the_first_step():
    module = HighFrequencyFilter(30, 25, T, AttentionConfig(), EnhancementConfig())
    (module(random(3, 30, 5, 5))[0] * random(3, 30, 5, 5, seed=1)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_few_bands_are_embedded_without_filter(bands):
    module = HighFrequencyEnhancement(bands, 16, 25, T, PLAIN, EnhancementConfig())
    features, threshold = module(random(2, bands, 5, 5))
    assert features.shape == (2, 16, 5, 5) and (threshold is None) == (bands < 4)


def test_the_block_adds_attention_over_pixels_and_over_channels():
    block, tokens = SpatialSpectralBlock(16, 9, PLAIN), random(2, 9, 16)
    y = functional.layer_norm(tokens, (16,))

    def attend(u: Tensor, weight: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(*(u @ part.mT for part in weight.chunk(3)))

    both = attend(y, block.spatial.qkv.weight) + attend(y.mT, block.spectral.qkv.weight).mT
    mixed = tokens + block.proj(both)
    hidden = functional.gelu(block.mlp.fc1(functional.layer_norm(mixed, (16,))))
    torch.testing.assert_close(block(tokens), mixed + block.mlp.fc2(hidden))


# AFCM


@pytest.mark.parametrize("side", [5, 7, 11])
def test_low_and_high_part_follow_the_radial_mask_and_sum_to_the_whole(side):
    features = random(2, 4, side, side)
    low, high = HighPass(T)(features)
    torch.testing.assert_close(low + high, features, atol=1e-5, rtol=0)
    expected = np.fft.irfft2(high_pass_mask(side) * np.fft.rfft2(features.numpy()), s=(side, side))
    np.testing.assert_allclose(high.detach().numpy(), expected, atol=1e-5)


def test_a_flat_map_has_no_high_part_but_the_foot_of_the_mask():
    _, high = HighPass(T)(torch.full((1, 2, 7, 7), 3.0))
    torch.testing.assert_close(high, torch.full_like(high, 3 * sigmoid(-0.31 / T)), atol=1e-5, rtol=0)


def test_channel_weights_sum_to_one():
    module = AdaptiveFrequencyChannels(16, 2, T)
    randomise(module)
    low, high = random(3, 16, 7, 7), random(3, 16, 7, 7, seed=1)
    for weights in (module.structure_weights([low, high]), module.choices[0].weights(low, high)):
        assert weights.shape == (2, 3, 16, 1, 1) and weights.std() > 0
        torch.testing.assert_close(weights.sum(0), torch.ones(3, 16, 1, 1))


def test_detail_grows_by_one_factor_per_channel_between_one_and_two():
    choice = AdaptiveFrequencyChannels(16, 2, T).choices[0]
    randomise(choice)
    high = random(3, 16, 7, 7)
    factor = choice.enhance(high) / high
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    assert 1 < factor.min() < factor.max() < 2


def test_the_channel_module_equals_its_formula():
    module = AdaptiveFrequencyChannels(16, 2, T).eval()
    randomise(module)
    features = [random(3, 16, 7, 7), random(3, 16, 7, 7, seed=1)]
    cutoffs = [sigmoid(split.cutoff.item()) for split in module.high_pass]
    highs = [
        torch.fft.irfft2(torch.fft.rfft2(one) * torch.from_numpy(high_pass_mask(7, rho)).float(), s=(7, 7))
        for one, rho in zip(features, cutoffs, strict=True)
    ]
    lows = [one - high for one, high in zip(features, highs, strict=True)]
    passive, active = module.structure(torch.cat([low.mean((2, 3)) for low in lows], 1)).split(16, 1)
    share = torch.sigmoid(passive - active)[..., None, None]  # softmax of two
    low = share * lows[0] + (1 - share) * lows[1]
    for choice, one, high, found in zip(module.choices, features, highs, module(features), strict=True):
        sizes = torch.cat([high.abs().mean((2, 3)), high.abs().amax((2, 3))], 1)
        high = high * (1 + torch.sigmoid(choice.detail(sizes)))[..., None, None]
        scores = choice.choice(torch.cat([low.abs().mean((2, 3)), high.abs().mean((2, 3))], 1))
        share = torch.sigmoid(scores[:, :16] - scores[:, 16:])[..., None, None]
        expected = functional.gelu(one + choice.project(2 * (share * low + (1 - share) * high)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# SSAF


def test_gates_lie_between_zero_and_one_and_reach_every_branch():
    module = SpatialSpectralFusion(16, 2)
    maps = [random(3, 16, 7, 7, seed=i).requires_grad_() for i in range(3)]
    for gate, shape in zip(module.gates(maps[0], maps[1:]), ((3, 16, 1, 1), (3, 1, 7, 7)), strict=True):
        assert gate.shape == shape and gate.min() > 0 and gate.max() < 1
    z, spatial = module(maps[0], maps[1:])
    for output, sources in ((z, maps), (spatial[0], maps[:2]), (spatial[1], (maps[0], maps[2]))):
        slopes = torch.autograd.grad(output.square().sum(), sources, retain_graph=True)
        assert all(slope.abs().max() > 0 for slope in slopes)


def test_gates_equal_their_formula():
    module = SpatialSpectralFusion(16, 2)
    z, passive, active = (random(2, 16, 5, 5, seed=i) for i in range(3))
    e = torch.sigmoid(module.spectral(torch.cat([z.mean((2, 3)), z.amax((2, 3))], 1)))[..., None, None]
    profiles = [passive.mean(1), passive.amax(1), active.mean(1), active.amax(1)]
    a = torch.sigmoid(
        functional.conv2d(torch.stack(profiles, 1), module.spatial.weight, module.spatial.bias, padding=2)
    )
    gated, spatial = module(z, [passive, active])
    for found, expected in zip((gated, *spatial), (z * (1 + a), passive * (1 + e), active * (1 + e)), strict=True):
        torch.testing.assert_close(found, expected)


# HFRM


def similarity(one: Tensor, other: Tensor) -> Tensor:
    return phase_similarity(spectrum(one), spectrum(other))


def mean_mask(one: Tensor, other: Tensor) -> float:
    return HighFrequencyResonance(16, T, ResonanceConfig()).mask([one, other]).mean().item()


def test_phase_similarity_is_the_cosine_of_the_phase_difference():
    one, other = random(2, 16, 7, 7), random(2, 16, 7, 7, seed=1)
    phases = [np.angle(np.fft.rfft2(maps.numpy())) for maps in (one, other)]
    expected = rearrange(np.cos(phases[0] - phases[1]), "b d i j -> b (i j) d")
    loud = ((spectrum(one).power() > 0.05) & (spectrum(other).power() > 0.05)).numpy()
    assert loud.mean() > 0.8
    np.testing.assert_allclose(similarity(one, other).numpy()[loud], expected[loud], atol=1e-4)


def test_equal_maps_resonate_and_negated_ones_do_not():
    one = random(3, 16, 7, 7)
    loud = spectrum(one).power() > 0.01
    for sign in (1, -1):
        expected = torch.full_like(similarity(one, one), sign)
        torch.testing.assert_close(similarity(one, sign * one)[loud], expected[loud], atol=2e-4, rtol=0)
    whole = high_pass_mask(7).mean()
    slope = 4 * softplus(1.5)
    assert mean_mask(one, one) == pytest.approx(whole * sigmoid(slope), rel=1e-2)
    assert mean_mask(one, -one) == pytest.approx(whole * sigmoid(-slope), rel=0.1)


def test_similarity_does_not_depend_on_loudness():
    one, other = random(2, 16, 7, 7), random(2, 16, 7, 7, seed=1)
    loud = spectrum(other).power() > 0.01
    torch.testing.assert_close(similarity(one, 50 * other)[loud], similarity(one, other)[loud], atol=2e-4, rtol=0)


def test_noise_lowers_the_mask():
    one, noise = random(8, 16, 7, 7), random(8, 16, 7, 7, seed=1)
    means = [mean_mask(one, one + deviation * noise) for deviation in (0, 0.5, 2)] + [mean_mask(one, noise)]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 0.2


def test_empty_spectra_resemble_nothing_and_leave_gradients_finite():
    one, empty = random(2, 16, 7, 7), torch.zeros(2, 16, 7, 7, requires_grad=True)
    found = similarity(one, empty)
    assert (found == 0).all()
    (found.sum() + similarity(empty, empty).sum()).backward()
    assert empty.grad is not None and empty.grad.isfinite().all()


def test_without_strength_the_resonance_is_a_residual_convolution():
    module = HighFrequencyResonance(16, T, ResonanceConfig()).eval()
    nn.init.constant_(module.strength, -torch.inf)
    features = [random(2, 16, 7, 7), random(2, 16, 7, 7, seed=1)]
    for project, one, found in zip(module.project, features, module(features), strict=True):
        torch.testing.assert_close(found, functional.gelu(one + project(one)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [7, 8])
def test_the_mask_keeps_maps_real(side):
    """The whole plane, filtered with the formula over all bins, has no imaginary part and gives the module's output."""
    module = HighFrequencyResonance(16, T, ResonanceConfig()).eval()
    module.project = nn.ModuleList([nn.Identity(), nn.Identity()])
    features = [random(2, 16, side, side), random(2, 16, side, side, seed=1)]
    passive, active = (np.fft.fft2(one.numpy(), norm="ortho") for one in features)
    cosine = (passive * active.conj()).real / np.sqrt((abs(passive) ** 2 + 1e-6) * (abs(active) ** 2 + 1e-6))
    rows = (2 * np.fft.fftfreq(side)) ** 2
    high = sigmoid((np.sqrt((rows[:, None] + rows) / 2) - 0.31) / T)
    mask = high * sigmoid(4 * softplus(1.5) * cosine)
    for plane, one, found in zip((passive, active), features, module(features), strict=True):
        sharper = np.fft.ifft2(plane * (1 + softplus(-1.0) * mask), norm="ortho")
        assert abs(sharper.imag).max() < 1e-6
        expected = functional.gelu(one + torch.from_numpy(sharper.real).float())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_options_of_the_mask():
    features = [random(2, 16, 7, 7), random(2, 16, 7, 7, seed=1)]
    without = HighFrequencyResonance(16, T, ResonanceConfig(mask="high-pass")).mask(features)
    np.testing.assert_allclose(without.detach().numpy(), rearrange(high_pass_mask(7), "i j -> (i j) 1"), atol=1e-6)
    pooled = HighFrequencyResonance(16, T, ResonanceConfig(pooled=True)).similarity(features)
    torch.testing.assert_close(pooled, similarity(*features).mean(-1, keepdim=True))
    window = torch.from_numpy(np.outer(np.hanning(7), np.hanning(7))).float()
    torch.testing.assert_close(hann(features[0]), features[0] * window, atol=1e-6, rtol=0)
    windowed = HighFrequencyResonance(16, T, ResonanceConfig(window=True)).similarity(features)
    torch.testing.assert_close(windowed, similarity(*(one * window for one in features)), atol=1e-3, rtol=0)


# Mixer


def recurrence(x, step, decay, write, read) -> Tensor:
    """The scan, one token after the other, in float64."""
    x, step, decay, write, read = (part.double() for part in (x, step, decay, write, read))
    state = torch.zeros(x.shape[0], x.shape[2], write.shape[-1], x.shape[3], dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        kept = torch.exp(step[:, t] * decay)[..., None, None] * state
        state = kept + step[:, t, :, None, None] * write[:, t, None, :, None] * x[:, t, :, None, :]
        outputs.append((read[:, t, None, :, None] * state).sum(2))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("n", [1, 2, 49, 121])
@pytest.mark.parametrize("size", [1e-3, 0.1, 30.0])
def test_the_scan_equals_the_recurrence(n, size):
    x, write, read = random(2, n, 3, 4), random(2, n, 5, seed=1), random(2, n, 5, seed=2)
    step, decay = size * random(2, n, 3, seed=3).abs(), torch.tensor([-0.5, -1.0, -16.0])
    expected = recurrence(x, step, decay, write, read)
    found = selective_scan(x, step, decay, write, read)
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


def test_the_scan_by_hand():
    """h = 1 * 2 * 3, then exp(-0.5 ln 4) * 6 + 0.5 * 1 * 4 = 5; read by 1 and 2."""
    x, step = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.5])
    found = selective_scan(
        rearrange(x, "n -> 1 n 1 1"),
        rearrange(step, "n -> 1 n 1"),
        torch.tensor([-math.log(4)]),
        torch.tensor([[[2.0], [1.0]]]),
        torch.tensor([[[1.0], [2.0]]]),
    )
    torch.testing.assert_close(found.flatten(), torch.tensor([6.0, 10.0]))


def test_the_decay_loses_no_digits_behind_a_long_past():
    rates = torch.full((200,), -1e4)
    rates[-1] = -1e-3
    assert decay_matrix(rates)[-1, -2].item() == pytest.approx(math.exp(-1e-3), rel=1e-6)


def test_one_direction_sees_the_past_and_both_see_all():
    tokens = random(1, 9, 32).requires_grad_()
    mixer = ScanMixer(32)
    randomise(mixer.outward)  # starts at zero
    for module, seen in ((SelectiveScan(32), 5), (mixer, 9), (GruMixer(32), 9)):
        (slope,) = torch.autograd.grad(module(tokens)[0, 4].square().sum(), tokens)
        assert (slope[0].abs().sum(-1) > 0).tolist() == [True] * seen + [False] * (9 - seen)


def test_reversing_the_pixels_swaps_the_directions():
    mixer, tokens = ScanMixer(32), random(2, 9, 32)
    randomise(mixer.outward)
    forth = mixer(tokens)
    mixer.there, mixer.back = mixer.back, mixer.there
    torch.testing.assert_close(mixer(tokens.flip(1)).flip(1), forth, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_the_mixer_is_its_formula(norm):
    """In float64, with the scan as a recurrence; Mamba-2's norm y / sqrt(mean y^2 + 1e-5) acts behind the gate."""
    mixer, tokens = ScanMixer(32, norm=norm), random(2, 9, 32)
    randomise(mixer)
    weights = {name: value.detach().double() for name, value in mixer.state_dict().items()}
    z = tokens.double()
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    x, gate = ((z * weights["norm.weight"] + weights["norm.bias"]) @ weights["inward.weight"].T).chunk(2, dim=-1)
    x = x * torch.sigmoid(x)

    def scan(name: str, x: Tensor) -> Tensor:
        write, read, step = (x @ weights[f"{name}.select.weight"].T).split([48, 48, 2], dim=-1)
        heads = rearrange(x, "b n (e p) -> b n e p", e=2)
        step = torch.log1p(torch.exp(step + weights[f"{name}.step"]))
        y = recurrence(heads, step, -weights[f"{name}.log_decay"].exp(), write, read)
        return (y + weights[f"{name}.skip"][:, None] * heads).flatten(2)

    y = (scan("there", x) + scan("back", x.flip(1)).flip(1)) * gate * torch.sigmoid(gate)
    if norm:
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["gated_norm.weight"]
    expected = tokens + y @ weights["outward.weight"].T
    torch.testing.assert_close(mixer(tokens).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_mixer_begins_as_the_identity_and_learns_from_the_first_step():
    mixer, tokens = ScanMixer(32), random(2, 49, 32)
    found = mixer(tokens)
    assert torch.equal(found, tokens)
    found.square().sum().backward()
    assert mixer.outward.weight.grad.abs().max() > 0


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("n", [9, 121])
def test_the_update_of_the_mixer_stays_below_the_tokens(n, size):
    """What the norm gives has rms 1, whatever its input and however many pixels are summed over; a matrix of deviation 1 / sqrt(3 d), torch's usual, takes
    it to 1 / sqrt(3)."""
    torch.manual_seed(0)
    mixer, tokens, seen = ScanMixer(64), size * random(8, n, 64), []
    with torch.no_grad():
        mixer.inward.weight.mul_(size)
    nn.init.uniform_(mixer.outward.weight, -(64**-0.5), 64**-0.5)
    mixer.gated_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    update = mixer(tokens) - tokens
    loud = seen[0].square().mean(-1)
    assert loud.mean().item() == pytest.approx(1, abs=0.02)
    assert update.square().mean().sqrt().item() == pytest.approx(3**-0.5, rel=0.1)


# The network


@each_ablation
def test_every_ablation_predicts_and_gives_all_its_parameters_gradient(changes):
    model = network(changes)
    if isinstance(model.mixer, ScanMixer):
        randomise(model.mixer.outward)  # from zero, what lies before it learns from the second step on
    prediction = model(*patches(model.config))
    assert prediction.logits.shape == (4, 3)
    assert len(prediction.auxiliary) == (3 if model.config.auxiliary else 0)
    s2fin.classification_loss(prediction, torch.tensor([0, 1, 2, 1]), model.config).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unused = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not silent and not unused


@pytest.mark.parametrize(("inputs", "used"), [("both", (0, 1, 2)), ("passive", (0, 1)), ("active", (2,))])
def test_a_network_depends_on_its_own_inputs_alone(inputs, used):
    model = network({"inputs": inputs}).eval()
    images = [image.requires_grad_() for image in patches()]
    slopes = torch.autograd.grad(model(*images).logits.square().sum(), images, allow_unused=True)
    assert [i for i, slope in enumerate(slopes) if slope is not None and slope.abs().max() > 0] == list(used)


@pytest.mark.parametrize(("size", "least", "most"), [("light", 0.28, 0.33), ("paper-size", 0.60, 0.65)])
@pytest.mark.parametrize(
    "data", [(144, 30, 1, 15), (180, 30, 4, 7), (10, 10, 4, 13)], ids=["houston", "augsburg", "lcz"]
)
def test_sizes(size, least, most, data):
    model = S2Fin(SIZES[size], **dict(zip(COUNTS, data, strict=True)))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert least <= round(millions, 2) <= most


def test_the_head_reads_the_mean_and_the_centre_of_the_patch():
    model, seen = network({"mixer": "none"}).eval(), {}
    model.join.register_forward_hook(lambda module, args, output: seen.update(map=output))
    model.head.register_forward_hook(lambda module, args, output: seen.update(features=args[0]))
    model(*patches())
    expected = torch.cat([seen["map"].mean((2, 3)), seen["map"][:, :, 2, 2]], 1)
    torch.testing.assert_close(seen["features"], expected)


def test_a_trained_network_judges_each_patch_by_itself():
    model, images = network(), patches(b=6)
    model(*images)
    model.eval()
    alone = torch.cat([model(*(image[i : i + 1] for image in images)).logits for i in range(6)])
    torch.testing.assert_close(model(*images).logits, alone, atol=1e-5, rtol=1e-4)


def test_a_network_learns_classes_that_differ_in_high_spectral_frequencies():
    model, label = network(), torch.arange(24) % 2
    spectral, passive, active = patches(b=24)
    wave = torch.cos(math.pi * torch.arange(12) * 5 / 6) * rearrange(label - 0.5, "b -> b 1")
    spectral = 0.3 * spectral + rearrange(wave, "b c -> b c 1 1")
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = s2fin.classification_loss(model(spectral, passive, active), label, model.config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]


def test_loss_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    label = torch.tensor([0, 1])
    plain, even = (math.log(4 / 3) + math.log(2)) / 2, math.log(2)
    prediction = Prediction(logits, (torch.zeros(2, 2), logits), None)
    loss = s2fin.classification_loss(prediction, label, S2FinConfig(auxiliary=0.3))
    assert loss.item() == pytest.approx(plain + 0.3 * (even + plain))
    smooth = s2fin.classification_loss(prediction._replace(auxiliary=()), label, S2FinConfig(label_smoothing=0.2))
    wrong = (math.log(4) + math.log(2)) / 2  # of the other class
    assert smooth.item() == pytest.approx(0.9 * plain + 0.1 * wrong)


def test_frequency_parameters_and_what_they_read_at_the_start():
    model = network()
    assert model.readings() == pytest.approx(
        {
            "hfset.filter.threshold": START_TAU,
            "afcm.high_pass.0.cutoff": 0.31,
            "afcm.high_pass.1.cutoff": 0.31,
            "hfrm.high_pass.cutoff": 0.31,
            "hfrm.gain": 1 + START_GAIN,
            "hfrm.slope": 4 * softplus(1.5),
            "hfrm.offset": 0.0,
        }
    )
    found = model.frequency_parameters()
    assert len({id(parameter) for parameter in found}) == len(found) == 8
    assert sum(parameter.numel() for parameter in found) == 64 + 1 + 3 + 2 + 2 * 16  # tau; rho; kappa, s0; lambda


# Numerics


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e4])
def test_flat_and_tiny_inputs_leave_everything_finite(value):
    model = network()
    images = [torch.full_like(image, value).requires_grad_() for image in patches()]
    model(*images).logits.square().sum().backward()
    gradients = [tensor.grad for tensor in (*images, *model.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_spectra_are_float32_whatever_the_precision():
    features = random(2, 16, 7, 7)
    outside = HighPass(T)(features)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(HighPass(T)(features)[1], outside, atol=1e-6, rtol=0)
        response = high_frequency_response(torch.tensor([0.3, 0.3]), torch.zeros(2, 8), 16, T)
        torch.testing.assert_close(filter_bands(features, response), features, atol=1e-5, rtol=0)
    low = features.bfloat16()
    assert spectrum(low).real.dtype == similarity(low, low).dtype == torch.float32
    torch.testing.assert_close(spectrum(low).real, spectrum(low.float()).real)
    assert filter_bands(low, response).dtype == torch.bfloat16


@each_ablation
def test_half_precision_predicts_nearly_the_same(changes):
    model, images = network(changes).eval(), patches()
    expected = model(*images).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(*images).logits.float(), expected, atol=0.05, rtol=0.1)
    whole = model.bfloat16()(*(image.bfloat16() for image in images)).logits
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(whole.float(), expected, atol=0.05, rtol=0.1)


def test_no_parameter_is_complex_and_no_angle_is_taken():
    assert not any(tensor.is_complex() for tensor in network().state_dict().values())
    for path in Path(s2fin.__file__).parent.glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", "") == "angle"]


# Wrong inputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S2FinConfig(patch=8), r"model\.patch 8 has no centre pixel; use an odd side"),
        (lambda: S2FinConfig(width=50), r"model\.width 50 is not a multiple of 16"),
        (lambda: S2FinConfig(temperature=0.0), "S2FinConfig.temperature is 0.0; give a number above 0"),
        (lambda: S2FinConfig(dropout=1.0), "S2FinConfig.dropout is 1.0; give a number from 0 to below 1"),
        (lambda: AttentionConfig(kept=0.0), "AttentionConfig.kept is 0.0; give a number above 0 to 1"),
        (lambda: EnhancementConfig(anchors=1), "EnhancementConfig.anchors is 1; give a whole number from 2"),
        (lambda: S2Fin(bands=0, components=4, channels=2, classes=3), "at least one of bands, got 0"),
        (lambda: network()(*patches(S2FinConfig(patch=7))), "passive patches are 4 x 7 x 7, .* for 4 x 5 x 5"),
        (lambda: network()(*patches()[:2], random(4, 9, 5, 5)), "active patches are 9 x 5 x 5, .* for 2 x 5 x 5"),
    ],
)
def test_wrong_inputs_are_named(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
