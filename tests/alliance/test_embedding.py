"""Tokens from pixels of any bands, positions, and the frequency-aware cls and mask tokens."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional as F

from alliance.embedding import BandKernels, FrequencyEmbedding, PatchEmbedding, TokenPosition, reference_bands
from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.frequency import patch_log_amplitude
from alliance.positions import BandCode, fourier, spatial_position
from alliance.sensors import Band, Sensor
from alliance.tokens import patchify, unpatchify
from tests.helpers.models import FOUR_BANDS, FOUR_SAR, TINY_ENCODER, natural_image, randomise, sensor_of, tiny_model

CPU = torch.device("cpu")


def encoder(*sensors: Sensor, seed: int = 0, **changes) -> AllianceEncoder:
    torch.manual_seed(seed)
    return AllianceEncoder(dataclasses.replace(TINY_ENCODER, **changes), sensors).eval()


def tokens_of(module: AllianceEncoder, image: Tensor, sensor: Sensor) -> Tensor:
    return module.embed(image, sensor, sensor.group_indices).tokens


def band_kernels(module: torch.nn.Module) -> BandKernels:
    assert isinstance(module, BandKernels)
    return module


def reset_code() -> BandCode:
    torch.manual_seed(0)
    code = BandCode()
    code.reset_parameters()
    return code


def test_tokens_do_not_depend_on_the_order_of_channels_inside_a_group():
    module, image = encoder(), natural_image(2, 4, 8, 12)
    order = [2, 3, 0, 1]
    shuffled = FOUR_BANDS.select([FOUR_BANDS.band_names[i] for i in order])
    listed = dataclasses.replace(FOUR_BANDS, groups=(("band2", "band0", "band1"), ("band3",)))
    expected = tokens_of(module, image, FOUR_BANDS)
    torch.testing.assert_close(tokens_of(module, image[:, order], shuffled), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens_of(module, image, listed), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tokens_of(module, image[:, order], FOUR_BANDS), expected, atol=1e-2)


@pytest.mark.parametrize("amplitude", [False, True])
def test_tokens_follow_the_formula_of_virtual_channels(amplitude):
    # y_g[r] = |g|^-1/2 sum_c a_r(d_c) x_c;  e_g = Conv2d(y_g; U, stride p) + b + pos + s_g, and the same of the amplitude
    module, image, p = encoder(amplitude=amplitude), natural_image(2, 4, 8, 12), 4
    randomise(module.patch_embed, std=0.1)
    embed, groups = module.patch_embed, FOUR_BANDS.group_indices
    code = embed.code(FOUR_BANDS.bands)
    log_dct = unpatchify(patch_log_amplitude(patchify(image, p), p), 2, 3)
    expected = []
    for g, group in enumerate(groups):
        tokens = embed.bias + embed.position(code, groups, 2, 3)[g]
        for values, kernels in ((image, embed.kernels), (log_dct, embed.amplitude_kernels)):
            if kernels is None:
                continue
            source = band_kernels(kernels.source)
            mix = source.mixer(code[list(group)])
            virtual = torch.einsum("cr,bchw->brhw", mix, values[:, list(group)]) / math.sqrt(len(group))
            weight = source.basis.unflatten(1, (p, p)).permute(3, 0, 1, 2)  # (d, r, p, p)
            tokens = tokens + F.conv2d(virtual, weight, stride=p).flatten(2).mT
        expected.append(tokens)
    assert (embed.amplitude_kernels is not None) == amplitude
    torch.testing.assert_close(tokens_of(module, image, FOUR_BANDS), torch.stack(expected, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("c", "groups"), [(1, 1), (2, 1), (3, 1), (10, 1), (12, 1), (13, 1), (103, 7), (224, 12), (369, 12)]
)
def test_one_encoder_takes_any_number_of_bands(c, groups):
    image = natural_image(1, c, 8, 12)
    features = encoder()(image, sensor_of(c))
    assert features.cls.shape == (1, 48)
    assert features.frequency.shape == (1, 3, 48)
    assert features.tokens.shape == (1, groups, 6, 48)
    assert all(part.isfinite().all() for part in features)


def test_blue_and_short_wave_infrared_have_clearly_different_codes():
    blue, swir = Band(name="B2", wavelength=492.4, bandwidth=66.0), Band(name="B12", wavelength=2202.4, bandwidth=175.0)
    code = reset_code()([blue, swir])
    assert F.cosine_similarity(code[0], code[1], dim=0) < 0.9
    wave = fourier(torch.log10(torch.tensor([492.4, 2202.4, 497.0])))
    assert F.cosine_similarity(wave[0], wave[1], dim=0) < 0.9
    assert F.cosine_similarity(wave[0], wave[2], dim=0) > F.cosine_similarity(wave[0], wave[1], dim=0)


def test_the_fourier_code_has_32_periods_from_14_to_a_fiftieth_decades():
    periods = 14 * (0.02 / 14) ** (np.arange(32) / 31)
    angle = 2 * np.pi * 2.7 / periods
    expected = np.concatenate([np.sin(angle), np.cos(angle)])
    np.testing.assert_allclose(fourier(torch.tensor(2.7)).numpy(), expected, atol=2e-3)  # float32 of angles near 850


def test_kernels_start_with_unit_gain_on_the_reference_bands():
    model = tiny_model()
    code = model.encoder.patch_embed.code(reference_bands())
    amplitude = model.encoder.patch_embed.amplitude_kernels
    assert amplitude is not None
    for kernels in (model.encoder.patch_embed.kernels, amplitude, model.decoder.head.kernels):
        mix = band_kernels(kernels.source).mixer(code)
        assert mix.square().sum(-1).mean().item() == pytest.approx(1, abs=1e-4)
        assert mix.shape[1] == 32


def test_radar_and_elevation_have_a_modality_and_no_wavelength():
    code = reset_code()
    kinds = ("sar-vv", "sar-vh", "elevation", "optical")
    bands = [Band(name=kind, modality=kind) for kind in kinds]
    codes = code(bands)
    for part in codes:
        torch.testing.assert_close(part[:128], torch.cat([code.no_wavelength, code.no_bandwidth]))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert all(F.cosine_similarity(codes[i, 128:], codes[j, 128:], dim=0) < 0.9 for i, j in pairs)
    known = code([Band(name="red", wavelength=665.0)])[0]
    assert not torch.allclose(known[:64], code.no_wavelength)
    torch.testing.assert_close(known[64:128], code.no_bandwidth)


def test_changing_the_modality_changes_the_tokens():
    module, image = encoder(), natural_image(1, 2, 8, 8)
    other = dataclasses.replace(
        FOUR_SAR, bands=tuple(dataclasses.replace(b, modality="elevation") for b in FOUR_SAR.bands)
    )
    assert len(FOUR_SAR.group_indices) == 1
    assert not torch.allclose(tokens_of(module, image, FOUR_SAR), tokens_of(module, image, other), atol=1e-2)


@pytest.mark.parametrize(("d", "heads", "jumbo"), [(40, 2, 1), (48, 3, 1), (40, 2, 4)])
def test_frequency_tokens_start_as_waves_on_their_own_third(d, heads, jumbo):
    config = {"embed_dim": d, "heads": heads, "jumbo": jumbo}
    special = tiny_model({"encoder": config}).encoder.special  # the whole model, whose generic init comes last
    assert isinstance(special, FrequencyEmbedding)
    waves, third = special.waves.detach(), jumbo * d // 3
    assert waves.shape == (3, jumbo * d)
    edges = [0, third, 2 * third, jumbo * d]
    expected = torch.zeros(3, jumbo * d)
    for k, half_periods in enumerate((1, 3, 6)):
        length = edges[k + 1] - edges[k]
        expected[k, edges[k] : edges[k + 1]] = 0.1 * torch.cos(math.pi * half_periods * torch.arange(length) / length)
    noise = waves - expected
    assert noise.abs().max() < 0.05  # five deviations
    assert noise.std() == pytest.approx(0.01, rel=0.25)


def test_frequency_tokens_are_refined_projected_and_fused():
    special = encoder().special
    assert isinstance(special, FrequencyEmbedding)
    randomise(special, std=0.05)
    rows = []
    for wave, refine, project in zip(special.waves, special.refine, special.project, strict=True):
        norm, widen, _, narrow = refine
        hidden = F.gelu(widen(F.layer_norm(wave, (48,), norm.weight, norm.bias, 1e-6)))
        assert hidden.shape == (96,)
        rows.append(project(wave + narrow(hidden)))
    out, fuse = special(), special.fuse
    torch.testing.assert_close(out.frequency, torch.stack(rows))
    joined = F.layer_norm(torch.cat(rows), (144,), fuse[0].weight, fuse[0].bias, 1e-6)
    expected = F.layer_norm(F.gelu(fuse[1](joined)), (48,), fuse[3].weight, fuse[3].bias, 1e-6)
    torch.testing.assert_close(out.cls[0], expected)


@pytest.mark.parametrize(("jumbo", "millions"), [(1, 11), (4, 122)])
def test_cost_of_the_frequency_tokens_of_the_base_model(jumbo, millions):
    with torch.device("meta"):
        special = FrequencyEmbedding(768, jumbo)
    assert sum(p.numel() for p in special.parameters()) / 1e6 == pytest.approx(millions, abs=0.7)


def test_frequency_tokens_do_not_see_the_image_and_can_be_kept():
    module = encoder()
    groups = FOUR_BANDS.group_indices
    first, second = (module.embed(natural_image(1, 4, 8, 8, seed=s), FOUR_BANDS, groups).special for s in (0, 1))
    assert torch.equal(first.cls, second.cls)
    assert torch.equal(first.frequency, second.frequency)


def test_plain_tokens_are_one_learned_vector():
    module = encoder(tokens="plain")
    features = module(natural_image(2, 4, 8, 8), FOUR_BANDS)
    assert module.num_prefix_tokens == 1
    assert sum(p.numel() for p in module.special.parameters()) == 48
    assert features.cls.shape == (2, 48)
    assert features.frequency.shape == (2, 0, 48)


def test_positions_side_by_side_keep_space_and_spectrum_apart():
    position = encoder(position="concat").patch_embed.position
    assert position.spatial_width + position.spectral_width == 48
    out = position(reset_code()(FOUR_BANDS.bands), FOUR_BANDS.group_indices, 2, 3)
    space, spectrum = out.split([position.spatial_width, position.spectral_width], dim=-1)
    torch.testing.assert_close(space, space[:1].expand_as(space))
    torch.testing.assert_close(spectrum, spectrum[:, :1].expand_as(spectrum))
    assert not torch.allclose(spectrum[0], spectrum[1])
    torch.testing.assert_close(space[0], spatial_position(2, 3, position.spatial_width, CPU))


@pytest.mark.parametrize(("d", "spectral"), [(768, 256), (512, 128)])
def test_positions_side_by_side_have_the_published_widths(d, spectral):
    position = TokenPosition(d, "concat")
    assert (position.spatial_width, position.spectral_width) == (d - spectral, spectral)


@pytest.mark.parametrize(("h", "w"), [(3, 5), (5, 3), (4, 4)])
def test_spatial_positions_are_rows_and_columns_in_raster_order(h, w):
    grid = spatial_position(h, w, 16, CPU).reshape(h, w, 16)
    by_row = (grid == grid[:, :1]).all(1).all(0)  # the same along each row
    by_column = (grid == grid[:1]).all(0).all(0)
    assert by_row.sum() == by_column.sum() == 8
    assert not (by_row & by_column).any()
    assert len({tuple(cell.tolist()) for cell in grid.reshape(-1, 16)}) == h * w


def test_nothing_learned_depends_on_the_size_of_the_image():
    module = encoder()
    before = {name: value.shape for name, value in module.state_dict().items()}
    for h, w in ((4, 4), (12, 20), (28, 8)):
        assert module(natural_image(1, 4, h, w), FOUR_BANDS).tokens.shape == (1, 2, h * w // 16, 48)
    assert {name: value.shape for name, value in module.state_dict().items()} == before


def test_a_fixed_tokenizer_has_kernels_of_its_sensors_and_refuses_others():
    module = encoder(FOUR_BANDS, tokenizer="fixed")
    image = natural_image(1, 4, 8, 8)
    assert module(image, FOUR_BANDS).tokens.shape == (1, 2, 4, 48)
    with pytest.raises(InputError, match=r"four.*not sensor strange.*wavelength"):
        module(image, dataclasses.replace(FOUR_BANDS, name="strange"))


def test_a_fixed_tokenizer_without_sensors_is_refused():
    with pytest.raises(InputError, match="sensors"):
        AllianceEncoder(EncoderConfig(tokenizer="fixed"))


@pytest.mark.parametrize("names", [("band1", "band2"), ("band1", "band0", "band2", "band3")])
def test_a_fixed_tokenizer_uses_the_kernel_of_the_band_and_not_of_its_place(names):
    module, image = encoder(FOUR_BANDS, tokenizer="fixed"), natural_image(1, 4, 8, 8)
    others = tuple(name for name in FOUR_BANDS.band_names if name not in names)
    whole = dataclasses.replace(FOUR_BANDS, groups=(names, others) if others else (names,))
    some = dataclasses.replace(FOUR_BANDS.select(names), groups=(names,))
    try:
        tokens = tokens_of(module, image[:, [FOUR_BANDS.band_names.index(name) for name in names]], some)
    except InputError:
        return  # to refuse is as good
    torch.testing.assert_close(tokens, tokens_of(module, image, whole)[:, :1])


def test_the_amplitude_in_the_token_can_be_left_out():
    image = natural_image(1, 4, 8, 8)
    with_it, without = encoder(), encoder(amplitude=False)
    assert isinstance(without.patch_embed, PatchEmbedding)
    assert without.patch_embed.amplitude_kernels is None
    extra = {name for name, _ in with_it.named_parameters()} - {name for name, _ in without.named_parameters()}
    assert extra
    assert all(name.startswith("patch_embed.amplitude_kernels.") for name in extra)
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if k not in extra})
    assert not torch.allclose(tokens_of(with_it, image, FOUR_BANDS), tokens_of(without, image, FOUR_BANDS), atol=1e-2)


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_the_amplitude_is_the_log_of_the_dct_up_to_constants(patch):
    patches = patchify(natural_image(2, 3, 48, 32), patch)
    seen = patch_log_amplitude(patches, patch)
    blocks = patches.double().numpy().reshape(-1, patch, patch)
    logs = np.log(np.abs(scipy.fft.dctn(blocks, norm="ortho", axes=(-2, -1))) + 0.05).ravel()
    slope, offset = np.polyfit(logs, seen.numpy().ravel(), 1)
    assert 0.5 < slope < 2
    np.testing.assert_allclose(seen.numpy().ravel(), slope * logs + offset, atol=1e-3)
    assert seen.shape == patches.shape
    assert seen.abs().mean() < 2  # of the order of one


def test_the_amplitude_of_an_empty_patch_is_finite():
    assert patch_log_amplitude(torch.zeros(1, 1, 3, 16), 4).isfinite().all()
