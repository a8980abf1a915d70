"""Large images are cut into windows, a share of the images is drawn, and images may come without label maps."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled import LabelledSet, Tiles
from datasets.labelled.checks import check_values, count_labels, refuse_shared
from datasets.labelled.tiles import Cut
from tests.helpers.labelled_files import own_set
from tests.helpers.rasters import write_tiff

HEIGHT, WIDTH = 70, 45


@pytest.fixture
def made(tmp_path: Path) -> tuple[LabelledSet, np.ndarray]:
    """Ten images of 70 x 45 pixels whose value is the number of the pixel, and the label map of all."""
    number = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    labels = (number % 3).astype(np.uint8)
    for name in "abcdefghij":
        write_tiff(tmp_path / "images" / f"{name}.tif", number[None].astype(np.uint16))
        write_tiff(tmp_path / "labels" / f"{name}.tif", labels[None])
    image = {"files": "images", "bands": [1], "dtype": "uint16", "nodata": 7}
    splits = {"train": list("abcdefgh"), "test": ["i", "j"]}
    found = own_set(tmp_path, optical=image, label={"files": "labels"}, classes=["x", "y", "z"], splits=splits)
    return found, labels


def places(tiles: Tiles, key: str) -> np.ndarray:
    """How often every pixel of an image is in a window."""
    count = np.zeros(HEIGHT * WIDTH, dtype=int)
    for number, name in enumerate(tiles.keys):
        if name.startswith(key):
            stored = tiles[number].images["optical"].nan_to_num(nan=7).long().flatten()
            np.add.at(count, stored.numpy(), 1)
    return count


def test_windows_for_scoring_hold_every_pixel_once(made: tuple[LabelledSet, np.ndarray]) -> None:
    tiles = Tiles(made[0], "test", cut=Cut(32))
    assert tiles.keys[:3] == ["i@0,0", "i@0,22", "i@23,0"] and len(tiles) == 2 * 3 * 2
    assert (places(tiles, "i") == 1).all()
    assert max(max(tile.label.shape) for tile in map(tiles.__getitem__, range(len(tiles)))) <= 32


def test_windows_for_training_are_whole_and_at_most_a_stride_apart(made: tuple[LabelledSet, np.ndarray]) -> None:
    described, labels = made
    tiles = Tiles(described, "train", cut=Cut(32, 16))
    assert {tile.label.shape for tile in map(tiles.__getitem__, range(len(tiles)))} == {(32, 32)}
    assert (places(tiles, "a") >= 1).all()
    rows = sorted({box.row for box in tiles.boxes if box})
    assert rows[0] == 0 and rows[-1] == HEIGHT - 32 and max(np.diff(rows)) <= 16
    for number in (0, len(tiles) - 1):
        box = tiles.boxes[number]
        assert box is not None
        assert np.array_equal(tiles[number].label, labels[box.row : box.row + 32, box.col : box.col + 32])


def test_an_image_that_fits_into_a_window_stays_whole(made: tuple[LabelledSet, np.ndarray]) -> None:
    tiles = Tiles(made[0], "test", cut=Cut(128))
    assert (tiles.keys, tiles.boxes) == (["i", "j"], [None, None])


def test_labels_of_disjoint_windows_are_counted_as_those_of_whole_images(made: tuple[LabelledSet, np.ndarray]) -> None:
    whole, parts = (count_labels(Tiles(made[0], "test", cut=cut)) for cut in (None, Cut(32)))
    assert whole.pixels == parts.pixels == {0: 2100, 1: 2100, 2: 2100}


def test_windows_of_one_image_on_both_sides_are_refused(made: tuple[LabelledSet, np.ndarray]) -> None:
    described = made[0]
    train = Tiles(described, "train", cut=Cut(32))
    with pytest.raises(InputError, match="2 of 2 samples of test also stand in train"):  # all files have the same bytes
        refuse_shared(train, Tiles(described, "test", cut=Cut(32)))


def test_a_smaller_share_of_the_images_is_part_of_a_larger_one(made: tuple[LabelledSet, np.ndarray]) -> None:
    few, more = (Tiles(made[0], "train", share=share, seed=3).keys for share in (0.25, 0.5))
    assert (len(few), len(more)) == (2, 4) and set(few) < set(more)
    assert Tiles(made[0], "train", share=0.5, seed=3).keys == more
    assert len({tuple(Tiles(made[0], "train", share=0.5, seed=seed).keys) for seed in range(6)}) > 1
    assert len(Tiles(made[0], "train", share=0.01).keys) == 1


def test_without_label_maps_pixels_are_there_or_not(made: tuple[LabelledSet, np.ndarray], tmp_path: Path) -> None:
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    (tmp_path / "labels").rmdir()
    label = Tiles(made[0], "test", labelled=False)[0].label
    missing = label == IGNORE
    assert missing.sum() == 1 and missing.flatten()[7] and set(label[~missing].tolist()) == {0}


def test_a_set_with_some_of_its_images_reads_the_same_lists(tmp_path: Path) -> None:
    """Lines hold a path for each image of the set, whichever of them is read, under a role of one's own."""
    for name in ("one", "two", "label"):
        write_tiff(tmp_path / name / "a.tif", np.full((1, 4, 4), {"one": 10, "two": 20, "label": 1}[name], np.uint8))
    (tmp_path / "list.txt").write_text("one/a.tif two/a.tif label/a.tif\n")
    source = {"bands": [1]}
    described = own_set(
        tmp_path, images={"one": source, "two": source}, label={}, classes=["x", "y"], splits={"all": "list.txt"}
    )
    tile = Tiles(described.only({"after": "two"}), "all")[0]
    assert list(tile.images) == ["after"] and (tile.images["after"] == 20).all() and (tile.label == 1).all()
    with pytest.raises(InputError, match="has no image 'three'; it has one, two"):
        described.only({"before": "three"})


def test_a_pattern_may_name_one_of_several_folders_and_a_list_all_in_one(tmp_path: Path) -> None:
    for folder, key in (("tile_1", "x"), ("tile_1", "y"), ("tile_2", "x"), ("other.tile", "x")):
        write_tiff(tmp_path / folder / "images" / f"{key}.tif", np.zeros((1, 4, 4), np.uint8))
        write_tiff(tmp_path / folder / "masks" / f"{key}_m.tif", np.zeros((1, 4, 4), np.uint8))
    image, label = {"files": "{folder}/images/{key}.tif", "bands": [1]}, {"files": "{folder}/masks/{key}_m.tif"}
    splits = {"one": ["tile_1/*"], "all": None, "some": ["tile_2/x", "tile_*/y", "tile_9/*"]}
    described = own_set(tmp_path, optical=image, label=label, classes=["x", "y"], splits=splits)
    assert Tiles(described, "one").keys == ["tile_1/x", "tile_1/y"]
    assert Tiles(described, "all").keys == ["other.tile/x", "tile_1/x", "tile_1/y", "tile_2/x"]
    some = Tiles(described, "some")
    assert some.keys == ["tile_2/x", "tile_1/y"] and [skip.file for skip in some.skipped] == ["tile_9/*"]


COLOURS = {"land": [160, 120, 80], "water": [30, 90, 180], "town": [200, 30, 30]}


def write_indexed(path: Path, order: list[str], names: np.ndarray) -> None:
    """A PNG of colour indices that numbers the colours in an order of its own; what is not in it gets grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.vectorize(lambda name: order.index(name))(names).astype(np.uint8)
    table = {number: tuple(COLOURS.get(name, [155, 155, 155])) for number, name in enumerate(order)}
    with rasterio.open(
        path, "w", driver="PNG", height=names.shape[0], width=names.shape[1], count=1, dtype="uint8"
    ) as file:
        file.write(numbers[None])
        file.write_colormap(1, table)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_indexed_pngs_are_read_by_their_colours(tmp_path: Path) -> None:
    """Each file numbers the colours as it likes, beside files of plain colours."""
    names = np.array([["land", "water"], ["town", "none"]])
    write_indexed(tmp_path / "labels" / "a.png", ["none", "water", "land", "town"], names)
    write_indexed(tmp_path / "labels" / "b.png", ["town", "none", "land", "water"], names)
    rgb = np.array([[COLOURS["land"], COLOURS["water"]], [COLOURS["town"], [155, 155, 155]]], dtype=np.uint8)
    write_tiff(tmp_path / "labels" / "c.tif", np.moveaxis(rgb, -1, 0))
    for name in "abc":
        write_tiff(tmp_path / "images" / f"{name}.tif", np.zeros((1, 2, 2), np.uint8))
    for label in ({"ignored": [[155, 155, 155]]}, {"unknown": "ignore"}):
        described = own_set(tmp_path, optical={"files": "images", "bands": [1]}, label={"files": "labels", **label},
                            classes=COLOURS, splits={"all": None})  # fmt: skip
        tiles = Tiles(described, "all")
        assert [tiles[number].label.tolist() for number in range(3)] == [[[0, 1], [2, IGNORE]]] * 3
        counts = count_labels(tiles)
        assert check_values(described, {"all": counts}) == []
        assert dict(counts.by_class({})) == {0: 3, 1: 3, 2: 3, IGNORE: 3}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_strange_colour_of_an_indexed_png_is_refused_and_not_taken_for_a_number(tmp_path: Path) -> None:
    write_indexed(
        tmp_path / "labels" / "a.png", ["town", "none", "land"], np.array([["land", "none"], ["town", "none"]])
    )
    write_tiff(tmp_path / "images" / "a.tif", np.zeros((1, 2, 2), np.uint8))
    described = own_set(tmp_path, optical={"files": "images", "bands": [1]}, label={"files": "labels"}, classes=COLOURS,
                        splits={"all": None})  # fmt: skip
    with pytest.raises(InputError, match=r"has the colour \[155, 155, 155\] in 2 pixels, which is of no class"):
        Tiles(described, "all")[0]
    mended = own_set(tmp_path, optical={"files": "images", "bands": [1]}, classes=COLOURS, splits={"all": None},
                     label={"files": "labels", "ignored": [[155, 155, 155]]})  # fmt: skip
    assert Tiles(mended, "all")[0].label.tolist() == [[0, IGNORE], [2, IGNORE]]


@pytest.mark.parametrize("stored", ["colours", "indexed"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_part_with_few_colours_is_read_as_the_whole_is(stored: str, tmp_path: Path) -> None:
    """One window holds black alone, one a colour that is of no class, one black and that colour: not class numbers."""
    classes = {"land": [200, 200, 200], "water": [0, 0, 0], "town": [200, 30, 30]}
    place = np.array([["water", "town"], ["other", "water"]]).repeat(32, axis=0).repeat(32, axis=1)
    place[32:40, 32:] = "other"
    order, colours = ["other", "town", "water", "land"], classes | {"other": [9, 90, 9]}
    rgb = np.moveaxis(np.vectorize(colours.get, otypes=[object])(place).tolist(), -1, 0).astype(np.uint8)
    (tmp_path / "labels").mkdir()
    if stored == "colours":
        write_tiff(tmp_path / "labels" / "a.tif", rgb)
    else:
        numbers = np.vectorize(order.index)(place).astype(np.uint8)
        form = {"driver": "PNG", "height": 64, "width": 64, "count": 1, "dtype": "uint8"}
        with rasterio.open(tmp_path / "labels" / "a.png", "w", **form) as file:
            file.write(numbers[None])
            file.write_colormap(1, {number: tuple(colours[name]) for number, name in enumerate(order)})
    write_tiff(tmp_path / "images" / "a.tif", np.zeros((1, 64, 64), np.uint8))
    described = own_set(tmp_path, optical={"files": "images", "bands": [1]}, classes=classes, splits={"all": None},
                        label={"files": "labels", "unknown": "ignore"})  # fmt: skip
    whole, parts = Tiles(described, "all")[0].label, Tiles(described, "all", cut=Cut(32))
    index = {"water": 1, "town": 2, "other": IGNORE}
    assert np.array_equal(whole, np.vectorize(index.get)(place))
    for number in range(4):
        row, col = divmod(number, 2)
        assert np.array_equal(parts[number].label, whole[32 * row : 32 * row + 32, 32 * col : 32 * col + 32])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_grey_ramp_beside_numbers_says_nothing_of_black_and_white(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "a.tif"
    write_tiff(path, np.array([[[0, 1], [1, 1]]], dtype=np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {number: (number, number, number, 255) for number in range(256)})
    write_tiff(tmp_path / "images" / "a.tif", np.zeros((1, 2, 2), np.uint8))
    described = own_set(tmp_path, optical={"files": "images", "bands": [1]}, label={"files": "labels"},
                        classes={"no": [0, 0, 0], "yes": [255, 255, 255]}, splits={"all": None})  # fmt: skip
    assert Tiles(described, "all")[0].label.tolist() == [[0, 1], [1, 1]]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_numbers_stay_numbers_where_the_file_paints_them_otherwise(tmp_path: Path) -> None:
    """A colour table for looking at, with colours that are not the description's, says nothing of the classes."""
    path = tmp_path / "labels" / "a.tif"
    write_tiff(path, np.array([[[0, 1], [2, 2]]], dtype=np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (1, 1, 1, 255), 1: (9, 9, 9, 255), 2: (90, 0, 0, 255)})
    write_tiff(tmp_path / "images" / "a.tif", np.zeros((1, 2, 2), np.uint8))
    described = own_set(tmp_path, optical={"files": "images", "bands": [1]}, label={"files": "labels"}, classes=COLOURS,
                        splits={"all": None})  # fmt: skip
    assert torch.equal(Tiles(described, "all")[0].label, torch.tensor([[0, 1], [2, 2]]))
