"""Differences between optical and SAR images: the formulas of PAD's section III-A, and the command that applies them."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alliance.errors import InputError
from alliance.sensors.catalog import find_sensor
from datasets.imagery.rasters import describe_raster
from finetune.studies import spectra
from finetune.studies.modality_gap import (
    EDGES,
    REGIONS,
    UNRELATED_APPD,
    GapConfig,
    Normaliser,
    Study,
    distinct_bins,
    frequency_bands,
    growth,
    modality_gap,
    normality,
    phase_difference,
    radial_profile,
    relative_difference,
    sampled_moments,
    spectrum,
)
from finetune.studies.spectra import Source, read_image
from tests.helpers.rasters import S2_NAMES, counts, write_tiff

TABLES = ("pairs.csv", "bands.csv", "profile.csv", "sampling.csv", "histograms.csv")
FIGURES = ("maps.png", "profile.png", "sampling.png", "histograms.png")


def noise(seed: int, h: int = 32, w: int = 48) -> np.ndarray:
    """White noise about 0.5, whose spectrum has no empty bin."""
    return 0.5 + 0.1 * np.random.default_rng(seed).standard_normal((h, w))


def radius(h: int, w: int) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("normaliser", ["optical", "sum"])
def test_identical_images_do_not_differ(normaliser: Normaliser) -> None:
    for difference in modality_gap(noise(0), noise(0), GapConfig(normaliser=normaliser)):
        np.testing.assert_allclose(difference, 0, atol=1e-12)


def test_the_relative_difference_of_a_worked_case() -> None:
    optical, sar = np.array([0.5, 0.0, -1.0]), np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(relative_difference(optical, sar, "optical", 0.5), [0.25 / 1.0, 0.5 / 0.5, 2.0 / 1.5])
    np.testing.assert_allclose(relative_difference(optical, sar, "sum", 0.5), [0.25 / 1.25, 0.5 / 1.0, 2.0 / 2.5])


def test_a_shift_changes_the_phase_alone() -> None:
    optical = noise(1)
    gap = modality_gap(optical, np.roll(optical, (3, 5), axis=(0, 1)), GapConfig())
    fy, fx = np.fft.fftfreq(32)[:, None], np.fft.fftfreq(48)[None, :]
    turns = 3 * fy + 5 * fx
    np.testing.assert_allclose(gap.rad, 0, atol=1e-6)
    np.testing.assert_allclose(gap.appd, 2 * math.pi * np.abs(turns - np.round(turns)), atol=1e-6)


def test_a_negative_has_the_same_amplitudes_and_opposite_phases() -> None:
    gap = modality_gap(noise(2), 1 - noise(2), GapConfig())
    away = radius(32, 48) > 0
    np.testing.assert_allclose(gap.rad[away], 0, atol=1e-6)
    np.testing.assert_allclose(gap.appd[away], math.pi, atol=1e-6)


def test_three_times_the_contrast_is_a_relative_difference_of_two() -> None:
    gap = modality_gap(noise(3), 3 * noise(3), GapConfig(pixel_epsilon=1e-12, amplitude_epsilon=1e-12))
    np.testing.assert_allclose(gap.rsd, 2)
    np.testing.assert_allclose(gap.rad, 2)
    np.testing.assert_allclose(gap.appd, 0, atol=1e-12)


@pytest.mark.parametrize(("phase", "expected"), [(0.7, 0.7), (-0.7, 0.7), (1.5 * math.pi, 0.5 * math.pi)])
def test_a_grating_differs_in_its_own_bin(phase: float, expected: float) -> None:
    columns = np.arange(48)[None, :] * np.ones((32, 1))
    optical = 0.2 * np.cos(2 * math.pi * 6 * columns / 48)
    sar = 0.5 * np.cos(2 * math.pi * 6 * columns / 48 + phase)
    gap = modality_gap(optical, sar, GapConfig(amplitude_epsilon=0.1))
    amplitudes = np.array([0.2, 0.5]) * math.sqrt(32 * 48) / 2  # half of a cosine's energy lies in either bin
    assert gap.rad[0, 6] == pytest.approx((amplitudes[1] - amplitudes[0]) / (amplitudes[0] + 0.1))
    assert gap.appd[0, 6] == pytest.approx(expected)
    assert gap.appd[0, -6] == pytest.approx(expected)


def test_amplitudes_keep_the_energy_of_the_image() -> None:
    assert np.square(np.abs(spectrum(noise(4)))).sum() == pytest.approx(np.square(noise(4)).sum())


def test_the_phases_of_unrelated_images_differ_by_every_angle_alike() -> None:
    appd = phase_difference(spectrum(noise(5, 256, 256)), spectrum(noise(6, 256, 256)))[distinct_bins(256, 256)]
    assert appd.mean() == pytest.approx(UNRELATED_APPD, abs=5 * math.pi / math.sqrt(12 * appd.size))
    assert appd.var() == pytest.approx(math.pi**2 / 12, rel=0.02)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (17, 20), (20, 17), (17, 19)])
def test_distinct_bins_hold_one_of_each_mirrored_two(h: int, w: int) -> None:
    distinct = distinct_bins(h, w)
    mirrored = np.roll(distinct[::-1, ::-1], (1, 1), axis=(0, 1))
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :]
    nyquist_column = (fx == -0.5) & (fy > -1)
    assert not (distinct & mirrored).any()
    neither = ~distinct & ~mirrored
    assert set(zip(*np.nonzero(neither & ~nyquist_column), strict=True)) == {
        (0, 0),
        *([(h // 2, 0)] if h % 2 == 0 else []),
    }


def test_low_and_high_make_up_the_whole() -> None:
    bands = frequency_bands(32, 48, 0.25)
    assert np.array_equal(bands["low"] ^ bands["high"], bands["whole"])
    assert radius(32, 48)[bands["low"]].max() <= 0.25 < radius(32, 48)[bands["high"]].min()


@pytest.mark.parametrize("shape", [(32, 48), (33, 21)])
def test_a_profile_is_the_mean_of_rings(shape: tuple[int, int]) -> None:
    values, size = noise(7, *shape), min(shape)
    frequency, profile = radial_profile(values)
    member = distinct_bins(*shape)
    expected = [
        values[member & (np.abs(radius(*shape) * size - ring) <= 0.5)].mean() for ring in range(1, (size - 1) // 2 + 1)
    ]
    np.testing.assert_allclose(frequency * size, range(1, len(expected) + 1))
    np.testing.assert_allclose(profile, expected)


def test_a_gain_that_rises_with_frequency_is_the_amplitude_difference() -> None:
    optical = noise(8, 64, 64)
    sar = np.fft.ifft2(np.fft.fft2(optical) * (1 + radius(64, 64))).real
    gap = modality_gap(optical, sar, GapConfig(amplitude_epsilon=1e-12))
    frequency, profile = radial_profile(gap.rad)
    np.testing.assert_allclose(gap.rad, radius(64, 64), atol=1e-9)
    np.testing.assert_allclose(profile, frequency, atol=0.5 / 64)
    assert growth(frequency, profile) == pytest.approx(1)
    assert growth(frequency, -profile) == pytest.approx(-1)


def test_normality_tells_normal_values_from_others() -> None:
    rng = np.random.default_rng(0)
    normal, skewed = normality(rng.normal(3, 2, 20_000), rng), normality(rng.exponential(size=200_000), rng)
    assert (normal.values, normal.mean, normal.std) == (20_000, pytest.approx(3, abs=0.1), pytest.approx(2, abs=0.1))
    assert (normal.skewness, normal.kurtosis) == (pytest.approx(0, abs=0.09), pytest.approx(0, abs=0.18))
    assert normal.shapiro_w > 0.999
    assert min(normal.shapiro_p, normal.dagostino_p) > 1e-3
    assert (skewed.skewness, skewed.kurtosis) == (pytest.approx(2, abs=0.1), pytest.approx(6, abs=1))
    assert max(skewed.shapiro_p, skewed.dagostino_p) < 1e-6


def test_equal_values_have_no_shape() -> None:
    assert all(math.isnan(value) for value in normality(np.full(50, 0.3), np.random.default_rng(0))[3:])


def test_all_pairs_drawn_give_the_moments_of_all_values() -> None:
    values = np.random.default_rng(0).gamma(2, size=(5, 100))
    moments = np.stack([values.mean(axis=1), np.square(values).mean(axis=1)], axis=-1)[:, None]
    pairs, drawn = sampled_moments(moments, [0.1, 0.2, 0.4, 1.0], 7, np.random.default_rng(1))
    assert pairs.tolist() == [1, 2, 5]
    assert drawn.shape == (7, 3, 1, 2)
    np.testing.assert_allclose(drawn[:, -1, 0], np.tile([values.mean(), values.var()], (7, 1)))
    single = {(round(row.mean(), 9), round(row.var(), 9)) for row in values}
    assert {(round(mean, 9), round(variance, 9)) for mean, variance in drawn[:, 0, 0]} <= single


def test_a_study_of_pairs_equals_their_maps_taken_together() -> None:
    study = Study((32, 48), GapConfig())
    pairs = [(noise(seed), noise(seed + 100)) for seed in range(3)]
    for index, pair in enumerate(pairs):
        study.add(str(index), *pair)
    gaps = [modality_gap(*pair, GapConfig()) for pair in pairs]
    high = distinct_bins(32, 48) & (radius(32, 48) > 0.25)
    taken = np.stack([gap.appd[high] for gap in gaps])
    place = REGIONS.index(("appd", "high"))
    np.testing.assert_allclose(study.maps.rad, np.mean([gap.rad for gap in gaps], axis=0))
    np.testing.assert_allclose(study.moments[:, place], np.stack([taken.mean(1), np.square(taken).mean(1)], axis=1))
    assert study.counts[place].tolist() == np.histogram(taken, EDGES["appd"])[0].tolist()
    profiles = np.stack([radial_profile(gap.rad)[1] for gap in gaps])
    np.testing.assert_allclose(study.profiles[1][0], profiles.mean(axis=0))
    np.testing.assert_allclose(study.profiles[2][0], profiles.std(axis=0), atol=1e-7)


def test_the_average_of_unrelated_phase_gaps_nears_a_normal_distribution() -> None:
    study = Study((128, 128), GapConfig())
    for seed in range(4):
        study.add(str(seed), noise(seed, 128, 128), noise(seed + 100, 128, 128))
    values = study.region(study.maps.appd, "appd", "whole")
    shape = normality(values, np.random.default_rng(0))
    assert shape.std == pytest.approx(math.pi / math.sqrt(12 * 4), rel=0.03)
    assert shape.skewness == pytest.approx(0, abs=4 * math.sqrt(6 / values.size))
    assert shape.kurtosis == pytest.approx(-1.2 / 4, abs=4 * math.sqrt(24 / values.size))  # of a mean of four uniforms


@pytest.mark.parametrize("wrong", [{"pixel_epsilon": 0.0}, {"amplitude_epsilon": -1.0}, {"cutoff": 0.9}])
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"GapConfig\.\w+ is .*; give a number from"):
        GapConfig(**wrong)  # pyright: ignore[reportArgumentType]


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """An 8-bit picture, colour where the path says `optical`."""
    pixels = counts((3, *size), seed, 0, 256).astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0) if "optical" in path.parts else pixels[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two pairs: PNG beside GeoTIFF in dB, one of them in a folder below."""
    for index, name in enumerate(("a", "below/b")):
        picture(tmp_path / "optical" / f"{name}.png", index)
        decibel = np.random.default_rng(index).normal(-12, 4, (2, 40, 32)).astype(np.float32)
        write_tiff(tmp_path / "sar" / f"{name}.tif", decibel)
    return tmp_path


def run(folder: Path, *more: str) -> Path:
    out = folder / "out"
    spectra.main(["--optical", str(folder / "optical"), "--sar", str(folder / "sar"), "--out", str(out), *more])
    return out


def test_the_command_writes_tables_and_figures(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(folders)
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES + FIGURES)
    assert [row["pair"] for row in rows(out / "pairs.csv")] == ["a", "below/b"]
    assert [(row["map"], row["band"]) for row in rows(out / "bands.csv")] == list(REGIONS)
    assert [row["sampling_rate"] for row in rows(out / "sampling.csv")] == ["0.5", "1"]
    in_all = sum(int(row["values"]) for row in rows(out / "histograms.csv") if row["map"] == "rsd")
    assert in_all == 2 * 40 * 32
    for name in FIGURES:
        assert np.asarray(Image.open(out / name).convert("L")).min() < 100
    assert "2 pairs of 40 x 32 pixels" in capsys.readouterr().out


def test_a_folder_does_not_differ_from_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("optical", "sar"):
        write_tiff(tmp_path / folder / "a.tif", counts((1, 24, 24)))
    for row in rows(run(tmp_path) / "bands.csv"):
        assert float(row["mean"]) == pytest.approx(0, abs=1e-12)
        assert (row["average_map_skewness"], row["average_map_shapiro_w"]) == ("nan", "nan")
    assert "correlation" not in capsys.readouterr().out


def test_eight_bits_stay_and_other_numbers_are_stretched(folders: Path) -> None:
    optical = describe_raster(folders / "optical" / "a.png", folders / "optical")
    pixels = np.asarray(Image.open(folders / "optical" / "a.png")).astype(float)
    image = read_image(optical, Source(folders, "optical"), None, "auto")
    np.testing.assert_allclose(image, pixels @ [0.299, 0.587, 0.114] / 255)
    sar = describe_raster(folders / "sar" / "a.tif", folders / "sar")
    stored = read_image(sar, Source(folders, "SAR"), None, "none")
    low, high = np.percentile(stored, [2, 98])
    stretched = read_image(sar, Source(folders, "SAR"), None, "auto")
    np.testing.assert_allclose(stretched, np.clip((stored - low) / (high - low), 0, 1))


def test_a_window_is_the_middle(tmp_path: Path) -> None:
    pixels = write_tiff(tmp_path / "a.tif", counts((1, 40, 33)))
    image = read_image(describe_raster(tmp_path / "a.tif", tmp_path), Source(tmp_path, "SAR"), 20, "none")
    np.testing.assert_allclose(image, pixels[0, 10:30, 6:26])


def test_a_sensor_says_which_bands_are_red_green_blue(tmp_path: Path) -> None:
    pixels = write_tiff(tmp_path / "a.tif", counts((13, 20, 20)), names=S2_NAMES).astype(float)
    source = Source(tmp_path, "optical", find_sensor("sentinel2-l1c"))
    image = read_image(describe_raster(tmp_path / "a.tif", tmp_path), source, None, "none")
    np.testing.assert_allclose(image, 0.299 * pixels[3] + 0.587 * pixels[2] + 0.114 * pixels[1])


def test_windows_make_pairs_of_several_sizes_comparable(folders: Path) -> None:
    for folder in ("optical", "sar"):
        picture(folders / folder / "c.png", 5, (50, 64))
    assert len(rows(run(folders, "--window", "32") / "pairs.csv")) == 3


def lonely(folder: Path) -> None:
    picture(folder / "optical" / "c.png", 3)


def other_size_in_a_pair(folder: Path) -> None:
    picture(folder / "optical" / "a.png", 3, (40, 33))


def other_size_than_the_first(folder: Path) -> None:
    for name in ("optical", "sar"):
        picture(folder / name / "c.png", 3, (40, 33))


def small(folder: Path) -> None:
    for name in ("optical", "sar"):
        picture(folder / name / "0.png", 3, (40, 12))


def emptied(folder: Path) -> None:
    for path in (folder / "sar").rglob("*.tif"):
        path.unlink()


def constant(folder: Path) -> None:
    Image.new("RGB", (32, 40), (7, 7, 7)).save(folder / "optical" / "a.png")


def with_missing_pixels(folder: Path) -> None:
    decibel = np.random.default_rng(0).normal(-12, 4, (1, 40, 32)).astype(np.float32)
    decibel[0, :10] = -9999
    write_tiff(folder / "sar" / "a.tif", decibel, nodata=-9999)


def with_many_bands(folder: Path) -> None:
    (folder / "optical" / "a.png").unlink()
    write_tiff(folder / "optical" / "a.tif", counts((6, 40, 32)))


def twice(folder: Path) -> None:
    picture(folder / "sar" / "a.png", 3)


def damaged(folder: Path) -> None:
    (folder / "sar" / "a.tif").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lonely, "1 name has no partner in the other folder, the first is 'c' in"),
        (other_size_in_a_pair, "a: the optical image has 40 x 33 pixels, the SAR image 40 x 32; resample"),
        (other_size_than_the_first, "c: 40 x 33 pixels, a has 40 x 32; .* --window"),
        (small, "0: 40 x 12 pixels are too few; 16 x 16 are needed"),
        (emptied, "sar holds no images; known are .tif"),
        (constant, "a: the optical image is constant, 7; leave the pair out"),
        (with_missing_pixels, "a: 25.0% of the SAR pixels are missing"),
        (with_many_bands, "a: 6 optical bands; .* --sensor"),
        (twice, "a.tif and a.png have one name"),
        (damaged, "a.tif: cannot be read"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_by_name(
    folders: Path, spoil: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folders)
    with pytest.raises(SystemExit, match="2"):
        run(folders)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert not (folders / "out").exists()
