"""Class maps of whole scenes: every pixel in its place, numbers and coordinates of the files, honest error counts."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from alliance.errors import InputError
from datasets.imagery.labels import PALETTE, palette_colour
from datasets.labelled import LabelledScene, PatchSet, open_patches, scene_patches
from datasets.sampling.splits import Split
from finetune.mapping.map_pictures import ERRORS, error_map, write_maps
from finetune.mapping.pixels import ClassMap, classify_scenes, mosaic, predict_places, write_geotiff
from finetune.s2fin.network import Prediction
from tests.helpers.labelled_files import made_scene, own_set
from tests.helpers.rasters import write_tiff

NUMBERS = np.array([1, 3, 7])  # classes of the files; others do not occur
SHAPES = ((6, 9), (5, 4))


class Reader(nn.Module):
    """Tells the class of a pixel from the level of its only passive band, and remembers how much it was given."""

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        self.levels = levels
        self.seen: list[int] = []

    def forward(self, spectral: Tensor, passive: Tensor, active: Tensor) -> Prediction:
        self.seen.append(len(spectral))
        assert not self.training and not torch.is_grad_enabled()
        centre = spectral.shape[-1] // 2
        distance = (spectral[:, 0, centre, centre].reshape(-1, 1) - self.levels).abs()
        return Prediction(-distance, (), None)


def truth(shape: tuple[int, int]) -> np.ndarray:
    return NUMBERS[np.random.default_rng(shape[0]).integers(0, 3, shape)]


def indices(numbers: np.ndarray) -> np.ndarray:
    """Numbers of the files, 0 unlabelled, as in maps: from 0, 255 unknown."""
    return np.where(numbers == 0, 255, np.searchsorted(NUMBERS, numbers))


def scene(shape: tuple[int, int], **more) -> LabelledScene:
    """Every pixel shows its class; every third one has a label."""
    whole = truth(shape)
    labels = np.where(np.arange(whole.size).reshape(shape) % 3 == 0, whole, 0)
    return made_scene(labels, name=f"scene{shape[0]}", **({"passive": whole[None].astype(np.float32)} | more))


def reader(patches: PatchSet, shapes: Sequence[tuple[int, int]] = SHAPES) -> Reader:
    """Its levels are those of the classes after the scenes were standardised."""
    whole = np.concatenate([truth(shape).ravel() for shape in shapes])
    return Reader(torch.tensor((NUMBERS - whole.mean()) / whole.std(), dtype=torch.float32))


@pytest.fixture
def patches() -> PatchSet:
    return scene_patches([scene(shape) for shape in SHAPES], patch=3)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_every_pixel_of_every_scene_gets_its_class(batch, patches):
    model = reader(patches).train()
    maps = list(classify_scenes(model, patches, batch=batch))
    for shape, found in zip(SHAPES, maps, strict=True):
        assert np.array_equal(found.predicted, indices(truth(shape))) and found.predicted.dtype == np.uint8
        assert np.array_equal(found.truth, indices(scene(shape).labels))
        assert found.footprint.name == f"scene{shape[0]}" and found.role is None
    assert max(model.seen) <= batch and sum(model.seen) == 6 * 9 + 5 * 4
    assert model.training


def test_labelled_pixels_alone_on_request(patches):
    model = reader(patches)
    for found in classify_scenes(model, patches, labelled_only=True):
        assert np.array_equal(found.predicted, found.truth)
    assert sum(model.seen) == len(patches)


def test_classes_of_places_are_counted_from_0(patches):
    found = predict_places(reader(patches), patches, patches.place)
    assert torch.equal(found, torch.from_numpy(patches.label)) and found.dtype == torch.int64
    assert predict_places(reader(patches), patches, patches.place[:0]).shape == (0,)


def test_a_model_that_fails_keeps_its_mode(patches):
    class Broken(nn.Module):
        def forward(self, *images: Tensor) -> Prediction:
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        predict_places(model, patches, patches.place)
    assert model.training
    with pytest.raises(InputError, match="batch of 0 pixels"):
        predict_places(model, patches, patches.place, batch=0)


def test_pixels_without_a_value_have_no_class():
    shape = SHAPES[0]
    active = np.ones((1, *shape), dtype=np.float32)
    active[0, 1:3, 2] = np.nan  # pixels without a label
    patches = scene_patches([scene(shape, active=active)], patch=3)
    (found,) = classify_scenes(reader(patches, [shape]), patches)
    assert np.array_equal(found.predicted, np.where(np.isnan(active[0]), 255, indices(truth(shape))))


def test_the_geotiff_lies_where_the_scene_does(tmp_path):
    whole = truth(SHAPES[0])
    write_tiff(tmp_path / "hsi.tif", whole[None].astype(np.float32))
    write_tiff(tmp_path / "sar.tif", whole[None].astype(np.float32))
    write_tiff(tmp_path / "gt.tif", scene(SHAPES[0]).labels[None].astype(np.uint8))
    names = ("water", "-", "reed", "-", "-", "-", "mud")
    layout = {"passive": "hsi.tif", "active": "sar.tif", "labels": "gt.tif"}
    patches = open_patches(own_set(tmp_path, layouts=[layout], classes=names), patch=3)
    picture, raster = write_maps(tmp_path / "maps", reader(patches, SHAPES[:1]), patches)
    assert picture.suffix == ".png" and raster == picture.with_suffix(".tif")
    with rasterio.open(raster) as found, rasterio.open(tmp_path / "hsi.tif") as source:
        assert np.array_equal(found.read(1), indices(whole))
        assert (found.crs, found.transform) == (source.crs, source.transform)
        assert found.dtypes == ("uint8",) and found.nodata == 255
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.tags(1) == {"CLASS_0": "water", "CLASS_1": "reed", "CLASS_2": "mud"}
        assert [found.colormap(1)[index][:3] for index in range(3)] == [
            palette_colour(int(number) - 1) for number in NUMBERS
        ]
        assert found.colormap(1)[255][3] == 0


def test_a_scene_without_coordinates_is_a_picture_alone(patches, tmp_path):
    written = write_maps(tmp_path, reader(patches), patches)
    assert [path.name for path in written] == ["scene6.png", "scene5.png"]
    with pytest.raises(InputError, match="scene scene6 has no coordinates"):
        write_geotiff(tmp_path / "map.tif", next(classify_scenes(reader(patches), patches)), patches)


def test_the_picture_shows_the_classes_in_their_colours(patches, tmp_path):
    picture, _ = write_maps(tmp_path, reader(patches), patches)
    shown = {tuple(pixel) for pixel in (255 * plt.imread(picture)[..., :3]).round().astype(int).reshape(-1, 3).tolist()}
    assert {palette_colour(int(number) - 1) for number in NUMBERS} | {(0, 0, 0)} | {ERRORS["right"]} <= shown
    assert ERRORS["wrong"] not in shown


def test_colours_are_apart_from_each_other_and_from_unlabelled():
    colours = np.array([(0, 0, 0), *PALETTE])
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=-1)[~np.eye(21, dtype=bool)]
    assert len(PALETTE) == 20 and apart.min() >= 60
    assert palette_colour(20) == palette_colour(0)


def test_errors_by_hand(patches):
    """Only test pixels are right or wrong; those of training and validation are marked, whatever was predicted."""
    predicted, labels = np.array([[0, 1, 0, 0, 1, 0]]), np.array([[0, 0, 0, 0, 0, 255]])
    role = np.array([[3, 3, 1, 2, 0, 0]])
    _, kind = error_map(ClassMap(patches.footprints[0], predicted, labels, role))
    assert kind.tolist() == [["right", "wrong", "training", "validation", "not used", ""]]
    image, kind = error_map(ClassMap(patches.footprints[0], predicted, labels, None))
    assert kind.tolist() == [["right", "wrong", "right", "right", "wrong", ""]]
    assert image[0, 1].tolist() == list(ERRORS["wrong"]) and image[0, 5].tolist() == [0, 0, 0]


def test_a_split_marks_its_pixels_in_their_scenes(patches):
    split = Split(np.array([0]), np.array([1]), np.array([2, len(patches) - 1]))
    first, second = classify_scenes(reader(patches), patches, split=split)
    assert first.role is not None and second.role is not None
    assert first.role.ravel()[[0, 3, 6]].tolist() == [1, 2, 3] and first.role.sum() == 6
    assert second.role.ravel()[18] == 3 and second.role.sum() == 3  # places 0, 3, ..., 18 of 20 have labels


def test_blocks_by_hand():
    """Block 5 (class 0) is a row of 3, block 2 (class 1) a column of 2: each class has its own shelf."""
    position = np.array([[4, 7, 5], [4, 8, 5], [4, 9, 5], [0, 0, 2], [1, 0, 2]])
    spot, shape = mosaic(position, np.array([0, 0, 0, 1, 1]))
    assert spot.tolist() == [[0, 0], [0, 1], [0, 2], [2, 0], [3, 0]]
    assert shape[0] == 4 and shape[1] >= 3


def test_ready_patches_give_their_blocks_side_by_side(tmp_path):
    generator = np.random.default_rng(0)
    count = 40
    label = np.repeat([1, 3, 7, 3], 10)
    np.savez(
        tmp_path / "pixels.npz", spectra=np.repeat(label[:, None], 1, axis=1).astype(np.float32), label=label,
        lidar_patch=generator.normal(size=(count, 1, 3, 3)).astype(np.float32), block=np.repeat(np.arange(4), 10),
        row=np.tile(np.arange(10) // 5, 4), col=np.tile(np.arange(10) % 5, 4),
        neighbour_index=np.repeat(np.arange(count), 9).reshape(count, 3, 3),
    )  # fmt: skip
    patches = open_patches(own_set(tmp_path, patches="pixels.npz"), patch=3)
    levels = torch.tensor((NUMBERS - label.mean()) / label.std(), dtype=torch.float32)
    (found,) = classify_scenes(Reader(levels), patches)
    assert np.array_equal(found.predicted, found.truth)
    assert [(found.truth == index).sum() for index in range(3)] == [10, 20, 10]  # none lies on another
    assert found.truth[:2, :5].tolist() == [[0] * 5] * 2
    assert write_maps(tmp_path, Reader(levels), patches) == [tmp_path / "blocks.png"]


def test_blocks_of_real_pixels_stay_in_one_piece(shared_data: Path):
    stored = np.load(shared_data / "houston2013_patches" / "houston2013_train_pixels.npz")
    position = np.column_stack([stored["row"], stored["col"], stored["block"]]).astype(np.int64)
    spot, shape = mosaic(position, stored["label"])
    assert len(np.unique(spot, axis=0)) == len(position)
    assert (spot >= 0).all() and (spot < shape).all()
    for block in np.unique(position[:, 2]):
        shift = (spot - position[:, :2])[position[:, 2] == block]
        assert (shift == shift[0]).all()
