"""Imagery as users have it, by its kind: each is read with the right numbers, or refused with the mend.

The inputs stand beside the clone (`../shared/cases/ingest`); the right values are those that its scripts put into the files.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datasets.shards import command
from datasets.shards.index import Index
from tests.cases.conftest import Make

L2A = ("--sensor", "sentinel2-l2a")


class Right(NamedTuple):
    """What must come of an input."""

    sensor: str = ""
    means: dict[str, float] = {}  # physical, by band
    tile: tuple[int, ...] = ()
    samples: int = 1
    says: str = ""  # pattern of what is printed
    refused: str = ""  # pattern of the error; empty: it is read
    within: float = 0.02  # relative


def refused(pattern: str) -> Right:
    return Right(refused=pattern)


def hsi(mean: float, bands: int, side: int, says: str = "", **more: Any) -> Right:
    return Right(f"hsi{bands}", {"b001": mean}, (bands, side, side), says=says, **more)


CASES: dict[str, tuple[str, str, tuple[str, ...], Right]] = {  # name: script, what is given, options, what is right
    "K1 PlanetScope": ("01", "a", ("--tile", "48"), Right("planetscope-sr-4band", {"nir": 0.3}, (4, 48, 48))),
    "K1 SuperDove": ("01", "b", ("--tile", "48"), Right("planetscope-sr-8band", {"nir": 0.3}, (8, 48, 48))),
    "K1 drone": ("01", "c", ("--tile", "48"), refused("no shipped sensor fits.*planetscope-sr-4band.*Red edge")),
    "K1 numbered bands": ("02", "a", ("--tile", "24"), refused("no shipped sensor fits.*60 bands Band 1.*hsi")),
    "K1 numbered ENVI": ("02", "envi", ("--tile", "24"), refused("no shipped sensor fits.*60 bands Band 1.*hsi")),
    "K1 numbered with wavelengths": ("02", "b", ("--tile", "24"), Right(tile=(60, 24, 24))),
    "K2 power": ("03", "power", ("--sensor", "sentinel1-grd-db"), refused("dB without one negative.*10 log10")),
    "K2 counts": ("03", "counts", ("--sensor", "sentinel1-grd-db"), refused("holds uint16.*amplitudes or counts")),
    "K2 power with nodata": ("03", "stac", ("--sensor", "sentinel1-grd-db"), refused("dB without one negative")),
    "K2 scaled already": ("14", "s2", ("--sensor", "sentinel2-l1c", "--tile", "48"), refused("scaled|reflectance already")),
    "K2 level 2 scaled already": ("14", "ls", ("--tile", "48"), refused("no shipped sensor fits")),
    "K1 level 1": ("14", "l1", ("--tile", "48"), Right("landsat8-l1", tile=(8, 48, 48))),
    "K3 offset of the file": ("04", "s2cog", (*L2A, "--tile", "48"), refused("offset -0.1.*sentinel2-l2a-baseline4")),
    "K3 the advised sensor": (
        "04", "s2cog", ("--sensor", "sentinel2-l2a-baseline4", "--tile", "48"), Right("sentinel2-l2a-baseline4", {"B04": 0.25}, samples=4),
    ),
    "K3 netCDF": ("04", "nc_int16", ("--sensor", "hsi", "--tile", "32"), Right(means={"b001": 0.25})),
    "K3 ENVI": ("04", "envi", ("--sensor", "hsi", "--tile", "32"), Right(means={"b001": 0.25})),
    "K3 dB in hundredths": ("24", "", ("--tile", "48"), Right("sentinel1-rtc-db", {"VV": -11, "VH": -18})),
    "K4 EMIT": ("05", "a", ("--sensor", "hsi", "--tile", "32"), Right("hsi24", says="left out 5 of 29 bands, called bad")),
    "K4 EMIT, good bands": ("05", "b", ("--sensor", "hsi", "--tile", "32"), Right("hsi24")),
    "K4 metres": ("19", "metres", ("--sensor", "hsi", "--tile", "32"), hsi(0.2, 24, 32)),
    "K4 angstrom": ("19", "angstrom", ("--sensor", "hsi", "--tile", "32"), hsi(0.2, 24, 32)),
    "K4 flags": ("19", "flags", ("--sensor", "hsi", "--tile", "32"), hsi(0.2, 24, 32)),
    **{f"K5 {kind}": ("10", kind, ("--sensor", "rgb-uint8", "--tile", "96"), Right("rgb-uint8", {"R": 150 / 255, "G": 140 / 255, "B": 120 / 255}))
       for kind in ("mask", "alpha", "png")},
    "K5 nodata of each band": ("15", "files", (*L2A, "--tile", "48"), Right("sentinel2-l2a", {"B01": 0.25, "B02": 0.25, "B09": 0.25})),
    "K8 a VRT alone": ("15", "vrt", (*L2A, "--tile", "48"), refused("reads ../files/.*outside.*give one that holds both")),
    "K8 the advised folder": ("15", "", (*L2A, "--tile", "48"), Right("sentinel2-l2a", {"B01": 0.25, "B02": 0.25, "B09": 0.25}, says="scene.vrt")),
    "K6 .npy": ("09", "a", ("--sensor", "hsi", "--tile", "24"), refused(r"60 bands of 24 x 32 pixels \(axes hwc\); say which: --axes")),
    "K6 .h5": ("09", "b", ("--sensor", "hsi", "--tile", "24"), refused(r"60 bands of 24 x 32 pixels \(axes hwc\); say which: --axes")),
    "K6 two of one length": ("09", "c", ("--sensor", "hsi", "--tile", "24"), refused(r"\(axes hcw\).*\(axes hwc\); say which: --axes")),
    "K6 the advised axes": ("09", "a", ("--sensor", "hsi", "--axes", "hwc", "--scale", "1e-4", "--tile", "24"), Right("hsi60", {"b060": 0.5912}, (60, 24, 24), samples=2)),
    "K6 PRISMA": ("06", "", ("--sensor", "hsi", "--tile", "32"), hsi(0.25, 28, 32, samples=4)),
    **{f"K7 {kind}": ("11", kind, (*L2A, "--tile", "32"), Right("sentinel2-l2a", {"B01": 0.04, "B02": 0.05, "B03": 0.07, "B04": 0.06}, (12, 32, 32)))
       for kind in ("vars", "time1", "stack", "band", "classic")},
    "K7 other ground": ("21", "PAIR", ("--tile", "32"), refused("footprints differ by 1.*map units")),
    "K8 .SAFE": ("07", "S2B_MSIL2A*", ("--sensor", "sentinel2-l2a-baseline4", "--tile", "48"), Right("sentinel2-l2a-baseline4", {"B02": 0.2, "B12": 0.2}, (12, 48, 48), 4, within=0.06)),
    "K3 level 1C of another baseline": ("07", "S2B_MSIL1C*", ("--sensor", "sentinel2-l1c", "--tile", "48"), refused("sentinel2-l1c-baseline4")),
    **{f"K8 ENVI {kind}": ("08", kind, ("--sensor", "hsi", "--scale", "1e-4", "--tile", "16"), hsi(0.25, 26, 16, "left out 4 of 30 bands, called bad"))
       for kind in ("nosuffix", "bil", "bip", "bsq", "dat", "img", "imgbad")},
    "K8 links": ("12", "train", ("--tile", "32"), Right("sentinel1-grd-db", {"VV": -16.5, "VH": -16.5}, samples=4)),
    "K8 complex counts": ("13", "slc", ("--sensor", "sentinel1-grd-db", "--tile", "32"), refused("holds complex_int16.*decibels: gdal_calc")),
    "K8 complex floats": ("13", "c64", ("--sensor", "sentinel1-grd-db", "--tile", "32"), refused("holds complex64.*decibels: gdal_calc")),
    "K8 complex arrays": ("13", "npy", ("--sensor", "sentinel1-grd-db", "--tile", "32"), refused("holds complex64")),
    "K8 amplitudes": ("13", "grd_gcp", ("--sensor", "sentinel1-grd-db", "--tile", "32"), refused("-vv-.*-vh-|-vh-.*-vv-")),
    **{f"K8 {kind} names": ("16", kind, (*L2A, "--tile", "32"), Right("sentinel2-l2a", samples=1)) for kind in ("hls", "bare", "dash")},
    "K8 twice": ("18", "", ("--tile", "64"), Right("rgb-uint8", samples=2, says="mosaic.vrt")),
    "K8 hive partitions": ("22", "lake/year=2023", ("--tile", "32"), Right("sentinel1-grd-db", {"VV": -15})),
    "K8 unicode": ("22", "unicode", ("--tile", "32"), Right("sentinel1-grd-db", {"VV": -15})),
    "K8 zip": ("22", "zip", ("--tile", "32"), refused("scenes.zip.*archive.*unpack")),
    "K8 HDF4": ("22", "hdf4", ("--tile", "32"), refused("HDF4.*h4toh5")),
    "K8 Landsat 8 bundle": ("23", "l8", ("--tile", "48"), Right("landsat8", {"B1": 0.25, "B7": 0.25}, (7, 48, 48))),
    "K8 Landsat 7 bundle": ("23", "l7", ("--tile", "48"), Right(tile=(6, 48, 48))),
    "K9 empty bands": ("25", "tif", ("--sensor", "hsi", "--scale", "1e-4", "--tile", "24"), Right("hsi55", {"b001": 0.2}, says="left out 5 of 60 bands, without any value")),
    "control big-endian": ("27", "be", ("--sensor", "hsi", "--scale", "1e-4", "--tile", "20"), Right("hsi12", {"b001": 0.2, "b012": 0.211}, samples=2)),
    "control MATLAB": ("27", "mat73", ("--sensor", "hsi", "--scale", "1e-4", "--tile", "20"), Right("hsi12", samples=2)),
    "control BigTIFF": ("27", "bigtiff", (*L2A, "--tile", "64"), Right("sentinel2-l2a", {"B01": 0.05, "B12": 0.15}, (12, 64, 64))),
    "control elevation": ("27", "f64", ("--sensor", "elevation", "--tile", "32"), Right("elevation", {"elevation": 812.5})),
    "control 10 and 20 m": ("27", "coarse", (*L2A, "--tile", "32"), Right("sentinel2-l2a", {"B02": 0.05125, "B01": 0.01285}, (12, 32, 32))),
}  # fmt: skip


def given(folder: Path, name: str) -> list[str]:
    if name == "PAIR":
        return [f"sentinel2-l2a={folder / 's2'}", f"sentinel1-grd-db={folder / 's1'}"]
    return [str(next(iter(sorted(folder.glob(name))))) if name else str(folder)]


@pytest.mark.parametrize("case", CASES)
def test_an_input_is_read_right_or_refused_with_the_mend(
    case: str, make_case: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, name, options, right = CASES[case]
    folder = make_case("ingest", script)
    run = partial(command.main, [*given(folder, name), *options, "--out", str(tmp_path / "out"), "--workers", "1"])
    if right.refused:
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 2
        assert re.search(right.refused, capsys.readouterr().err, re.DOTALL), right.refused
        return
    run()
    printed = capsys.readouterr()
    index = Index.read(tmp_path / "out")
    ((sensor, described),) = index.sensors.items()
    assert not right.sensor or sensor == right.sensor
    assert index.samples == right.samples
    assert not right.tile or tuple(index.shapes[sensor]) == right.tile
    means = dict(zip(described.band_names, index.statistics[sensor]["mean"], strict=True))
    assert {band: means[band] for band in right.means} == pytest.approx(right.means, rel=right.within)
    assert right.says in printed.out + printed.err
