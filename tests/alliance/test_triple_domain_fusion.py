"""Triple-domain fusion attention: identities, symmetries and numerics of the frequency branch."""

import ast
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import alliance
from alliance.blocks import FusionBlock, FusionConfig, Grid, GroupMixing, SpectralOperator
from alliance.encoder import initialise_linear
from alliance.frequency import token_grid, token_spectrum
from tests.helpers.models import ABLATIONS, FULL_FUSION, randomise, tiny_model

GRIDS = [Grid(1, 4, 4), Grid(3, 5, 7), Grid(2, 1, 6), Grid(2, 7, 1), Grid(4, 3, 8), Grid(1, 17, 18)]
PHASE_ONLY = FusionConfig(amplitude=False, band_selection=False)
FUSIONS = {
    "light": FusionConfig(),
    "full": FULL_FUSION,
    "replace": FusionConfig(fusion="replace"),
    "phase heads": FusionConfig(phase_heads=3),
    "factorised": FusionConfig(spatial_spectral="factorised"),
    "bare": FusionConfig(amplitude=False, phase=False, band_selection=False),
}


def operator(f: int = 12, config: FusionConfig | None = None, *, trained: bool = False) -> SpectralOperator:
    torch.manual_seed(0)
    module = SpectralOperator(f, config or FusionConfig())
    module.reset_parameters()
    if trained:
        randomise(module)
    return module


def fusion_block(config: FusionConfig, d: int = 48, *, trained: bool = False) -> FusionBlock:
    torch.manual_seed(0)
    block = FusionBlock(d, 4, config)
    initialise_linear(block)
    block.attn.reset_parameters()
    if trained:
        randomise(block, std=0.05)
    return block


def features(grid: Grid, f: int = 12, b: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(b, grid.g, grid.h * grid.w, f, generator=torch.Generator().manual_seed(seed))


def free_bins(h: int, w: int) -> Tensor:
    """Bins whose mirror image is not in the half spectrum: not in the DC column, nor in the Nyquist column."""
    free = torch.ones(h, w // 2 + 1, dtype=torch.bool)
    free[:, 0] = False
    if w % 2 == 0:
        free[:, -1] = False
    return free.flatten()


def spectrum(u: Tensor, grid: Grid) -> Tensor:
    return torch.complex(*token_spectrum(u, grid.h, grid.w))


@pytest.mark.parametrize("phase_heads", [0, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_operator_starts_as_the_identity(grid, phase_heads):
    u = features(grid)
    out = operator(config=FusionConfig(phase_heads=phase_heads))(u, grid)
    torch.testing.assert_close(out, u, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turn", [0.3, -2.0, 3.0])
def test_turning_there_and_back_restores_all_but_real_columns(grid, turn):
    u, forth, back = features(grid), operator(config=PHASE_ONLY), operator(config=PHASE_ONLY)
    for module, sign in ((forth, 1), (back, -1)):
        assert module.phase is not None
        nn.init.constant_(module.phase.fc2.bias, sign * math.atanh(turn / math.pi))
    turned = forth(u, grid)
    free = free_bins(grid.h, grid.w)
    if not free.any():
        return
    before, between, after = (spectrum(v, grid)[..., free, :] for v in (u, turned, back(turned, grid)))
    torch.testing.assert_close(between, before * torch.polar(torch.tensor(1.0), torch.tensor(turn)), atol=1e-5, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_turning_there_and_back_restores_features_without_real_columns():
    grid = Grid(2, 6, 8)
    real, imaginary = token_spectrum(features(grid), 6, 8)
    keep = free_bins(6, 8)[:, None]
    u = token_grid(real * keep, imaginary * keep, 6, 8)
    forth, back = operator(config=PHASE_ONLY), operator(config=PHASE_ONLY)
    for module, sign in ((forth, 1), (back, -1)):
        assert module.phase is not None
        nn.init.constant_(module.phase.fc2.bias, sign * 0.7)
    assert (forth(u, grid) - u).abs().max() > 0.1
    torch.testing.assert_close(back(forth(u, grid), grid), u, atol=1e-5, rtol=0)


def test_a_quarter_turn_makes_a_cosine_a_sine():
    grid, place = Grid(1, 4, 12), torch.arange(12)
    u = torch.cos(2 * math.pi * 2 * place / 12).repeat(4)[None, None, :, None].expand(1, 1, 48, 4)
    module = operator(4, PHASE_ONLY)
    assert module.phase is not None
    nn.init.constant_(module.phase.fc2.bias, math.atanh(-0.5))
    expected = torch.sin(2 * math.pi * 2 * place / 12).repeat(4)[None, None, :, None].expand(1, 1, 48, 4)
    torch.testing.assert_close(module(u, grid), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (FusionConfig(phase=False, band_selection=False), 2),
        (FusionConfig(phase=False, amplitude=False), 3),
        (FusionConfig(phase=False), 6),
        (FusionConfig(), 6),
    ],
)
@pytest.mark.parametrize("grid", [Grid(3, 5, 7), Grid(1, 8, 8)])
def test_the_gain_of_every_bin_is_positive_and_bounded(grid, config, most):
    u, module = features(grid), operator(config=config, trained=True)
    before, after = spectrum(u, grid), spectrum(module(u, grid), grid)
    free = free_bins(grid.h, grid.w)
    gain = (after.abs() / before.abs())[..., free, :]
    assert gain.min() > 0
    assert gain.max() < most
    assert gain.std() > 0.01


def test_band_selection_weighs_scales_and_averages_to_one():
    grid, module = Grid(2, 8, 8), operator(config=FusionConfig(amplitude=False, phase=False))
    assert module.selection is not None
    with torch.no_grad():
        module.selection.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    u = features(grid)
    ratio = (spectrum(module(u, grid), grid) / spectrum(u, grid)).real
    fy, fx = torch.fft.fftfreq(8), torch.fft.rfftfreq(8)
    radius = torch.hypot(fy[:, None], fx[None, :]).flatten()
    expected = torch.where(radius <= 1 / 8, 1.5, torch.where(radius <= 1 / 4, 0.9, 0.6))
    torch.testing.assert_close(ratio, expected[:, None].expand_as(ratio), atol=1e-3, rtol=0)


def test_gains_of_amplitude_commute_with_shifts_of_the_grid():
    grid = Grid(2, 6, 5)
    module = operator(config=FusionConfig(phase=False), trained=True)
    u = features(grid)
    shift = lambda v: v.unflatten(2, (6, 5)).roll((2, 3), (2, 3)).flatten(2, 3)  # noqa: E731
    torch.testing.assert_close(module(shift(u), grid), shift(module(u, grid)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["constant", "zero", "tiny", "tiny noise", "one bright token"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("fusion", ["light", "full", "replace"])
def test_gradients_are_finite_on_degenerate_features(name, trained, fusion):
    grid = Grid(2, 5, 6)
    u = torch.zeros(2, 2, 30, 12)
    if name == "one bright token":
        u[..., 0, :] = 1
    elif name == "tiny noise":
        u = 1e-20 * features(grid)
    else:
        u = u + {"constant": 1.0, "zero": 0.0, "tiny": 1e-20}[name]
    u.requires_grad_()
    module = operator(config=FUSIONS[fusion], trained=trained)
    module(u, grid).square().sum().backward()
    sequence = u.detach().flatten(1, 2)[:, :, [0] * 48]
    sequence = torch.cat([sequence[:, :1], sequence], dim=1).requires_grad_()
    block = fusion_block(FUSIONS[fusion], trained=trained)
    block(sequence, grid).square().sum().backward()
    for tensor in (u, sequence, *module.parameters(), *block.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_no_code_takes_the_angle_of_a_complex_number():
    for file in Path(alliance.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert name not in ("angle", "atan2"), f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_no_parameter_or_buffer_is_complex(name):
    model = tiny_model(ABLATIONS[name])
    assert not any(tensor.is_complex() for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(
    "off", [("amplitude",), ("phase",), ("band_selection",), ("amplitude", "phase", "band_selection")]
)
def test_a_part_that_is_off_has_no_parameters(off):
    whole = {name for name, _ in fusion_block(FusionConfig()).named_parameters()}
    block = fusion_block(FusionConfig(**dict.fromkeys(off, False)))
    attributes = {"amplitude": "amplitude", "phase": "phase", "band_selection": "selection"}
    gone = {name for name in whole for part in off if name.startswith(f"attn.spectral.{attributes[part]}.")}
    assert gone
    assert {name for name, _ in block.named_parameters()} == whole - gone
    out = block(torch.randn(2, 1 + 3 * 20, 48), Grid(3, 4, 5))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_a_pure_bfloat16_block_agrees_with_float32(name):
    grid, block = Grid(2, 5, 6), fusion_block(FUSIONS[name], trained=True)
    sequence = torch.randn(2, 61, 48, generator=torch.Generator().manual_seed(0))
    expected = block(sequence, grid)
    low = fusion_block(FUSIONS[name], trained=True).bfloat16()
    out = low(sequence.bfloat16(), grid)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 2e-2 * expected.norm()
    out.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_a_block_under_bfloat16_autocast_agrees_with_float32(name):
    grid, block = Grid(2, 5, 6), fusion_block(FUSIONS[name], trained=True)
    sequence = torch.randn(2, 61, 48, generator=torch.Generator().manual_seed(0))
    expected = block(sequence, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(sequence, grid)
    assert (out.float() - expected).norm() < 2e-2 * expected.norm()
    out.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_group_mixing_passes_a_single_group_unchanged():
    mixing = GroupMixing(8)
    randomise(mixing)
    u = torch.randn(2, 1, 9, 8)
    assert torch.equal(mixing(u), u)


def test_group_mixing_starts_between_each_token_and_the_mean_of_groups():
    torch.manual_seed(0)
    mixing = GroupMixing(8)
    mixing.reset_parameters()
    u = torch.randn(2, 3, 9, 8)
    mean = u.mean(1, keepdim=True)
    out = mixing(u)
    share = ((out - mean) * (u - mean)).sum(-1) / (u - mean).square().sum(-1)  # one scalar per token
    assert share.min() > 0 and share.max() < 1
    torch.testing.assert_close(out, mean + share[..., None] * (u - mean))


def test_equal_groups_stay_equal_whatever_the_gate():
    mixing = GroupMixing(8)
    randomise(mixing)
    mixing.reset_parameters()
    u = torch.randn(2, 1, 9, 8).expand(-1, 4, -1, -1)
    torch.testing.assert_close(mixing(u), u)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("grid", [Grid(1, 4, 4), Grid(3, 5, 7), Grid(2, 1, 6)])
def test_a_block_keeps_the_shape_of_its_sequence(name, grid):
    sequence = torch.randn(2, 1 + grid.g * grid.h * grid.w, 48)
    out = fusion_block(FUSIONS[name])(sequence, grid)
    assert out.shape == sequence.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["light", "full", "replace"])
def test_a_fresh_block_treats_band_groups_alike(name):
    grid, block = Grid(3, 4, 5), fusion_block(FUSIONS[name])  # the convolution along groups starts at zero
    sequence = torch.randn(2, 1 + 60, 48)
    order = torch.cat([torch.tensor([0]), 1 + torch.arange(60).reshape(3, 20)[[2, 0, 1]].flatten()])
    torch.testing.assert_close(block(sequence[:, order], grid), block(sequence, grid)[:, order], atol=1e-4, rtol=1e-4)


def test_the_cls_token_passes_the_frequency_branch_untouched():
    grid = Grid(2, 4, 5)
    block, other = fusion_block(FusionConfig()), fusion_block(FusionConfig())
    randomise(other.attn.spectral)
    nn.init.constant_(other.attn.scale, 1.0)
    sequence = torch.randn(2, 41, 48)
    torch.testing.assert_close(block(sequence, grid)[:, 0], other(sequence, grid)[:, 0])
    assert not torch.allclose(block(sequence, grid)[:, 1:], other(sequence, grid)[:, 1:], atol=1e-3)


def test_channels_of_a_phase_head_turn_together():
    grid = Grid(2, 5, 7)
    module = operator(12, FusionConfig(amplitude=False, band_selection=False, phase_heads=3), trained=True)
    u = features(grid)
    turned = spectrum(module(u, grid), grid) / spectrum(u, grid)
    turned = turned[..., free_bins(5, 7), :].unflatten(-1, (3, 4))
    torch.testing.assert_close(turned, turned[..., :1].expand_as(turned), atol=1e-3, rtol=1e-3)
    assert (turned[..., 0, 0] - turned[..., 1, 0]).abs().mean() > 0.01
    assert module.phase is not None
    assert module.phase.fc2.out_features == 3


def test_phase_heads_that_do_not_divide_the_branch_are_refused():
    with pytest.raises(alliance.InputError, match="phase_heads"):
        SpectralOperator(12, FusionConfig(phase_heads=5))


def test_factorised_attention_differs_from_joint_in_its_parameters_alone():
    joint, factorised = (fusion_block(FUSIONS[name]).state_dict() for name in ("light", "factorised"))
    other = lambda state: {k: v.shape for k, v in state.items() if not k.startswith("attn.attention.")}  # noqa: E731
    assert other(joint) == other(factorised)
    attention = {k.removeprefix("attn.attention.") for k in joint if k.startswith("attn.attention.")}
    expected = {f"attn.attention.{axis}.{k}" for axis in ("spatial", "spectral") for k in attention}
    assert {k for k in factorised if k.startswith("attn.attention.")} == expected


def test_factorised_attention_reaches_every_token_through_two_steps():
    grid = Grid(3, 2, 4)
    block = fusion_block(dataclasses.replace(FUSIONS["bare"], spatial_spectral="factorised"))
    nn.init.zeros_(block.attn.scale)
    sequence = torch.randn(1, 25, 48, requires_grad=True)
    block(sequence, grid)[0, 1].sum().backward()
    assert sequence.grad is not None
    assert (sequence.grad[0].abs().sum(-1) > 0).all()
