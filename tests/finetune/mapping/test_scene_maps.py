"""Whole scenes: windows blend into one map without seams, on the grid of the images, in a cloud optimised file."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.crs import CRS
from rasterio.shutil import copy
from rasterio.transform import Affine, from_origin
from torch import Tensor

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import LabelSource
from datasets.labelled.description import LabelledSet
from datasets.synthetic.pair_trees import write_plain
from finetune.mapping.blending import cover
from finetune.mapping.command import main
from finetune.mapping.images import ImageFile
from finetune.mapping.networks import SegmentationNetwork
from finetune.mapping.scene import SceneOptions, predict_scene
from finetune.model_files import Inputs, image_input
from finetune.pad.checkpoint import load_pad, save_pad
from finetune.pad.inputs import MODALITIES, describe, read_pad_inputs
from finetune.pad.model import Pad, PadConfig, PadOutput
from tests.helpers import warm
from tests.helpers.object_store import ObjectStore
from tests.helpers.rasters import write_tiff
from tests.helpers.runs import environment

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {"farmland": (204, 102, 0), "water": (0, 0, 255), "rest & roads": (1, 2, 3)}


def inputs_of(sources: Mapping[str, ImageSource]) -> Inputs:
    return Inputs(classes=CLASSES, images={name: image_input(source) for name, source in sources.items()})


OPTICAL = ImageSource(bands=(3, 2, 1), dtype="uint8", mean=(100, 110, 120), std=(40, 50, 60))
SAR = ImageSource(bands=(1, 1, 1), dtype="uint8", mean=(90,) * 3, std=(45,) * 3)
NAMES = {role: name for name, role in MODALITIES.items()}
IMAGES = {"optical": OPTICAL, "sar": SAR}
INPUTS = inputs_of(IMAGES)
SMALL = SceneOptions(window=64, overlap=16, batch=3)
ATTO = PadConfig(size="atto", classes=3)


def map_scene(
    network: Callable[..., PadOutput], inputs: Inputs, files: Mapping[str, Path], out: Path, *options: SceneOptions,
    probabilities: Path | None = None,
) -> None:  # fmt: skip
    located = {name: ImageFile(path) for name, path in files.items()}
    predict_scene(SegmentationNetwork(network, inputs), located, out, *options, probabilities=probabilities)


def pointwise(rgb: Tensor, sar: Tensor) -> PadOutput:
    """A network of the least kind: every pixel's classes follow from this pixel alone."""
    logits = torch.stack([rgb[:, 0], sar[:, 1] - rgb[:, 2], rgb[:, 1] * sar[:, 0]], dim=1)
    return PadOutput(logits, logits, torch.zeros(()))


def pixels(bands: int, height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (bands, height, width), dtype=np.uint8)


def write_pair(folder: Path, height: int, width: int, **profile: Any) -> dict[str, Path]:
    """Registered scenes: an optical one of four bands and a SAR one."""
    files = {"optical": folder / "optical.tif", "sar": folder / "sar.tif"}
    write_tiff(files["optical"], pixels(4, height, width, 0), **profile)
    write_tiff(files["sar"], pixels(1, height, width, 1), **profile)
    return files


def at_once(files: Mapping[str, Path]) -> Tensor:
    """Probabilities (k, h, w) of the pointwise network for the whole image."""
    images = {}
    for name, source in IMAGES.items():
        with rasterio.open(files[name]) as file:
            images[NAMES[name]] = source.standardise(
                torch.from_numpy(file.read(list(source.bands)).astype(np.float32))
            )[None]
    return pointwise(**images).logits[0].softmax(dim=0)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


# Blending


@pytest.mark.parametrize("length", [1, 20, 63, 64, 65, 112, 113, 300, 1000])
@pytest.mark.parametrize("overlap", [0, 1, 16, 32])
def test_weights_sum_to_one_at_every_pixel(length: int, overlap: int) -> None:
    side = cover(length, 64, overlap)
    sums = torch.zeros(length)
    for start, weights in zip(side.starts, side.weights, strict=True):
        sums[start : start + side.size] += weights
    assert torch.allclose(sums, torch.ones(length), atol=1e-6)
    assert (side.weights > 0).all()


def test_windows_share_the_overlap_and_the_last_one_ends_with_the_image() -> None:
    assert cover(300, 64, 16).starts == [0, 48, 96, 144, 192, 236]
    assert cover(112, 64, 16).starts == [0, 48]
    assert cover(64, 64, 16).starts == [0]
    assert cover(20, 64, 16).starts == [0] and cover(20, 64, 16).size == 20


def test_weights_fall_linearly_over_the_overlap() -> None:
    first, second = cover(12, 8, 4).weights
    ramp = torch.tensor([7 / 8, 5 / 8, 3 / 8, 1 / 8])
    assert torch.allclose(first, torch.cat([torch.ones(4), ramp]))
    assert torch.allclose(second, first.flip(0))


@pytest.mark.parametrize(("height", "width"), [(160, 112), (150, 211), (64, 64), (65, 130), (40, 50), (20, 90), (7, 9)])
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_windows_of_a_pointwise_network_give_what_the_whole_image_gives(
    tmp_path: Path, height: int, width: int, overlap: int
) -> None:
    files = write_pair(tmp_path, height, width)
    out, shares = tmp_path / "map.tif", tmp_path / "shares.tif"
    map_scene(pointwise, INPUTS, files, out, replace(SMALL, overlap=overlap), probabilities=shares)
    expected = at_once(files)
    top = expected.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-4).numpy()  # elsewhere the order of additions decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(out)[0][clear], expected.argmax(dim=0).numpy()[clear])
    np.testing.assert_allclose(read(shares) / 250, expected.numpy(), atol=0.5 / 250 + 1e-5)


def test_between_two_windows_the_prediction_passes_from_one_to_the_other(tmp_path: Path) -> None:
    """Of 64 + 48 columns the middle 16 lie in both windows; the first window says class 0, the second class 1."""
    files = write_pair(tmp_path, 64, 112)
    sides = iter([0, 1])

    def alternating(rgb: Tensor, sar: Tensor) -> PadOutput:
        logits = torch.zeros(len(rgb), 3, *rgb.shape[-2:])
        for each in logits:
            each[next(sides)] = 100.0
        return PadOutput(logits, logits, torch.zeros(()))

    map_scene(alternating, INPUTS, files, tmp_path / "map.tif", SMALL, probabilities=tmp_path / "shares.tif")
    second = np.clip((np.arange(112) - 48 + 0.5) / 16, 0, 1)
    shares = read(tmp_path / "shares.tif")
    np.testing.assert_allclose(shares[1] / 250, np.tile(second, (64, 1)), atol=0.5 / 250 + 1e-6)
    assert not shares[2].any()
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], np.tile(second > 0.5, (64, 1)))


@pytest.mark.parametrize(("window", "overlap", "batch"), [(16, 0, 1), (64, 33, 1), (64, -1, 1), (64, 16, 0)])
def test_windows_that_cannot_be_are_refused(window: int, overlap: int, batch: int) -> None:
    together = f"window {window}, overlap {overlap}: a window has at least 32"
    with pytest.raises(InputError, match=rf"{together}|SceneOptions\.overlap is -1|SceneOptions\.batch is 0"):
        SceneOptions(window=window, overlap=overlap, batch=batch).suited_to(SegmentationNetwork(pointwise, INPUTS))


# Missing pixels


def test_pixels_that_are_missing_in_both_images_have_no_class(tmp_path: Path) -> None:
    optical, sar = pixels(3, 100, 150, 0), pixels(1, 100, 150, 1)
    optical[:, :40] = optical[:, :, 80:] = 0  # whole windows too
    sar[:, :, 70:] = 0
    optical[0, 60:] = 0  # a dark band alone is no missing pixel
    files = {"optical": tmp_path / "optical.tif", "sar": tmp_path / "sar.tif"}
    write_tiff(files["optical"], optical)
    write_tiff(files["sar"], sar)
    inputs = inputs_of({name: replace(source, nodata=0) for name, source in IMAGES.items()})
    out, shares = tmp_path / "map.tif", tmp_path / "shares.tif"
    map_scene(pointwise, inputs, files, out, SMALL, probabilities=shares)
    missing = np.zeros((100, 150), dtype=bool)
    missing[:40, 70:] = missing[:, 80:] = True
    np.testing.assert_array_equal(read(out)[0] == 255, missing)
    np.testing.assert_array_equal(read(shares) == 255, np.broadcast_to(missing, (3, 100, 150)))


def test_what_a_file_calls_missing_has_no_class_either(tmp_path: Path) -> None:
    optical, sar = pixels(3, 40, 40, 0), pixels(1, 40, 40, 1)
    optical[:, :5] = sar[:, :5] = 0
    files = {"optical": tmp_path / "optical.tif", "sar": tmp_path / "sar.tif"}
    write_tiff(files["optical"], optical, nodata=0)
    write_tiff(files["sar"], sar, nodata=0)
    map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    found = read(tmp_path / "map.tif")[0]
    assert (found[:5] == 255).all() and (found[5:] < 3).all()


def test_what_one_image_calls_missing_and_the_other_holds_as_0_has_no_class(tmp_path: Path) -> None:
    """Two cuts of one footprint: the optical one is transparent outside of it, the SAR one 0 and says nothing."""
    optical, sar = pixels(3, 40, 40, 0), pixels(1, 40, 40, 1)
    alpha = np.full((1, 40, 40), 255, dtype=np.uint8)
    alpha[:, :, :10] = optical[:, :, :10] = sar[:, :, :10] = 0
    sar[:, 30:] = 0  # shadow where the optical image has pixels
    alpha[:, :, 35:] = 0  # a cloud where the SAR image has echoes
    files = {"optical": tmp_path / "optical.tif", "sar": tmp_path / "sar.tif"}
    write_tiff(files["optical"], np.concatenate([optical, alpha]), photometric="RGB", alpha="YES")
    write_tiff(files["sar"], sar)
    map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    missing = np.zeros((40, 40), dtype=bool)
    missing[:, :10] = missing[30:, 35:] = True
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0] == 255, missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image / 255, "scaled down once too often"),
        (lambda image: image * 100, "numbers of another unit"),
        (lambda image: image / 10_000, "scaled down once too often"),
    ],
)
def test_numbers_of_another_unit_are_refused_unless_forced(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    files = write_pair(tmp_path, 40, 50)
    write_tiff(files["optical"], change(pixels(3, 40, 50, 0).astype(np.float32)))
    inputs = inputs_of(IMAGES | {"optical": replace(OPTICAL, dtype=None)})
    out = tmp_path / "map.tif"
    with pytest.raises(InputError, match=rf"optical\.tif holds .* \(mean 110\): .*{message}; .*--force"):
        map_scene(pointwise, inputs, files, out, SMALL)
    assert not out.exists()
    map_scene(pointwise, inputs, files, out, replace(SMALL, force=True))
    assert out.exists()


def test_numbers_that_the_sensor_cannot_measure_are_refused(tmp_path: Path) -> None:
    source = ImageSource(sensor="sentinel1-grd-db", mean=(-12, -19), std=(5, 5))
    power = np.random.default_rng(0).gamma(2, 0.05, (2, 40, 40)).astype(np.float32)
    write_tiff(tmp_path / "sar.tif", power, names=("VV", "VH"))
    with pytest.raises(InputError, match=r"sar\.tif holds .* as the optical image.*linear power"):
        map_scene(
            lambda rgb: PadOutput(rgb, rgb, torch.zeros(())), inputs_of({"optical": source}),
            {"optical": tmp_path / "sar.tif"}, tmp_path / "map.tif", SMALL,
        )  # fmt: skip


def test_numbers_that_are_not_finite_reach_the_network_as_the_mean(tmp_path: Path) -> None:
    optical = np.random.default_rng(0).normal(5, 2, (3, 40, 40)).astype(np.float32)
    optical[1, 3, 4], optical[:, 6, 7] = -np.inf, np.nan
    write_tiff(tmp_path / "optical.tif", optical)
    seen = []

    def watching(rgb: Tensor) -> PadOutput:
        seen.append(rgb)
        return PadOutput(rgb, rgb, torch.zeros(()))

    source = ImageSource(bands=(1, 2, 3), dtype="float32", mean=(5,) * 3, std=(2,) * 3)
    map_scene(
        watching, inputs_of({"optical": source}), {"optical": tmp_path / "optical.tif"}, tmp_path / "map.tif", SMALL
    )
    expected = (optical - 5) / 2
    expected[:, 3, 4], expected[:, 6, 7] = 0, 0  # without one band a pixel is missing
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-6)
    assert np.argwhere(read(tmp_path / "map.tif")[0] == 255).tolist() == [[6, 7]]


def test_numbers_without_meaning_make_no_map(tmp_path: Path) -> None:
    def broken(rgb: Tensor, sar: Tensor) -> PadOutput:
        return PadOutput(rgb / 0, rgb / 0, torch.zeros(()))

    with pytest.raises(InputError, match="the network gives numbers that are not finite"):
        map_scene(broken, INPUTS, write_pair(tmp_path, 40, 40), tmp_path / "map.tif", SMALL)
    assert not (tmp_path / "map.tif").exists()


# The files


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[dict[str, Path], Path, Path]:
    """A scene of 700 x 1100 pixels with its map and probabilities."""
    files = write_pair(tmp_path, 700, 1100)
    out, shares = tmp_path / "new" / "map.tif", tmp_path / "new" / "shares.tif"
    map_scene(pointwise, INPUTS, files, out, SceneOptions(window=256, overlap=64), probabilities=shares)
    return files, out, shares


def assert_cloud_optimised(path: Path) -> None:
    """GDAL says so; directories come before pixels, and the pixels of small overviews before those of large ones."""
    with rasterio.open(path) as file:
        assert file.driver == "GTiff" and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(512, 512)] * file.count
        levels = [None, *range(len(file.overviews(1)))]
        assert len(levels) > 1
        heads = [int(file.get_tag_item("IFD_OFFSET", "TIFF", bidx=1, ovr=level)) for level in levels]
        data = [int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, ovr=level)) for level in levels]
    assert heads == sorted(heads) and max(heads) < min(data) and data == sorted(data, reverse=True)


def test_both_files_are_cloud_optimised_and_lie_where_the_images_lie(mapped: tuple) -> None:
    files, *outputs = mapped
    for path in outputs:
        assert_cloud_optimised(path)
        with rasterio.open(path) as file, rasterio.open(files["optical"]) as image:
            assert (file.crs, file.transform, file.shape) == (image.crs, image.transform, image.shape)
            assert set(file.dtypes) == {"uint8"} and file.nodata == 255
    assert sorted(path.name for path in outputs[0].parent.iterdir()) == ["map.tif", "map.tif.aux.xml", "shares.tif"]


def test_the_map_has_class_colours_and_names(mapped: tuple, tmp_path: Path) -> None:
    _, out, shares = mapped
    with rasterio.open(out) as file:
        colours = file.colormap(1)
        assert [colours[index][:3] for index in range(3)] == list(CLASSES.values())
        assert colours[255][3] == 0
        assert file.tags(1) == {"CLASS_0": "farmland", "CLASS_1": "water", "CLASS_2": "rest & roads"}
    copy(out, tmp_path / "map.vrt", driver="VRT")  # GDAL writes out what it knows
    assert "<Category>rest &amp; roads</Category>" in (tmp_path / "map.vrt").read_text()
    with rasterio.open(shares) as file:
        assert file.descriptions == tuple(CLASSES)
        assert file.scales == (0.004,) * 3


def test_scenes_without_a_place_give_a_map_without_a_place(tmp_path: Path) -> None:
    files = {"optical": tmp_path / "optical.png", "sar": tmp_path / "sar.png"}
    write_plain(files["optical"], pixels(3, 80, 90, 0))
    write_plain(files["sar"], pixels(1, 80, 90, 1))
    map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs is None and file.shape == (80, 90)


def test_a_real_tile_keeps_its_place(tmp_path: Path, shared_data: Path) -> None:
    tiles, name = shared_data / "terramesh_tiles", "282D_485L_3_3.tif"
    sources = {
        "optical": ImageSource(bands=(1, 2, 3), dtype="uint8", mean=(80,) * 3, std=(40,) * 3),
        "sar": ImageSource(bands=(1, 2, 2), dtype="float32", mean=(-12, -18, -18), std=(5,) * 3),
    }
    files = {"optical": tiles / "S2RGB" / name, "sar": tiles / "S1RTC" / name}
    map_scene(pointwise, inputs_of(sources), files, tmp_path / "map.tif", SMALL)
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(files["optical"]) as image:
        assert (file.crs, file.transform, file.shape) == (image.crs, image.transform, image.shape)
        assert file.crs is not None and (file.read() < 3).all()


def test_one_image_with_a_place_is_enough(tmp_path: Path) -> None:
    files = write_pair(tmp_path, 40, 50)
    files["optical"] = tmp_path / "optical.png"
    write_plain(files["optical"], pixels(3, 40, 50, 0))
    map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(files["sar"]) as sar:
        assert (file.crs, file.transform) == (sar.crs, sar.transform)


def test_an_older_map_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    files = write_pair(tmp_path, 200, 200)
    (tmp_path / "map.tif").write_text("older")
    calls = []

    def breaking(rgb: Tensor, sar: Tensor) -> PadOutput:
        calls.append(len(rgb))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return pointwise(rgb, sar)

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        map_scene(breaking, INPUTS, files, tmp_path / "map.tif", SMALL, probabilities=tmp_path / "shares.tif")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "map.tif").read_text() == "older"


# Refusals


def registered(path: Path, **profile: Any) -> None:
    write_tiff(path, pixels(1, 64, 96, 1), **profile)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            {"crs": CRS.from_epsg(32632)},
            "optical.tif and sar.tif lie in different places: .*, CRS EPSG:32633 and EPSG:32632; resample one onto",
        ),
        (
            {"transform": from_origin(400_030, 5_000_040, 10, 10)},
            r"footprints differ by 40 map units, 4 pixels: a corner is at \(400000, 5000000\) and \(400030, 5000040\)",
        ),
        (
            {"transform": from_origin(400_000, 5_000_000, 20, 10)},
            r"960 map units, 96 pixels: a corner is at \(400960, 5000000\) and \(401920, 5000000\)",
        ),
    ],
)
def test_images_on_different_grids_are_refused_with_the_numbers(tmp_path: Path, profile: dict, message: str) -> None:
    files = write_pair(tmp_path, 64, 96)
    write_tiff(files["sar"], pixels(1, 64, 96, 1), **profile)
    with pytest.raises(InputError, match=message):
        map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    assert not (tmp_path / "map.tif").exists()


def test_a_rounded_origin_is_no_other_grid(tmp_path: Path) -> None:
    files = write_pair(tmp_path, 64, 96)
    write_tiff(files["sar"], pixels(1, 64, 96, 1), transform=from_origin(400_000.004, 5_000_000, 10, 10))
    map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.transform == Affine(10, 0, 400_000, 0, -10, 5_000_000)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    files = write_pair(tmp_path, 64, 96)
    write_tiff(files["sar"], pixels(1, 64, 95, 1))
    with pytest.raises(InputError, match="sizes in pixels differ: optical.tif 64 x 96, sar.tif 64 x 95; resample"):
        map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", SMALL)


def test_outputs_that_would_overwrite_something_are_refused(tmp_path: Path) -> None:
    files = write_pair(tmp_path, 40, 40)
    with pytest.raises(InputError, match=r"sar\.tif is an image that is read; write to another file"):
        map_scene(pointwise, INPUTS, files, tmp_path / "x" / ".." / "sar.tif")
    with pytest.raises(InputError, match="both the map and the probabilities"):
        map_scene(pointwise, INPUTS, files, tmp_path / "map.tif", probabilities=tmp_path / "map.tif")
    with pytest.raises(InputError, match="map.png is written as a GeoTIFF; let its name end in .tif"):
        map_scene(pointwise, INPUTS, files, tmp_path / "map.png")


# What a network was trained on


def pair_set() -> LabelledSet:
    optical = replace(OPTICAL, files="opt", dtype="uint16", nodata=0)
    return LabelledSet(
        name="three", root=Path("."), images={"optical": optical, "sar": replace(SAR, files="sar")}, label=LabelSource(files="lbl"),
        classes=CLASSES, splits={"all": None},
    )  # fmt: skip


def test_notes_beside_the_weights_say_how_images_were_given(tmp_path: Path) -> None:
    save_pad(ATTO, Pad(ATTO).state_dict(), tmp_path, **describe(pair_set()))
    inputs = read_pad_inputs(tmp_path)
    assert list(inputs.classes.items()) == list(CLASSES.items())
    optical, sar = inputs.images["optical"], inputs.images["sar"]
    assert (optical.source.bands, optical.source.dtype, optical.source.nodata) == ((3, 2, 1), "uint16", 0)
    assert (sar.source.bands, sar.source.dtype, sar.source.nodata) == ((1, 1, 1), "uint8", None)
    for image, source in ((optical, OPTICAL), (sar, SAR)):
        kept = image.preprocessing
        assert (tuple(kept.mean), tuple(kept.std)) == (source.mean, source.std)
        assert kept.axes is None


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    save_pad(ATTO, Pad(ATTO).state_dict(), tmp_path, inputs=INPUTS.to_record()["inputs"])
    classes = read_pad_inputs(tmp_path).classes
    assert list(classes) == ["class 0", "class 1", "class 2"] and len(set(classes.values())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, "says no mean and std of the optical image under 'inputs'; save the network with"),
        ({"inputs": {"sar": {"bands": [1]}}}, "says no mean and std of the optical image"),
        ({"inputs": {"optical": {"mean": [0], "std": [1]}}}, "takes 3 optical bands, 'inputs' has 1"),
        ({"inputs": {"optical": {"bands": [1]}}}, "classes or inputs are damaged"),
        ({"inputs": {"optical": {"bands": [1, 2], "mean": [0], "std": [1]}}}, "classes or inputs are damaged"),
        ({"classes": {"one": [1, 2, 3]}}, "tells 3 classes apart, 'classes' names 1"),
        ({"classes": {"one": [1, 2, 300]}}, "classes or inputs are damaged .*one"),
    ],
)
def test_notes_that_do_not_fit_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    config = replace(ATTO, input="rgb")
    save_pad(config, Pad(config).state_dict(), tmp_path, **(INPUTS.to_record() | change))
    with pytest.raises(InputError, match=message):
        read_pad_inputs(tmp_path)


# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders with untrained networks: of both images, of the optical one alone, and one without notes."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, config, notes in (
        ("both", ATTO, INPUTS.to_record()),
        ("rgb", replace(ATTO, input="rgb"), INPUTS.to_record()),
        ("bare", ATTO, {}),
    ):
        save_pad(config, Pad(config).state_dict(), folder / name / "model", **notes)
    return folder


def arguments(run: Path, files: Mapping[str, Path], out: Path, *more: str) -> list[str]:
    images = ["--optical", str(files["optical"]), "--sar", str(files["sar"])]
    return ["--checkpoint", str(run), *images, "--out", str(out), "--device", "cpu", *more]


def test_the_command_maps_a_scene_that_fits_one_window_as_the_network_sees_it(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, files = runs / "both", write_pair(tmp_path, 72, 96)
    main(arguments(run, files, tmp_path / "map.tif", "--probabilities", str(tmp_path / "shares.tif")))
    assert capsys.readouterr().out == f"map in {tmp_path / 'map.tif'}, probabilities in {tmp_path / 'shares.tif'}\n"
    images = {}
    for name, source in IMAGES.items():
        stored = torch.from_numpy(read(files[name])[[band - 1 for band in source.bands]].astype(np.float32))
        images[NAMES[name]] = (
            (stored - torch.tensor(source.mean)[:, None, None]) / torch.tensor(source.std)[:, None, None]
        )[None]
    with torch.no_grad():
        expected = load_pad(run / "model")(**images).logits[0].softmax(dim=0).numpy()
    np.testing.assert_allclose(read(tmp_path / "shares.tif") / 250, expected, atol=0.5 / 250 + 1e-4)


def test_images_in_a_store_give_the_map_of_those_on_disk(tmp_path: Path, runs: Path, server: ObjectStore) -> None:
    files = write_pair(tmp_path / "scene", 200, 150, tiled=True, blockxsize=64, blockysize=64)
    place = server.upload(tmp_path / "scene", "area/scene")
    stored = {name: f"{place}/{path.name}" for name, path in files.items()}
    for images, folder in ((files, tmp_path / "here"), (stored, tmp_path / "there")):
        folder.mkdir()
        given = [f"--{name}={image}" for name, image in images.items()]
        small = ["--window", "64", "--overlap", "16", "--probabilities", str(folder / "shares.tif")]
        main(["--checkpoint", str(runs / "both"), *given, "--out", str(folder / "map.tif"), "--device", "cpu", *small])
    for name in ("map.tif", "shares.tif"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--optical": "s3://imagery/gone.tif"}, "s3://imagery/gone.tif: no such file or folder in the store"),
        ({"--dask": "tcp://h:1"}, "--dask needs images that all workers see as files, not s3://imagery/a/optical.tif"),
        (
            {"--images": "s3://imagery/a"},
            "s3://imagery/a: images that are labelled whole are read from folders",
        ),
        (
            {"--optical": "s3://imagery/a/sar.tif"},
            "error: s3://imagery/a/sar.tif has 1 band, the network reads optical from [3, 2, 1]",
        ),
    ],
)
def test_images_in_a_store_that_do_not_serve_are_one_line(
    tmp_path: Path, runs: Path, server: ObjectStore, capsys: pytest.CaptureFixture[str], change: dict, message: str
) -> None:
    write_pair(tmp_path / "a", 40, 40)
    place = server.upload(tmp_path / "a", "a")
    options = {"--checkpoint": str(runs / "both"), "--optical": f"{place}/optical.tif", "--sar": f"{place}/sar.tif"}
    options |= {"--out": str(tmp_path / "map.tif")} | change
    with pytest.raises(SystemExit, match="2"):
        main([part for pair in options.items() for part in pair])
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and "alliance_" not in told and not (tmp_path / "map.tif").exists()


def test_a_network_of_one_modality_needs_one_image(tmp_path: Path, runs: Path) -> None:
    run, files = runs / "rgb", write_pair(tmp_path, 70, 100)
    command = [str(ROOT / "finetune" / "predict.py"), "--checkpoint", str(run / "model")]
    command += ["--optical", str(files["optical"]), "--out", str(tmp_path / "map.tif")]
    done = warm.run([*command, "--device", "cpu", "--window", "64", "--overlap", "16"], environment(), 100)
    assert done.returncode == 0, done.stdout
    assert (read(tmp_path / "map.tif") < 3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--optical": "gone.tif"}, "error: gone.tif is no file; give the optical image, or FILE:KEY"),
        ({"--optical": "sar.tif"}, "error: sar.tif has 1 band, the network reads optical from [3, 2, 1]"),
        ({"--optical": "floats.tif"}, "error: floats.tif holds float32, the network was trained on uint8; convert the"),
        ({"--sar": None}, "error: the network in both takes optical and sar; give --sar FILE"),
        ({"--checkpoint": "rgb"}, "error: the network in rgb takes optical alone; omit --sar"),
        ({"--checkpoint": "bare"}, "error: bare/model/config.json says no mean and std of the optical image"),
        (
            {"--checkpoint": "nowhere"},
            "error: nowhere holds no trained network (model.safetensors, config.json), as there is no such folder; give a run",
        ),
        ({"--out": "map.jpg"}, "error: map.jpg is written as a GeoTIFF; let its name end in .tif"),
        ({"--overlap": "400"}, "error: window 512, overlap 400: a window has at least 32 pixels, the overlap"),
        ({"--device": "abacus"}, "error: --device abacus cannot be used"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_wrong_inputs_are_one_line_and_exit_code_2(
    tmp_path: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pair(Path("."), 40, 40)
    write_tiff(Path("floats.tif"), np.zeros((3, 40, 40), dtype=np.float32))
    for run in runs.iterdir():
        Path(run.name).symlink_to(run)
    options = {"--checkpoint": "both", "--optical": "optical.tif", "--sar": "sar.tif", "--out": "map.tif"} | change
    with pytest.raises(SystemExit, match="2"):
        main([part for name, value in options.items() if value is not None for part in (name, value)])
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1
    assert not list(Path(".").glob("map*"))
