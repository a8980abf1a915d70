"""Progressive decoding, targets in bands, losses on masked tokens, and the schedule."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alliance.decoder import DecoderConfig, FrequencyGates
from alliance.errors import InputError
from alliance.losses import (
    LossConfig,
    assemble,
    group_patches,
    masked_mean,
    measure_spread,
    patch_statistics,
    spectral_distance,
    stage_targets,
    stage_weights,
    token_errors,
)
from alliance.model import Alliance
from alliance.tokens import Mask, group_table
from tests.helpers.models import (
    ABLATIONS,
    FOUR_BANDS,
    natural_image,
    noise_for,
    randomise,
    tiny_model,
)

CPU = torch.device("cpu")
SCHEDULES = ["linear", "rbf", "constant"]


def run(model: Alliance, image: Tensor, progress: float = 0.3) -> tuple[Tensor, Tensor, Mask]:
    """Total loss after a backward pass, the decoder's output (k, b, g, n, m, p) with its gradient, and the mask."""
    outputs: list[Tensor] = []

    def keep(module, arguments, output):
        output.retain_grad()
        outputs.append(output)

    handle = model.decoder.register_forward_hook(keep)
    noise = noise_for(image, 2)
    total = model(image, FOUR_BANDS, noise, progress).total
    total.backward()
    handle.remove()
    with torch.no_grad():
        mask = model.predict(image, FOUR_BANDS, noise, FOUR_BANDS.group_indices).mask
    return total, outputs[0], mask


def block_inputs(model: Alliance, image: Tensor) -> list[Tensor]:
    """What every decoder block receives."""
    seen: list[Tensor] = []
    handles = [
        b.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])) for b in model.decoder.blocks
    ]
    with torch.no_grad():
        model(image, FOUR_BANDS, noise_for(image, 2))
    for handle in handles:
        handle.remove()
    return seen


def close_gate(model: Alliance, k: int) -> None:
    torch.nn.init.constant_(model.decoder.gates[k].bias, -1e4)


# Targets


@pytest.mark.parametrize(("h", "w"), [(32, 32), (24, 40), (12, 20)])
def test_cumulative_targets_rise_in_energy_to_the_image_itself(h, w):
    image = natural_image(2, 4, h, w)
    targets = stage_targets(image, FOUR_BANDS, 4, 3, LossConfig())
    assert targets.shape == (3, 2, 4, h, w)
    torch.testing.assert_close(targets[2], image, atol=1e-5, rtol=0)
    energy = targets.square().sum((1, 2, 3, 4))
    assert 0 < energy[0] < energy[1] < energy[2]


def test_disjoint_targets_sum_to_the_image():
    image, config = natural_image(2, 4, 24, 40), LossConfig(targets="disjoint")
    targets = stage_targets(image, FOUR_BANDS, 4, 3, config)
    torch.testing.assert_close(targets.sum(0), image, atol=1e-5, rtol=0)
    cumulative = stage_targets(image, FOUR_BANDS, 4, 3, LossConfig())
    torch.testing.assert_close(assemble(targets, FOUR_BANDS, config), cumulative, atol=1e-5, rtol=0)


def test_increments_have_unit_rms_where_they_were_measured_and_assemble_to_the_image():
    image, config = natural_image(3, 4, 24, 40), LossConfig(targets="increments")
    image = image * torch.tensor([0.3, 1.0, 2.0, 0.7])[:, None, None]
    spread = measure_spread(image, 4, config)
    assert spread.shape == (4, 3)
    bands = tuple(
        dataclasses.replace(b, spread=tuple(s)) for b, s in zip(FOUR_BANDS.bands, spread.tolist(), strict=True)
    )
    sensor = dataclasses.replace(FOUR_BANDS, bands=bands)
    targets = stage_targets(image, sensor, 4, 3, config)
    rms = targets.square().mean((1, 3, 4)).sqrt()
    torch.testing.assert_close(rms, torch.ones(3, 4), atol=1e-4, rtol=0)
    cumulative = stage_targets(image, sensor, 4, 3, LossConfig())
    torch.testing.assert_close(assemble(targets, sensor, config), cumulative, atol=1e-5, rtol=0)


def test_increments_without_a_spread_are_refused():
    bare = dataclasses.replace(FOUR_BANDS, bands=tuple(dataclasses.replace(b, spread=None) for b in FOUR_BANDS.bands))
    with pytest.raises(InputError, match="spread"):
        stage_targets(natural_image(1, 4, 8, 8), bare, 4, 3, LossConfig(targets="increments"))


def test_one_stage_has_the_image_as_its_target():
    image = natural_image(1, 4, 8, 8)
    assert torch.equal(stage_targets(image, FOUR_BANDS, 4, 1, LossConfig()), image[None])


def test_patch_group_normalisation_gives_zero_mean_and_unit_variance():
    groups = FOUR_BANDS.group_indices
    real = group_table(groups, CPU).real
    patches = group_patches(5 + 3 * natural_image(2, 4, 16, 16), 4, groups)
    mean, deviation = patch_statistics(patches, real)
    target = (patches - mean) / deviation
    for g, members in enumerate(map(len, groups)):
        values = target[:, g, :, :members].flatten(-2)
        torch.testing.assert_close(values.mean(-1), torch.zeros(2, 16), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.var(-1, unbiased=False), torch.ones(2, 16), atol=1e-3, rtol=0)


def test_patch_normalisation_is_for_the_whole_image_alone_because_it_destroys_the_low_band():
    image = natural_image(16, 1, 96, 96).double().numpy()
    blocks = image.reshape(16, 1, 12, 8, 12, 8)
    centred = blocks - blocks.mean((3, 5), keepdims=True)
    normalised = centred / np.sqrt(centred.var((3, 5), keepdims=True) + 1e-6)
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None, :])
    low = lambda x: (np.abs(np.fft.fft2(x.reshape(16, 1, 96, 96))) ** 2 * (radius <= 1 / 16)).sum()  # noqa: E731
    assert low(centred) < 0.3 * low(blocks)
    assert low(normalised) < 0.1 * (np.abs(np.fft.fft2(normalised.reshape(16, 1, 96, 96))) ** 2).sum()
    for targets in ("disjoint", "increments"):
        with pytest.raises(InputError, match="patch_group"):
            LossConfig(normalise="patch_group", targets=targets)


# Losses


def test_a_hand_worked_error_counts_real_bands_and_valid_pixels():
    target = torch.zeros(1, 2, 1, 2, 2)  # one sample, two groups, one token, up to two bands, two pixels
    prediction = torch.tensor([[[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]]])
    real = torch.tensor([[True, True], [True, False]])
    everything = torch.ones(1, 1, 2, dtype=torch.bool)
    errors = token_errors(prediction, target, everything, real)
    torch.testing.assert_close(errors[0, :, 0], torch.tensor([(1 + 4 + 9 + 16) / 4, (25 + 36) / 2]))
    errors = token_errors(prediction, target, torch.tensor([[[True, False]]]), real)
    torch.testing.assert_close(errors[0, :, 0], torch.tensor([(1 + 9) / 2, 25.0]))
    assert token_errors(prediction, target, ~everything, real).sum() == 0


def test_a_hand_worked_mean_counts_masked_and_valid_tokens():
    errors = torch.tensor([[1.0, 2, 4], [8, 16, 32]])[None, None]  # k = b = 1, two groups of three tokens
    masked = torch.tensor([[True, False, True, True, True, False]])
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(masked_mean(errors, masked, valid), torch.tensor([(1 + 8 + 16) / 3]))
    assert masked_mean(errors, torch.zeros_like(masked), valid) == 0


@pytest.mark.parametrize(
    "name", ["default", "spectral loss", "patch-group normalised", "disjoint targets", "one stage"]
)
def test_predictions_at_visible_tokens_and_missing_pixels_have_no_gradient(name):
    model, image = tiny_model(ABLATIONS[name]), natural_image(2, 4, 16, 16)
    image[0, :, 8:, 8:] = torch.nan  # four whole patches, whose tokens are never visible
    image[1, :, 0:2, 0:3] = torch.nan
    total, outputs, mask = run(model, image)
    assert total.isfinite()
    masked = mask.masked.reshape(2, 2, 16)
    missing = group_patches(image.isnan().float(), 4, FOUR_BANDS.group_indices) > 0
    assert outputs.grad is not None
    for gradient in outputs.grad:
        assert (gradient[~masked] == 0).all()
        assert (gradient[1][masked[1]].abs().sum((-2, -1)) > 0).all()
        assert (gradient[missing] == 0).all()


@pytest.mark.parametrize("name", ["default", "spectral loss", "tube masks", "increments as targets"])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(name):
    model, image = tiny_model(ABLATIONS[name]), natural_image(4, 4, 16, 16)
    image[0, :, :, 6:] = torch.nan
    noise = noise_for(image, 2)
    whole = model(image, FOUR_BANDS, noise, 0.5)
    halves = [model(image[part], FOUR_BANDS, noise[part], 0.5) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole.total, (halves[0].total + halves[1].total) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.stages, (halves[0].stages + halves[1].stages) / 2, rtol=1e-5, atol=1e-5)


def test_the_spectral_distance_of_equal_images_vanishes_and_of_a_constant_is_its_mean_bin():
    image = natural_image(1, 2, 8, 8).requires_grad_()
    distance = spectral_distance(image, image.detach())
    assert distance.item() == pytest.approx(1e-3, rel=1e-3)  # the root of its floor
    distance.backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    shifted = spectral_distance(image.detach() + 0.5, image.detach()).item()
    assert shifted == pytest.approx((0.5 * 8 + 39 * 1e-3) / 40, rel=1e-2)  # 8 x 5 bins, all but one empty


# Schedule


@pytest.mark.parametrize("sar", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@given(progress=st.floats(-0.5, 1.5))
def test_weights_are_positive_and_sum_to_one(schedule, sar, progress):
    weights = stage_weights(progress, 3, LossConfig(schedule=schedule), sar=sar)
    assert weights.dtype == torch.float32
    assert weights.min() > 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    if sar:
        assert weights[2] <= 1 / 3 + 1e-6
    assert torch.equal(stage_weights(progress, 1, LossConfig(schedule=schedule), sar=sar), torch.ones(1))


@pytest.mark.parametrize(
    ("schedule", "progress", "expected", "digits"),
    [
        ("linear", 0.0, (1 / 3, 1 / 3, 1 / 3), 1e-6),
        ("linear", 0.25, (1 / 3, 1 / 3, 1 / 3), 1e-6),
        ("linear", 1.0, (0.10 / 1.00333, 0.33333 / 1.00333, 0.57 / 1.00333), 1e-5),
        ("linear", 0.625, (0.216667 / 1.001667, 0.333333 / 1.001667, 0.451667 / 1.001667), 1e-5),
        ("rbf", 0.0, (0.62, 0.33, 0.05), 0.01),
        ("rbf", 0.5, (0.26, 0.48, 0.26), 0.01),
        ("rbf", 1.0, (0.05, 0.33, 0.62), 0.01),
        ("constant", 0.7, (1 / 3, 1 / 3, 1 / 3), 1e-6),
    ],
)
def test_the_schedule_moves_from_low_to_high(schedule, progress, expected, digits):
    weights = stage_weights(progress, 3, LossConfig(schedule=schedule))
    torch.testing.assert_close(weights, torch.tensor(expected), atol=digits, rtol=0)


def test_radar_keeps_the_proportion_of_low_and_mid():
    plain, capped = (stage_weights(1.0, 3, LossConfig(), sar=sar) for sar in (False, True))
    assert capped[2].item() == pytest.approx(1 / 3)
    torch.testing.assert_close(capped[0] / capped[1], plain[0] / plain[1])
    early = [stage_weights(0.0, 3, LossConfig(schedule="rbf"), sar=sar) for sar in (False, True)]
    assert torch.equal(*early)  # the cap does not bind


# Decoder


@pytest.mark.parametrize(("depth", "starts"), [(6, [0, 2, 4]), (8, [0, 2, 4]), (9, [0, 3, 6]), (12, [0, 4, 8])])
def test_each_stage_takes_its_frequency_token_at_its_first_block(depth, starts):
    model, image = tiny_model({"decoder": {"depth": depth}}), natural_image(1, 4, 8, 8)
    assert model.decoder.stage_starts() == starts
    before = block_inputs(model, image)
    for k, start in enumerate(starts):
        changed = tiny_model({"decoder": {"depth": depth}})
        close_gate(changed, k)
        after = block_inputs(changed, image)
        same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        assert same == [index < start for index in range(depth)]


def test_masked_places_start_as_their_position_alone():
    model, image = tiny_model(), natural_image(2, 4, 16, 16)
    close_gate(model, 0)
    first = block_inputs(model, image)[0][:, 1:]
    groups, decoder = FOUR_BANDS.group_indices, model.decoder
    with torch.no_grad():
        noise = noise_for(image, 2)
        mask = model.predict(image, FOUR_BANDS, noise, groups).mask
        position = decoder.position(model.encoder.patch_embed.code(FOUR_BANDS.bands), groups, 4, 4).flatten(0, 1)
    for sample, masked in zip(first, mask.masked, strict=True):
        assert torch.equal(sample[masked], position[masked])
        assert not torch.isclose(sample[~masked], position[~masked]).all(-1).any()


@pytest.mark.parametrize(
    "name",
    ["injection at every block", "convex blend", "mask tokens bypass the encoder", "one stage", "plain attention"],
)
def test_options_of_the_decoder_change_the_result_and_train_every_part(name):
    image, deeper = natural_image(2, 4, 16, 16), {"depth": 6}
    model = tiny_model({"decoder": deeper | ABLATIONS[name]["decoder"]})
    default = tiny_model({"decoder": deeper})
    default.load_state_dict(model.state_dict(), strict=False)
    _, outputs, _ = run(model, image)
    _, expected, _ = run(default, image)
    assert not torch.allclose(outputs[-1], expected[-1], atol=1e-4)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("batched", [False, True])
def test_gates_follow_their_formulas(kind: str, batched: bool):
    # s(<W_q z, W_k m_k> / sqrt(d) + beta_k), or the softmax over k of the same of LN z and LN m_k
    gates = FrequencyGates(8, 3, kind).double()
    randomise(gates)
    tokens, bands = torch.randn(4 if batched else 1, 5, 8).double(), torch.randn(4, 3, 8).double()
    z, m = tokens.expand(4, -1, -1), bands
    if kind == "softmax":
        z, m = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() for x in (z, m))
    scores = torch.stack(
        [(z @ g.query.weight.T * (m[:, k, None] @ g.key.weight.T)).sum(-1) / 8**0.5 + g.bias for k, g in enumerate(gates)]
    )  # fmt: skip
    expected = scores.sigmoid() if kind == "sigmoid" else scores.softmax(0)
    for chosen in ([0], [2], [0, 1, 2]):
        found = gates(tokens, bands, chosen)
        torch.testing.assert_close(torch.stack(found), expected[chosen][..., None], atol=1e-6, rtol=0)


def test_the_gates_of_the_three_tokens_share_one():
    model, image = tiny_model({"decoder": {"gate": "softmax", "stages": 1}}), natural_image(2, 4, 16, 16)
    seen: list[list[Tensor]] = []
    handle = model.decoder.gates.register_forward_hook(lambda _, __, gates: seen.append(gates))
    run(model, image)
    handle.remove()
    gates = seen[0]
    torch.testing.assert_close(sum(gates), torch.ones(2, 32, 1), atol=1e-6, rtol=0)
    assert all(gate.std() > 0 for gate in gates)


def test_the_baseline_predicts_the_image_at_once_with_a_plain_mae_decoder():
    model, image = tiny_model(ABLATIONS["baseline"]), natural_image(2, 4, 16, 16)
    prediction = model.predict(image, FOUR_BANDS, noise_for(image, 2), FOUR_BANDS.group_indices)
    assert prediction.stages.shape == (1, 2, 2, 16, 3, 16)
    assert len(model.decoder.gates) == 0
    three = tiny_model().predict(image, FOUR_BANDS, noise_for(image, 2), FOUR_BANDS.group_indices)
    assert three.stages.shape == (3, 2, 2, 16, 3, 16)
    assert model(image, FOUR_BANDS, noise_for(image, 2)).stages.shape == (1,)


@pytest.mark.parametrize("changes", [{"depth": 2}, {"embed_dim": 50}, {"heads": 7}])
def test_a_decoder_that_cannot_be_built_is_refused(changes):
    with pytest.raises(InputError, match="decoder"):
        DecoderConfig(**changes)


def test_one_convex_step_pulls_a_token_towards_the_frequency_token():
    # z + alpha gamma (m - z) with gamma 1 and alpha 1 - 0.5 * 1 / 3 at the second of three blocks
    model, image = tiny_model({"decoder": {"blend": "convex", "mask_tokens": "bypass"}}), natural_image(1, 4, 8, 8)
    torch.nn.init.constant_(model.decoder.gates[1].bias, 1e4)
    outputs: list[Tensor] = []
    handle = model.decoder.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    received = block_inputs(model, image)[1][0, 1:]
    handle.remove()
    with torch.no_grad():
        mask = model.predict(image, FOUR_BANDS, noise_for(image, 2), FOUR_BANDS.group_indices).mask.masked[0]
        band, alpha = model.decoder.enter(model.encoder.special().frequency[1]), 1 - 0.5 / 3
    left = outputs[0][0, 1:]
    torch.testing.assert_close(received[~mask], left[~mask])
    torch.testing.assert_close(received[mask], (left + alpha * (band - left))[mask])
