"""Embeddings: what an encoder says of every patch, blended, placed on the ground, stored in two ways."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from sklearn.decomposition import PCA

from alliance.checkpoint import save_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.sensors import Band, Sensor
from datasets.imagery.feature_maps import read_features
from finetune.mapping.command import main
from finetune.mapping.embeddings import EmbeddingOptions, embed_scene
from finetune.mapping.images import ImageFile
from tests.helpers.models import TINY_ENCODER, natural_image, randomise
from tests.helpers.object_store import ObjectStore
from tests.helpers.rasters import write_tiff

PATCH = TINY_ENCODER.patch
D = TINY_ENCODER.embed_dim
NAMES = ("blue", "green", "red", "nir")
SENSOR = Sensor(
    name="four",
    bands=tuple(
        Band(name=name, wavelength=nm, bandwidth=50.0, scale=1e-4, mean=0.2, std=0.05)
        for name, nm in zip(NAMES, (490.0, 560.0, 665.0, 842.0), strict=True)
    ),
    groups=(("blue", "green", "red"), ("nir",)),
    nodata=0.0,
)
SMALL = EmbeddingOptions(window=32, overlap=8, batch=3, positions="keep", progress=False)
HALF = 2**-11  # relative error of half precision


def encoder_of(*, local: bool = False) -> AllianceEncoder:
    """An encoder with random weights; `local`: a token follows from its own patch alone, wherever that lies."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = AllianceEncoder(dataclasses.replace(TINY_ENCODER, table=1 if local else 0), [SENSOR])
    randomise(encoder, std=0.1)
    for name, parameter in encoder.named_parameters():
        if local and "attn.proj" in name:
            torch.nn.init.zeros_(parameter)
    return encoder.eval()


def write_image(path: Path, height: int, width: int, **profile: Any) -> NDArray[np.uint16]:
    """Stored numbers (c, h, w) of reflectance around .2, none missing."""
    image = natural_image(1, len(NAMES), height, width)[0].numpy()
    stored = np.round((0.2 + 0.05 * image) * 1e4).clip(1, 1e4).astype(np.uint16)
    return write_tiff(path, stored, names=NAMES, **profile)


def forward(encoder: AllianceEncoder, stored: NDArray[np.uint16], groups: str = "mean") -> NDArray[np.float32]:
    """Features (f, h, w) of a whole image, filled up with missing pixels to whole patches."""
    h, w = stored.shape[1:]
    whole = np.zeros((len(stored), h + -h % PATCH, w + -w % PATCH), dtype=np.uint16)
    whole[:, :h, :w] = stored
    image = SENSOR.to_physical(whole)[None]
    with torch.no_grad():
        (found,) = encoder.forward_intermediates(image, SENSOR, [-1], "keep")
    return (found[0].mean(0) if groups == "mean" else found[0].flatten(0, 1)).numpy()


def embed(encoder: AllianceEncoder, image: Path, out: Path, **options: Any) -> NDArray[np.float32]:
    table = options.pop("table", None)
    embed_scene(encoder, SENSOR, ImageFile(image), out, dataclasses.replace(SMALL, **options), table=table)
    with rasterio.open(out) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        return read_features(file)


# Windows


@pytest.mark.parametrize(("groups", "positions"), [("mean", "remove"), ("mean", "keep"), ("keep", "remove")])
def test_windows_give_what_the_whole_image_does_where_a_token_sees_its_patch_alone(
    tmp_path: Path, groups: Any, positions: str
):
    encoder = encoder_of(local=True)
    stored = write_image(tmp_path / "image.tif", 91, 119)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif", groups=groups, positions=positions)
    expected = forward(encoder, stored, groups)
    assert found.shape == expected.shape == (D * (1 if groups == "mean" else 2), 23, 30)
    assert np.abs(found - expected).max() <= HALF * np.abs(expected).max() + 1e-5


def test_an_image_of_one_window_gives_what_the_encoder_does(tmp_path: Path):
    encoder = encoder_of()
    stored = write_image(tmp_path / "image.tif", 32, 28)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif")
    expected = forward(encoder, stored)
    assert np.abs(found - expected).max() <= HALF * np.abs(expected).max() + 1e-5


def test_what_an_empty_window_gives_at_a_place_is_taken_from_the_features(tmp_path: Path):
    encoder = encoder_of()
    stored = write_image(tmp_path / "image.tif", 32, 32)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif", positions="remove")
    with torch.no_grad():
        (empty,) = encoder.forward_intermediates(torch.full((1, 4, 32, 32), 0.2), SENSOR, [-1])  # the mean everywhere
    expected = forward(encoder, stored) - (empty[0] - empty[0].mean((1, 2), keepdim=True)).numpy()
    assert (empty[0] - empty[0].mean((1, 2), keepdim=True)).abs().max() > 0.1, "the encoder knows places"
    assert np.abs(found - expected).max() <= HALF * np.abs(expected).max() + 1e-5


def test_features_of_neighbouring_windows_fade_into_each_other(tmp_path: Path):
    """Two windows of 8 patches that share 4: their weights are those of the formula, written out."""
    encoder = encoder_of()
    stored = write_image(tmp_path / "image.tif", 32, 48)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif", overlap=16)
    left, right = forward(encoder, stored[:, :, :32]), forward(encoder, stored[:, :, 16:])
    weight = np.array([7, 5, 3, 1]) / 8
    shared = weight * left[:, :, 4:] + (1 - weight) * right[:, :, :4]
    expected = np.concatenate([left[:, :, :4], shared, right[:, :, 4:]], axis=2)
    assert np.abs(left[:, :, 4:] - right[:, :, :4]).max() > 0.1, "the windows differ, so that blending matters"
    assert np.abs(found - expected).max() <= HALF * np.abs(expected).max() + 1e-5


def test_a_patch_is_missing_where_less_than_half_of_its_pixels_are_there(tmp_path: Path):
    encoder = encoder_of(local=True)
    stored = write_image(tmp_path / "image.tif", 64, 65)  # the last column of patches has 4 of 16 pixels
    stored[:, 8:12, 8:10] = 0  # half of the patch in row 2, column 2
    stored[:, 20:24, 40:42] = 0
    stored[2, 20, 42] = 0  # and one pixel of one band more, in row 5, column 10
    stored[:, 32:, :32] = 0
    write_tiff(tmp_path / "image.tif", stored, names=NAMES)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif")
    missing = np.zeros((16, 17), dtype=bool)
    missing[5, 10] = missing[:, 16] = True
    missing[8:, :8] = True
    assert np.array_equal(np.isnan(found).all(0), missing) and np.array_equal(np.isnan(found).any(0), missing)
    expected = forward(encoder, stored)[:, ~missing]
    assert np.abs(found[:, ~missing] - expected).max() <= HALF * np.abs(expected).max() + 1e-5


# What is stored


def test_int8_is_within_half_a_step_of_the_features_and_says_its_scale(tmp_path: Path):
    encoder = encoder_of(local=True)
    stored = write_image(tmp_path / "image.tif", 64, 80)
    stored[:, :16, :16] = 0
    write_tiff(tmp_path / "image.tif", stored, names=NAMES)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif", dtype="int8")
    expected = forward(encoder, stored)
    expected[:, :4, :4] = np.nan
    with rasterio.open(tmp_path / "out.tif") as file:
        assert set(file.dtypes) == {"int8"} and file.nodata == -128
        scale = np.array(file.scales, dtype=np.float32)
        assert np.allclose(scale, np.nanmax(np.abs(expected), axis=(1, 2)) / 127, rtol=1e-4)
        assert (file.read()[:, :4, :4] == -128).all()
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected) / scale[:, None, None]) <= 0.5 + 1e-2


def test_principal_components_are_those_of_another_library(tmp_path: Path):
    encoder = encoder_of()
    stored = write_image(tmp_path / "image.tif", 32, 32)
    found = embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif", pca=3)
    table = forward(encoder, stored).reshape(D, -1).T
    expected = PCA(3, svd_solver="full").fit(table)
    assert expected.components_ is not None
    scores = expected.transform(table).T.reshape(3, 8, 8)
    signs = np.sign(np.take_along_axis(expected.components_, np.abs(expected.components_).argmax(1)[:, None], 1))
    assert np.abs(found - scores * signs[..., None]).max() <= HALF * np.abs(scores).max() + 1e-3
    with rasterio.open(tmp_path / "out.tif") as file:
        kept = json.loads(file.tags()["PRINCIPAL_COMPONENTS"])
    assert np.allclose(kept["share"], expected.explained_variance_ratio_, rtol=1e-4)


def test_axes_of_an_earlier_file_serve_for_another_scene_of_the_same_encoder(tmp_path: Path):
    encoder = encoder_of()
    write_image(tmp_path / "first.tif", 32, 32)
    stored = write_image(tmp_path / "second.tif", 28, 32)
    embed(encoder, tmp_path / "first.tif", tmp_path / "out.tif", pca=2)
    found = embed(encoder, tmp_path / "second.tif", tmp_path / "again.tif", pca=tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        kept = json.loads(file.tags()["PRINCIPAL_COMPONENTS"])
    centred = forward(encoder, stored) - np.array(kept["mean"])[:, None, None]
    expected = np.einsum("kf,fhw->khw", np.array(kept["axes"]), centred)
    assert np.abs(found - expected).max() <= HALF * np.abs(expected).max() + 1e-3
    with pytest.raises(InputError, match=r"components of groups 'mean', here are 'keep'; give --pca a number"):
        embed(encoder, tmp_path / "second.tif", tmp_path / "x.tif", pca=tmp_path / "out.tif", groups="keep")
    with pytest.raises(InputError, match="holds no principal components"):
        embed(encoder, tmp_path / "second.tif", tmp_path / "x.tif", pca=tmp_path / "first.tif")


# Where it lies


def test_a_patch_lies_where_its_pixels_do(tmp_path: Path):
    """50 x 38 pixels of 10 m whose upper left corner is at 400,000 and 5,000,000: 13 x 10 patches of 40 m."""
    write_image(tmp_path / "image.tif", 50, 38)
    embed(encoder_of(), tmp_path / "image.tif", tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.shape == (13, 10) and file.crs.to_epsg() == 32633
        assert file.transform == Affine(40, 0, 400_000, 0, -40, 5_000_000)


def test_patches_that_begin_before_the_image_are_placed_so(tmp_path: Path):
    encoder = AllianceEncoder(dataclasses.replace(TINY_ENCODER, patch_offset=1), [SENSOR]).eval()
    write_image(tmp_path / "image.tif", 32, 32)
    embed(encoder, tmp_path / "image.tif", tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.transform == Affine(40, 0, 399_990, 0, -40, 5_000_010)


def test_the_table_holds_the_centres_of_the_patches_and_their_features(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    stored = write_image(tmp_path / "image.tif", 50, 64, transform=Affine(0, 10, 1000, 20, 0, 2000))  # a quarter turn
    stored[:, :4, :4] = 0
    write_tiff(tmp_path / "image.tif", stored, names=NAMES, transform=Affine(0, 10, 1000, 20, 0, 2000))
    found = embed(encoder_of(), tmp_path / "image.tif", tmp_path / "out.tif", table=tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["primary_column"] == "geometry" and geo["columns"]["geometry"]["crs"]["id"]["code"] == 32633
    assert table.num_rows == 13 * 16 - 1  # but for the missing one
    rows = {(r, c): i for i, (r, c) in enumerate(zip(*(table[n].to_pylist() for n in ("row", "column")), strict=True))}
    assert (0, 0) not in rows
    order, kind, x, y = struct.unpack("<BI2d", table["geometry"][rows[2, 1]].as_py())
    assert (order, kind, x, y) == (
        1,
        1,
        1000 + 10 * 4 * 2.5,
        2000 + 20 * 4 * 1.5,
    )  # rows run to the east, columns north
    features = np.array(table["features"][rows[2, 1]].as_py())
    assert np.abs(features - found[:, 2, 1]).max() <= HALF * np.abs(features).max()


# The command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_encoder(encoder_of(), tmp_path / "encoder")


def run(checkpoint: Path, *arguments: str) -> None:
    main(["--embeddings", "--checkpoint", str(checkpoint), "--device", "cpu", *arguments])


def test_the_command_writes_embeddings_and_a_picture(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    stored = write_image(tmp_path / "image.tif", 40, 64)
    out, picture = tmp_path / "new" / "out.tif", tmp_path / "new" / "out.png"
    given = ["--pca", "3", "--dtype", "int8", "--picture", str(picture)]
    run(checkpoint, "--image", f"four={tmp_path / 'image.tif'}", "--out", str(out), *given)
    said = capsys.readouterr().out
    assert f"embeddings in {out}: 3 bands of 10 x 16 patches" in said and "% of the variance" in said
    with rasterio.open(out) as file:
        assert (file.tags()["SENSOR"], file.tags()["PATCH"]) == ("four", "4")
        assert file.descriptions == ("component 1", "component 2", "component 3")
    assert picture.stat().st_size > 1000 and stored.shape == (4, 40, 64)


def test_an_image_in_a_store_gives_the_embeddings_of_that_on_disk(
    tmp_path: Path, checkpoint: Path, server: ObjectStore
):
    write_image(tmp_path / "area" / "image.tif", 40, 64)
    place = server.upload(tmp_path / "area", "area")
    for name, image in (("here", tmp_path / "area" / "image.tif"), ("there", f"{place}/image.tif")):
        (tmp_path / name).mkdir()
        run(checkpoint, "--image", f"four={image}", "--out", str(tmp_path / name / "out.tif"))
    with rasterio.open(tmp_path / "here/out.tif") as here, rasterio.open(tmp_path / "there/out.tif") as there:
        assert np.array_equal(there.read(), here.read(), equal_nan=True)
        assert (there.tags(), there.transform, there.crs) == (here.tags(), here.transform, here.crs)


def test_some_bands_of_a_sensor_are_enough(tmp_path: Path, checkpoint: Path):
    stored = write_image(tmp_path / "image.tif", 32, 32)
    image, out = tmp_path / "two.tif", tmp_path / "out.tif"
    write_tiff(image, stored[[3, 1]], names=("nir", "green"))
    run(checkpoint, "--image", f"four={image}", "--bands", "green,nir", "--out", str(out), "--positions", "keep")
    encoder, sensor = encoder_of(), SENSOR.select(["green", "nir"])
    with torch.no_grad():
        (expected,) = encoder.forward_intermediates(sensor.to_physical(stored[[1, 3]])[None], sensor, [-1])
    with rasterio.open(out) as file:
        assert np.abs(read_features(file) - expected[0].numpy()).max() < 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "{image}"], "give SENSOR=FILE; the encoder knows the sensors four"),
        ([], "takes one image, 0 are given; give --image SENSOR=FILE"),
        (["--image", "none={image}"], "unknown sensor 'none'"),
        (["--image", "sentinel2-l2a={image}"], "sensor sentinel2-l2a has no mean and std"),
        (["--image", "four={image}", "--window", "30"], "are multiples of the patch of 4 pixels"),
        (["--image", "four={image}", "--pca", "49"], "the encoder gives 48 features; give 1 to 48"),
        (["--image", "four={image}", "--pca", "nowhere.tif"], "give --pca a number, or a file of embeddings"),
        (["--image", "four={image}", "--bands", "swir"], "sensor four has no band swir"),
        (["--image", "four={image}", "--probabilities", "x.tif"], "--probabilities does not go with --embeddings"),
        (["--image", "four={scaled}"], "which is not what the network was trained on"),
        (["--image", "four={image}", "--out", "{image}"], "is an image that is read; write to another file"),
    ],
)
def test_a_wrong_input_is_one_message_and_nothing_is_written(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    image, scaled, out = tmp_path / "image.tif", tmp_path / "scaled.tif", tmp_path / "out.tif"
    stored = write_image(image, 32, 32)
    write_tiff(scaled, stored.astype(np.float32) * 1e-4, names=NAMES)
    before = image.read_bytes()
    with pytest.raises(SystemExit) as ended:
        run(checkpoint, "--out", str(out), *(text.format(image=image, scaled=scaled) for text in arguments))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and image.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_options_of_embeddings_need_embeddings(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "map.tif"), "--device", "cpu", "--pca", "3"])
    assert "--pca goes with --embeddings; add that, or leave --pca out" in capsys.readouterr().err
