"""The pretraining model as a whole: any sensor, any values, every switch, and what it learns."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import alliance
from alliance.losses import LossConfig, stage_targets
from alliance.model import Alliance, create_model, list_models, model_config, patch_validity
from alliance.sensors import Sensor
from alliance.tokens import draw_groups, mask_noise, patchify
from tests.helpers.models import (
    ABLATIONS,
    FOUR_BANDS,
    FOUR_SAR,
    TINY_ENCODER,
    natural_image,
    noise_for,
    sensor_of,
    tiny_config,
    tiny_model,
)


def loss_of(
    model: Alliance, image: Tensor, sensor: Sensor = FOUR_BANDS, progress: float = 0.3
) -> alliance.model.Losses:
    return model(image, sensor, noise_for(image, len(sensor.group_indices)), progress)


def assert_finite_gradients(model: Alliance) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def train(model: Alliance, image: Tensor, steps: int, lr: float = 3e-3, progress: float = 0.3) -> list[float]:
    """Losses of some steps on one batch with one mask."""
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr), []
    noise = noise_for(image, len(FOUR_BANDS.group_indices))
    for _ in range(steps):
        total = model(image, FOUR_BANDS, noise, progress).total
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("c", [1, 2, 3, 10, 12, 13, 103, 224, 369])
def test_one_model_trains_on_any_number_of_bands(c):
    model, sensor, image = tiny_model(), sensor_of(c), natural_image(1, c, 12, 8)
    groups = draw_groups(sensor.group_indices, model.config.masking.max_groups, 0, 0)
    losses = model(image, sensor, mask_noise(0, 0, [0], len(groups) * 6), 0.0, groups)
    losses.total.backward()
    assert losses.stages.shape == (3,)
    assert losses.total.isfinite()
    assert_finite_gradients(model)


@pytest.mark.parametrize(("h", "w"), [(4, 4), (20, 12), (12, 20), (4, 28), (68, 64)])
def test_token_grids_may_be_odd_and_not_square(h, w):
    model = tiny_model()
    losses = loss_of(model, natural_image(1, 4, h, w))
    losses.total.backward()
    assert losses.total.isfinite()
    assert_finite_gradients(model)


@pytest.mark.parametrize(
    "name", ["default", "full fusion", "increments as targets", "spectral loss", "patch-group normalised"]
)
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-20, math.nan, math.inf])
def test_degenerate_images_give_finite_losses_and_gradients(name, value):
    model = tiny_model(ABLATIONS[name])
    losses = loss_of(model, torch.full((2, 4, 8, 12), value))
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.stages.isfinite().all()
    assert_finite_gradients(model)


def test_radar_has_one_group_and_a_capped_high_stage():
    model, image = tiny_model({"loss": {"summary": 0.0}}), natural_image(2, 2, 16, 16)
    losses = loss_of(model, image, FOUR_SAR, progress=1.0)
    low, mid, high = losses.stages
    expected = (2 / 3) * (0.10 * low + high.new_tensor(1 / 3) * mid) / (0.10 + 1 / 3) + high / 3
    torch.testing.assert_close(losses.total.detach(), expected, rtol=1e-5, atol=1e-6)


def test_missing_pixels_carry_no_loss():
    model, image = tiny_model(), natural_image(2, 4, 16, 16)
    image[:, :, 4:8] = torch.nan  # the second of four rows of tokens
    expected = loss_of(model, image)
    error = torch.zeros(16, 1, 1)
    error[4:8] = 100
    model.decoder.head.register_forward_hook(lambda module, arguments, output: output + error)
    torch.testing.assert_close(loss_of(model, image).stages, expected.stages)


def test_a_pixel_missing_in_one_band_is_missing_in_all():
    image = natural_image(1, 4, 8, 8)
    image[0, 1, 2, 3] = torch.nan
    standardised, valid = FOUR_BANDS.standardise(image)
    assert not valid[0, 0, 2, 3]
    assert valid.sum() == 63
    assert (standardised[0, :, 2, 3] == 0).all()


def test_a_patch_with_more_than_half_of_its_pixels_missing_is_never_seen():
    valid = torch.ones(1, 1, 4, 12, dtype=torch.bool)
    valid[..., :2, 0:4] = False  # 8 of 16 pixels
    valid[..., :2, 4:8] = False
    valid[..., 2, 4] = False  # 9 of 16
    assert patch_validity(valid, 4).tolist() == [[True, False, True]]


def test_a_gap_in_one_sample_does_not_touch_another():
    model, image = tiny_model().eval(), natural_image(3, 4, 16, 16)
    other = image.clone()
    other[1, :, :10] = torch.nan
    groups = FOUR_BANDS.group_indices
    with torch.no_grad():
        a, b = (model.predict(x, FOUR_BANDS, noise_for(image, 2), groups).stages for x in (image, other))
    assert b.isfinite().all()
    torch.testing.assert_close(a[:, [0, 2]], b[:, [0, 2]], atol=1e-5, rtol=1e-5)


def test_hidden_pixels_do_not_reach_the_prediction():
    model, image = tiny_model().eval(), natural_image(1, 4, 16, 16)
    groups, noise = FOUR_BANDS.group_indices, noise_for(image, 2)
    with torch.no_grad():
        before = model.predict(image, FOUR_BANDS, noise, groups)
        masked = before.mask.masked.reshape(1, 2, 16)
        patches = patchify(image, 4)
        patches[0, :3, masked[0, 0]] += 1
        patches[0, 3, masked[0, 1]] -= 1
        changed = patches.reshape(1, 4, 4, 4, 4, 4).transpose(3, 4).reshape(1, 4, 16, 16)
        after = model.predict(changed, FOUR_BANDS, noise, groups)
    assert not torch.equal(before.standardised, after.standardised)
    assert torch.equal(before.stages, after.stages)


@pytest.mark.parametrize(
    "name", ["default", "full fusion", "increments as targets", "positions side by side", "baseline"]
)
def test_a_pure_bfloat16_model_trains_a_step(name):
    # Explicit, because autocast keeps transforms in float32 by itself and would hide a wrong type.
    reference, model = tiny_model(ABLATIONS[name]), tiny_model(ABLATIONS[name]).bfloat16()
    assert all(tensor.dtype != torch.float32 for tensor in [*model.parameters(), *model.buffers()])
    image = natural_image(2, 4, 16, 16)
    losses, expected = loss_of(model, image), loss_of(reference, image)
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.stages, expected.stages, rtol=2e-2, atol=0)
    losses.total.backward()
    assert_finite_gradients(model)
    steps = train(model, image, 30)
    assert all(map(math.isfinite, steps))
    assert steps[-1] < 0.98 * steps[0]


@pytest.mark.parametrize("name", ["default", "full fusion", "spectral loss", "positions side by side", "baseline"])
def test_a_model_under_bfloat16_autocast_agrees_with_float32(name):
    model, image = tiny_model(ABLATIONS[name]), natural_image(2, 4, 16, 16)
    expected = loss_of(model, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss_of(model, image)
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.stages, expected.stages, rtol=2e-2, atol=0)
    losses.total.backward()
    assert_finite_gradients(model)


def test_one_seed_gives_one_loss():
    image = natural_image(2, 4, 16, 16)
    first, second, other = (train(tiny_model(seed=seed), image, 3) for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_untrained_losses_are_near_the_power_of_their_targets():
    # An untrained head says little: the loss of each stage is the mean square of its target, plus its own variance.
    image = natural_image(4, 4, 32, 32)
    losses = loss_of(tiny_model(), image).stages
    power = stage_targets(image, FOUR_BANDS, 4, 3, LossConfig()).square().mean((1, 2, 3, 4))
    assert (losses > 0.5 * power).all()
    assert (losses < 5 * power + 1).all()


def test_one_batch_is_learnt_and_its_low_band_best():
    model, image = tiny_model(), natural_image(2, 4, 16, 16)
    losses = train(model, image, 80)
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        low, _, high = loss_of(model, image).stages
    assert low < high


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_switch_trains(name):
    model, image = tiny_model(ABLATIONS[name]), natural_image(2, 4, 16, 16)
    losses = train(model, image, 40)
    assert all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_dropping_bands_of_a_step_leaves_the_others_their_groups():
    model, sensor = tiny_model(), sensor_of(40)
    image = natural_image(2, 40, 8, 8)
    groups = draw_groups(sensor.group_indices, 2, 0, 0)
    assert len(groups) == 2
    result = model.reconstruct(image, sensor, noise_for(image, 2), groups)
    drawn = sorted(index for group in groups for index in group)
    absent = [index for index in range(40) if index not in drawn]
    assert result.stages.shape == (3, 2, 40, 8, 8)
    assert result.stages[:, :, drawn].isfinite().all()
    assert result.stages[:, :, absent].isnan().all()


@pytest.mark.parametrize(
    "name", ["default", "increments as targets", "disjoint targets", "patch-group normalised", "one stage"]
)
def test_reconstructions_are_cumulative_and_end_in_the_image(name):
    model, image = tiny_model(ABLATIONS[name]), natural_image(2, 4, 16, 16)
    with torch.no_grad():
        result = model.reconstruct(image, FOUR_BANDS, noise_for(image, 2))
    assert result.stages.shape == result.targets.shape
    torch.testing.assert_close(result.targets[-1], image.clamp(-5, 5), atol=1e-4, rtol=0)
    share = result.masked.float().mean((0, 2, 3))
    torch.testing.assert_close(share[:3], share[:1].expand(3))  # bands of one group hide together
    assert ((result.masked[:, 0].float().mean() + result.masked[:, 3].float().mean()) / 2).item() == 0.75
    assert result.valid.all()


def test_reconstructions_mean_what_the_losses_compare():
    model, image = tiny_model({"loss": {"normalise": "none"}}), natural_image(2, 4, 16, 16)
    result = model.reconstruct(image, FOUR_BANDS, noise_for(image, 2))
    squared = (result.stages - result.targets).square()
    by_token = torch.nn.functional.avg_pool2d(squared.flatten(0, 1), 4).unflatten(0, (3, 2))  # (k, b, c, 4, 4)
    masked = result.masked[:, :, ::4, ::4]
    tokens = torch.stack([by_token[:, :, :3].mean(2), by_token[:, :, 3]], dim=2)
    hidden = torch.stack([masked[:, 0], masked[:, 3]], dim=1)
    expected = (tokens * hidden).sum((2, 3, 4)) / hidden.sum((1, 2, 3))
    torch.testing.assert_close(loss_of(model, image).stages, expected.mean(1), rtol=1e-4, atol=1e-5)


def test_the_encoder_holds_exactly_the_blocks_of_a_timm_vit():
    encoder = tiny_model().encoder
    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    part = lambda state: {k: v for k, v in state.items() if k.startswith(("blocks.", "norm."))}  # noqa: E731
    theirs, ours = part(vit.state_dict()), part(encoder.state_dict())
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    encoder.blocks.load_state_dict(vit.blocks.state_dict(), strict=True)
    encoder.norm.load_state_dict(vit.norm.state_dict(), strict=True)
    sequence = torch.randn(2, 7, 48)
    expected = vit.norm(vit.blocks(sequence))
    for block in encoder.blocks:
        sequence = block(sequence)
    torch.testing.assert_close(encoder.norm(sequence), expected)


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize(
    ("size", "shape", "decoder"),
    [
        ("nano", (96, 4, 3), (256, 3)),
        ("tiny", (192, 12, 3), (256, 3)),
        ("small", (384, 12, 6), (256, 3)),
        ("base", (768, 12, 12), (512, 3)),
        ("large", (1024, 24, 16), (512, 3)),
    ],
)
def test_named_models_have_their_sizes(size, shape, decoder, patch):
    name = f"alliance_{size}_patch{patch}"
    config = model_config(name)
    assert name in list_models()
    assert (config.encoder.embed_dim, config.encoder.depth, config.encoder.heads) == shape
    assert (config.decoder.embed_dim, config.decoder.depth) == decoder
    assert config.encoder.patch == patch


def test_a_named_model_is_built_and_an_unknown_name_refused():
    model = create_model("alliance_nano_patch8")
    assert model.encoder.embed_dim == 96
    assert model.encoder.patch_size == 8
    with pytest.raises(alliance.InputError, match="alliance_nano_patch8"):
        create_model("alliance_giant_patch8")


def test_activation_checkpointing_changes_no_gradient():
    image, gradients = natural_image(2, 4, 16, 16), []
    for recompute in (False, True):
        model = tiny_model().train()
        model.encoder.activation_checkpointing = model.decoder.activation_checkpointing = recompute
        loss_of(model, image).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_model_that_was_looked_at_can_still_be_trained():
    model, image = tiny_model(), natural_image(1, 4, 36, 44)  # a grid that no other test uses: tables are made now
    with torch.inference_mode():
        loss_of(model, image)
        model.encoder(image, FOUR_BANDS)
    loss_of(model, image).total.backward()
    assert_finite_gradients(model)


def test_configurations_that_cannot_be_built_are_refused():
    for changes in ({"embed_dim": 50}, {"heads": 7}, {"patch": 1}):
        with pytest.raises(alliance.InputError):
            tiny_config({"encoder": changes})
    assert tiny_config().encoder == TINY_ENCODER
