"""Synthetic scenes with known truth: optical, SAR, hyperspectral, elevation and land cover of one invented landscape.

NOTHING HERE IS MEASURED. Every file says so in its tags (`SYNTHETIC=yes`, generator, version, seed). The scenes serve the
quick start, the tests, and tasks whose right answer must be known; scores reached on them say nothing about real imagery.

All rasters of a scene come from one label map, so their edges coincide. By construction neither true colour nor SAR alone
tells the seven classes apart; together they do:

* cropland and grass, built-up and bare soil: the same spectrum up to the red edge, far apart in backscatter;
* water and road, grass and bare soil: the same backscatter, far apart in colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, median_filter
from scipy.spatial import KDTree
from tqdm import tqdm

from alliance.errors import InputError
from alliance.files import require_empty

Array = NDArray[np.floating]

VERSION = "1"  # changes whenever the same seed would give other pixels
PIXEL_M = 10.0
CRS = "EPSG:32633"  # UTM zone 33 north
LOOKS = 4.4  # equivalent number of looks, about that of Sentinel-1 IW GRD
CLASSES = {  # name: colour on the label map
    "water": (30, 90, 180),
    "forest": (20, 90, 40),
    "cropland": (225, 195, 80),
    "grass": (140, 200, 100),
    "built-up": (200, 50, 50),
    "bare soil": (160, 120, 80),
    "road": (60, 60, 60),
}
WATER, FOREST, CROPLAND, GRASS, BUILT_UP, BARE_SOIL, ROAD = range(len(CLASSES))
OPTICAL_BANDS = {  # Sentinel-2 name: centre, nm
    "B02": 492.4,
    "B03": 559.8,
    "B04": 664.6,
    "B05": 704.1,
    "B06": 740.5,
    "B07": 782.8,
    "B08": 832.8,
    "B8A": 864.7,
    "B11": 1613.7,
    "B12": 2202.4,
}
WAVELENGTHS = tuple(410.5 + 21.0 * band for band in range(100))  # nm; 21 nm wide, they tile 400 to 2500 nm
SAR_BANDS = ("VV", "VH")
BACKSCATTER_DB = np.array(  # (7, 2): mean VV and VH of each class
    [(-21, -28), (-8, -13.5), (-9.5, -15.5), (-14.5, -22), (-4.5, -11), (-14.5, -22), (-21, -28)], dtype=np.float64
)
TEXTURE = np.array([0.03, 0.18, 0.08, 0.08, 0.13, 0.13, 0.04])  # deviation of log reflectance within each class
ROUGHNESS = np.array([0.0, 0.20, 0.12, 0.10, 0.30, 0.10, 0.0])  # deviation of log power, before speckle


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Rasters of one synthetic landscape on one pixel grid."""

    labels: NDArray[np.uint8]  # (h, w) index into CLASSES
    elevation: Array  # (h, w) float32, m
    optical: Array  # (10, h, w) surface reflectance
    sar: Array  # (2, h, w) float32, dB
    hyperspectral: Array  # (100, n, n) surface reflectance of the upper left corner


def correlated_field(size: int, rng: Generator, *, slope: float = -2.0) -> Array:
    """Random field (size, size) of zero mean and unit deviation, power spectrum ~ frequency ** slope.

    It is cut out of a periodic field of twice the size, so that its opposite borders do not match.
    """
    fy, fx = np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((2 * size, 2 * size)))
    return _standard(np.fft.irfft2(white * frequency ** (slope / 2))[:size, :size])


def smooth_field(size: int, length: float, rng: Generator) -> Array:
    """Random field (size, size) of zero mean and unit deviation without detail below `length` pixels."""
    margin = int(4 * length)
    noise = rng.standard_normal((size + 2 * margin, size + 2 * margin))
    return _standard(gaussian_filter(noise, length, mode="constant")[margin:-margin, margin:-margin])


def cell_map(size: int, spacing: float, rng: Generator) -> tuple[NDArray[np.intp], Array]:
    """Irregular straight-edged cells around the points of a turned, jittered lattice.

    Returns:
        Cell number (size, size) and distance to the nearest cell edge (size, size), pixels.
    """
    count = int(2 * size / spacing) + 4
    lattice = np.indices((count, count)).reshape(2, -1).T - count / 2
    lattice = (lattice + rng.uniform(-0.32, 0.32, lattice.shape)) * spacing * np.array([0.8, 1.25])
    points = lattice @ _rotation(rng.uniform(0, np.pi)).T + size / 2
    pixels = np.moveaxis(np.indices((size, size)), 0, -1)
    distance, cell = map(np.asarray, KDTree(points).query(pixels, k=2))
    near, far = distance[..., 0], distance[..., 1]
    separation = np.linalg.norm(points[cell[..., 0]] - points[cell[..., 1]], axis=-1)
    return cell[..., 0], (far**2 - near**2) / (2 * separation)


def river_distance(size: int, rng: Generator) -> Array:
    """Distance (size, size) in pixels of every pixel from the middle of a meandering river across the scene."""
    places = np.arange(-size, size)
    bends = gaussian_filter1d(rng.standard_normal(places.size), 20, mode="wrap")
    course = 14 * bends / bends.std() + rng.uniform(-0.25, 0.25) * size
    grid = np.moveaxis(np.indices((size, size)), 0, -1) - size / 2
    along, across = np.moveaxis(grid @ _rotation(rng.uniform(0, np.pi)), -1, 0)
    middle, tilt = np.interp(along, places, course), np.interp(along, places, np.gradient(course))
    return np.abs(across - middle) / np.hypot(1, tilt)


def draw_terrain(river: Array, rng: Generator) -> Array:
    """Elevation (h, w), m: 1/f relief that dips towards the river."""
    relief = correlated_field(len(river), rng, slope=-3.6)
    return 260 + 45 * relief - 35 * np.exp(-((river / 30) ** 2))


def draw_labels(parcel: NDArray[np.intp], elevation: Array, river: Array, rng: Generator) -> NDArray[np.uint8]:
    """Land cover (h, w): parcels of cropland, grass and bare soil; woods, towns, water and roads are laid over them."""
    size, height = len(elevation), _standard(elevation)
    crops = rng.choice([CROPLAND, GRASS, BARE_SOIL], size=parcel.max() + 1, p=[0.42, 0.33, 0.25])
    labels = crops[parcel].astype(np.uint8)
    woods = 1.6 * smooth_field(size, 12, rng) + 0.25 * correlated_field(size, rng) + height
    labels[woods > np.quantile(woods, 0.74)] = FOREST
    towns = smooth_field(size, 12, rng) + 0.2 * correlated_field(size, rng) - 0.6 * height
    labels[(towns > np.quantile(towns, 0.90)) & (river > 6)] = BUILT_UP
    lakes = smooth_field(size, 10, rng) - 0.5 * height
    labels[(lakes > np.quantile(lakes, 0.96)) | (river < 3.5 + lakes)] = WATER
    labels = median_filter(labels, size=3, mode="nearest")
    _, to_edge = cell_map(size, 110, rng)
    labels[(to_edge < 1.3) & ((labels != WATER) | (river < 8))] = ROAD  # bridges, but no dams
    return labels


def class_spectra(wavelengths: Array) -> Array:
    """Mean reflectance (7, n) of every class at `wavelengths`, nm: smooth invented curves with the known shapes."""
    nm = np.asarray(wavelengths, dtype=float)
    soil = 0.05 + 0.36 * (1 - np.exp(-(nm - 380) / 620)) - 0.05 * _bump(nm, 1930, 70) - 0.05 * _bump(nm, 2210, 60)
    infrared = 1 / (1 + np.exp(-(nm - 900) / 50))
    spectra = {
        "water": 0.075 * np.exp(-(((nm - 470) / 190) ** 2)) + 0.004,
        "forest": _vegetation(nm, green=0.030, infrared=0.30, moisture=0.9),
        "cropland": _vegetation(nm, green=0.045, infrared=0.46, moisture=0.75),
        "grass": _vegetation(nm, green=0.045, infrared=0.33, moisture=0.45),
        "built-up": soil * (1 - 0.25 * infrared),
        "bare soil": soil,
        "road": 0.085 + 0.05 * (nm - 400) / 2100,
    }
    return np.stack([spectra[name] for name in CLASSES])


def _vegetation(nm: Array, *, green: float, infrared: float, moisture: float) -> Array:
    """Green peak, red edge at 722 nm, infrared plateau, and the water absorptions of leaves."""
    water = 0.10 * _bump(nm, 975, 40) + 0.16 * _bump(nm, 1190, 50) + 0.85 * _bump(nm, 1450, 75)
    water += 0.95 * _bump(nm, 1940, 110) + 0.8 * _bump(nm, 2600, 330) + 0.35 / (1 + np.exp(-(nm - 1350) / 60))
    plateau = infrared / (1 + np.exp(-(nm - 722) / 10))
    return 0.028 + green * _bump(nm, 555, 38) + 0.012 * _bump(nm, 620, 50) + plateau * np.exp(-1.5 * moisture * water)


def draw_cover(labels: NDArray[np.uint8]) -> Array:
    """Share (7, h, w) of each class in every pixel: the label map seen through a lens a little wider than a pixel."""
    return np.stack([gaussian_filter((labels == index).astype(float), 0.6) for index in range(len(CLASSES))])


def thin_fields(cover: Array, parcel: NDArray[np.intp], rng: Generator) -> Array:
    """`cover` (7, h, w) with bare soil shining through: cropland and grass are sparse in some parcels and spots."""
    parcels = rng.normal(0.18, 0.14, parcel.max() + 1)
    bare = np.clip(parcels[parcel] + 0.06 * correlated_field(len(parcel), rng), 0, 0.6)
    thinned = cover.copy()
    thinned[[CROPLAND, GRASS]] *= 1 - bare
    thinned[BARE_SOIL] += bare * (cover[CROPLAND] + cover[GRASS])
    return thinned


def draw_light(labels: NDArray[np.uint8], elevation: Array, rng: Generator) -> Array:
    """Factor (h, w) on reflectance: relief shading and texture within each class, 1/f with a little grain."""
    down, right = np.gradient(gaussian_filter(elevation, 1.0), PIXEL_M)
    shading = np.where(labels == WATER, 1, 1 + 0.9 * (down + right))  # lit from the north-west
    grain = correlated_field(len(labels), rng) + 0.35 * rng.standard_normal(labels.shape)
    return np.clip(shading, 0.4, 1.6) * np.exp(TEXTURE[labels] * grain)


def draw_reflectance(cover: Array, light: Array, wavelengths: Array, rng: Generator, *, noise: float) -> Array:
    """Surface reflectance (n, h, w) at n `wavelengths` from class shares (7, h, w), light (h, w) and sensor noise."""
    mixed = np.tensordot(class_spectra(wavelengths).T, cover, axes=1) * light
    return np.clip(mixed + noise * rng.standard_normal(mixed.shape), 1e-4, 1.5)


def draw_sar(labels: NDArray[np.uint8], elevation: Array, rng: Generator, *, looks: float) -> Array:
    """Backscatter (2, h, w), dB float32: class means, slope, bright buildings, then speckle in linear power."""
    power = np.tensordot((10 ** (BACKSCATTER_DB / 10)).T, draw_cover(labels), axes=1)
    rise = np.gradient(gaussian_filter(elevation, 1.5), PIXEL_M, axis=1)
    facing = np.where(labels == WATER, 0, 3 * rise)  # seen from the west
    power *= np.exp(facing + ROUGHNESS[labels] * correlated_field(len(labels), rng))
    corners = (labels == BUILT_UP) & (rng.random(labels.shape) < 0.05)
    power *= 1 + gaussian_filter(np.where(corners, rng.exponential(60.0, labels.shape), 0.0), 0.6)
    return (10 * np.log10(power * rng.gamma(looks, 1 / looks, power.shape))).astype(np.float32)


def make_scene(size: int, rng: Generator, *, cube: int, looks: float = LOOKS) -> Scene:
    """One landscape of size x size pixels; the hyperspectral cube covers its upper left cube x cube pixels."""
    river = river_distance(size, rng)
    elevation = draw_terrain(river, rng)
    parcel, _ = cell_map(size, 22, rng)
    labels = draw_labels(parcel, elevation, river, rng)
    cover = thin_fields(draw_cover(labels), parcel, rng)
    light = draw_light(labels, elevation, rng)
    corner = np.s_[..., :cube, :cube]
    return Scene(
        labels=labels,
        elevation=elevation.astype(np.float32),
        optical=draw_reflectance(cover, light, np.array([*OPTICAL_BANDS.values()]), rng, noise=0.002),
        sar=draw_sar(labels, elevation, rng, looks=looks),
        hyperspectral=draw_reflectance(cover[corner], light[corner], np.array(WAVELENGTHS), rng, noise=0.004),
    )


def write_scenes(folder: Path, *, scenes: int, size: int, seed: int, cube: int = 128, looks: float = LOOKS) -> None:
    """Write scenes as <folder>/<kind>/scene_000.tif ..., each kind a folder that one sensor reads.

    Scene i depends on (seed, i, size, cube, looks) alone, not on `scenes`.

    Args:
        size: pixels along each side of a scene, 10 m each.
        cube: pixels along each side of its hyperspectral cube; 0 writes none.
        looks: number of looks of the SAR; fewer, more speckle.
    Raises:
        InputError: a number makes no sense, or the folder is not empty.
    """
    if scenes < 1 or size < 32 or cube < 0 or looks <= 0 or seed < 0:
        raise InputError(
            f"{scenes} scenes of {size} pixels, cube {cube}, looks {looks}, seed {seed}: "
            f"give at least 1 scene of 32 pixels, looks above 0, nothing negative"
        )
    require_empty(folder)
    for index in tqdm(range(scenes), desc="scenes", unit="scene", disable=None):
        scene = make_scene(size, np.random.default_rng([seed, index]), cube=min(cube, size), looks=looks)
        tags = {"SEED": seed, "SCENE": index, "LOOKS": looks}
        for kind, raster in _rasters(scene).items():
            if raster.pixels.size:
                write_raster(folder / kind / f"scene_{index:03d}.tif", raster, scene_origin(index, size), tags)


@dataclass(frozen=True, kw_only=True)
class Raster:
    """What one file holds: stored numbers (c, h, w) and what they mean; value = stored * scale."""

    pixels: NDArray
    bands: Sequence[str]
    unit: str = "reflectance"
    scale: float = 1e-4
    nodata: float = 0.0
    wavelengths: Sequence[float] = ()


def optical_raster(reflectance: Array) -> Raster:
    """The file of an optical image (10, h, w)."""
    pixels = np.rint(reflectance * 1e4).astype(np.uint16)
    return Raster(pixels=pixels, bands=list(OPTICAL_BANDS), wavelengths=list(OPTICAL_BANDS.values()))


def _rasters(scene: Scene) -> dict[str, Raster]:
    """The files of a scene by kind, which is also their folder."""
    return {
        "optical": optical_raster(scene.optical),
        "sar": Raster(pixels=scene.sar, bands=SAR_BANDS, unit="dB", scale=1.0, nodata=np.nan),
        "hyperspectral": Raster(
            pixels=np.rint(scene.hyperspectral * 1e4).astype(np.int16),
            bands=[f"{nm} nm" for nm in WAVELENGTHS],
            nodata=-9999,
            wavelengths=WAVELENGTHS,
        ),
        "elevation": Raster(pixels=scene.elevation[None], bands=["elevation"], unit="m", scale=1.0, nodata=-9999),
        "labels": Raster(pixels=scene.labels[None], bands=["land cover"], unit="class", scale=1.0, nodata=255),
    }


def write_raster(path: Path, raster: Raster, origin: tuple[float, float], tags: Mapping[str, object]) -> None:
    """One georeferenced, tiled GeoTIFF that says what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = raster.pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": raster.pixels.dtype, "nodata": raster.nodata}
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "zlevel": 4}
    layout["predictor"] = 3 if raster.pixels.dtype.kind == "f" else 2
    grid = {"crs": CRS, "transform": Affine(PIXEL_M, 0, origin[0], 0, -PIXEL_M, origin[1])}
    with rasterio.open(path, "w", driver="GTiff", **shape, **layout, **grid) as file:
        file.write(raster.pixels)
        file.descriptions, file.units = raster.bands, [raster.unit] * count
        file.scales = [raster.scale] * count
        file.update_tags(
            SYNTHETIC="yes", GENERATOR="Alliance datasets/synthetic/landscapes.py", GENERATOR_VERSION=VERSION, **tags
        )
        for band, nm in enumerate(raster.wavelengths, start=1):
            file.update_tags(band, wavelength=nm, wavelength_units="nm")
        if raster.unit == "class":
            file.update_tags(CLASSES=",".join(CLASSES))
            file.write_colormap(1, dict(enumerate(CLASSES.values())))


def scene_origin(index: int, size: int) -> tuple[float, float]:
    """Easting and northing (m) of a scene's upper left corner; scenes lie apart, five in a row."""
    row, column = divmod(index, 5)
    return 200_000.0 + 120_000.0 * column, 5_000_000.0 - 2 * PIXEL_M * size * row


def _standard(field: Array) -> Array:
    return (field - field.mean()) / field.std()


def _rotation(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _bump(nm: Array, centre: float, width: float) -> Array:
    return np.exp(-(((nm - centre) / width) ** 2))
