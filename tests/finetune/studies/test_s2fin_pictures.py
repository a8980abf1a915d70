"""What is drawn of a trained S2Fin is what its forward pass uses."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from datasets.labelled import PatchSet, scene_patches
from finetune.s2fin import AttentionConfig, EnhancementConfig, ResonanceConfig, S2Fin, S2FinConfig
from finetune.s2fin.channels import AdaptiveFrequencyChannels, ChannelGains
from finetune.studies.frequencies import by_class, cutoffs, frequencies
from finetune.studies.frequency_pictures import draw_frequencies
from tests.helpers.labelled_files import class_map, made_scene
from tests.helpers.models import randomise

TINY: dict[str, Any] = {"width": 16, "patch": 5}


@pytest.fixture
def patches() -> PatchSet:
    return scene_patches([made_scene(class_map(3), bands=12, channels=2)], patch=5, components=4)


def network(patches: PatchSet, *, trained: bool = True, **changes: Any) -> S2Fin:
    torch.manual_seed(0)
    sizes = patches.channels
    model = S2Fin(
        S2FinConfig(**TINY | changes), bands=sizes["spectral"], components=sizes["passive"], channels=sizes["active"],
        classes=len(patches.classes),
    )  # fmt: skip
    if trained:
        randomise(model)
    return model.eval()


PIXELS = np.arange(7)


def test_threshold_and_filter_are_those_that_shape_the_signatures(patches):
    """h(f) is the ratio of the spectra behind and before the filter, at every pixel."""
    model = network(patches)
    found = frequencies(model, patches, PIXELS)
    inputs, label = patches.batch(PIXELS)
    with torch.no_grad():
        assert torch.allclose(model(*inputs).threshold, torch.from_numpy(found.threshold))
        after = model.hfset.filter(inputs.spectral)[0]
    ratio = np.abs(np.fft.rfft(after.numpy(), axis=1)) / np.abs(np.fft.rfft(inputs.spectral.numpy(), axis=1))
    assert np.allclose(ratio, found.response[:, :, None, None], atol=2e-3)
    assert np.array_equal(found.label, label.numpy())


def test_channel_gains_rebuild_the_module():
    """GELU(F + BN(Conv(2 (w_L L + w_H g H)))) from the gains alone is what the module gives."""
    torch.manual_seed(1)
    module = AdaptiveFrequencyChannels(16, 2, 0.05).eval()
    randomise(module)
    features = [torch.randn(3, 16, 5, 5) for _ in range(2)]
    gains = ChannelGains(*(one[..., None, None] for one in module.gains(features)))
    (low0, low1), highs = module.parts(features)
    low = gains.structure[0] * low0 + gains.structure[1] * low1
    for k, expected in enumerate(module(features)):
        mixed = gains.low[k] * low + gains.high[k] * gains.detail[k] * highs[k]
        rebuilt = nn.functional.gelu(features[k] + module.choices[k].project(2 * mixed))
        torch.testing.assert_close(rebuilt, expected)


def test_channel_gains_are_shares(patches):
    gains = frequencies(network(patches), patches, PIXELS).gains
    assert {tuple(one.shape) for one in gains} == {(2, 7, 16)}
    torch.testing.assert_close(gains.structure.sum(dim=0), torch.ones(7, 16))
    torch.testing.assert_close(gains.low + gains.high, torch.ones(2, 7, 16))
    assert ((gains.detail > 1) & (gains.detail < 2)).all()


@pytest.mark.parametrize("swapped", [False, True])
def test_maps_are_taken_where_the_modules_stand(swapped, patches):
    model = network(patches, swapped=swapped)
    seen = {}
    for name in ("afcm", "hfrm"):
        getattr(model, name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    inputs, _ = patches.batch(PIXELS)
    with torch.no_grad():
        model(*inputs)
        mask = model.hfrm.mask(seen["hfrm"]).mean(dim=-1).reshape(7, 5, 3)
        gains = model.afcm.gains(seen["afcm"])
    found = frequencies(model, patches, PIXELS)
    assert np.allclose(found.mask, mask, atol=1e-6)
    torch.testing.assert_close(found.gains, gains)


def test_a_mask_without_phase_is_the_high_pass_at_its_place(patches):
    """s((R - 0.31) / 0.05), R = sqrt((f_u^2 + f_v^2) / 2) in units of Nyquist, rows as numpy's fftfreq."""
    model = network(patches, trained=False, hfrm=ResonanceConfig(mask="high-pass"))
    rows, columns = 2 * np.fft.fftfreq(5)[:, None], 2 * np.fft.rfftfreq(5)
    expected = 1 / (1 + np.exp((0.31 - np.sqrt((rows**2 + columns**2) / 2)) / 0.05))
    found = frequencies(model, patches, PIXELS)
    assert found.mask.shape == (7, 5, 3)
    assert np.allclose(found.mask, expected, atol=1e-5)
    assert cutoffs(model) == pytest.approx({"afcm passive": 0.31, "afcm active": 0.31, "hfrm": 0.31})


def test_batches_change_nothing_and_the_mode_stays(patches):
    model = network(patches).train()
    one, all_at_once = (frequencies(model, patches, PIXELS, batch=batch) for batch in (2, 100))
    assert model.training
    for name in ("threshold", "response", "mask"):
        assert np.allclose(getattr(one, name), getattr(all_at_once, name), atol=1e-5)
    torch.testing.assert_close(one.gains, all_at_once.gains, atol=1e-5, rtol=1e-4)


def test_means_by_class_by_hand():
    found = by_class(np.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), np.array([4, 4, 0]))
    assert {k: mean.tolist() for k, mean in found.items()} == {0: [9.0, 9.0], 4: [2.0, 3.0]}


VARIANTS = {
    "default": {},
    "passive": {"inputs": "passive"},
    "active": {"inputs": "active"},
    "fixed": {"hfset": EnhancementConfig(threshold="fixed"), "attention": AttentionConfig(kind="plain")},
    "nothing": {"hfset": EnhancementConfig(filter=False), "afcm": False, "hfrm": ResonanceConfig(mask="none")},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_drawn_with_what_it_has(name, patches, tmp_path):
    model = network(patches, **VARIANTS[name])
    found = frequencies(model, patches, np.arange(len(patches)))
    there = {key for key in ("threshold", "response", "gains", "mask") if getattr(found, key) is not None}
    assert (
        there
        == {
            "default": {"threshold", "response", "gains", "mask"},
            "passive": {"threshold", "response", "gains"},
            "active": {"gains"},
            "fixed": {"threshold", "response", "gains", "mask"},
            "nothing": set(),
        }[name]
    )
    draw_frequencies(tmp_path / "pictures" / "frequencies.png", found, model, patches, title=name)
    assert plt.imread(tmp_path / "pictures" / "frequencies.png").std() > 0.05
    assert not plt.get_fignums()
