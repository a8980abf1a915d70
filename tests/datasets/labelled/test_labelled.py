"""Labelled scenes from files: every known layout, every format, missing values, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml

from alliance.errors import InputError
from datasets.labelled import LabelledScene, Layout, find_set, read_scenes, set_names
from datasets.labelled.find import find_scenes
from tests.helpers.labelled_files import GRID, arrays_for, cell, made_scene, own_set, write_layout, write_matlab
from tests.helpers.rasters import write_tiff

LAYOUTS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name in set_names()
    for index in range(len(find_set(name).layouts))
]
OWN = {"passive": "hsi.mat", "active": "sar.mat", "labels": "gt.mat"}


def one_scene(folder: Path, layout: dict[str, str], **described) -> LabelledScene:
    (scene,) = read_scenes(own_set(folder, layouts=[layout], **described))
    return scene


def write_own(folder: Path, **changed: np.ndarray) -> None:
    """Files of OWN: 3 bands and 1 channel of 2 x 4 pixels, of which 6 have a label."""
    images = {"hsi": np.arange(24.0).reshape(2, 4, 3), "sar": np.ones((2, 4))}
    for stem, array in {**images, "gt": np.array([[1, 1, 2, 2], [0, 3, 3, 0]]), **changed}.items():
        scipy.io.savemat(folder / f"{stem}.mat", {stem: array})


# Layouts and formats


@pytest.mark.parametrize("matlab", ["v5", "v7.3"])
@pytest.mark.parametrize(("name", "index"), LAYOUTS)
def test_every_layout_opens(name, index, matlab, tmp_path):
    described = find_set(name, tmp_path)
    layout = described.layouts[index]
    if matlab == "v7.3" and "Lidar/0" in layout.images.get("active", ""):
        pytest.skip("MATLAB 7.3 keeps cells elsewhere")
    arrays = arrays_for(described, layout)
    write_layout(tmp_path, layout, arrays, matlab=matlab)
    (scene,) = read_scenes(described)
    if "passive" in layout.images:
        np.testing.assert_allclose(scene.passive, arrays["passive"].transpose(2, 0, 1), rtol=1e-6)
    else:
        assert scene.passive.shape == (0, *GRID)
    assert scene.active.shape == (arrays["active"].shape[2] if "active" in layout.images else 0, *GRID)
    if layout.labels:
        assert (scene.labels == np.maximum(arrays["labels"], 0)).all()
    if layout.train:
        assert scene.train is not None and scene.test is not None
        assert (scene.train ^ scene.test == (scene.labels > 0)).all()
        found = np.argwhere(scene.train) if layout.labels else np.where(scene.train, scene.labels, 0)
        assert np.array_equal(found, arrays["train"])
    assert (scene.blocks is None) == (layout.blocks is None)


@pytest.mark.parametrize("suffix", ["mat", "npy", "tif", "h5"])
def test_formats_give_the_same_scene(suffix, tmp_path):
    """Passive (2, 3, 4) with value 100 band + 10 row + column."""
    values = 100 * np.arange(2)[:, None, None] + 10 * np.arange(3)[:, None] + np.arange(4)
    labels = np.array([[1, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0]])
    layout = {"passive": f"passive.{suffix}", "labels": f"labels.{suffix}"}
    stored = {"passive": values.transpose(1, 2, 0).astype(np.float32), "labels": labels}
    if suffix == "h5":
        for role, array in stored.items():
            write_matlab(tmp_path / f"{role}.h5", {role: array.T}, "v7.3")  # other programs do not turn the axes
    else:
        write_layout(tmp_path, Layout(images={"passive": layout["passive"]}, labels=layout["labels"]), stored)
    scene = one_scene(tmp_path, layout, bands=2)
    assert scene.passive.dtype == np.float32 and (scene.passive == values).all()
    assert scene.labels.dtype == np.int64 and (scene.labels == labels).all()


def test_a_two_dimensional_image_has_one_channel(tmp_path):
    write_own(tmp_path)
    assert one_scene(tmp_path, OWN).active.shape == (1, 2, 4)


def test_rasters_keep_their_place_and_stars_make_scenes(tmp_path):
    layout = {"passive": "msi/*_s2.tif", "active": "sar/*.tif", "labels": "label/*.tif"}
    for name in ("b", "a"):
        write_tiff(tmp_path / f"msi/{name}_s2.tif", np.full((4, 5, 6), ord(name), dtype=np.uint16))
        write_tiff(tmp_path / f"sar/{name}.tif", np.ones((2, 5, 6), dtype=np.float32))
        write_tiff(tmp_path / f"label/{name}.tif", np.ones((1, 5, 6), dtype=np.uint8))
    scenes = read_scenes(own_set(tmp_path, layouts=[layout]))
    assert [(scene.name, scene.passive[0, 0, 0]) for scene in scenes] == [("a", ord("a")), ("b", ord("b"))]
    assert scenes[0].crs == "EPSG:32633" and scenes[0].transform == (10, 0, 400_000, 0, -10, 5_000_000)


def test_the_layout_is_the_one_whose_files_are_there(tmp_path):
    houston = find_set("houston2013", tmp_path)
    write_layout(tmp_path, houston.layouts[1], arrays_for(houston, houston.layouts[1]))
    assert find_scenes(houston) == [(tmp_path.name, houston.layouts[1])]


def test_structs_cells_and_logicals_are_read(tmp_path):
    inner = np.ones((2, 4), dtype=np.float32)
    logical = np.array([[True, False], [False, True]])
    content = {"hsi": {"Lidar": cell({"z": inner}), "name": "x"}, "mask": logical}
    scipy.io.savemat(tmp_path / "a.mat", content)
    with_cubes = {"passive": "a.mat:hsi/Lidar/0/z", "labels": "b.mat"}
    scipy.io.savemat(tmp_path / "b.mat", {"anything": np.ones((2, 4), dtype=np.uint8)})
    assert (one_scene(tmp_path, with_cubes).passive == 1).all()
    (tmp_path / "b.mat").unlink()
    scipy.io.savemat(tmp_path / "c.mat", {"c": np.zeros((2, 2)), "d": np.zeros((2, 2))})
    assert (one_scene(tmp_path, {"passive": "c.mat", "labels": "a.mat:mask"}).labels == logical).all()


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "hsi.npy", np.array([[{}]]), allow_pickle=True)  # an array of Python objects
    np.save(tmp_path / "gt.npy", np.ones((2, 2)))
    with pytest.raises(InputError, match="hsi.npy cannot be read: .*Python objects"):
        one_scene(tmp_path, {"passive": "hsi.npy", "labels": "gt.npy"})


# Labels


@pytest.mark.parametrize("origin", [0, 1])
def test_lists_of_pixels_count_from_0_or_1(origin, tmp_path):
    train, test = np.array([[0, 0], [0, 2], [1, 1]]), np.array([[0, 1], [0, 3], [1, 2]])
    write_own(tmp_path, index=train + origin, index2=test + origin)
    scene = one_scene(tmp_path, OWN | {"train": "index.mat", "test": "index2.mat"})
    assert np.argwhere(scene.train).tolist() == train.tolist() and np.argwhere(scene.test).tolist() == test.tolist()


def test_a_mask_may_stand_for_official_pixels(tmp_path):
    write_own(tmp_path, tr=np.array([[1, 0, 1, 0], [0, 0, 1, 0]]))
    scene = one_scene(tmp_path, OWN | {"train": "tr.mat"})
    assert np.argwhere(scene.train).tolist() == [[0, 0], [0, 2], [1, 2]] and scene.test is None


def test_pixels_with_a_missing_value_lose_their_label(tmp_path):
    hsi, sar = np.arange(24.0).reshape(2, 4, 3), np.ones((2, 4))
    hsi[0, 1, 2], sar[1, 1], sar[1, 3] = np.nan, np.inf, np.nan
    write_own(tmp_path, hsi=hsi, sar=sar)
    scene = one_scene(tmp_path, OWN)
    assert scene.labels.tolist() == [[1, 0, 2, 2], [0, 0, 3, 0]] and scene.dropped == {1: 1, 3: 1}
    assert np.argwhere(np.isnan(scene.passive)).tolist() == [[2, 0, 1]]
    assert np.argwhere(np.isnan(scene.active)).tolist() == [[0, 1, 1], [0, 1, 3]]


def test_nodata_is_missing(tmp_path):
    write_own(tmp_path)
    sar = np.ones((1, 2, 4), dtype=np.float32)
    sar[0, 0, 0] = -9999
    write_tiff(tmp_path / "sar.tif", sar, nodata=-9999)
    scene = one_scene(tmp_path, OWN | {"active": "sar.tif"})
    assert scene.labels[0].tolist() == [0, 1, 2, 2] and np.isnan(scene.active[0, 0, 0])


def test_the_mark_of_unlabelled_pixels_is_0(tmp_path):
    write_own(tmp_path, gt=np.array([[-1, 1, 2, 0], [-1, -1, -1, 2]]))
    assert one_scene(tmp_path, OWN, unlabelled=-1).labels.tolist() == [[0, 1, 2, 0], [0, 0, 0, 2]]


def test_sar_becomes_logarithms_by_hand(tmp_path):
    write_own(tmp_path, sar=np.array([[0, math.e - 1, 1 - math.e, 0], [0, 0, 0, math.e**2 - 1]]))
    active = one_scene(tmp_path, OWN, log_active=True).active[0]
    np.testing.assert_allclose(active, [[0, 1, -1, 0], [0, 0, 0, 2]], atol=1e-6)


# What is refused

NAN_BAND = np.arange(24.0).reshape(2, 4, 3) * np.array([1, np.nan, 1])
TURNED = np.ones((4, 2))
HALF, OUT = np.full((2, 4), 1.5), np.array([[1, 1, 2, 2], [0, 9, 3, 0]])
BOTH = {"tr": np.eye(2, 4), "te": np.eye(2, 4)}


def test_an_image_without_the_labels_rows_and_columns_is_told_both_sizes(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "hsi.mat", {"hsi": np.ones((20, 30, 12))})
    scipy.io.savemat(tmp_path / "gt.mat", {"gt": np.ones((40, 60), np.uint8)})  # twice as fine
    with pytest.raises(InputError, match=r"hsi \(20, 30, 12\) has not the 40 x 60 pixels of its labels; bring both"):
        one_scene(tmp_path, {"passive": "hsi.mat", "labels": "gt.mat"}, classes=["grass"])


@pytest.mark.parametrize(
    ("changed", "layout", "benchmark", "message"),
    [
        ({}, {"passive": "hsi.mat:HSI"}, {}, r"hsi.mat has no array 'HSI'; it has hsi \(2, 4, 3\)"),
        ({}, {"passive": "hsi.img"}, {}, "has no hsi.img; give the folder of the data set, or a YAML file"),
        ({}, {"passive": "hsi.csv"}, {}, "hsi.csv is none of .h5, .hdf5, .*.mat, .npy, .npz, .tif"),
        ({}, {"passive": "scene.tif:hsi"}, {}, "scene.tif is an image without keys, yet 'hsi' was asked for"),
        ({}, {"passive": "*.dat"}, {}, r"has no \*.dat"),
        ({}, {}, {"bands": 4}, "hsi.mat has 3 bands, the data set has 4; check file and key"),
        ({"sar": TURNED}, {}, {}, "active has 4 x 2 pixels, its image 2 x 4; bring both to one grid"),
        ({"gt": TURNED}, {}, {}, "labels has 4 x 2 pixels, its image 2 x 4"),
        ({"tr": np.ones((3, 3))}, {"train": "tr.mat"}, {}, "train has 3 x 3 pixels, its image 2 x 4"),
        ({"hsi": NAN_BAND}, {}, {}, "band 2 of passive of scene .* has no valid value; leave it out"),
        ({"hsi": np.ones((2, 4, 3)) * 1j}, {}, {}, "hsi.mat holds complex128 values"),
        ({"gt": OUT}, {}, {"classes": ("a", "b", "c")}, "labels holds the value 9, the data set has classes 1 to 3"),
        ({"gt": -OUT}, {}, {}, "labels holds the value -1, the data set has classes from 1 on"),
        ({"gt": HALF}, {}, {}, "gt.mat holds the value 1.5; a label map has whole numbers"),
        ({"gt": np.zeros((2, 4))}, {}, {}, "has 0 labelled pixels; give a map with classes from 1 on"),
        ({"gt": np.ones((2, 4, 2))}, {}, {}, "gt.mat gt .* has several bands; give a map of one"),
        (BOTH, {"train": "tr.mat", "test": "te.mat"}, {}, "2 pixels are official for training and for test"),
        ({"tr": 2 * np.eye(2, 4)}, {"train": "tr.mat"}, {}, "2 pixels of train have no or another class in labels"),
        ({"tr": np.array([[0, 0], [7, 7], [0, 1]])}, {"train": "tr.mat"}, {}, "train list pixels that lie outside"),
        (
            {"tr": np.array([[0, 0]])},
            {"labels": None, "train": "tr.mat", "test": "gt.mat"},
            {},
            "train is a list of pixels",
        ),
        ({}, {"train": "tr.mat"}, {}, "has no tr.mat"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(changed, layout, benchmark, message, tmp_path):
    write_own(tmp_path, **changed)
    (tmp_path / "hsi.csv").write_text("1,2\n")
    write_tiff(tmp_path / "scene.tif", np.ones((3, 2, 4), dtype=np.uint8))
    named = {role: text for role, text in (OWN | layout).items() if text}
    with pytest.raises(InputError, match=message) as caught:
        one_scene(tmp_path, named, **{"bands": 3} | benchmark)
    assert "\n" not in str(caught.value)


def test_several_arrays_need_a_key(tmp_path):
    write_own(tmp_path)
    scipy.io.savemat(tmp_path / "hsi.mat", {"a": np.ones((2, 4)), "b": np.ones((2, 4))})
    with pytest.raises(InputError, match=r"has several arrays; name one as FILE:KEY; it has a \(2, 4\), b \(2, 4\)"):
        one_scene(tmp_path, OWN)


def test_damaged_files_are_refused(tmp_path):
    write_own(tmp_path)
    (tmp_path / "sar.mat").write_bytes(b"no such file format" * 20)
    with pytest.raises(InputError, match="sar.mat cannot be read"):
        one_scene(tmp_path, OWN)


def test_rasters_of_different_places_are_refused(tmp_path):
    layout = {"passive": "a.tif", "active": "b.tif", "labels": "a.tif"}
    write_tiff(tmp_path / "a.tif", np.ones((1, 4, 4), dtype=np.uint8))
    write_tiff(tmp_path / "b.tif", np.ones((1, 4, 4), dtype=np.uint8), pixel=20)
    with pytest.raises(
        InputError, match="passive and active lie in different places: .*resample one onto the other's grid"
    ):
        one_scene(tmp_path, layout)


def test_a_tile_without_its_partner_is_refused(tmp_path):
    write_tiff(tmp_path / "msi/a.tif", np.ones((1, 4, 4), dtype=np.uint8))
    write_tiff(tmp_path / "label/b.tif", np.ones((1, 4, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="a.tif is missing; give the folder of the data set, or another file name"):
        one_scene(tmp_path, {"passive": "msi/*.tif", "labels": "label/*.tif"})


@pytest.mark.parametrize("role", ["active", "train", "blocks"])
def test_scenes_in_memory_are_checked_too(role):
    with pytest.raises(InputError, match=f"{role} has 3 x 3 pixels, its image 2 x 4"):
        made_scene(np.ones((2, 4), dtype=int), **{role: np.ones((1, 3, 3) if role == "active" else (3, 3))})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layouts: [{passive: a.mat, label: b.mat}]", "unknown key 'label'; did you mean 'labels'?"),
        ("layout: []", "unknown key 'layout'; did you mean 'layouts'?"),
        ("layouts: [{active: a.mat}]", "a layout names no labels; give labels, or train and test, as FILE:KEY"),
        ("layouts: [{labels: a.mat}]", "a layout names neither a passive nor an active image"),
        ("bands: 3", "no images; configs/labelled has examples"),
        ("layouts: [3]", "a layout holds keys and values, got 3"),
        ("just text", "own.yaml holds str, not keys with values"),
        ("a: [", "own.yaml: not valid YAML"),
    ],
)
def test_wrong_descriptions_are_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        find_set(path)
    assert "\n" not in str(caught.value)


def test_unknown_data_sets_are_refused():
    with pytest.raises(InputError, match="unknown data set 'huston2013'; did you mean 'houston2013"):
        find_set("huston2013")
    with pytest.raises(
        InputError, match="nowhere.yaml: there is no such file; give the YAML file of a set, or one of augsburg"
    ):
        find_set("nowhere.yaml")


def test_missing_files_are_named_with_the_other_layouts(tmp_path):
    with pytest.raises(InputError, match="has no .*, nor one of its 2 other layouts; give the folder"):
        read_scenes(find_set("houston2013", tmp_path))


def test_all_seven_data_sets_are_described():
    names = {"houston2013", "augsburg", "berlin", "trento", "muufl", "lcz-hk", "yellow-river-estuary"}
    assert names <= set(set_names())


# Real data


@pytest.mark.parametrize(
    ("name", "folder", "passive", "active", "labelled"),
    [
        ("trento-lidar", "trento_partial", (0, 166, 600), (2, 166, 600), 30214),
        ("idtrees-mlbs", "idtrees_mlbs", (369, 140, 140), (1, 140, 140), 14324),
        ("terramesh", "terramesh_tiles", (12, 224, 224), (2, 224, 224), 224**2),
    ],
)
def test_real_scenes_open(name, folder, passive, active, labelled, shared_data):
    scene = read_scenes(find_set(name, shared_data / folder))[0]
    assert (scene.passive.shape, scene.active.shape, (scene.labels > 0).sum()) == (passive, active, labelled)


@pytest.mark.parametrize("unlabelled", [[], [255]])
def test_labels_that_may_be_counted_from_0_are_refused_until_it_is_said(tmp_path: Path, unlabelled: list[int]) -> None:
    """Four classes are named, and the map holds 0 to 3: the last class may be absent, or the first one stored as 0."""
    stored = np.resize(np.array([0, 1, 2, 3, *unlabelled], np.uint8), (6, 8))
    scipy.io.savemat(tmp_path / "a.mat", {"hsi": np.random.default_rng(0).random((6, 8, 5)), "gt": stored})
    record = {
        "classes": ["grass", "roof", "trees", "water"],
        "layouts": [{"passive": "a.mat:hsi", "labels": "a.mat:gt"}],
    }

    def read(**more: Any) -> LabelledScene:
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(record | more))
        (scene,) = read_scenes(find_set(tmp_path / "m.yaml", tmp_path))
        return scene

    with pytest.raises(
        InputError, match=r"no pixel is water, or 0 is grass; .*label: \{first: 1\}, or unlabelled: 255"
    ):
        read()
    assert [(read(label={"first": 1}).labels == number).sum() for number in range(1, 5)] == [
        (stored == number).sum() for number in range(1, 5)
    ]
    assert [(read(unlabelled=255).labels == number).sum() for number in range(1, 5)] == [
        (stored == number).sum() for number in range(4)
    ]
