"""Patches, band groups and 3-D masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alliance.errors import InputError
from alliance.losses import group_patches
from alliance.sensors import Sensor
from alliance.tokens import (
    MaskingConfig,
    draw_groups,
    draw_mask,
    group_table,
    mask_noise,
    patchify,
    take,
    ungroup,
    unpatchify,
)
from tests.helpers.models import FOUR_BANDS, natural_image, sensor_of, tiny_model


@st.composite
def masks(draw):
    """Batch, groups, tokens of a group, ratio, geometry, seed."""
    return (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        draw(st.integers(4, 40)),
        draw(st.floats(0.05, 0.95)),
        draw(st.sampled_from(["independent", "tube"])),
        draw(st.integers(0, 2**31)),
    )


@settings(max_examples=60, deadline=None)
@given(masks())
def test_visible_and_masked_partition_the_tokens(case):
    b, g, n, ratio, geometry, seed = case
    config = MaskingConfig(ratio=ratio, geometry=geometry)
    mask = draw_mask(mask_noise(seed, 0, range(b), g * n), torch.ones(b, n, dtype=torch.bool), g, config)
    assert mask.masked.shape == (b, g * n)
    assert mask.masked.dtype == torch.bool
    for visible, masked in zip(mask.visible, mask.masked, strict=True):
        hidden = masked.nonzero()[:, 0]
        assert sorted([*visible.tolist(), *hidden.tolist()]) == list(range(g * n))


@settings(max_examples=60, deadline=None)
@given(masks())
def test_the_ratio_sets_how_many_tokens_are_visible(case):
    b, g, n, ratio, geometry, seed = case
    config = MaskingConfig(ratio=ratio, geometry=geometry)
    mask = draw_mask(mask_noise(seed, 0, range(b), g * n), torch.ones(b, n, dtype=torch.bool), g, config)
    keep = g * round((1 - ratio) * n) if geometry == "tube" else round((1 - ratio) * g * n)
    assert mask.visible.shape == (b, max(keep, g if geometry == "tube" else 1))


def test_hand_worked_counts_of_visible_tokens():
    def count(groups: int, n: int) -> int:
        return draw_mask(
            mask_noise(0, 0, [0], groups * n), torch.ones(1, n, dtype=torch.bool), groups, MaskingConfig()
        ).visible.shape[1]

    assert count(1, 196) == 49  # 0.75 up to three groups
    assert count(3, 144) == 108
    assert count(4, 256) == 102  # 0.90 above: round(102.4)
    assert count(6, 256) == 154  # round(153.6)


def test_tubes_hide_the_same_places_in_every_group():
    g, n = 3, 20
    config = MaskingConfig(ratio=0.7, geometry="tube")
    mask = draw_mask(mask_noise(1, 2, range(4), g * n), torch.ones(4, n, dtype=torch.bool), g, config)
    by_group = mask.masked.reshape(4, g, n)
    assert torch.equal(by_group[:, 0], by_group[:, 1])
    assert torch.equal(by_group[:, 0], by_group[:, 2])
    assert not torch.equal(by_group[0], by_group[1])


def test_independent_masks_differ_between_groups():
    g, n = 3, 20
    mask = draw_mask(mask_noise(1, 2, range(4), g * n), torch.ones(4, n, dtype=torch.bool), g, MaskingConfig(ratio=0.7))
    by_group = mask.masked.reshape(4, g, n)
    assert not torch.equal(by_group[:, 0], by_group[:, 1])


def test_every_token_is_visible_equally_often():
    n, config = 16, MaskingConfig(ratio=0.75)
    mask = draw_mask(mask_noise(0, 0, range(4000), 2 * n), torch.ones(4000, n, dtype=torch.bool), 2, config)
    share = (~mask.masked).float().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5  # five standard errors


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**7), cut=st.integers(0, 6))
def test_masks_do_not_depend_on_how_a_batch_is_dealt(seed, step, cut):
    whole = mask_noise(seed, step, range(6), 10)
    parts = [mask_noise(seed, step, positions, 10) for positions in (range(cut), range(cut, 6)) if len(positions)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(mask_noise(seed, step, [5, 0], 10), whole[[5, 0]])


def test_noise_changes_with_seed_step_and_position():
    rows = [mask_noise(*key, [position], 50)[0] for key in ((0, 0), (0, 1), (1, 0), (1, 1)) for position in (0, 1)]
    assert len({tuple(row.tolist()) for row in rows}) == 8
    assert all(row.min() >= 0 and row.max() < 1 for row in rows)


def test_noise_does_not_touch_global_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mask_noise(0, 0, range(4), 10)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=60, deadline=None)
@given(masks(), st.data())
def test_invalid_patches_are_never_visible_while_valid_ones_remain(case, data):
    b, g, n, ratio, geometry, seed = case
    config = MaskingConfig(ratio=ratio, geometry=geometry)
    keep = max(1, round((1 - ratio) * n)) if geometry == "tube" else -(-max(1, round((1 - ratio) * g * n)) // g)
    invalid = data.draw(st.sets(st.integers(0, n - 1), max_size=max(n - keep, 0)))
    valid = torch.ones(b, n, dtype=torch.bool)
    valid[:, sorted(invalid)] = False
    mask = draw_mask(mask_noise(seed, 1, range(b), g * n), valid, g, config)
    assert valid.repeat(1, g).gather(1, mask.visible).all()


def test_a_sample_with_too_few_valid_patches_keeps_the_shape_of_the_batch():
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1] = False
    mask = draw_mask(mask_noise(0, 0, range(2), 8), valid, 1, MaskingConfig(ratio=0.5))
    assert mask.visible.shape == (2, 4)
    assert mask.masked.sum(1).tolist() == [4, 4]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(InputError, match="ratio"):
        MaskingConfig(ratio=ratio)


def test_take_gathers_tokens():
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    assert torch.equal(take(tokens, torch.tensor([[3, 1]])), tokens[:, [3, 1]])


def test_patches_are_rows_of_pixels_in_raster_order():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[0.0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    assert torch.equal(patchify(image, 2)[0, 0], expected)


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 5), w=st.integers(1, 5), patch=st.integers(1, 5), c=st.integers(1, 3))
def test_unpatchify_undoes_patchify(h, w, patch, c):
    image = torch.arange(2.0 * c * h * w * patch**2).reshape(2, c, h * patch, w * patch)
    patches = patchify(image, patch)
    assert patches.shape == (2, c, h * w, patch**2)
    assert torch.equal(unpatchify(patches, h, w), image)


@pytest.mark.parametrize(("h", "w"), [(18, 16), (16, 18), (3, 16)])
def test_an_image_that_the_patch_does_not_divide_is_refused_with_numbers(h, w):
    model, image = tiny_model(), torch.zeros(1, 4, h, w)
    for call in (lambda: patchify(image, 4), lambda: model.encoder(image, FOUR_BANDS)):
        with pytest.raises(InputError, match=rf"{h} x {w}.*4"):
            call()


def test_pretraining_refuses_a_size_that_the_patch_does_not_divide():
    with pytest.raises(InputError, match=r"18 x 16.*4"):
        tiny_model()(torch.zeros(1, 4, 18, 16), FOUR_BANDS, mask_noise(0, 0, [0], 32))


@settings(max_examples=30, deadline=None)
@given(most=st.integers(1, 8), seed=st.integers(0, 2**31), step=st.integers(0, 10**6))
def test_groups_are_drawn_alike_for_one_seed_and_step(most, seed, step):
    groups = sensor_of(100).group_indices
    assert len(groups) == 7  # ceil(100 / 16)
    drawn = draw_groups(groups, most, seed, step)
    assert len(drawn) == min(most, 7)
    assert list(drawn) == [group for group in groups if group in drawn]  # in order, none twice
    assert drawn == draw_groups(groups, most, seed, step)


def test_all_groups_are_drawn_in_the_course_of_a_run():
    groups = sensor_of(100).group_indices
    drawn = {group for step in range(50) for group in draw_groups(groups, 2, 0, step)}
    assert drawn == set(groups)


@pytest.mark.parametrize(("c", "count"), [(1, 1), (3, 1), (16, 1), (17, 2), (103, 7), (192, 12), (224, 12), (369, 12)])
def test_windows_of_bands_hold_every_band_once(c, count):
    groups = sensor_of(c).group_indices
    assert len(groups) == count
    assert sorted(index for group in groups for index in group) == list(range(c))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_windows_follow_the_wavelength_and_not_the_order_of_channels():
    ordered = sensor_of(40)
    shuffled = Sensor(name="shuffled", bands=ordered.bands[::-1])
    wavelengths = [shuffled.bands[index].wavelength for group in shuffled.group_indices for index in group]
    assert wavelengths == sorted(wavelengths)


@pytest.mark.parametrize("groups", [((0, 1, 2), (3,)), ((3, 0), (2,), (1,)), ((2, 1, 0, 3),)])
def test_ungroup_undoes_grouping(groups):
    image = natural_image(2, 4, 8, 12)
    grouped = group_patches(image, 4, groups)
    assert grouped.shape == (2, len(groups), 6, max(map(len, groups)), 16)
    assert torch.equal(unpatchify(ungroup(grouped, groups, 4), 2, 3), image)


def test_channels_of_groups_that_were_not_drawn_are_nan():
    image = natural_image(2, 4, 8, 12)
    restored = ungroup(group_patches(image, 4, [(2,), (0,)]), [(2,), (0,)], 4)
    assert torch.equal(restored[:, [0, 2]], patchify(image, 4)[:, [0, 2]])
    assert restored[:, [1, 3]].isnan().all()


def test_the_group_table_says_which_places_are_real():
    table = group_table([(4, 2, 0), (1,)], torch.device("cpu"))
    index, real = table.channels, table.real
    assert len(table) == 2
    assert index[0].tolist() == [4, 2, 0]
    assert index[1, 0] == 1
    assert real.tolist() == [[True, True, True], [True, False, False]]
