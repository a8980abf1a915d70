"""Labels as tools and people write them: read with the right classes, or refused before training with a mend that works."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from alliance.errors import InputError
from datasets.chips.chip import ChipSet
from datasets.chips.labels import find_chips
from datasets.imagery.labels import LabelSource, read_label
from datasets.labelled import LabelledSet, Tiles, find_set, read_scenes
from datasets.labelled.checks import check_values, count_labels, refuse_shared
from datasets.releases.command import main as prepare
from datasets.synthetic.pair_trees import write_plain
from tests.helpers.labelled_files import own_set
from tests.helpers.rasters import write_tiff

CLASSES = {"land": [160, 120, 80], "water": [30, 90, 180], "town": [200, 30, 30]}
COLOURS = np.array(list(CLASSES.values()), dtype=np.uint8)
NAMES = list("abcdef")
SIDE = 12


def truth(number: int, classes: int = 3) -> np.ndarray:
    """Class indices (12, 12): every class in stripes, begun at another class in every map."""
    return ((np.arange(SIDE)[:, None] // 2 + number) % classes).repeat(SIDE, axis=1).astype(np.uint8)


def write_set_of(folder: Path, store: Callable[[np.ndarray], np.ndarray], *, classes: int = 3, **label: object) -> None:
    for number, name in enumerate(NAMES):
        own = truth(number, classes)
        write_tiff(folder / "optical" / f"{name}.tif", np.stack([own * 20 + 9 + number] * 3))
        stored = store(own)
        write_tiff(folder / "labels" / f"{name}.tif", stored if stored.ndim == 3 else stored[None], **label)


def described(folder: Path, **changes: object) -> LabelledSet:
    record = {"optical": {"files": "optical", "bands": [1, 2, 3]}, "label": {"files": "labels"}, "classes": CLASSES}
    record |= {"splits": {"train": NAMES[:4], "test": NAMES[4:]}} | changes
    (folder / "set.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return find_set(folder / "set.yaml")


def check(found: LabelledSet) -> list[str]:
    return check_values(found, {split: count_labels(Tiles(found, split)) for split in found.splits})


@pytest.mark.parametrize(
    "store",
    [
        pytest.param(lambda label: label.astype(np.int32), id="int32"),
        pytest.param(lambda label: label.astype(np.int64), id="int64"),
        pytest.param(lambda label: label.astype(np.float32), id="float32"),
        pytest.param(lambda label: np.moveaxis(COLOURS[label], -1, 0), id="colours"),
        pytest.param(lambda label: np.stack([label] * 3), id="three equal bands"),
        pytest.param(lambda label: np.moveaxis(COLOURS[label], -1, 0).astype(np.uint16), id="colours in 16 bits"),
        pytest.param(lambda label: np.moveaxis(COLOURS[label], -1, 0).astype(np.uint16) * 257, id="colours of 16 bits"),
    ],
)
def test_whole_numbers_of_any_kind_and_colours_are_classes(store: Callable, tmp_path: Path) -> None:
    write_set_of(tmp_path, store)
    tiles = Tiles(described(tmp_path), "train")
    for number in range(4):
        assert np.array_equal(tiles[number].label, truth(number))


def test_of_several_bands_the_one_that_is_named_holds_the_classes(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.stack([label * 0 + 9, label, label, label]).astype(np.uint16))
    with pytest.raises(InputError, match=r"has 4 bands of uint16.*name it: label.band: 1"):
        Tiles(described(tmp_path), "train")[0]
    found = described(tmp_path, label={"files": "labels", "band": 2})
    assert np.array_equal(Tiles(found, "train")[1].label, truth(1))


def test_halves_are_no_labels(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label + np.float32(0.5))
    with pytest.raises(InputError, match="holds the value 0.5; a label map has whole numbers"):
        Tiles(described(tmp_path), "train")[0]


def test_colours_of_no_class_are_refused_or_ignored(tmp_path: Path) -> None:
    def spotted(label: np.ndarray) -> np.ndarray:
        image = np.moveaxis(COLOURS[label], -1, 0).copy()
        image[:, 0, :2] = [[1], [2], [3]]
        return image

    write_set_of(tmp_path, spotted)
    with pytest.raises(InputError, match=r"has the colour \[1, 2, 3\] in 2 pixels.*label.unknown to ignore"):
        Tiles(described(tmp_path), "train")[0]
    label = Tiles(described(tmp_path, label={"files": "labels", "unknown": "ignore"}), "train")[0].label
    assert (label == 255).sum() == 2 and np.array_equal(label[1:], truth(0)[1:])


def test_masks_of_0_and_255_are_asked_about_and_the_answer_works(tmp_path: Path) -> None:
    classes = {name: CLASSES[name] for name in ("land", "water")}
    write_set_of(tmp_path, lambda label: label * 255, classes=2)
    with pytest.raises(InputError, match=r"0 and 255 alone.*values: \{0: 0, 255: 1\}"):
        check(described(tmp_path, classes=classes))
    found = described(tmp_path, classes=classes, label={"files": "labels", "values": {0: 0, 255: 1}})
    assert check(found) == [] and np.array_equal(Tiles(found, "test")[0].label, truth(4, 2))


def test_a_mask_of_one_class_is_asked_about_and_both_answers_work(tmp_path: Path) -> None:
    """Half of the pixels are 0, half 255: nobody can know which of them the class is."""
    write_set_of(tmp_path, lambda label: label * 255, classes=2)
    one = {"water": CLASSES["water"]}
    with pytest.raises(
        InputError, match=r"0 would be water; if 255 is, .*\{values: \{0: 255, 255: 0\}\}; if 0 is, \{0: 0, 255: 255\}"
    ):
        check(described(tmp_path, classes=one))
    masks = ChipSet(labels="masks", set=str(tmp_path / "set.yaml"))
    with pytest.raises(InputError, match="0 would be water"):
        find_chips(masks, several=True)
    for values, expected in (({0: 255, 255: 0}, truth(4, 2) == 1), ({0: 0, 255: 255}, truth(4, 2) == 0)):
        found = described(tmp_path, classes=one, label={"files": "labels", "values": values})
        assert check(found) == []
        assert np.array_equal(Tiles(found, "test")[0].label == 0, expected)
        assert {chip.labels for chip in find_chips(masks, several=True).chips} == {("water",)}


def test_masks_of_two_classes_are_asked_about_by_tasks_on_whole_images_too(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label * 255, classes=2)
    described(tmp_path, classes={name: CLASSES[name] for name in ("land", "water")})
    with pytest.raises(InputError, match="water has no pixel"):
        find_chips(ChipSet(labels="masks", set=str(tmp_path / "set.yaml")), several=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("mark", [1, 200])
def test_a_band_for_every_class_is_told_and_the_mend_works(mark: int, dtype: str, tmp_path: Path) -> None:
    def one_hot(label: np.ndarray) -> np.ndarray:
        bands = np.stack([(label == number) * mark for number in range(3)]).astype(dtype)
        bands[:, 0, 0] = 0  # of no class
        return bands

    write_set_of(tmp_path, one_hot)
    with pytest.raises(InputError, match=r"one at most is set in every pixel.*say so: label\.one_hot: true"):
        Tiles(described(tmp_path), "train")[0]
    found = described(tmp_path, label={"files": "labels", "one_hot": True})
    assert check(found) == []
    expected = truth(1)
    expected[0, 0] = 255
    assert np.array_equal(Tiles(found, "train")[1].label, expected)
    without = found.without(["water"])
    assert np.array_equal(Tiles(without, "train")[1].label, np.array([0, 255, 1] + [255] * 253)[expected])


def test_a_pixel_of_two_bands_and_more_bands_than_classes_are_refused(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.stack([label == 0, label >= 1, label == 2]).astype(np.uint8))
    with pytest.raises(InputError, match="48 pixels that several of its 3 bands mark"):
        Tiles(described(tmp_path, label={"files": "labels", "one_hot": True}), "train")[0]
    write_set_of(tmp_path, lambda label: np.stack([label == number for number in range(3)]).astype(np.uint8))
    two = {name: CLASSES[name] for name in ("land", "water")}
    with pytest.raises(InputError, match="holds 2, which is no class"):
        Tiles(described(tmp_path, classes=two, label={"files": "labels", "one_hot": True}), "train")[0]
    with pytest.raises(InputError, match="leave one of them out"):
        described(tmp_path, label={"files": "labels", "one_hot": True, "band": 1})


def test_classes_counted_from_1_are_told_before_training_though_one_tile_alone_shows_it(tmp_path: Path) -> None:
    """Class 3 of three stands in map d alone; in the others 0, 1 and 2 look like three classes counted from 0."""
    write_set_of(tmp_path, lambda label: np.where(label == 2, 0, label + 1))
    write_tiff(tmp_path / "labels" / "d.tif", (truth(3) + 1)[None])
    with pytest.raises(InputError, match=r"hold \[3\], which are no class.*values: \{0: 255, 1: 0, 2: 1, 3: 2\}"):
        check(described(tmp_path))
    found = described(tmp_path, label={"files": "labels", "values": {0: 255, 1: 0, 2: 1, 3: 2}})
    assert check(found) == [] and np.array_equal(Tiles(found, "train")[3].label, truth(3))


@pytest.mark.parametrize(
    ("mark", "kind"), [(-1, np.int32), (-9999, np.float32), (2**16 - 1, np.uint16), (2**31 - 1, np.int32)]
)
def test_what_is_proposed_for_a_mark_of_no_label_works_when_followed(mark: int, kind: type, tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.where(np.arange(SIDE) < 2, kind(mark), label.astype(kind)))
    with pytest.raises(InputError, match="which are no class") as refused:
        check(described(tmp_path))
    proposed = yaml.safe_load("{" + str(refused.value).partition("label: {")[2])
    found = described(tmp_path, label={"files": "labels", **proposed})
    assert check(found) == []
    assert np.array_equal(Tiles(found, "train").label(1), np.where(np.arange(SIDE) < 2, 255, truth(1)))


def test_one_damaged_pixel_is_damage_not_another_numbering(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.kron(label, np.ones((8, 8), np.uint8)))
    for name in NAMES:
        write_tiff(tmp_path / "optical" / f"{name}.tif", np.ones((3, 96, 96), np.uint8))
    spoilt = np.kron(truth(5), np.ones((8, 8), np.uint8))
    spoilt[0, 0] = 77
    write_tiff(tmp_path / "labels" / "f.tif", spoilt[None])
    found = described(tmp_path)
    assert check(found) == []
    with pytest.raises(InputError, match="holds 77, which is no class"):
        Tiles(found, "test")[1]


def test_a_class_that_cannot_be_learnt_is_said(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.where(label == 2, 255, label))
    assert check(described(tmp_path)) == ["no pixel of train is labelled town: that cannot be learnt"]


def test_nodata_that_is_also_a_class_is_asked_about(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label, nodata=0)
    with pytest.raises(InputError, match="declares 0 as nodata, yet it is stored value of class 0"):
        Tiles(described(tmp_path), "train")[0]
    for index in (0, 255):
        found = described(tmp_path, label={"files": "labels", "values": {0: index, 1: 1, 2: 2}})
        assert np.array_equal(Tiles(found, "train")[0].label, np.where(truth(0) == 0, index, truth(0)))


def test_numbers_may_name_classes(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: np.array([111, 312, 512], np.uint16)[label])
    found = described(tmp_path, classes={512: "water", 111: "urban", 312: "forest"})
    assert list(found.classes) == ["urban", "forest", "water"]
    assert np.array_equal(Tiles(found, "train")[2].label, truth(2))


@pytest.mark.parametrize(
    ("store", "chosen"),
    [
        pytest.param(lambda label: label, "water", id="by name"),
        pytest.param(lambda label: label, 1, id="by number"),
        pytest.param(lambda label: label, "1", id="by number as text"),
        pytest.param(lambda label: np.moveaxis(COLOURS[label], -1, 0), "water", id="of colours"),
    ],
)
def test_classes_may_be_left_out(store: Callable[[np.ndarray], np.ndarray], chosen: str | int, tmp_path: Path) -> None:
    write_set_of(tmp_path, store)
    complete = described(tmp_path)
    found = complete.without([chosen])
    assert list(found.classes) == ["land", "town"]
    assert np.array_equal(Tiles(found, "train")[0].label, np.array([0, 255, 1])[truth(0)])
    counts = {split: count_labels(Tiles(found, split), described=complete) for split in found.splits}
    # two of six stripes in every map: 48 pixels of each of 4 and 2 maps
    assert check_values(complete, counts, ["water"]) == [
        "water is left out; its pixels have no label: 192 of train, 96 of test"
    ]


def test_colour_indices_keep_their_meaning_where_a_class_is_left_out(tmp_path: Path) -> None:
    """The file numbers land, water and town 2, 0 and 1; its colours say so."""
    write_set_of(tmp_path, lambda label: label)
    colours = {number: CLASSES[name] for number, name in enumerate(("water", "town", "land"))}
    with rasterio.open(tmp_path / "labels" / "a.tif", "w", driver="GTiff", count=1, height=SIDE, width=SIDE, dtype="uint8",
                       crs="EPSG:32632", transform=from_origin(400_000, 5_000_000, 10, 10)) as file:  # fmt: skip
        file.write(np.array([2, 0, 1], np.uint8)[truth(0)][None])
        file.write_colormap(1, {number: tuple(colour) for number, colour in colours.items()})
    whole = described(tmp_path)
    assert np.array_equal(Tiles(whole, "train").label(0), truth(0))
    assert np.array_equal(Tiles(whole.without(["water"]), "train").label(0), np.array([0, 255, 1])[truth(0)])


def test_nodata_that_is_also_a_class_is_asked_about_where_another_class_is_left_out(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label, nodata=0)
    with pytest.raises(InputError, match="declares 0 as nodata, yet it is stored value of class 0"):
        Tiles(described(tmp_path).without(["town"]), "train").label(0)
    told = described(tmp_path, label={"files": "labels", "values": {0: 0, 1: 1, 2: 2}}).without(["town"])
    assert np.array_equal(Tiles(told, "train").label(0), np.array([0, 1, 255])[truth(0)])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["sea"], "'sea' is no class; there are land, water, town"),
        (["watr"], "did you mean 'water'"),
        ([7], "7 is no class; there are land, water, town, stored as 0, 1, 2"),
        (["land", "water", "town"], "all there are; one at least must stay"),
    ],
)
def test_other_classes_are_not_left_out(chosen: list[str | int], message: str, tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label)
    with pytest.raises(InputError, match=message):
        described(tmp_path).without(chosen)


@pytest.mark.parametrize("kind", ["the same names", "all found", "a copy"])
def test_test_samples_that_also_train_are_refused(kind: str, tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label)
    if kind == "a copy":
        for role in ("optical", "labels"):
            (tmp_path / role / "f.tif").write_bytes((tmp_path / role / "a.tif").read_bytes())
    splits = {
        "the same names": {"train": NAMES, "test": ["e", "f"]},
        "all found": {"train": None, "test": None},
        "a copy": {"train": NAMES[:4], "test": NAMES[4:]},
    }[kind]
    found = described(tmp_path, splits=splits)
    train, test = (Tiles(found, split) for split in ("train", "test"))
    count = {"the same names": "2 of 2", "all found": "6 of 6", "a copy": "1 of 2"}[kind]
    with pytest.raises(InputError, match=f"{count} samples of test also stand in train"):
        refuse_shared(train, test)
    if kind != "a copy":
        refuse_shared(*(Tiles(described(tmp_path), split) for split in ("train", "test")))


def test_labels_elsewhere_are_refused_and_those_without_a_place_are_not(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: label)
    write_tiff(tmp_path / "labels" / "a.tif", truth(0)[None], transform=from_origin(400_240, 5_000_000, 10, 10))
    write_plain(tmp_path / "labels" / "b.tif", truth(1)[None])
    tiles = Tiles(described(tmp_path), "train")
    with pytest.raises(InputError, match="a: optical and label lie in different places: footprints differ by 240 map"):
        tiles[0]
    assert np.array_equal(tiles[1].label, truth(1))


def test_check_fails_where_nothing_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set_of(tmp_path, lambda label: np.kron(label, np.ones((2, 2), np.uint8)))
    described(tmp_path)
    with pytest.raises(SystemExit) as ended:
        prepare(["check", str(tmp_path / "set.yaml")])
    assert ended.value.code == 2 and "sizes in pixels differ" in capsys.readouterr().err


# Scenes


def write_scene(folder: Path, gt: np.ndarray, **arrays: np.ndarray) -> None:
    np.save(folder / "hsi.npy", np.random.default_rng(0).random((*gt.shape, 5), dtype=np.float32))
    for name, array in {"gt": gt, **arrays}.items():
        np.save(folder / f"{name}.npy", array)


LAYOUT = {"passive": "hsi.npy", "labels": "gt.npy"}
GT = np.array([[0, 1, 2, 3, 0, 2]] * 4)


def scene_labels(folder: Path, **record: object) -> list[int]:
    (scene,) = read_scenes(own_set(folder, **{"layouts": [LAYOUT], "bands": 5} | record))
    return scene.labels[0].tolist()


def test_classes_counted_from_0_are_told_by_the_mark_of_unlabelled_pixels(tmp_path: Path) -> None:
    write_scene(tmp_path, np.where(GT == 0, 255, GT - 1))
    assert scene_labels(tmp_path, classes=["a", "b", "c"], unlabelled=255) == GT[0].tolist()


def test_numbers_that_may_begin_at_0_or_1_are_asked_about(tmp_path: Path) -> None:
    write_scene(tmp_path, np.where(GT == 0, 255, np.minimum(GT, 2)))
    with pytest.raises(
        InputError, match=r"labels hold \[1, 2\], which may be classes counted from 0 or from 1.*first: 1"
    ):
        scene_labels(tmp_path, classes=["a", "b", "c"], unlabelled=255)
    told = {"classes": ["a", "b", "c"], "unlabelled": 255, "label": {"first": 1}}
    assert scene_labels(tmp_path, **told) == np.minimum(GT, 2)[0].tolist()


def test_names_by_number_hold_whatever_their_order(tmp_path: Path) -> None:
    write_scene(tmp_path, GT)
    found = own_set(tmp_path, layouts=[LAYOUT], bands=5, classes={3: "water", 1: "grass", 2: "roof"})
    (scene,) = read_scenes(found)
    assert scene.classes == ("grass", "roof", "water") and scene.labels[0].tolist() == GT[0].tolist()


def test_lists_that_fit_from_0_and_from_1_are_asked_about(tmp_path: Path) -> None:
    write_scene(tmp_path, GT * 0 + 1, train=np.array([[1, 1], [2, 3]]), test=np.array([[1, 2], [2, 2]]))
    layout = LAYOUT | {"train": "train.npy", "test": "test.npy"}
    with pytest.raises(InputError, match="fit the labels counted from 0 as well as from 1; say which"):
        read_scenes(own_set(tmp_path, layouts=[layout]))
    (scene,) = read_scenes(own_set(tmp_path, layouts=[layout | {"origin": 1}]))
    assert scene.train is not None and np.argwhere(scene.train).tolist() == [[0, 0], [1, 2]]


def test_one_list_tells_the_origin_of_both(tmp_path: Path) -> None:
    """The last row and column can only be counted from 1; so the other list, which would fit both ways, is too."""
    write_scene(tmp_path, GT * 0 + 1, train=np.array([[1, 1], [2, 3]]), test=np.array([[4, 6], [2, 2]]))
    (scene,) = read_scenes(own_set(tmp_path, layouts=[LAYOUT | {"train": "train.npy", "test": "test.npy"}]))
    assert scene.train is not None and np.argwhere(scene.train).tolist() == [[0, 0], [1, 2]]


def test_labelled_pixels_without_a_value_are_counted_by_class(tmp_path: Path) -> None:
    lidar = np.ones(GT.shape, np.float32)
    lidar[:2, 3] = np.nan  # class 3
    lidar[0, 1] = np.nan  # class 1
    write_scene(tmp_path, GT, lidar=lidar)
    (scene,) = read_scenes(own_set(tmp_path, layouts=[LAYOUT | {"active": "lidar.npy"}], bands=5))
    assert scene.dropped == {1: 1, 3: 2}


def test_a_label_file_keeps_its_place(tmp_path: Path) -> None:
    write_tiff(tmp_path / "gt.tif", truth(0)[None])
    found = read_label(tmp_path / "gt.tif", LabelSource(), dict.fromkeys(CLASSES, (0, 0, 0)), colours=False)
    with rasterio.open(tmp_path / "gt.tif") as file:
        assert found.header.transform == tuple(file.transform)[:6] and found.header.crs == file.crs.to_string()


def test_masks_of_0_and_255_whose_0_is_declared_missing_are_told_apart_when_followed(tmp_path: Path) -> None:
    write_set_of(tmp_path, lambda label: (255 * label).astype(np.uint8), classes=2)
    for name in NAMES:
        with rasterio.open(tmp_path / "labels" / f"{name}.tif", "r+") as file:
            file.nodata = 0
    two = dict(list(CLASSES.items())[:2])
    with pytest.raises(InputError, match=r"no pixel of train has a label.*label: \{values: \{0: 0, 255: 1\}\}"):
        check(described(tmp_path, classes=two))
    found = described(tmp_path, classes=two, label={"files": "labels", "values": {0: 0, 255: 1}})
    check(found)
    assert np.array_equal(Tiles(found, "train").label(1), truth(1, 2))


def test_labels_that_are_no_whole_numbers_say_how_to_mend_them(tmp_path: Path) -> None:
    lowest = float(np.finfo("f4").min)
    write_set_of(tmp_path, lambda label: np.where(label == 2, np.float32(lowest), label.astype("f4")))
    with pytest.raises(InputError, match=r"holds -3.4028235e\+38, which marks missing .*gdal_edit.py -a_nodata -3.4"):
        check(described(tmp_path))
    for name in NAMES:
        with rasterio.open(tmp_path / "labels" / f"{name}.tif", "r+") as file:
            file.nodata = lowest
    assert (Tiles(described(tmp_path), "train").label(1) == 255).sum() == (truth(1) == 2).sum()
    write_set_of(tmp_path, lambda label: label.astype("f4") / 2)
    with pytest.raises(InputError, match=r"holds the value 0.5; .*gdal_calc.py.*rint\(A \* FACTOR\)"):
        check(described(tmp_path))
