"""Synthetic scenes: repeatable, georeferenced, honest, aligned with their truth, and hard in the promised way."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_bounds
from scipy.ndimage import binary_erosion, label, maximum_filter, minimum_filter

from alliance.errors import InputError
from alliance.sensors import read_sensor
from datasets.synthetic.command import main
from datasets.synthetic.landscapes import (
    CLASSES,
    LOOKS,
    OPTICAL_BANDS,
    WAVELENGTHS,
    Scene,
    class_spectra,
    correlated_field,
    draw_cover,
    draw_light,
    draw_reflectance,
    draw_sar,
    make_scene,
    write_scenes,
)

ROOT = Path(__file__).resolve().parents[3]
KINDS = {"optical": (10, "uint16"), "sar": (2, "float32"), "hyperspectral": (100, "int16")}
KINDS |= {"elevation": (1, "float32"), "labels": (1, "uint8")}
SENSORS = {"optical": "synthetic-optical", "sar": "synthetic-sar", "hyperspectral": "synthetic-hsi"}
SENSORS |= {"elevation": "elevation"}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(320, np.random.default_rng([0, 0]), cube=64)


def inside(labels: np.ndarray, size: int = 5) -> np.ndarray:
    """Pixels whose whole neighbourhood is of one class."""
    return maximum_filter(labels, size) == minimum_filter(labels, size)


def mahalanobis(image: np.ndarray, scene: Scene, one: str, other: str) -> float:
    """Distance of two class means in standard deviations within the classes, on unmixed pixels."""
    names = list(CLASSES)
    samples = [image[:, inside(scene.labels) & (scene.labels == names.index(name))] for name in (one, other)]
    gap = samples[0].mean(1) - samples[1].mean(1)
    within = (np.cov(samples[0]) + np.cov(samples[1])) / 2
    return float(np.sqrt(gap @ np.linalg.solve(within, gap)))


def stripes(one: str, other: str) -> Scene:
    """A flat scene of alternating stripes of two classes, 16 pixels wide."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat([list(CLASSES).index(name) for name in (one, other)], 16), (128, 4)).astype(np.uint8)
    flat = np.zeros(labels.shape)
    cover, light = draw_cover(labels), draw_light(labels, flat, rng)
    optical = draw_reflectance(cover, light, np.array([*OPTICAL_BANDS.values()]), rng, noise=0.002)
    sar = draw_sar(labels, flat, rng, looks=LOOKS)
    return Scene(labels=labels, elevation=flat, optical=optical, sar=sar, hyperspectral=optical)


def test_the_same_seed_gives_the_same_bytes(synthetic_scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", scenes=1, size=128, seed=0)
    for kind in KINDS:
        again = tmp_path / "again" / kind / "scene_000.tif"
        assert again.read_bytes() == (synthetic_scenes / kind / "scene_000.tif").read_bytes()


def test_another_seed_or_scene_gives_another_landscape(scene: Scene) -> None:
    for seed in ([1, 0], [0, 1]):
        other = make_scene(320, np.random.default_rng(seed), cube=0)
        assert (other.labels != scene.labels).mean() > 0.5


def test_the_cube_changes_nothing_else(scene: Scene) -> None:
    without = make_scene(320, np.random.default_rng([0, 0]), cube=0)
    np.testing.assert_array_equal(without.sar, scene.sar)
    np.testing.assert_array_equal(without.optical, scene.optical)


@pytest.mark.parametrize(("kind", "bands", "dtype"), [(kind, *form) for kind, form in KINDS.items()])
def test_files_are_georeferenced_tiled_and_honest(synthetic_scenes: Path, kind: str, bands: int, dtype: str) -> None:
    with rasterio.open(synthetic_scenes / kind / "scene_001.tif") as image:
        assert (image.count, image.height, image.width, image.dtypes[0]) == (bands, 128, 128, dtype)
        assert image.crs.is_projected and image.crs.to_epsg() == 32633
        assert image.res == (10, 10)
        assert set(image.block_shapes) == {(128, 128)} and image.profile["compress"] == "deflate"
        west, south, east, north = transform_bounds(image.crs, "EPSG:4326", *image.bounds)
        assert 9 < west < east < 21 and 0 < south < north < 84
        tags = image.tags()
        assert tags["SYNTHETIC"] == "yes" and tags["GENERATOR"] and tags["GENERATOR_VERSION"]
        assert (tags["SEED"], tags["SCENE"]) == ("0", "1")
        assert all(image.descriptions)


def test_scenes_do_not_overlap(tmp_path: Path) -> None:
    write_scenes(tmp_path, scenes=7, size=32, seed=0, cube=0)
    boxes = [rasterio.open(path).bounds for path in sorted((tmp_path / "labels").iterdir())]
    for a, b in itertools.combinations(boxes, 2):
        assert a.right <= b.left or b.right <= a.left or a.top <= b.bottom or b.top <= a.bottom


@pytest.mark.parametrize(("kind", "name"), SENSORS.items())
def test_files_match_their_sensor_by_name_unit_and_nodata(synthetic_scenes: Path, kind: str, name: str) -> None:
    sensor = read_sensor(ROOT / "alliance" / "sensors" / f"{name}.yaml")
    with rasterio.open(synthetic_scenes / kind / "scene_000.tif") as image:
        assert sensor.match(image.descriptions) == list(range(image.count))
        assert set(image.units) == {band.unit for band in sensor.bands}
        assert image.scales[0] == sensor.bands[0].scale
        assert image.nodata == sensor.nodata or (sensor.nodata is None and np.isnan(image.nodata))
        if sensor.bands[0].wavelength:
            told = [float(image.tags(band)["wavelength"]) for band in image.indexes]
            assert told == [band.wavelength for band in sensor.bands]


def test_the_label_file_names_its_classes_and_colours(synthetic_scenes: Path) -> None:
    with rasterio.open(synthetic_scenes / "labels" / "scene_000.tif") as image:
        assert image.tags()["CLASSES"].split(",") == list(CLASSES)
        assert [image.colormap(1)[index][:3] for index in range(7)] == list(CLASSES.values())


def test_every_class_is_there_in_regions_of_a_realistic_size(scene: Scene) -> None:
    share = np.bincount(scene.labels.ravel(), minlength=7) / scene.labels.size
    assert share.min() > 0.01 and share.max() < 0.5
    areas = np.concatenate([np.bincount(label(scene.labels == index)[0].ravel())[1:] for index in range(6)])
    typical = np.sort(areas)[np.cumsum(np.sort(areas)).searchsorted(areas.sum() / 2)]  # half the land is in larger ones
    assert 8 < np.sqrt(typical) < 80


def test_values_are_physical(scene: Scene) -> None:
    assert scene.optical.min() > 0 and scene.optical.max() < 1
    assert scene.sar.min() > -45 and scene.sar.max() < 25
    assert scene.elevation.min() > 0 and scene.elevation.max() < 1000
    assert np.isfinite(scene.hyperspectral).all()


@pytest.mark.parametrize("slope", [-2.0, -3.0])
def test_texture_has_the_asked_power_law(slope: float) -> None:
    size = 256
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = np.zeros((size, size))
    for seed in range(8):
        field = correlated_field(size, np.random.default_rng(seed), slope=slope)
        power += np.abs(np.fft.fft2(field * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    centres = np.geomspace(0.03, 0.4, 12)
    average = [power[np.abs(np.log(np.maximum(radius, 1e-9) / centre)) < 0.12].mean() for centre in centres]
    fitted = np.polyfit(np.log(centres), np.log(average), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.2)


@pytest.mark.parametrize("looks", [LOOKS, 16.0])
def test_speckle_of_smooth_water_has_the_variation_of_its_looks(looks: float) -> None:
    """Gamma speckle of L looks in linear power: deviation / mean = 1 / sqrt(L)."""
    scene = make_scene(384, np.random.default_rng([0, 0]), cube=0, looks=looks)
    water = binary_erosion(scene.labels == list(CLASSES).index("water"), iterations=3)
    power = 10 ** (scene.sar[:, water] / 10)
    assert water.sum() > 1500
    np.testing.assert_allclose(power.std(1) / power.mean(1), 1 / np.sqrt(looks), rtol=0.06)
    assert abs(np.corrcoef(power)[0, 1]) < 0.06


def test_edges_of_the_truth_are_edges_of_the_images(scene: Scene) -> None:
    edge = ~inside(scene.labels, 3)
    for image in (np.log(scene.optical), scene.sar):
        strength = sum(np.hypot(*np.gradient(band)) for band in image)
        assert strength[edge].mean() > 1.25 * strength[~edge].mean()
    moved = np.roll(edge, 20, axis=(0, 1))
    strength = np.hypot(*np.gradient(np.log(scene.optical[6])))
    assert strength[edge].mean() > 1.25 * strength[moved].mean()


def test_the_cube_shows_the_same_ground_as_the_optical_corner(scene: Scene) -> None:
    for band, (name, nm) in enumerate(OPTICAL_BANDS.items()):
        nearest = int(np.abs(np.array(WAVELENGTHS) - nm).argmin())
        pair = scene.hyperspectral[nearest].ravel(), scene.optical[band, :64, :64].ravel()
        assert np.corrcoef(*pair)[0, 1] > 0.9, name


def test_spectra_have_the_known_shapes() -> None:
    water, forest, cropland, grass, built_up, soil, _ = class_spectra(np.array([490.0, 560.0, 665.0, 842.0, 1940.0]))
    assert water[0] > 5 * water[3]  # dark in the infrared
    for plant in (forest, cropland, grass):
        assert plant[1] > plant[0] and plant[1] > plant[2]  # green peak
        assert plant[3] > 5 * plant[2]  # red edge
        assert plant[4] < plant[3] / 2  # leaf water
    assert (np.diff(soil[:4]) > 0).all() and built_up[3] < soil[3]


@pytest.mark.parametrize("twins", [("cropland", "grass"), ("built-up", "bare soil")])
def test_true_colour_does_not_tell_spectral_twins_but_sar_does(twins: tuple[str, str]) -> None:
    scene = stripes(*twins)
    assert mahalanobis(scene.optical[:3], scene, *twins) < 0.5
    assert mahalanobis(scene.sar, scene, *twins) > 2


@pytest.mark.parametrize("twins", [("grass", "bare soil"), ("water", "road")])
def test_sar_does_not_tell_backscatter_twins_but_true_colour_does(twins: tuple[str, str]) -> None:
    scene = stripes(*twins)
    assert mahalanobis(scene.sar, scene, *twins) < 0.5
    assert mahalanobis(scene.optical[:3], scene, *twins) > 2


def test_twins_stay_twins_in_a_whole_landscape(scene: Scene) -> None:
    assert mahalanobis(scene.optical[:3], scene, "cropland", "grass") < 0.5
    assert mahalanobis(scene.optical[:3], scene, "built-up", "bare soil") < 0.5
    assert mahalanobis(scene.sar, scene, "grass", "bare soil") < 0.5


def test_together_they_tell_every_pair(scene: Scene) -> None:
    both = np.concatenate([scene.optical[:3], scene.sar])
    for pair in itertools.combinations([name for name in CLASSES if name != "road"], 2):
        assert mahalanobis(both, scene, *pair) > 1.5, pair


def test_a_folder_in_use_or_a_senseless_number_is_refused(synthetic_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty, and nothing in it is overwritten; give a new folder"):
        write_scenes(synthetic_scenes, scenes=1, size=64, seed=0)
    with pytest.raises(InputError, match="0 scenes of 64 pixels"):
        write_scenes(tmp_path / "none", scenes=0, size=64, seed=0)
    assert not (tmp_path / "none").exists()


def test_scenes_without_a_cube_have_no_folder_for_it(tmp_path: Path) -> None:
    main(["scenes", str(tmp_path / "out"), "--scenes", "1", "--size", "48", "--seed", "3", "--cube", "0"])
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tif"))
    assert written == [f"{kind}/scene_000.tif" for kind in ("elevation", "labels", "optical", "sar")]
