"""The command `launch/spectra.py`: how registered optical and SAR images differ in space, amplitude and phase.

Pairs are files of one name in two folders. Writes tables (CSV) and figures (PNG), as in section III-A of PAD.
"""

import argparse
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor, fit
from alliance.sensors.display import display_bands
from datasets.commands import run_body
from datasets.imagery.rasters import SUFFIXES, RasterScene, describe_raster
from datasets.imagery.scenes import Unreadable
from datasets.options import Parser, number_of, whole
from finetune.studies.modality_gap import REGIONS, SMALLEST, UNRELATED_APPD, GapConfig, Normaliser, Study, growth
from finetune.studies.spectra_report import write_figures, write_tables

Scale = Literal["auto", "stretch", "none"]
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue; ITU-R BT.601
STRETCH = (2, 98)  # percentiles that become 0 and 1


class Source(NamedTuple):
    """One of the two folders."""

    folder: Path
    role: str  # "optical" or "SAR"
    sensor: Sensor | None = None  # says which bands are red, green, blue, and which value is missing


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: _study(options), stopped="stopped; give the same command again")


def _study(options: argparse.Namespace) -> list[str]:
    study = analyse(options)
    options.out.mkdir(parents=True, exist_ok=True)
    write_tables(options.out, study)
    write_figures(options.out, study)
    return [*summary(study), f"tables and figures in {options.out}"]


def analyse(options: argparse.Namespace) -> Study:
    """Read all pairs, one at a time.

    Raises:
        InputError: folders or images do not fit; the message names the pair.
    """
    sensors = [find_sensor(name) for name in options.sensor or ()] or [None, None]
    optical, sar = Source(options.optical, "optical", sensors[0]), Source(options.sar, "SAR", sensors[1])
    pixel, amplitude = options.epsilon
    config = GapConfig(
        normaliser=options.normaliser, pixel_epsilon=pixel, amplitude_epsilon=amplitude, cutoff=options.cutoff
    )
    files = matched(optical.folder, sar.folder)
    study: Study | None = None
    for name, *paths in tqdm(files, desc="comparing", unit="pair", disable=None):
        scenes = _described(name, paths, (optical, sar), options.window)
        images = [read_image(*one, options.window, options.scale) for one in zip(scenes, (optical, sar), strict=True)]
        study = study or Study(images[0].shape, config)
        if images[0].shape != study.shape:
            raise InputError(
                f"{name}: {_size(images[0].shape)} pixels, {study.names[0]} has {_size(study.shape)}; maps of one size "
                f"are averaged: give --window N to compare the middle N x N pixels of every pair"
            )
        study.add(name, *images)
    assert study is not None, "there is at least one pair"
    return study


def matched(optical: Path, sar: Path) -> list[tuple[str, Path, Path]]:
    """Name, optical and SAR file of every pair, sorted; names are paths below the folder without suffix.

    Raises:
        InputError: a folder holds no images, or a name stands in one folder only.
    """
    left, right = images_of(optical), images_of(sar)
    lonely = sorted(left.keys() ^ right.keys())
    if lonely:
        where = optical if lonely[0] in left else sar
        count = f"{len(lonely)} names have" if len(lonely) > 1 else "1 name has"
        raise InputError(
            f"{count} no partner in the other folder, the first is {lonely[0]!r} in {where}; "
            f"the two images of a pair have one name, suffix aside"
        )
    return [(name, left[name], right[name]) for name in sorted(left)]


def images_of(folder: Path) -> dict[str, Path]:
    """Image files below a folder by name."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    images: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in images:
            raise InputError(f"{path} and {images[name].name} have one name; keep one of them")
        images[name] = path
    if not images:
        raise InputError(f"{folder} holds no images; known are {', '.join(SUFFIXES)}")
    return images


def read_image(scene: RasterScene, source: Source, window: int | None, scale: Scale) -> np.ndarray:
    """One band (h, w) float64 of an image, or of the middle of it: brightness of RGB, the first band of others.

    Raises:
        InputError: pixels are missing or all equal, or the bands are not known.
    """
    places = _places(scene, source)
    kept = sorted(set(places))
    rows, cols = (window or size for size in scene.shape[1:])
    top, left = (scene.shape[1] - rows) // 2, (scene.shape[2] - cols) // 2
    try:
        with scene.open(kept) as read:
            seen = read(top, left, rows, cols)
    except Unreadable as error:
        raise InputError(f"{scene.files[0]}: {error}") from error
    bands = seen.stored.astype(np.float64)
    missing = ~np.isfinite(bands)
    if seen.missing is not None:
        missing |= seen.missing
    if source.sensor is not None and source.sensor.nodata is not None:
        missing |= bands == source.sensor.nodata
    if missing.any():
        share = missing.any(axis=0).mean()
        raise InputError(
            f"{scene.name}: {share:.1%} of the {source.role} pixels are missing; cut them off or leave the pair out"
        )
    image = np.tensordot(LUMA, bands[[kept.index(place) for place in places]], axes=1)
    return _scaled(image, scene, source, scale)


def summary(study: Study) -> list[str]:
    """What the paper claims, in numbers: the amplitudes differ more towards high frequencies, the phases little."""
    mean = dict(zip(REGIONS, study.moments[..., 0].mean(axis=0), strict=True))
    frequency, profiles, _ = study.profiles
    pairs = "1 pair" if len(study.names) == 1 else f"{len(study.names)} pairs"
    lines = [f"{pairs} of {_size(study.shape)} pixels; RSD {mean['rsd', 'whole']:.3f}"]
    for name, profile in zip(("rad", "appd"), profiles, strict=True):
        rank = growth(frequency, profile)
        trend = "the same at every frequency" if isnan(rank) else f"rank correlation with frequency {rank:+.2f}"
        lines.append(
            f"{name.upper()}: {mean[name, 'low']:.3f} in the low band, {mean[name, 'high']:.3f} in the high, {trend}"
        )
    return [*lines, f"(APPD of unrelated phases: {UNRELATED_APPD:.3f})"]


def _described(name: str, paths: Sequence[Path], sources: Sequence[Source], window: int | None) -> list[RasterScene]:
    """The two images of a pair, whose sizes are equal and large enough."""
    scenes = []
    for path, source in zip(paths, sources, strict=True):
        try:
            scenes.append(describe_raster(path, source.folder))
        except Unreadable as error:
            raise InputError(f"{path}: {error}") from error
    optical, sar = (scene.shape[1:] for scene in scenes)
    if optical != sar:
        raise InputError(
            f"{name}: the optical image has {_size(optical)} pixels, the SAR image {_size(sar)}; "
            f"resample one onto the grid of the other"
        )
    smallest = window or SMALLEST
    if min(optical) < smallest:
        raise InputError(f"{name}: {_size(optical)} pixels are too few; {smallest} x {smallest} are needed")
    return scenes


def _places(scene: RasterScene, source: Source) -> list[int]:
    """The three bands whose brightness is taken: red, green and blue, or three times the first."""
    if source.sensor is not None:
        try:
            found = fit(source.sensor, scene.band_names, scene.shape[0], scene.dtype)
        except InputError as error:
            raise InputError(f"{scene.name}: the {source.role} image {error}") from error
        return [found[index] for index in display_bands(source.sensor)]
    if source.role == "SAR" or scene.shape[0] < 3:
        return [0, 0, 0]
    if scene.shape[0] > 4:
        raise InputError(f"{scene.name}: {scene.shape[0]} optical bands; say which are red, green, blue with --sensor")
    return [0, 1, 2]


def _scaled(image: np.ndarray, scene: RasterScene, source: Source, scale: Scale) -> np.ndarray:
    """Bring an image into 0 to 1: 8-bit numbers over their range, others stretched between percentiles."""
    stretch = scale == "stretch" or (scale == "auto" and scene.dtype != "uint8")
    low, high = np.percentile(image, STRETCH if stretch else (0, 100))
    if not high > low:
        raise InputError(f"{scene.name}: the {source.role} image is constant, {low:g}; leave the pair out")
    if stretch:
        return ((image - low) / (high - low)).clip(0, 1)
    return image / 255 if scale == "auto" else image


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    add, standard = parser.add_argument, GapConfig()
    add("--optical", type=Path, required=True, metavar="DIR", help="optical images: GeoTIFF, PNG, JPEG, ...")
    add("--sar", type=Path, required=True, metavar="DIR", help="SAR images of the same names and sizes")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the tables and figures")
    add("--sensor", nargs=2, metavar=("OPTICAL", "SAR"), help="names or YAML files; for more than four optical bands")
    add("--window", type=whole(SMALLEST, 65536), metavar="N", help="compare the middle N x N pixels (default: all)")
    add("--scale", choices=get_args(Scale), default="auto", help="stretch images to 0..1 (default: unless 8-bit)")
    add("--normaliser", choices=get_args(Normaliser), default=standard.normaliser, help="default: %(default)s")
    epsilon = [standard.pixel_epsilon, standard.amplitude_epsilon]
    told = "added to it (default: {:.2g} {:.2g})".format(*epsilon)
    add(
        "--epsilon",
        type=number_of(GapConfig, "pixel_epsilon"),
        nargs=2,
        metavar=("RSD", "RAD"),
        default=epsilon,
        help=told,
    )
    add(
        "--cutoff",
        type=number_of(GapConfig, "cutoff"),
        default=standard.cutoff,
        help="of the low band, cycles per pixel; default: %(default)s",
    )
    return parser
