"""Chips and their labels as folders, tables, files beside them and label maps give them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from alliance.errors import InputError
from datasets.chips.chip import ChipSet, Found
from datasets.chips.labels import find_chips
from datasets.chips.tables import split_labels
from datasets.imagery.images import ImageSource
from tests.helpers.rasters import write_tiff

RGB = np.zeros((3, 8, 8), dtype=np.uint8)
PLAIN = ImageSource(bands=(1, 2, 3), statistics="dataset")


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_tiff(root / name, RGB + number)
    return root


def found(root: Path, *, several: bool = False, **changes: Any) -> Found:
    return find_chips(ChipSet(path=str(root), **{"image": PLAIN, **changes}), several=several)


def labels(chips: Found) -> dict[str, tuple[str, ...]]:
    return {chip.name: chip.labels for chip in chips.chips}


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        found(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Folders


def test_a_folder_of_classes(tmp_path: Path) -> None:
    chips = found(images(tmp_path, "a/1.tif", "a/2.tif", "b/1.tif", "loose.tif"))
    assert labels(chips) == {"a/1.tif": ("a",), "a/2.tif": ("a",), "b/1.tif": ("b",)}
    assert chips.classes == ("a", "b")
    assert [(one.file, one.reason) for one in chips.skipped] == [("loose.tif", "lies in no folder of a class")]
    assert {chip.split for chip in chips.chips} == {None}


@pytest.mark.parametrize("above", ["", "2750/", "EuroSAT/2750/"])
def test_folders_of_splits_above_the_classes_and_others_above_all(tmp_path: Path, above: str) -> None:
    names = [f"{above}{split}/{name}/1.tif" for split in ("Train", "val", "test") for name in "ab"]
    chips = found(images(tmp_path, *names))
    assert [chip.split for chip in chips.chips] == ["train", "train", "test", "test", "validation", "validation"]
    assert chips.classes == ("a", "b")


def test_folders_that_are_nested_in_several_ways_are_refused(tmp_path: Path) -> None:
    assert "a/x does not lie in CLASS/FILE" not in (message := refused(images(tmp_path, "a/x/1.tif", "b/2.tif")))
    assert "does not lie in CLASS/FILE, nor in train|val|test/CLASS/FILE" in message


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "no image with a label"), (("a/1.tif",), "there is the class 'a' alone; give images of others too")],
)
def test_nothing_to_tell_apart_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    assert message in refused(images(tmp_path, *names))


def test_labels_get_other_names_or_are_left_out(tmp_path: Path) -> None:
    root = images(tmp_path, "pine/1.tif", "oak/2.tif", "sea/3.tif", "cloud/4.tif")
    chips = found(root, merge={"pine": "forest", "oak": "forest", "cloud": ""})
    assert labels(chips) == {"pine/1.tif": ("forest",), "oak/2.tif": ("forest",), "sea/3.tif": ("sea",)}
    assert chips.notes == ["1 of 4 images have no label and are left out, such as cloud/4.tif"]


def test_classes_keep_the_order_that_is_given_and_others_are_refused(tmp_path: Path) -> None:
    root = images(tmp_path, "a/1.tif", "b/2.tif", "c/3.tif")
    assert found(root, classes=("c", "a", "b")).classes == ("c", "a", "b")
    message = refused(root, classes=("c", "a"))
    assert "1 images are labelled 'b', which is none of data.classes (c, a)" in message
    assert labels(found(root, classes=("c", "a"), merge={"b": ""})).keys() == {"a/1.tif", "c/3.tif"}  # the mend works


def test_lists_of_names_tell_the_splits(tmp_path: Path) -> None:
    root = images(tmp_path, "a/a_1.tif", "a/a_2.tif", "b/b_1.tif", "b/b_2.tif")
    (root / "one.txt").write_text("a_1.jpg\nb_1\n".replace("a_1.jpg", "a_1.tif"))
    (root / "two.txt").write_text("/home/x/b/b_2.tif\nnowhere.tif\n")
    chips = found(root, lists={"train": "one.txt", "val": "two.txt"})
    splits = {chip.name: chip.split for chip in chips.chips}
    assert splits == {"a/a_1.tif": "train", "b/b_1.tif": "train", "b/b_2.tif": "validation"}
    assert chips.notes == [
        "1 images stand in no list and are left out", "1 names of lists are of no image, such as nowhere.tif"
    ]  # fmt: skip
    (root / "two.txt").write_text("b_1\n")
    assert "b/b_1.tif stands in the lists of train and of val" in refused(
        root, lists={"train": "one.txt", "val": "two.txt"}
    )


# Tables


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    images(root, "x/1.tif", "x/2.tif", "y/3.tif")
    (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("file,labels,split\nx/1.tif,a;b,train\nx/2.tif,,val\ny/3.tif,b,test\n", {}),
        ("\ufefffile;labels;split\nx/1.tif;a|b;training\nx/2.tif;;valid\ny/3.tif;b;TEST\n", {}),
        ("patch_id,labels,split,country\n1,\"['a' 'b']\",train,FI\n2,[],validation,FI\n3,\"['b']\",test,FI\n", {}),
        ("image,a,b,split\n1.tif,1,1,train\n2.tif,0,0,val\n3.tif,0,1,test\n", {}),
        ("f,a,b,s,day\n1.tif,.5,.02,train,7\n2.tif,0.01,0,val,7\n3.tif,0,1.0,test,8\n",
         {"columns": {"file": "f", "split": "s"}, "classes": ("a", "b")}),
        (",Filename,Label,ClassName,split\n0,x/1.tif,0,a;b,train\n1,x/2.tif,1,,val\n2,y/3.tif,2,b,test\n",
         {"columns": {"label": "ClassName"}}),
    ],
)  # fmt: skip
def test_tables_of_every_kind_give_the_same(tmp_path: Path, text: str, changes: dict[str, Any]) -> None:
    chips = found(table(tmp_path, text), several=True, labels="table", **changes)
    assert labels(chips) == {"x/1.tif": ("a", "b"), "x/2.tif": (), "y/3.tif": ("b",)}
    assert [chip.split for chip in chips.chips] == ["train", "validation", "test"]
    assert chips.classes == ("a", "b")
    assert chips.notes == ["1 of 3 images have no label, which counts as none of the classes"]
    dropped = found(tmp_path, several=True, labels="table", unlabelled="drop", **changes)
    assert dropped.notes == ["1 of 3 images have no label and are left out, such as x/2.tif"]


def test_names_of_no_image_are_told(tmp_path: Path) -> None:
    chips = found(table(tmp_path, "file,label\nx/1.tif,a\nz/9.tif,b\ny/3.tif,b\n"), labels="table")
    assert [one.file for one in chips.skipped] == ["z/9.tif"] and len(chips.chips) == 2


@pytest.mark.parametrize(
    ("text", "several", "message"),
    [
        ("file,label\n1.tif,a;b\n3.tif,b\n", False, "x/1.tif has the labels a, b; a scene has one: train several with finetune/multilabel.py"),
        ("where,label\n1.tif,a\n", False, "has the columns where, label, none of which is known to hold the files"),
        ("file,path,label\n1.tif,1.tif,a\n", False, "the columns file and path may both hold the file; say which"),
        ("file,a,b\n1.tif,1,x\n", True, "line 2: column b holds 'x', where classes have 0, 1 or a share between"),
        ("file,a,b\n1.tif,1,7\n", True, "column b holds '7'"),
        ("file,label\n1.tif\n", False, "line 2 does not have the 2 values of the first line"),
        ("file,label\n1.tif,sand, dunes\n", False, "or put texts with ',' into quotation marks"),
        ("file,label\n,a\n", False, "line 2 names no file"),
        ("file,label\n", False, "has no rows"),
        ("file,label,label\n1.tif,a,b\n", False, "names a column twice: file, label, label"),
        ("file,label\n1.tif,a\n1.tif,b\n", False, "x/1.tif stands there twice, with different labels or splits"),
        ("file,split\n1.tif,train\n", True, "has neither a column of labels nor one for a class"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_understood_are_refused(tmp_path: Path, text: str, several: bool, message: str) -> None:
    assert message in refused(table(tmp_path, text), labels="table", several=several)


def test_the_table_must_be_the_only_one_or_named(tmp_path: Path) -> None:
    root = table(tmp_path, "file,label\n1.tif,a\n3.tif,b\n")
    table(tmp_path, "file,label\n1.tif,c\n3.tif,d\n", "other.csv")
    assert "has 2 tables (labels.csv, other.csv); name the one with the labels" in refused(root, labels="table")
    assert found(root, labels="table", table="other.csv").classes == ("c", "d")
    assert "other.tsv is no file" in refused(root, labels="table", table="other.tsv")


def test_labels_of_a_cell() -> None:
    assert split_labels(["a", "b, c"]) == ("a", "b, c")
    assert split_labels("['a' \"b, c's\"]") == ("a", "b, c's")
    assert split_labels("[a, b]") == ("a", "b") and split_labels(" a ; a|b ") == ("a", "b")
    assert split_labels(None) == split_labels("") == split_labels("[]") == ()


# BigEarthNet


def patch(folder: Path, labels: list[str] | None, bands: tuple[str, ...] = ("B02", "B03", "B04")) -> None:
    for number, band in enumerate(bands):
        side = 4 if band == "B01" else 12
        pixels = np.full((1, side, side), 100 * (number + 1), dtype=np.uint16)
        write_tiff(folder / f"{folder.name}_{band}.tif", pixels, pixel=120 / side)
    if labels is not None:
        (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps({"labels": labels}))


OPTICAL = ImageSource(sensor="sentinel2-l2a", bands=("B02", "B03", "B04"), statistics="dataset")


def test_patches_of_real_files(shared_data: Path) -> None:
    """Four patches of Sentinel-2 and of Sentinel-1, twelve files and two files each, with the same labels."""
    every = {}
    for folder, sensor, bands in (("S2", "sentinel2-l2a", 12), ("S1", "sentinel1-grd-db", 2)):
        image = ImageSource(sensor=sensor, statistics="dataset")
        chips = found(shared_data / "bigearthnet" / folder, labels="bigearthnet", image=image, several=True)
        assert len(chips.chips) == 4 and not chips.skipped
        assert {len(chip.files) for chip in chips.chips} == {bands}
        every[folder] = sorted(sorted(chip.labels) for chip in chips.chips)
    assert every["S1"] == every["S2"]
    assert ["Non-irrigated arable land", "Pastures"] in every["S2"]


def test_patches_without_labels_or_with_one_band_are_told(tmp_path: Path) -> None:
    patch(tmp_path / "P_1_2", ["Pastures", "Airports"])
    patch(tmp_path / "P_1_3", None)
    patch(tmp_path / "P_1_4", ["Pastures"], bands=("B02",))
    chips = found(tmp_path, labels="bigearthnet", image=OPTICAL, several=True, merge={"Airports": ""})
    assert labels(chips) == {"P_1_2": ("Pastures",)}
    assert {one.file: one.reason[:20] for one in chips.skipped} == {
        "P_1_3": "0 files *_labels_met", "P_1_4/P_1_4_B02.tif": "has no other band of"
    }  # fmt: skip
    (tmp_path / "P_1_2" / "P_1_2_labels_metadata.json").write_text("{}")
    assert "does not hold the labels of a patch (it: 'labels' is missing" in refused(
        tmp_path, labels="bigearthnet", image=OPTICAL
    )


def test_version_2_has_its_labels_in_a_table_above_nested_folders(tmp_path: Path) -> None:
    for name in ("T1_1_1", "T1_1_2"):
        patch(tmp_path / "T1" / name, None)
    rows = "T1_1_1,\"['Arable land' 'Beaches, dunes, sands']\",train\nT1_1_2,\"['Pastures']\",validation\n"
    (tmp_path / "metadata.csv").write_text(f"patch_id,labels,split\n{rows}")
    chips = found(tmp_path, labels="table", image=OPTICAL, several=True)
    assert labels(chips) == {
        "T1/T1_1_1": ("Arable land", "Beaches, dunes, sands"), "T1/T1_1_2": ("Pastures",)
    }  # fmt: skip
    assert [chip.split for chip in chips.chips] == ["train", "validation"] and not chips.skipped


# Masks


def test_classes_of_a_window_are_those_that_cover_enough_of_it(tmp_path: Path) -> None:
    """A 16 x 16 map cut into four: 64 pixels each; 2 of them are 3.1 %, one is 1.6 %."""
    label = np.zeros((1, 16, 16), dtype=np.uint8)
    label[0, :2, 8] = 1  # upper right: two pixels
    label[0, 8, 0] = 1  # lower left: one
    label[0, 8:, 8:] = 255  # lower right: nothing is known
    label[0, 15, 15] = 2
    write_tiff(tmp_path / "images" / "1.tif", np.zeros((3, 16, 16), dtype=np.uint8))
    write_tiff(tmp_path / "masks" / "1.tif", label)
    (tmp_path / "set.yaml").write_text(
        "optical: {files: images, bands: [1, 2, 3]}\nlabel: {files: masks}\nclasses: [land, road, sea]\nsplits: {val: null}\n"
    )
    chips = find_chips(ChipSet(labels="masks", set=str(tmp_path / "set.yaml"), window=8, cover=0.02), several=True)
    assert labels(chips) == {
        "1@0,0": ("land",), "1@0,8": ("land", "road"), "1@8,0": ("land",), "1@8,8": ()
    }  # fmt: skip
    assert chips.classes == ("land", "road", "sea") and {chip.split for chip in chips.chips} == {"validation"}
    assert chips.source.bands == (1, 2, 3)
    tenth = ChipSet(labels="masks", set=str(tmp_path / "set.yaml"), window=8, cover=0.015)
    assert labels(find_chips(tenth, several=True))["1@8,8"] == ("sea",)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.path is empty"),
        ({"path": "x", "set": "dubai"}, "labels of masks need the description of a set"),
        ({"labels": "masks"}, "labels of masks need the description of a set"),
        ({"path": "x", "table": "a.csv"}, "data.table is of labels table, data.labels is folders"),
        ({"path": "x", "window": 64}, "data.window is of labels masks"),
        ({"path": "x", "labels": "table", "columns": {"name": "f"}}, "data.columns names 'name'; there are file, label and split"),
        ({"path": "x", "classes": ("a", "a")}, "name each once"),
        ({"path": "x", "image": ImageSource(files="x")}, "data.image.files is 'x'"),
        ({"path": "x", "cover": 0.0}, "ChipSet.cover is 0.0; give a number above 0 to 1"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        ChipSet(**settings)
    assert message in str(error.value)


def test_bands_that_are_files_of_other_ground_are_refused_with_the_reason(tmp_path: Path) -> None:
    from datasets.chips.files import describe_image, list_images

    patch(tmp_path / "P", ["a"])
    with rasterio.open(tmp_path / "P" / "P_B03.tif", "r+") as file:
        file.transform = file.transform @ rasterio.Affine.translation(500, 0)
    ((image,), _) = list_images(tmp_path / "P", OPTICAL)
    with pytest.raises(InputError, match="files of its bands are not one image: its bands lie in files of different"):
        describe_image(image, OPTICAL)
